"""The product: a clip, a stream or a file in, the same kind out, larger."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psssr_fast.arrays import Picture, check_frame, frame_size, from_planar, to_planar
from psssr_fast.config import Profile, Settings, settings_for
from psssr_fast.engine import check_engine, fuse
from psssr_fast.errors import InputError
from psssr_fast.jobs.computing import describe_computing, make_plan
from psssr_fast.jobs.input import look_at
from psssr_fast.jobs.job import Job
from psssr_fast.jobs.order import Order
from psssr_fast.jobs.place import check_place
from psssr_fast.live import Progress, Streaming
from psssr_fast.loading import load_networks, resolve_device
from psssr_fast.pipeline import Networks, memory_guard
from psssr_fast.recovery import Recovery
from psssr_fast.resize import output_size
from psssr_fast.runtime.determinism import deterministic, prepare_determinism
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.forks import Maker
from psssr_fast.runtime.overlap import read_ahead, write_behind
from psssr_fast.scenes import lookahead, mark_scenes
from psssr_fast.video import (
    DEFAULT_IMAGE_RATE,
    DEFAULT_LIMITS,
    EncoderSettings,
    Frame,
    Limits,
    open_reader,
)
from psssr_fast.windows import (
    Cuts,
    TemporalBlender,
    TileBlender,
    TimeWindow,
    stream_windows,
    tiles,
)

QUEUE = 8  # frames; see Upscaler.queue


@dataclass(frozen=True)
class Report:
    """What a job did.

    Attributes:
        input, output: paths.
        frames, width, height: of the output.
        seconds: wall-clock time, reading and writing included; ``fps`` is frames over it.
        model, profile, attention, device, engine: what computed it.
        settings: everything that decided the picture, the resizing included.
        warnings: what the reader or the writer could not keep, one line each.
        resumed_frames: of ``frames``, those that an earlier run had finished; ``fps`` counts the
            others.
    """

    input: str
    output: str
    frames: int
    width: int
    height: int
    seconds: float
    fps: float
    model: str
    profile: str
    attention: str
    device: str
    engine: str
    settings: Settings
    warnings: tuple[str, ...]
    resumed_frames: int = 0


class Upscaler(Streaming):
    """Video super-resolution with PS-SR.

    Make one with :meth:`from_pretrained`; it holds no state between calls.

    Attributes:
        model: name of the model.
        settings: everything that decides the picture.
        attention: name of the attention backend that runs.
        engine: ``"fused"`` or ``"plain"``.
        execution: how much of a window is in memory at once, as long as there is enough.
        queue: from file to file, so many frames are decoded in advance and so many wait to be
            encoded, at most; with 0 all is done in turn.
        threads: the number of torch's threads with which it gives the same bits every time;
            ``None`` if that was not asked for.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        model: str,
        attention: str,
        engine: str = "plain",
        deterministic: bool = False,
    ) -> None:
        self.engine = check_engine(engine)
        self.networks = fuse(networks, settings.sampling) if engine == "fused" else networks
        self.settings = settings
        self.model = model
        self.attention = attention
        self.execution = Execution()
        self.queue = QUEUE
        self.threads = torch.get_num_threads() if deterministic else None
        self._maker = Maker()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "nano",
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        profile: Profile | str = Profile.RELEASED,
        settings: Settings | None = None,
        attention: str = "auto",
        engine: str = "fused",
        offline: bool = False,
        revision: str | None = None,
        deterministic: bool = False,
    ) -> "Upscaler":
        """Load a model.

        Args:
            source: ``"nano"`` (embedded), a directory with weights, or a hub repository.
            device: ``"auto"`` takes the first CUDA device, else the CPU.
            dtype: default bf16 on CUDA, and on a CPU bf16 or fp32, whichever is faster there.
            profile: ``"released"`` or ``"paper"``; ignored if ``settings`` is given.
            settings: instead of a profile's.
            attention: a backend of :mod:`psssr_fast.attention`, or ``"auto"``.
            engine: ``"fused"``, or ``"plain"`` for the networks as they are written in
                ``models/``: slower, and equal up to rounding.
            offline: never touch the network.
            revision: of the hub repository.
            deterministic: the same bits every time on the same kind of device; on a CPU in fp32
                unless ``dtype`` says otherwise, as which is faster depends on the moment.

        Raises:
            ModelError: the weights are missing, damaged or unsafe.
            UsageError: the device, dtype, profile, engine or attention backend cannot be had.
        """
        check_engine(engine)
        place = resolve_device(device)
        if deterministic:
            prepare_determinism()
            dtype = dtype or (torch.float32 if place.type == "cpu" else None)
        loaded = load_networks(source, place, dtype, attention, offline=offline, revision=revision)
        chosen = settings or settings_for(profile, loaded.size.windows)
        return cls(loaded.networks, chosen, loaded.name, loaded.attention, engine, deterministic)

    def __call__(
        self, clip: Picture, *, scale: float | None = None, height: int | None = None
    ) -> Picture:
        """Upscale a whole clip in memory.

        Args:
            clip: numpy uint8 ``[frames, height, width, 3]`` RGB, or a torch float tensor
                ``[frames, 3, height, width]`` in [0, 1].
            scale: output size over input size; default 4.
            height: output height, instead of ``scale``.

        Returns:
            The same kind, larger: an array for an array, a tensor (on the input's device, in its
            dtype) for a tensor.

        Raises:
            InputError: ``clip`` is of neither kind.
        """
        if not isinstance(clip, (np.ndarray, Tensor)) or clip.ndim != 4:
            raise InputError(
                f"a clip must be uint8 [frames, height, width, 3] or float [frames, 3, height, "
                f"width]; got {type(clip).__name__} of shape {list(getattr(clip, 'shape', ()))}"
            )
        frames = list(self.stream(clip, scale=scale, height=height))
        if not frames:
            raise InputError("the clip has no frames; give at least one")
        return np.stack(frames) if isinstance(clip, np.ndarray) else torch.stack(frames)

    @property
    def lookahead_frames(self) -> int:
        """How many frames after a frame are read, at most, before it leaves a stream."""
        windows = self.settings.windows
        in_windows = 2 * windows.frames - windows.overlap_frames - 1
        return in_windows + lookahead(self.settings.scenes)

    def stream(
        self,
        frames: Iterable[Picture],
        *,
        scale: float | None = None,
        height: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Generator[Picture, None, None]:
        """Upscale frames as they come.

        A frame leaves after at most :attr:`lookahead_frames` later ones were read; memory does not
        grow with the length of the stream. Closing the generator frees everything.

        Args:
            frames: numpy uint8 ``[height, width, 3]`` or torch float ``[3, height, width]`` in
                [0, 1], all of one kind and size.
            scale, height: as for a clip.
            progress: called before each frame leaves; what it raises ends the stream.

        Raises:
            InputError: a frame is of another kind or size than the first.
        """
        iterator, begin = iter(frames), time.monotonic()
        first = next(iterator, None)
        if first is None:
            return
        size = output_size(*frame_size(check_frame(first)), scale, height)
        checked = (check_frame(frame, first) for frame in chain([first], iterator))
        for done, picture in enumerate(self._restore(map(to_planar, checked), size), start=1):
            if progress is not None:
                progress(Progress(done, None, time.monotonic() - begin))
            yield from_planar(picture, first, self.settings.released_rounding)

    def upscale_video(
        self,
        src: str | Path,
        dst: str | Path,
        *,
        scale: float | None = None,
        height: int | None = None,
        encoder: EncoderSettings | None = None,
        overwrite: bool = False,
        allow_damaged: bool = False,
        frame_rate: Fraction = DEFAULT_IMAGE_RATE,
        limits: Limits = DEFAULT_LIMITS,
        sandbox: bool = False,
        resume: bool = True,
        chunk_frames: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Upscale a file, or a folder of PNG frames.

        Timestamps, audio, subtitles, metadata and colour tags are carried over. Finished frames
        are kept, ``chunk_frames`` at a time, in a hidden folder beside ``dst`` until it is
        complete; after an interruption the same call goes on with them and gives the same bytes.

        Args:
            src: anything ffmpeg reads, or a folder of PNG frames.
            dst: a video file by its suffix, or a folder for PNG frames.
            scale, height: as for a clip.
            encoder: codec and quality; default H.264.
            overwrite: replace an existing output.
            allow_damaged: of a damaged or truncated input, keep what can be decoded, with
                warnings; otherwise it is refused.
            frame_rate: frames a second of a folder of PNG frames; videos have their own times.
            limits: what is accepted at most.
            sandbox: decode in a confined process; see :mod:`psssr_fast.video.sandbox`.
            resume: go on where an interrupted call stopped; otherwise drop what it has kept.
            chunk_frames: how many frames are kept at a time, about; default
                :data:`psssr_fast.jobs.plan.CHUNK_FRAMES`.
            progress: called after every frame; a few of those done may not be written yet.

        Raises:
            InputError, OutputError, UsageError, OutOfMemory: see :mod:`psssr_fast.errors`;
                nothing is left at ``dst`` then.
        """
        begin, seen = time.monotonic(), look_at(src)
        check_place(dst, src, overwrite)
        reading = open_reader(
            src,
            allow_damaged=allow_damaged,
            frame_rate=frame_rate,
            limits=limits,
            sandbox=sandbox,
        )
        recovery = self.recovery()
        engine = (self.model, self.attention, self.engine)
        computing = describe_computing(self.networks, self.settings, *engine, self.threads)
        with reading as reader:
            size = output_size(reader.info.height, reader.info.width, scale, height)
            plan = make_plan(
                dst, reader.info, size, encoder or EncoderSettings(), computing, chunk_frames
            )
            order = Order(dst, reader, plan, overwrite, resume, lambda: recovery.warnings, seen)
            with Job(order) as job:
                if not job.complete:
                    self._transfer(job, size, reader.info.frames, progress, recovery)
                job.finish()
        return self._report(str(src), str(dst), size, job, time.monotonic() - begin)

    def _report(
        self, src: str, dst: str, size: tuple[int, int], job: Job, seconds: float
    ) -> Report:
        return Report(
            input=src,
            output=dst,
            frames=job.frames_done,
            width=size[1],
            height=size[0],
            seconds=seconds,
            fps=(job.frames_done - job.resumed) / seconds,
            model=self.model,
            profile=str(self.settings.profile),
            attention=self.attention,
            device=str(self.networks.device),
            engine=self.engine,
            settings=self.settings,
            warnings=job.warnings,
            resumed_frames=job.resumed,
        )

    def _transfer(
        self,
        job: Job,
        size: tuple[int, int],
        total: int | None,
        progress: Callable[[Progress], None] | None,
        recovery: Recovery,
    ) -> None:
        """Restore every frame that is missing; hand it on under its own name and timestamp."""
        begin, waiting = time.monotonic(), deque[Frame]()
        rounding = self.settings.released_rounding

        with (
            closing(read_ahead(job.frames(), self.queue)) as ahead,
            write_behind(job.write, self.queue) as later,
        ):

            def planar() -> Iterator[Tensor]:
                for frame in ahead:
                    waiting.append(frame)
                    yield to_planar(frame.pixels)

            def marked(frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
                found = mark_scenes(frames, self.settings.scenes)
                for _ in zip(range(job.first - job.start), found, strict=False):
                    waiting.popleft()
                return job.noting(found)

            pictures = self._restore(planar(), size, marked, job.first, recovery)
            for done, picture in enumerate(pictures, job.first + 1):
                frame = waiting.popleft()
                later(frame.with_pixels(from_planar(picture, frame.pixels, rounding)))
                if progress is not None and done > job.resumed:
                    progress(Progress(done, total, time.monotonic() - begin, job.resumed))

    def recovery(self) -> Recovery:
        """What gets one job over a lack of memory and over numbers that break."""
        return Recovery(self.networks, self.settings, self.execution)

    def _restore(
        self,
        frames: Iterator[Tensor],
        size: tuple[int, int],
        cuts: Cuts[Tensor] | None = None,
        first: int = 0,
        recovery: Recovery | None = None,
    ) -> Iterator[Tensor]:
        """The pipeline: windows in time, upscaled, restored tile by tile, blended, in order.

        ``cuts`` and ``first`` are those of :func:`stream_windows`; without, cuts are looked for.
        """
        self._maker.check(self.networks.device)
        if cuts is None:
            cuts = partial(mark_scenes, scenes=self.settings.scenes)
        recovery = recovery or self.recovery()
        blender = TemporalBlender(self.settings.windows)
        for window in stream_windows(frames, self.settings.windows, cuts, first):
            with memory_guard(len(window.items), *size, self.networks.device):
                blender.push(window, self._restore_clip(window, size, recovery))
            yield from blender.pop_finished(window)

    def _restore_clip(
        self, window: TimeWindow[Tensor], size: tuple[int, int], recovery: Recovery
    ) -> Tensor:
        """Restore one window in time, tile by tile."""
        frames, (height, width) = len(window.items), size
        with nullcontext() if self.threads is None else deterministic(self.threads):
            picture = recovery.resize(window.items, height, width)
            blender = TileBlender(picture.shape)
            for tile in tiles(height, width, self.settings.windows):
                part = recovery.restore(picture[:, :, tile.y, tile.x], window.start)
                add = partial(blender.add, tile, part.to(picture.device))
                recovery.attempt(add, frames, height, width)
            return blender.result()
