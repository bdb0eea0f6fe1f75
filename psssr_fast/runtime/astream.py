"""Asynchronous iteration over a generator that computes in a thread of its own."""

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any, TypeVar

from psssr_fast.runtime.ranges import listening

POLL = 0.1  # seconds between looks at whether an event loop was closed
PATIENCE = 0.5  # seconds that a cancelled stream waits for a frame that was asked for
_END = object()

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cancelled(BaseException):
    """Ends a computation that nobody waits for any more; never reaches the user."""


def gives_up(is_over: Callable[[], bool]) -> Callable[[str], AbstractContextManager[None]]:
    """Make a listener of :mod:`psssr_fast.runtime.ranges` that ends a window at its next stage.

    Args:
        is_over: whether nobody waits for the window any more; :class:`Cancelled` is raised then.
    """

    def enter(_: str) -> AbstractContextManager[None]:
        if is_over():
            raise Cancelled
        return nullcontext()

    return enter


async def iterate(
    stream: Callable[[Iterable[Item]], Generator[Result, None, None]],
    frames: AsyncIterable[Item] | Iterable[Item],
) -> AsyncGenerator[Result, None]:
    """``stream(frames)`` without ever blocking the event loop.

    ``stream``, and ``frames`` if they are an ordinary iterable, run in a thread of their own.
    Nothing is read or computed but what the next result needs, so a slow consumer holds everything
    back. When the consumer is cancelled, or closes this generator, ``stream`` is closed; but
    nobody waits for an ordinary iterable that does not give its next frame.

    Args:
        stream: gives results for an iterator of frames.
        frames: asynchronous or not; exceptions of theirs are raised here.
    """
    stop = threading.Event()
    source: _Bridge[Item] | _Watched[Item]
    source = _Bridge(frames, stop) if isinstance(frames, AsyncIterable) else _Watched(frames, stop)
    results = stream(source)
    thread = _Steps()

    def step() -> object:
        with listening(gives_up(stop.is_set)):
            return next(results, _END)

    try:
        while (result := await asyncio.wrap_future(thread.submit(step))) is not _END:
            yield result  # type: ignore[misc]
    finally:
        stop.set()
        source.cancel()
        end = thread.submit(results.close)  # after the step under way
        thread.end()
        closing = asyncio.wrap_future(end)
        await asyncio.wait([closing], timeout=PATIENCE)
        while not closing.done() and not source.blocks:  # a stage may take longer
            await asyncio.wait([closing], timeout=PATIENCE)
        if closing.done():
            await closing
        else:
            closing.cancel()  # the iterable's next frame, if it comes, ends the stream instead


_Call = tuple["Future[Any]", Callable[[], Any]]


class _Steps:
    """A thread that calls functions one after the other, until this is forgotten.

    Unlike an executor's, it does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        calls = (self._calls,)  # without this object, which could not be forgotten otherwise
        thread = threading.Thread(target=_call_all, args=calls, name="psssr-astream", daemon=True)
        thread.start()
        weakref.finalize(self, self._calls.put, None)

    def submit(self, function: Callable[[], Result]) -> "Future[Result]":
        """Have a function called; its result or exception is that of the future."""
        future: Future[Result] = Future()
        self._calls.put((future, function))
        return future

    def end(self) -> None:
        """Let the thread end when all functions were called."""
        self._calls.put(None)


def _call_all(calls: "SimpleQueue[_Call | None]") -> None:
    while (call := calls.get()) is not None:
        future, function = call
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        del call, future, function  # nothing is held while the thread waits


class _Watched(Iterator[Item]):
    """An ordinary iterator, and whether somebody waits for its next item."""

    def __init__(self, items: Iterable[Item], stop: threading.Event) -> None:
        self._iterator = iter(items)
        self._stop = stop
        self.blocks = False

    def __next__(self) -> Item:
        if self._stop.is_set():
            raise Cancelled
        self.blocks = True
        try:
            return next(self._iterator)
        finally:
            self.blocks = False

    def cancel(self) -> None:
        """Give up waiting: impossible here."""


class _Bridge(Iterator[Item]):
    """An iterator for a thread over what is asynchronous in the running loop."""

    blocks = False  # who waits for an item can be told to give up

    def __init__(self, frames: AsyncIterable[Item], stop: threading.Event) -> None:
        self._iterator = aiter(frames)
        self._loop = asyncio.get_running_loop()
        self._stop = stop
        self._lock = threading.Lock()
        self._pending: Future[object] | None = None

    def __next__(self) -> Item:
        with self._lock:
            if self._stop.is_set() or self._loop.is_closed():
                raise Cancelled
            self._pending = asyncio.run_coroutine_threadsafe(self._pull(), self._loop)
        item = self._result(self._pending)
        if item is _END:
            raise StopIteration
        return item  # type: ignore[return-value]

    def cancel(self) -> None:
        """Give up waiting for the next item; ``stop`` was set before."""
        with self._lock:
            if self._pending is not None:
                self._pending.cancel()

    async def _pull(self) -> object:
        return await anext(self._iterator, _END)

    def _result(self, pending: Future[object]) -> object:
        while not pending.done():
            if self._loop.is_closed():
                raise Cancelled
            wait([pending], timeout=POLL)
        return pending.result()
