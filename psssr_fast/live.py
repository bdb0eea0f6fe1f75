"""Frames pushed in, and asynchronous streams, over a function that only pulls.

What pulls runs in a thread of its own. A window that is being computed cannot be interrupted at
any point, but it gives up at the next stage of the model; so leaving takes one stage at most.
"""

import asyncio
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from torch import Tensor

from psssr_fast.arrays import Picture, check_frame
from psssr_fast.errors import UsageError
from psssr_fast.runtime.ranges import listening

POLL = 0.1  # seconds between looks at whether the other side has gone away
WhenFull = Literal["wait", "raise"]
_END = object()

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cancelled(BaseException):
    """Ends a computation that nobody waits for any more; never reaches the user."""


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        frames_done: frames written or handed out.
        frames_total: frames expected, if the container says.
        seconds: since the start.
        frames_resumed: of those done, what an earlier run had finished at the start.
    """

    frames_done: int
    frames_total: int | None
    seconds: float
    frames_resumed: int = 0


class Streaming(ABC):
    """What else can be made of :meth:`stream`."""

    @abstractmethod
    def stream(
        self,
        frames: Iterable[Picture],
        *,
        scale: float | None = None,
        height: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Generator[Picture, None, None]:
        """See :meth:`psssr_fast.upscaler.Upscaler.stream`."""

    def live(
        self,
        *,
        scale: float | None = None,
        height: int | None = None,
        queue: int = 8,
        when_full: WhenFull = "wait",
        progress: Callable[[Progress], None] | None = None,
    ) -> "LiveUpscaler[Any]":
        """Upscale frames that are pushed in: ``with up.live() as live: live.push(frame)``.

        Args:
            scale, height: as for a clip.
            queue, when_full: see :class:`LiveUpscaler`.
            progress: as for :meth:`stream`; called in the thread that computes.
        """
        stream = partial(self.stream, scale=scale, height=height, progress=progress)
        return LiveUpscaler(stream, queue, when_full)

    def astream(
        self,
        frames: AsyncIterable[Picture] | Iterable[Picture],
        *,
        scale: float | None = None,
        height: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> AsyncGenerator[Picture, None]:
        """:meth:`stream` for ``async for``, see :func:`iterate`; it never blocks the event loop.

        Args:
            frames: asynchronous or not; the latter are read in the thread that computes.
            scale, height: as for a clip.
            progress: as for :meth:`stream`; called in the thread that computes.
        """
        stream = partial(self.stream, scale=scale, height=height, progress=progress)
        return iterate(stream, frames)


class LiveUpscaler(Generic[Picture]):
    """Takes frames one by one, and gives those that are finished.

    Made by :meth:`Streaming.live`. To be used by one thread, best as a context
    manager: leaving it drops what is not finished and frees everything.

    Args:
        stream: gives upscaled frames for an iterator of frames.
        queue: frames that wait to be read, at most; back-pressure begins there.
        when_full: what :meth:`push` does then: ``"wait"``, or ``"raise"`` ``queue.Full``.

    Raises:
        UsageError: ``queue`` is less than 1, or ``when_full`` is of neither kind.
    """

    def __init__(
        self,
        stream: Callable[[Iterable[Picture]], Iterator[Picture]],
        queue: int = 8,
        when_full: WhenFull = "wait",
    ) -> None:
        if queue < 1 or when_full not in ("wait", "raise"):
            raise UsageError(
                "live upscaling needs queue >= 1 and when_full 'wait' or 'raise'; got "
                f"queue={queue}, when_full={when_full!r}"
            )
        self._stream: Callable[[Iterable[Picture]], Iterator[Picture]] = stream
        self._depth, self._when_full = queue, when_full
        self._worker: _Worker[Picture] | None = None
        self._first: Picture | None = None
        self._closed = False

    def push(self, frame: Picture) -> list[Picture]:
        """Hand in the next frame; take those finished since the last call, which may be none.

        All finished frames together are what :meth:`psssr_fast.upscaler.Upscaler.stream` gives;
        how they spread over the calls depends on the speed of the machine. The frame is copied.

        Raises:
            InputError: it is no picture, or not of the kind and size of the first; it was not
                taken, and one may go on with another.
            queue.Full: with ``when_full="raise"``: it was not taken; push it again later.
            UsageError: this is closed.
            Exception: whatever the computation raised; this is closed then, and frames finished
                but not taken are dropped.
        """
        worker = self._running()
        own = _copy(check_frame(frame, self._first))
        try:
            worker.put(own, wait=self._when_full == "wait")
            self._first = own
            return worker.take()
        except Full:
            raise
        except BaseException:
            self.close()
            raise

    def take(self) -> list[Picture]:
        """Frames finished since the last call; waits for nothing. Raises what :meth:`push` does."""
        worker = self._running()
        try:
            return worker.take()
        except BaseException:
            self.close()
            raise

    def flush(self) -> list[Picture]:
        """End the stream: wait for all that is not finished, and take it.

        The next frame begins a new stream, which may be of another size.

        Raises:
            UsageError: this is closed.
            Exception: whatever the computation raised; this is closed then.
        """
        worker = self._running()
        try:
            worker.put(_END, wait=True)
            worker.join()
            return worker.take()
        except BaseException:
            self.close()
            raise
        finally:
            self._worker = self._first = None

    def close(self) -> None:
        """Drop what is not finished, and wait until the thread has ended."""
        self._closed = True
        if self._worker is not None:
            self._worker.stop.set()
            self._worker.join()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _running(self) -> "_Worker[Picture]":
        if self._closed:
            raise UsageError("this live upscaler is closed; make a new one")
        if self._worker is None:
            self._worker = _Worker(self._stream, self._depth)
            weakref.finalize(self, self._worker.stop.set)
        return self._worker


class _Worker(Generic[Item]):
    """The thread of a stream, its bounded way in, and what has come out.

    Nothing bounds what has come out but that it went in: its owner takes it when it puts.
    """

    def __init__(self, stream: Callable[[Iterable[Item]], Iterator[Item]], depth: int) -> None:
        self.stop = threading.Event()
        self._queue: Queue[object] = Queue(maxsize=depth)
        self._done: deque[Item] = deque()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(stream,), name="psssr-live", daemon=True
        )
        self._thread.start()

    def put(self, item: object, wait: bool) -> None:
        """Queue an item, or raise what the stream raised; ``queue.Full`` if told not to wait."""
        while self._failure is None:
            try:
                return self._queue.put(item, block=wait, timeout=POLL)
            except Full:
                if not wait:
                    raise
        raise self._failure

    def take(self) -> list[Item]:
        """What has come out since the last call; raise what the stream raised."""
        if self._failure is not None:
            raise self._failure
        return [self._done.popleft() for _ in range(len(self._done))]

    def join(self) -> None:
        self._thread.join()

    def _run(self, stream: Callable[[Iterable[Item]], Iterator[Item]]) -> None:
        try:
            with listening(_gives_up(self.stop)):
                for result in stream(self._items()):
                    self._done.append(result)
        except Cancelled:
            pass
        except BaseException as error:
            self._failure = error

    def _items(self) -> Iterator[Item]:
        while not self.stop.is_set():
            try:
                item = self._queue.get(timeout=POLL)
            except Empty:
                continue
            if item is _END:
                return
            yield item  # type: ignore[misc]
        raise Cancelled


async def iterate(
    stream: Callable[[Iterable[Item]], Generator[Result, None, None]],
    frames: AsyncIterable[Item] | Iterable[Item],
) -> AsyncGenerator[Result, None]:
    """``stream(frames)`` without ever blocking the event loop.

    ``stream``, and ``frames`` if they are an ordinary iterable, run in a thread of their own.
    Nothing is read or computed but what the next result needs, so a slow consumer holds everything
    back. When the consumer is cancelled, or closes this generator, ``stream`` is closed.

    Args:
        stream: gives results for an iterator of frames.
        frames: asynchronous or not; exceptions of theirs are raised here.
    """
    stop = threading.Event()
    source = _Bridge(frames, stop) if isinstance(frames, AsyncIterable) else frames
    results = stream(source)
    worker = ThreadPoolExecutor(1, thread_name_prefix="psssr-astream")

    def step() -> object:
        with listening(_gives_up(stop)):
            return next(results, _END)

    try:
        while (result := await asyncio.wrap_future(worker.submit(step))) is not _END:
            yield result  # type: ignore[misc]
    finally:
        stop.set()
        if isinstance(source, _Bridge):
            source.cancel()
        closing = worker.submit(results.close)  # after the step under way
        worker.shutdown(wait=False)  # the thread ends when it is done
        await asyncio.shield(asyncio.wrap_future(closing))


class _Bridge(Iterator[Item]):
    """An iterator for a thread over what is asynchronous in the running loop."""

    def __init__(self, frames: AsyncIterable[Item], stop: threading.Event) -> None:
        self._iterator = aiter(frames)
        self._loop = asyncio.get_running_loop()
        self._stop = stop
        self._lock = threading.Lock()
        self._pending: Future[object] | None = None

    def __next__(self) -> Item:
        with self._lock:
            if self._stop.is_set():
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


def _gives_up(stop: threading.Event) -> Callable[[str], AbstractContextManager[None]]:
    """A listener of :mod:`psssr_fast.runtime.ranges` that ends a window at its next stage."""

    def enter(_: str) -> AbstractContextManager[None]:
        if stop.is_set():
            raise Cancelled
        return nullcontext()

    return enter


def _copy(frame: Picture) -> Picture:
    return frame.detach().clone() if isinstance(frame, Tensor) else frame.copy()
