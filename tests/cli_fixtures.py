"""What the tests of the command line share: tiny videos, and ways to run ``psssr``."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from psssr_fast.cli import main
from psssr_fast.video import open_reader

WIDTH, HEIGHT = 64, 36
HANGS_AFTER = 1800  # seconds after which a process is taken for hung, however busy the machine

# A background job of a shell has Ctrl-C switched off; the program under test must not inherit that.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from psssr_fast.cli import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Done:
    """A finished run: exit code, stdout and stderr."""

    code: int
    out: str
    err: str


class Psssr:
    """Runs ``psssr`` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Done:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Done(code, captured.out, captured.err)


def command(*arguments: object) -> list[str]:
    """The command line of a real process."""
    return [sys.executable, "-c", _START, *map(str, arguments)]


def run_process(*arguments: object, cwd: Path | None = None, start: str = _START) -> Done:
    """Run ``psssr`` as a real process."""
    done = subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def stop_while_writing(
    folder: Path, number: signal.Signals, *arguments: object, begun: str = ".*/*.partial-*"
) -> Done:
    """Start ``psssr`` in ``folder``; send it a signal, twice at once, when a file ``begun`` is
    there and not empty: by default the first of a job."""
    with subprocess.Popen(
        command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + HANGS_AFTER
        while not any(size_of(file) for file in folder.glob(begun)) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=HANGS_AFTER)
    return Done(process.returncode, out, err)


def size_of(file: Path) -> int:
    """Of a file that may have gone meanwhile."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def pictures(frames: int, width: int = WIDTH, height: int = HEIGHT) -> list[np.ndarray]:
    """Smooth uint8 ``[height, width, 3]`` pictures that move."""
    y, x = np.mgrid[0:height, 0:width]
    return [
        np.stack(
            [
                128 + 90 * np.sin((x + 2 * t) / 5),
                128 + 90 * np.sin((y - t) / 4),
                128 + 60 * np.sin((x + y) / 7),
            ],
            axis=-1,
        )
        .round()
        .astype(np.uint8)
        for t in range(frames)
    ]


def write_video(
    path: Path,
    frames: int = 5,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    faststart: bool = False,
    audio: bool = False,
) -> Path:
    """Write a small H.264 video; ``audio`` adds a second of silence."""
    flags = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", container_options=flags) as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "5", "preset": "veryfast"})
        video.width, video.height = size
        video.pix_fmt = "yuv444p"
        sound = container.add_stream("aac", rate=48000, layout="mono") if audio else None
        for picture in pictures(frames, *size):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            write_silence(container, sound)
    return path


def write_silence(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    """Encode a second of silence."""
    for index in range(46):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 1024 * index, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_frames(folder: Path, frames: int = 3, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write a folder of PNG frames."""
    from PIL import Image

    folder.mkdir()
    for index, picture in enumerate(pictures(frames, *size)):
        Image.fromarray(picture).save(folder / f"{index:04}.png")
    return folder


def read(path: Path) -> list[np.ndarray]:
    """All frames of a video or a folder of PNG frames."""
    with open_reader(path) as reader:
        return [frame.pixels for frame in reader]
