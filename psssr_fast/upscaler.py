"""The product: a clip, a stream or a file in, the same kind out, larger."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psssr_fast.arrays import Picture, check_frame, frame_size, from_planar, to_bytes, to_planar
from psssr_fast.config import Profile, Settings, settings_for
from psssr_fast.engine import check_engine, fuse
from psssr_fast.errors import InputError
from psssr_fast.loading import load_networks, resolve_device
from psssr_fast.pipeline import Networks, memory_guard, restore_window
from psssr_fast.resize import output_size, resize_frames
from psssr_fast.runtime.overlap import read_ahead, write_behind
from psssr_fast.video import (
    DEFAULT_IMAGE_RATE,
    EncoderSettings,
    Frame,
    check_output,
    open_reader,
    open_writer,
)
from psssr_fast.windows import TemporalBlender, TileBlender, stream_windows, tiles

QUEUE = 8  # frames decoded in advance, and frames waiting to be encoded


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        frames_done: frames written.
        frames_total: frames expected, if the container says.
        seconds: since the start.
    """

    frames_done: int
    frames_total: int | None
    seconds: float


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


class Upscaler:
    """Video super-resolution with PS-SR.

    Make one with :meth:`from_pretrained`; it holds no state between calls.

    Attributes:
        model: name of the model.
        settings: everything that decides the picture.
        attention: name of the attention backend that runs.
        engine: ``"fused"`` or ``"plain"``.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        model: str,
        attention: str,
        engine: str = "plain",
    ) -> None:
        self.engine = check_engine(engine)
        self.networks = fuse(networks, settings.sampling) if engine == "fused" else networks
        self.settings = settings
        self.model = model
        self.attention = attention

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

        Raises:
            ModelError: the weights are missing, damaged or unsafe.
            UsageError: the device, dtype, profile, engine or attention backend cannot be had.
        """
        check_engine(engine)
        loaded = load_networks(
            source, resolve_device(device), dtype, attention, offline=offline, revision=revision
        )
        chosen = settings or settings_for(profile, loaded.size.windows)
        return cls(loaded.networks, chosen, loaded.name, loaded.attention, engine)

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

    def stream(
        self, frames: Iterable[Picture], *, scale: float | None = None, height: int | None = None
    ) -> Iterator[Picture]:
        """Upscale frames as they come.

        A frame leaves after at most ``windows.frames + windows.frames - windows.overlap_frames``
        later ones were read; memory does not grow with the length of the stream.

        Args:
            frames: numpy uint8 ``[height, width, 3]`` or torch float ``[3, height, width]`` in
                [0, 1], all of one kind and size.
            scale, height: as for a clip.

        Raises:
            InputError: a frame is of another kind or size than the first.
        """
        iterator = iter(frames)
        first = next(iterator, None)
        if first is None:
            return
        size = output_size(*frame_size(check_frame(first)), scale, height)
        checked = (check_frame(frame, first) for frame in chain([first], iterator))
        for picture in self._restore(map(to_planar, checked), size):
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
        progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Upscale a file, or a folder of PNG frames.

        Timestamps, audio, subtitles, metadata and colour tags are carried over.

        Args:
            src: anything ffmpeg reads, or a folder of PNG frames.
            dst: a video file by its suffix, or a folder for PNG frames.
            scale, height: as for a clip.
            encoder: codec and quality; default H.264.
            overwrite: replace an existing output.
            allow_damaged: of a damaged or truncated input, keep what can be decoded, with
                warnings; otherwise it is refused.
            frame_rate: frames a second of a folder of PNG frames; videos have their own times.
            progress: called after every frame; a few of those done may not be written yet.

        Raises:
            InputError, OutputError, UsageError, OutOfMemory: see :mod:`psssr_fast.errors`;
                nothing is left at ``dst`` then.
        """
        begin = time.monotonic()
        check_output(dst, src, overwrite)
        with open_reader(src, allow_damaged=allow_damaged, frame_rate=frame_rate) as reader:
            size = output_size(reader.info.height, reader.info.width, scale, height)
            writing = open_writer(
                dst, reader.info, size[1], size[0], encoder or EncoderSettings(), overwrite
            )
            with writing as writer:
                done = self._transfer(reader, writer.write, size, reader.info.frames, progress)
            warnings = (*reader.warnings, *writer.warnings)
        seconds = time.monotonic() - begin
        return Report(
            input=str(src),
            output=str(dst),
            frames=done,
            width=size[1],
            height=size[0],
            seconds=seconds,
            fps=done / seconds,
            model=self.model,
            profile=str(self.settings.profile),
            attention=self.attention,
            device=str(self.networks.device),
            engine=self.engine,
            settings=self.settings,
            warnings=warnings,
        )

    def _transfer(
        self,
        frames: Iterable[Frame],
        write: Callable[[Frame], None],
        size: tuple[int, int],
        total: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> int:
        """Restore every frame and hand it on under its own name and timestamp."""
        begin, done = time.monotonic(), 0
        waiting: deque[Frame] = deque()

        with closing(read_ahead(frames, QUEUE)) as ahead, write_behind(write, QUEUE) as later:

            def planar() -> Iterator[Tensor]:
                for frame in ahead:
                    waiting.append(frame)
                    yield to_planar(frame.pixels)

            for picture in self._restore(planar(), size):
                pixels = to_bytes(picture, self.settings.released_rounding)
                later(replace(waiting.popleft(), pixels=pixels))
                done += 1
                if progress is not None:
                    progress(Progress(done, total, time.monotonic() - begin))
        return done

    def _restore(self, frames: Iterator[Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
        """The pipeline: windows in time, upscaled, restored tile by tile, blended, in order."""
        blender = TemporalBlender(self.settings.windows)
        for window in stream_windows(frames, self.settings.windows):
            with memory_guard(len(window.items), *size, self.networks.device):
                low = torch.stack(window.items).to(self.networks.device)
                picture = resize_frames(low, *size, self.settings.resize)
                blender.push(window, self._restore_clip(picture))
            yield from blender.pop_finished(window)

    def _restore_clip(self, picture: Tensor) -> Tensor:
        """Restore one window in time, tile by tile."""
        blender = TileBlender(picture.shape)
        for tile in tiles(picture.shape[-2], picture.shape[-1], self.settings.windows):
            part = picture[:, :, tile.y, tile.x]
            blender.add(tile, restore_window(self.networks, part, self.settings))
        return blender.result()
