"""Thousands of damaged files through probing and decoding, and a count of what became of them.

    python tests/torture/fuzz.py --files 1000 --seed 0

Files are read in worker processes. A worker that dies is a crash of FFmpeg, and one that says
nothing for ten seconds hangs; such files are tried again with the sandboxed reader, which has to
refuse them in one line. Where strace is installed, every file that a worker opens and every socket
that it makes is watched.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import av
from av.stream import Disposition
from fuzz_files import mutate, write_seeds

from psssr_fast.errors import InputError
from psssr_fast.video import open_reader, probe

HANG_SECONDS = 10
BEGIN = "/begin-of-fuzzing"  # opened by a worker when all its modules are loaded; does not exist
_MAX_ADDRESS_SPACE = 4 * 2**30
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/lib", "/usr/", sys.prefix, sys.base_prefix)
_OPENED = re.compile(r'open(?:at)?\((?:AT_FDCWD, )?"((?:[^"\\]|\\.)*)"')
_TRACE = "trace=open,openat,socket,connect,execve"


@dataclass
class Score:
    """What became of the files.

    Attributes:
        counts: by outcome: decoded, refused (probing), damaged (refused while reading), crashes,
            hangs, lost (read without an error, with fewer frames than PyAV alone finds), errors
            (exceptions that are not ours).
        bad: files that crashed, hung or raised, with the reason.
        opened_elsewhere: other files that were opened, and sockets; ``None`` without strace.
        passed_the_sandbox: crashes and hangs that the sandboxed reader did not refuse.
        peak: bytes of memory of the largest worker.
    """

    counts: Counter[str] = field(default_factory=Counter)
    bad: dict[Path, str] = field(default_factory=dict)
    opened_elsewhere: list[str] | None = None
    passed_the_sandbox: list[Path] = field(default_factory=list)
    peak: int = 0

    def good(self) -> bool:
        """Whether nothing of ours failed; a crash inside FFmpeg is what the sandbox is for."""
        ours = sum(self.counts[name] for name in ("hangs", "lost", "errors"))
        return not (ours or self.opened_elsewhere or self.passed_the_sandbox)

    def __str__(self) -> str:
        names = ("decoded", "refused", "damaged", "crashes", "hangs", "lost", "errors")
        parts = [f"files={sum(self.counts.values())}"]
        parts += [f"{name}={self.counts[name]}" for name in names]
        elsewhere = self.opened_elsewhere
        parts += [f"opened_elsewhere={'unknown' if elsewhere is None else len(elsewhere)}"]
        parts += [f"passed_the_sandbox={len(self.passed_the_sandbox)}"]
        return " ".join([*parts, f"peak_mib={self.peak >> 20}"])


def work() -> None:
    """The worker: a path a line on stdin, the outcome a line on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, _MAX_ADDRESS_SPACE))
    os.path.exists(BEGIN) or _try_to_open(BEGIN)
    for line in sys.stdin:
        outcome, reason = attempt(line.rstrip("\n"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        print(json.dumps([outcome, reason, peak]), flush=True)


def _try_to_open(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return


def attempt(path: str) -> tuple[str, str]:
    """Probe and decode a file: the outcome, and the reason if it is an error."""
    outcome = "refused"
    try:
        probe(path)
        outcome = "damaged"
        with open_reader(path) as reader:
            found = sum(1 for _ in reader)
        known = count_frames(path)
        return ("decoded", "") if found >= known else ("lost", f"{found} of {known} frames")
    except InputError as error:
        if "\n" in str(error) or path not in str(error):
            return "errors", f"not one line about the file: {error!r}"
        return (outcome, "") if outcome == "refused" else salvage(path)
    except Exception as error:  # every kind is a finding
        return "errors", repr(error)


def salvage(path: str) -> tuple[str, str]:
    """Read what can be read of a damaged file: the outcome is that it is damaged, or an error."""
    try:
        with open_reader(path, allow_damaged=True) as reader:
            for _ in reader:
                pass
    except InputError:
        return "damaged", ""
    except Exception as error:  # every kind is a finding
        return "errors", f"when damage is allowed: {error!r}"
    return "damaged", ""


def count_frames(path: str) -> int:
    """How many frames PyAV alone gets out of the first video stream that is no cover picture."""
    frames = 0
    with av.open(path, metadata_errors="replace") as container:
        videos = container.streams.video
        stream = next(s for s in videos if not s.disposition & Disposition.attached_pic)
        try:
            for packet in container.demux(stream):
                frames += len(packet.decode())
        except (av.FFmpegError, IndexError):
            return frames
    return frames


class Worker:
    """One process, made anew whenever it dies."""

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def attempt(self, path: Path) -> tuple[str, str, int]:
        """Outcome, reason and memory."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], HANG_SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            outcome, reason, peak = json.loads(line)
            return outcome, reason, peak
        self.close()
        return ("crashes", f"exit code {process.returncode}", 0) if ready else ("hangs", "", 0)

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, "--work"]
        if self._log is not None:
            options = ["-f", "--seccomp-bpf", "-s", "4096", "-e", _TRACE]
            command = ["strace", *options, "-A", "-o", str(self._log), *command]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )  # fmt: skip

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(1)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, 9)  # strace and what it watches
                self._process.wait()
            self._process.stdout.close()
            self._process = None


def opened_elsewhere(log: Path, files: set[str]) -> list[str]:
    """What a worker opened besides ``files`` and its own system files, and its sockets."""
    found, begun = [], False
    for line in log.read_text(errors="replace").splitlines():
        begun = begun or BEGIN in line
        if "execve(" in line:
            begun = False
        opened = _OPENED.search(line)
        if not begun or (opened and (opened[1] in files or opened[1].startswith(_SYSTEM))):
            continue
        if (opened and opened[1] != BEGIN) or "socket(" in line or "connect(" in line:
            found.append(line)
    return found


def fuzz(folder: Path, files: int, seed: int, workers: int = 2) -> Score:
    """Make damaged files in ``folder`` and read them all."""
    seeds = [path.read_bytes() for path in write_seeds(folder)]
    rng = random.Random(seed)
    queue: SimpleQueue[Path] = SimpleQueue()
    names = [folder / f"{seed}-{number}.bin" for number in range(files)]
    for name in names:
        name.write_bytes(mutate(seeds, rng))
        queue.put(name)
    score, lock = Score(), threading.Lock()
    traced = shutil.which("strace") is not None
    logs = [folder / f"opened-{number}.log" if traced else None for number in range(workers)]

    def run(log: Path | None) -> None:
        worker = Worker(log)
        while True:
            try:
                path = queue.get_nowait()
            except Empty:
                break
            outcome, reason, peak = worker.attempt(path)
            with lock:
                score.counts[outcome] += 1
                score.peak = max(score.peak, peak)
                if outcome in ("crashes", "hangs", "lost", "errors"):
                    score.bad[path] = f"{outcome}: {reason}"
        worker.close()

    threads = [threading.Thread(target=run, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if traced:
        known = {str(name) for name in names}
        score.opened_elsewhere = [x for log in logs if log for x in opened_elsewhere(log, known)]
    _retry_in_sandbox(score)
    return score


def _retry_in_sandbox(score: Score) -> None:
    for path, reason in score.bad.items():
        if reason.startswith(("crashes", "hangs")):
            try:
                with open_reader(path, sandbox=True) as reader:
                    for _ in reader:
                        pass
            except InputError:
                continue
            score.passed_the_sandbox.append(path)


def main() -> int:
    """Fuzz as the command line says; 1 if something of ours failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for files that crash, hang or raise")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return 0
    with tempfile.TemporaryDirectory(prefix="psssr-fuzz-") as folder:
        score = fuzz(Path(folder), arguments.files, arguments.seed, arguments.workers)
        for path, reason in score.bad.items():
            print(f"{path.name}: {reason}")
            if arguments.keep is not None:
                arguments.keep.mkdir(exist_ok=True)
                shutil.copy(path, arguments.keep)
    print("\n".join(score.opened_elsewhere or []), end="")
    print(score)
    return 0 if score.good() else 1


if __name__ == "__main__":
    raise SystemExit(main())
