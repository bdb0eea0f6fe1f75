"""What the tests of jobs share: small clips, runs that can be killed, and what is left of them."""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self
from unittest import mock

import av
from cli_fixtures import Done, pictures, write_silence

from psssr_fast.config import Windows, settings_for
from psssr_fast.faults import injected
from psssr_fast.jobs.computing import make_plan
from psssr_fast.jobs.input import look_at
from psssr_fast.jobs.job import Job
from psssr_fast.jobs.order import Order
from psssr_fast.jobs.plan import Computing
from psssr_fast.video import EncoderSettings, Reader, open_reader

# Small windows: a clip of 40 frames has 14 of them, and 7 chunks.
SMALL = (
    "-s", "1", "--window", "4x64x64", "--overlap", "1x16", "--chunk-frames", "6",
    "--dtype", "float32", "--progress", "none",
)  # fmt: skip
FRAMES = 40
KILLED = -signal.SIGKILL
_NOTHING = Computing(
    "none", "", "float32", "cpu", 1, "none", "plain", "",
    settings_for("released", Windows(4, 64, 64, 1, 16)),
)  # fmt: skip


def open_job(
    output: str | Path,
    reader: Reader,
    size: tuple[int, int],
    encoder: EncoderSettings | None = None,
    overwrite: bool = False,
    resume: bool = True,
    chunk_frames: int | None = None,
) -> Job:
    """The job that makes every output of the package, without networks: the caller writes its
    frames, of ``size``: width, height."""
    seen = look_at(reader.info.path)
    settings = encoder or EncoderSettings(preset="veryfast")
    plan = make_plan(output, reader.info, size[::-1], settings, _NOTHING, chunk_frames)
    return Job(Order(output, reader, plan, overwrite, resume, seen=seen))


def copy_video(source: Path, output: Path, overwrite: bool = False, resume: bool = True) -> Job:
    """Run a whole job without networks, in chunks of 6 frames: its pictures are the input's."""
    with open_reader(source) as reader, contextlib.ExitStack() as stack:
        size = (reader.info.width, reader.info.height)
        job = open_job(output, reader, size, None, overwrite, resume, 6)
        stack.enter_context(job)
        if not job.complete:
            for index, frame in enumerate(job.frames(), job.start):
                if index >= job.first:
                    job.write(frame)
        job.finish()
    return job


@contextlib.contextmanager
def meanwhile(point: str, act: Callable[[], object], number: int | str = 1) -> Iterator[None]:
    """Have ``act`` happen when the job passes a point for the ``number``-th time; ``"2+"`` is the
    second and all later ones."""
    with (
        mock.patch.dict("psssr_fast.faults._ACTIONS", {"int": act}),
        injected(f"{point}:{number}:int"),
    ):
        yield


def write_clip(
    path: Path,
    pts: Iterable[int] = range(0, 40 * FRAMES, 40),
    size: tuple[int, int] = (64, 36),
    sounds: int = 1,
    bframes: int = 2,
    cuts: Collection[int] = (),
) -> Path:
    """Write a video with these times, in ms, and a second of silence ``sounds`` times.

    At each of ``cuts`` another scene begins: the picture becomes its negative.
    """
    with av.open(str(path), "w") as container:
        options = {"crf": "12", "preset": "ultrafast", "bf": str(bframes)}
        video = container.add_stream("libx264", rate=25, options=options)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        streams = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(sounds)]
        times = list(pts)
        negative = False
        for index, picture in enumerate(pictures(len(times), *size)):
            negative ^= index in cuts
            scene = 255 - picture // 2 if negative else picture // 2
            frame = av.VideoFrame.from_ndarray(scene, format="rgb24")
            frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for stream in streams:
            write_silence(container, stream)
    return path


def frame_times(path: Path) -> list[Fraction]:
    """When the frames of a video are shown, seconds."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def digest(path: Path) -> str:
    """Of a file, or of a folder's names and contents."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    parts = [f"{file.name} {digest(file)}" for file in sorted(path.iterdir())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def folder_of(output: Path) -> Path:
    """Where the job of an output keeps its files, as documented."""
    return output.with_name(f".{output.name}.psssr-job")


def journal_of(output: Path) -> list[dict]:
    """The whole lines of a job's journal that are about chunks."""
    path = folder_of(output) / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [
        content["chunk"]
        for line in lines
        if line.endswith(b"\n") and "chunk" in (content := json.loads(line))
    ]


class Forks:
    """``psssr`` in a process of its own for every run, without the cost of its imports.

    A context manager.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="psssr-forks-")

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PSSSR_FAULT", None)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )
        assert self._answer() == "ready"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __call__(
        self,
        *arguments: object,
        folder: Path,
        fault: str = "",
        signals: Sequence[tuple[float, int]] = (),
    ) -> Done:
        """Run ``psssr upscale ARGUMENTS`` in ``folder``.

        Args:
            fault: for ``PSSSR_FAULT``.
            signals: each sent so many seconds after the start, unless the run has ended.
        """
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        out, err = (Path(self._folder.name, name) for name in ("out", "err"))
        request = {
            "arguments": ["upscale", *map(str, arguments)],
            "folder": str(folder),
            "environment": {"PSSSR_FAULT": fault},
            "out": str(out),
            "err": str(err),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        pid, passed = int(self._answer()), 0.0
        for after, number in signals:
            if select.select([self._process.stdout], [], [], after - passed)[0]:
                break
            passed = after
            os.kill(pid, number)
        code = int(self._answer())
        return Done(code, out.read_text(), err.read_text())

    def _answer(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the server of forks has gone"
        return answer.strip()
