"""Read ahead and write behind in threads of their own, with bounded queues.

The thread in between waits when one queue is empty or the other full, under the names of
:data:`psssr_fast.runtime.ranges.WAITS`. Queues of 0 are none: it then does all itself, in turn.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread, current_thread
from typing import Generic, TypeVar

from psssr_fast.errors import UsageError
from psssr_fast.runtime.channel import Channel
from psssr_fast.runtime.ranges import FOR_FRAMES, FOR_OUTPUT, waiting

Item = TypeVar("Item")
_END = object()


def read_ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Iterate over ``items`` while a thread fetches up to ``depth`` of them in advance.

    What ``items`` raises is raised here, after the items before it. Closing this generator, or
    dropping it, stops the thread before it returns, so that ``items`` can be closed next.

    Raises:
        UsageError: ``depth`` is negative.
    """
    if _serial(depth):
        yield from _in_turn(items)
        return
    channel: Channel[Item] = Channel(depth)
    failure: list[BaseException] = []

    def fetch() -> None:
        try:
            for item in items:
                if not channel.put(item):
                    return
        except BaseException as error:
            failure.append(error)
        channel.end()

    thread = Thread(target=fetch, name="psssr-read-ahead", daemon=True)
    thread.start()
    try:
        yield from _in_turn(channel)
        if failure:
            raise failure[0]
    finally:
        channel.close()
        if thread is not current_thread():  # the garbage collector runs in any thread
            thread.join()


def _serial(depth: int) -> bool:
    if depth < 0:
        raise UsageError(f"queue must be 0 (in turn) or so many frames; got {depth}")
    return depth == 0


def _in_turn(items: Iterable[Item]) -> Iterator[Item]:
    iterator = iter(items)
    while True:
        with waiting(FOR_FRAMES):
            item = next(iterator, _END)
        if item is _END:
            return
        yield item  # type: ignore[misc]


class WriteBehind(Generic[Item]):
    """Hands items to ``write`` in a thread of its own; see :func:`write_behind`."""

    def __init__(self, write: Callable[[Item], None], depth: int) -> None:
        self._write = write
        self._channel: Channel[Item] = Channel(depth)
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="psssr-write-behind", daemon=True)
        self._thread.start()

    def __call__(self, item: Item) -> None:
        """Queue an item; wait while the queue is full. Raises what an earlier write raised."""
        with waiting(FOR_OUTPUT):
            self._channel.put(item)
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait until everything is written; raise what a write raised."""
        with waiting(FOR_OUTPUT):
            self._channel.end()
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Stop after the item being written; what is queued is dropped."""
        self._channel.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._channel:
                self._write(item)
        except BaseException as error:
            self._failure = error
            self._channel.close()


@contextmanager
def write_behind(write: Callable[[Item], None], depth: int) -> Iterator[Callable[[Item], None]]:
    """A function that queues items for ``write``; all are written when the block ends.

    If the block raises, what is still queued is dropped and the thread stopped.

    Raises:
        UsageError: ``depth`` is negative.
    """
    if _serial(depth):

        def at_once(item: Item) -> None:
            with waiting(FOR_OUTPUT):
                write(item)

        yield at_once
        return
    behind = WriteBehind(write, depth)
    try:
        yield behind
    except BaseException:
        behind.abandon()
        raise
    behind.finish()
