"""Frames pushed in, and asynchronous streams, over a function that only pulls.

That function runs in a thread of its own. A window that is being computed cannot be interrupted at
any point, but it gives up at the next stage of the model; so leaving takes one stage at most.
"""

import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Full, SimpleQueue
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from torch import Tensor

from psssr_fast.arrays import Picture, check_frame
from psssr_fast.errors import UsageError
from psssr_fast.runtime.astream import Cancelled, gives_up, iterate
from psssr_fast.runtime.channel import Channel
from psssr_fast.runtime.ranges import listening

WhenFull = Literal["wait", "raise"]
_CLOSED = "this live upscaler is closed; make a new one"

Item = TypeVar("Item")


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

    Made by :meth:`Streaming.live`. Best used as a context manager: leaving it drops what is not
    finished and frees everything. Any thread may call :meth:`close`, which ends the waiting of
    others; calls of :meth:`push` and :meth:`flush` by several threads are made in turn.

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
        self._turn = threading.RLock()  # of push and flush
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
            UsageError: this is closed, also if another thread closes it meanwhile; or this was
                called by the thread that computes, which would wait for itself.
            Exception: whatever the computation raised; this is closed then, and frames finished
                but not taken are dropped.
        """
        self._refuse_worker("push")
        with self._turn:
            worker = self._running()
            own = _copy(check_frame(frame, self._first))
            with self._closing(worker):
                worker.put(own, wait=self._when_full == "wait")
                self._first = own
                return worker.take()

    def take(self) -> list[Picture]:
        """Frames finished since the last call; waits for nothing. Raises what :meth:`push` does."""
        worker = self._worker
        if self._closed:
            raise UsageError(_CLOSED)
        if worker is None:
            return []
        with self._closing(worker):
            return worker.take()

    def flush(self) -> list[Picture]:
        """End the stream: wait for all that is not finished, and take it.

        The next frame begins a new stream, which may be of another size.

        Raises:
            UsageError: as for :meth:`push`.
            Exception: whatever the computation raised; this is closed then.
        """
        self._refuse_worker("flush")
        with self._turn:
            worker = self._running()
            with self._closing(worker):
                worker.finish()
                done = worker.take()
            self._worker = self._first = None
            return done

    def close(self) -> None:
        """Drop what is not finished, and wait until the thread has ended.

        The thread that computes may call this too, from ``progress``: it ends when it goes on.
        """
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.stop()
            if not worker.is_this_thread():
                worker.join()
                self._worker = self._first = None

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
        """Return the worker, a new one if there is none; to be called in turn.

        Raises:
            UsageError: this is closed.
        """
        if self._worker is None and not self._closed:
            self._worker = _Worker(self._stream, self._depth, self)
        worker = self._worker
        if worker is not None and self._closed:
            worker.stop()  # whoever closed this may have come just before it was there
        if worker is None or self._closed:
            raise UsageError(_CLOSED)
        return worker

    @contextmanager
    def _closing(self, worker: "_Worker[Picture]") -> Iterator[None]:
        """Close this if what is done with the worker fails, unless its queue is full.

        Raises:
            UsageError: another thread closed this meanwhile.
        """
        try:
            yield
            if worker.stopped:
                raise UsageError(_CLOSED)
        except BaseException as error:
            # There is no room: nothing has ended. What the stream raised may be of this kind, too.
            if isinstance(error, Full) and error is not worker.failure:
                raise
            if not self._closed:  # otherwise whoever closed it waits for the thread
                self.close()
            raise

    def _refuse_worker(self, method: str) -> None:
        worker = self._worker
        if worker is not None and worker.is_this_thread():
            raise UsageError(
                f"{method}() would wait for itself: it was called by the thread that computes, for "
                "instance from progress; call it from another thread"
            )


class _Worker(Generic[Item]):
    """The thread of a stream, its bounded way in, and what has come out.

    Nothing bounds what has come out but that it went in: its owner takes it when it puts.
    """

    def __init__(
        self, stream: Callable[[Iterable[Item]], Iterator[Item]], depth: int, owner: object
    ) -> None:
        self.stopped = False  # no Event: a finalizer must be able to set it while it is being set
        self._way_in: Channel[Item] = Channel(depth)
        self._done: deque[Item] = deque()
        self._over: SimpleQueue[None] = SimpleQueue()  # an entry: the thread has ended, or will
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(stream,), name="psssr-live", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(owner, self.stop)

    def stop(self) -> None:
        """Have the thread end at its next stage or frame: nobody waits for it any more."""
        self.stopped = True
        self._way_in.close()
        self._over.put(None)

    @property
    def failure(self) -> BaseException | None:
        """What the stream raised."""
        return self._failure

    def put(self, item: Item, wait: bool) -> None:
        """Queue an item.

        Raises:
            queue.Full: there is no room, and ``wait`` is false.
            UsageError: the thread has ended, or was told to.
            BaseException: what the stream raised.
        """
        if not self._way_in.put(item, wait):
            raise self._failure or UsageError(_CLOSED)

    def take(self) -> list[Item]:
        """What has come out since the last call; raise what the stream raised."""
        if self._failure is not None:
            raise self._failure
        done: list[Item] = []
        with suppress(IndexError):  # not counted first: another thread may be taking, too
            while True:
                done.append(self._done.popleft())
        return done

    def finish(self) -> None:
        """Wait until all that was put is computed and the thread has ended, or is told to."""
        self._way_in.end()
        self._over.get()
        if not self.stopped:
            self.join()
            self._finalizer.detach()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def is_this_thread(self) -> bool:
        """Whether the caller runs in the thread of the stream."""
        return self._thread is threading.current_thread()

    def _run(self, stream: Callable[[Iterable[Item]], Iterator[Item]]) -> None:
        try:
            with listening(gives_up(lambda: self.stopped)):
                for result in stream(self._items()):
                    self._done.append(result)
        except Cancelled:
            self.stopped = True
        except BaseException as error:
            self._failure = error
        finally:
            self._way_in.close()  # nobody is to wait for a thread that has ended
            self._over.put(None)

    def _items(self) -> Iterator[Item]:
        yield from self._way_in
        if self.stopped:
            raise Cancelled


def _copy(frame: Picture) -> Picture:
    return frame.detach().clone() if isinstance(frame, Tensor) else frame.copy()
