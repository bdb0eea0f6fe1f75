"""Where ``psssr selftest`` works: a folder, a small video made there, the built-in model."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from psssr_fast.config import Windows
from psssr_fast.faults import VARIABLE
from psssr_fast.upscaler import Report, Upscaler

FRAMES, HEIGHT, WIDTH = 14, 32, 48
TICKS = (0, 40, 80, 130, 170, 210, 250, 300, 340, 420, 460, 500, 540, 580)  # ms: not even
WINDOWS = Windows(frames=4, height=128, width=128, overlap_frames=1, overlap_pixels=16)
CHUNK = 4  # frames
_PATIENCE = 900  # seconds after which a process is taken for hung, on a busy machine too


class Failure(Exception):
    """A check did not hold; says what was found."""


class NotHere(Exception):
    """A check cannot be made on this machine; says why."""


def require(condition: bool, found: str) -> None:
    """Raise Failure unless ``condition``."""
    if not condition:
        raise Failure(found)


@dataclass(frozen=True)
class Lab:
    """What the checks share.

    Attributes:
        folder: empty in the beginning; the checks' own folders are made in it.
        device: as ``--device``.
    """

    folder: Path
    device: str

    @cached_property
    def clip(self) -> Path:
        """A video with an uneven frame rate and sound."""
        path = self.folder / "in.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", options={"crf": "10"})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000)
            sound = container.add_stream("aac", rate=48000, layout="mono")
            for picture, ticks in zip(self.pictures, TICKS, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = ticks, Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            for start in range(0, 24 * 1024, 1024):
                wave = np.sin(np.arange(start, start + 1024) / 30, dtype=np.float32)[None] / 2
                heard = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
                heard.sample_rate, heard.pts, heard.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(heard))
            container.mux(sound.encode(None))
        return path

    @cached_property
    def pictures(self) -> np.ndarray:
        """The frames of the video before it was compressed, uint8 ``[frames, h, w, 3]``."""
        t, y, x = np.mgrid[0:FRAMES, 0:HEIGHT, 0:WIDTH]
        waves = np.stack([np.sin((x + 2 * t) / 5), np.sin((y - t) / 4), np.sin((x + y) / 7)], -1)
        return (128 + 90 * waves).astype(np.uint8)

    @property
    def few(self) -> np.ndarray:
        """As many of them as make two windows."""
        return self.pictures[: WINDOWS.frames + 2]

    @cached_property
    def upscaler(self) -> Upscaler:
        """The built-in model, with small windows."""
        return self.load()

    def load(self, dtype: torch.dtype | None = None, engine: str = "fused") -> Upscaler:
        """The built-in model, once more."""
        made = Upscaler.from_pretrained(
            device=self.device, dtype=dtype, engine=engine, deterministic=True, offline=True
        )
        made.settings = replace(made.settings, windows=WINDOWS)
        return made

    def place(self, name: str) -> Path:
        """A path for an output, in a new folder."""
        folder = self.folder / name
        folder.mkdir()
        return folder / "out.mp4"

    def upscale(self, output: Path) -> Report:
        """Upscale the video in this process."""
        return self.upscaler.upscale_video(self.clip, output, chunk_frames=CHUNK)

    @cached_property
    def made_elsewhere(self) -> Path:
        """The output of another process."""
        output = self.place("elsewhere")
        done = self.upscale_elsewhere(output)
        require(done.code == 0, f"exit code {done.code} elsewhere: {done.last_line}")
        return output

    def upscale_elsewhere(self, output: Path, fault: str = "") -> "Ended":
        """Upscale the video in a process of its own, with a fault on purpose."""
        shared = (f"--{name}={value}" for name, value in self._options.items())
        command = [sys.executable, "-m", "psssr_fast", "upscale", str(self.clip), "-o", str(output)]
        environment = {**os.environ, VARIABLE: fault}
        done = subprocess.run(
            [*command, "--deterministic", "--offline", "--json", *shared],
            capture_output=True,
            text=True,
            env=environment,
            timeout=_PATIENCE,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    @property
    def _options(self) -> dict[str, object]:
        shape = f"{WINDOWS.frames}x{WINDOWS.height}x{WINDOWS.width}"
        overlap = f"{WINDOWS.overlap_frames}x{WINDOWS.overlap_pixels}"
        return {
            "device": self.device,
            "window": shape,
            "overlap": overlap,
            "chunk-frames": CHUNK,
            "progress": "none",
        }


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """Of its only job."""
        report: dict[str, Any] = json.loads(self.out)["results"][0]
        return report

    @property
    def last_line(self) -> str:
        """Of its messages."""
        return (self.err.strip().splitlines() or ["it said nothing"])[-1]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sound_of(path: Path) -> str:
    """SHA-256 of the compressed sound of a video."""
    found = hashlib.sha256()
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.audio[0]):
            found.update(bytes(packet))
    return found.hexdigest()
