"""Read ahead and write behind in threads of their own, with bounded queues.

The thread in between waits when one queue is empty or the other full, under the names of
:data:`psssr_fast.runtime.ranges.WAITS`. Queues of 0 are none: it then does all itself, in turn.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

from psssr_fast.errors import UsageError
from psssr_fast.runtime.ranges import FOR_FRAMES, FOR_OUTPUT, waiting

Item = TypeVar("Item")
POLL = 0.1  # seconds between looks at whether the other side has gone away
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
    queue: Queue[object] = Queue(maxsize=depth)
    stopped = Event()
    failure: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            failure.append(error)
        put(_END)

    thread = Thread(target=fetch, name="psssr-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            with waiting(FOR_FRAMES):
                item = queue.get()
            if item is _END:
                break
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stopped.set()
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
        self._queue: Queue[object] = Queue(maxsize=depth)
        self._failure: BaseException | None = None
        self._abandoned = Event()
        self._thread = Thread(target=self._run, name="psssr-write-behind", daemon=True)
        self._thread.start()

    def __call__(self, item: Item) -> None:
        """Queue an item; wait while the queue is full. Raises what an earlier write raised."""
        with waiting(FOR_OUTPUT):
            self._put(item)
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait until everything is written; raise what a write raised."""
        with waiting(FOR_OUTPUT):
            self._put(_END)
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Stop after the item being written; what is queued is dropped."""
        self._abandoned.set()
        self._thread.join()

    def _put(self, item: object) -> None:
        while self._failure is None:
            try:
                self._queue.put(item, timeout=POLL)
                return
            except Full:
                continue

    def _run(self) -> None:
        try:
            while not self._abandoned.is_set():
                try:
                    item = self._queue.get(timeout=POLL)
                except Empty:
                    continue
                if item is _END:
                    return
                self._write(item)  # type: ignore[arg-type]
        except BaseException as error:
            self._failure = error


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
