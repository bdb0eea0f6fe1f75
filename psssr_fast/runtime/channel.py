"""A bounded queue between two threads, either of which may leave while the other waits."""

from collections.abc import Iterator
from queue import Empty, Full, SimpleQueue
from typing import Self, TypeVar

Item = TypeVar("Item")
_END = object()


class Channel(Iterator[Item]):
    """Holds items until they are taken; waiting threads wake at once when a side leaves.

    Items are taken by iterating. Any number of threads may use a channel. It holds no lock while
    it runs Python code, so that a finalizer may call :meth:`close` wherever the garbage collector
    runs it.

    Args:
        depth: items that are held at most.
    """

    def __init__(self, depth: int) -> None:
        self._room: SimpleQueue[None] = SimpleQueue()  # an entry for every item that still fits
        for _ in range(depth):
            self._room.put(None)
        self._items: SimpleQueue[object] = SimpleQueue()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def put(self, item: Item, wait: bool = True) -> bool:
        """Add an item when there is room.

        Returns:
            Whether it was added; ``False`` if the channel is closed, or is closed meanwhile.

        Raises:
            queue.Full: there is no room, and ``wait`` is false.
        """
        if self._closed:
            return False
        try:
            self._room.get(block=wait)
        except Empty:
            raise Full from None
        if self._closed:
            self._room.put(None)  # wakes the next thread that waits for room
            return False
        self._items.put(item)
        return True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        """Wait for the next item; there is none if the channel is closed, or has ended."""
        item = self._items.get()
        if self._closed or item is _END:
            self._items.put(_END)  # wakes the next thread that waits for an item
            raise StopIteration
        self._room.put(None)
        return item  # type: ignore[return-value]  # everything but _END was put as an Item

    def end(self) -> None:
        """Say that no more items come: those that are held can still be taken."""
        self._items.put(_END)

    def close(self) -> None:
        """Drop what is held, and wake all threads that wait for room or for an item."""
        self._closed = True
        self._room.put(None)
        self._items.put(_END)
