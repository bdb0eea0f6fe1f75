"""Kill jobs, again and again, and compare what comes out with what an undisturbed run gives.

    python tests/torture/kill.py --jobs 25 --seed 0

Every job is ``psssr upscale`` in a process of its own on a small clip, with the built-in model. It
is killed (SIGKILL) up to ten times, at random times and at every point that
:data:`psssr_fast.jobs.POINTS` names, then run to its end. The last line is a scoreboard:

- ``mismatches``: outputs with other bytes than those of an undisturbed run;
- ``lost_frames``: frames missing, or shown at another time than in the input;
- ``stray_files``: files left beside the output;
- ``redone_chunks_max``: the most chunks that one kill has cost.

The exit code is 1 unless the first three are 0 and the last is at most 1.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from job_fixtures import (
    FRAMES,
    KILLED,
    SMALL,
    Forks,
    digest,
    folder_of,
    frame_times,
    journal_of,
    write_clip,
)

from psssr_fast.jobs import POINTS

LIMIT = 30  # runs of one job
# Those of frames that are files of their own are left out: these jobs make videos.
PASSED = tuple(point for point in POINTS if not point.startswith("image-"))
FIRST_STEPS = ("folder-made", "plan-written", "plan-renamed")  # which only the first run passes
LAST_STEPS = PASSED[PASSED.index("ended") :]  # after which there are no more chunks to make


@dataclass(frozen=True)
class Kind:
    """A sort of job.

    Attributes:
        suffix: of the output.
        sounds: streams of sound.
        constant: frame rate.
        options: of the encoder.
    """

    suffix: str
    sounds: int
    constant: bool
    options: tuple[str, ...] = ()


KINDS = (
    Kind(".mp4", 1, True),
    Kind(".mkv", 2, False),
    Kind(".mov", 1, False, ("--preset", "veryfast")),
    Kind(".mp4", 0, False, ("--codec", "libx265", "--preset", "ultrafast")),
    Kind(".webm", 0, True),
)


@dataclass
class Score:
    """What happened."""

    jobs: int = 0
    kills: int = 0
    mismatches: int = 0
    lost_frames: int = 0
    stray_files: int = 0
    redone_chunks_max: int = 0
    points: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name != "points"}
        line = " ".join(f"{name}={value}" for name, value in shown.items())
        return f"{line} points={len(self.points)}/{len(PASSED)}"

    @property
    def passed(self) -> bool:
        """Whether all is as promised."""
        wrong = self.mismatches or self.lost_frames or self.stray_files
        return not wrong and self.redone_chunks_max <= 1


class Torture:
    """Jobs of all kinds, tortured one after the other.

    Args:
        forks: runs them.
        folder: to work in.
        seed: decides everything that is random, but for what the machine does meanwhile.
    """

    def __init__(self, forks: Forks, folder: Path, seed: int) -> None:
        self.score = Score()
        self._forks, self._folder, self._seed = forks, folder, seed
        self._wholes: dict[Kind, tuple[Path, Path, float]] = {}
        self._turn = {"first": 0, "middle": 0, "last": 0}

    def run(self, number: int) -> None:
        """Torture one job."""
        rng = random.Random(f"{self._seed} {number}")
        kind = KINDS[number % len(KINDS)]
        clip, whole, seconds = self._whole(kind)
        place = self._folder / f"job-{number}"
        place.mkdir()
        output = place / f"out{kind.suffix}"
        wanted = rng.randint(1, 10)
        for kills in range(LIMIT):
            before = self._kept(output)
            fault, signals = "", []
            if kills < wanted and (kills in (0, wanted - 1) or rng.random() < 0.5):
                fault = f"{self._next_point(kills, wanted)}:1:kill"
            elif kills < wanted:
                signals = [(rng.uniform(0, seconds / 2), signal.SIGKILL)]
            arguments = (clip, "-o", output.name, *SMALL, *kind.options)
            done = self._forks(*arguments, folder=place, fault=fault, signals=signals)
            if done.code != KILLED:
                break
            self._count_kill(output, before, fault)
        complete = output.exists() and "exists already" in done.err  # killed after its last step
        if done.code != 0 and not complete:
            raise RuntimeError(f"job {number} ended with {done.code}: {done.err}")
        self._compare(clip, whole, output)
        shutil.rmtree(place)

    def _next_point(self, kills: int, wanted: int) -> str:
        """The point whose turn it is: some are passed only at the beginning or at the end."""
        middle = [point for point in PASSED if point not in (*FIRST_STEPS, *LAST_STEPS)]
        stage, points = "middle", tuple(middle)
        if kills + 1 == wanted:
            stage, points = "last", LAST_STEPS
        elif kills == 0:
            stage, points = "first", FIRST_STEPS
        self._turn[stage] += 1
        return points[self._turn[stage] % len(points)]

    def _whole(self, kind: Kind) -> tuple[Path, Path, float]:
        """A clip, what an undisturbed run makes of it, and how long that takes."""
        if kind in self._wholes:
            return self._wholes[kind]
        place = self._folder / f"whole-{len(self._wholes)}"
        place.mkdir()
        rng = random.Random(kind.suffix)
        gaps = [40 if kind.constant else rng.choice((1, 20, 40, 400)) for _ in range(FRAMES - 1)]
        clip = write_clip(place / "clip.mkv", accumulate(gaps, initial=0), sounds=kind.sounds)
        whole = place / f"whole{kind.suffix}"
        begin = time.monotonic()
        done = self._forks(clip, "-o", whole.name, *SMALL, *kind.options, folder=place)
        if done.code != 0:
            raise RuntimeError(f"{kind}: {done.err}")
        self._wholes[kind] = clip, whole, time.monotonic() - begin
        return self._wholes[kind]

    def _kept(self, output: Path) -> dict[str, int]:
        """The chunks that are safe, and which file each is."""
        job, names = folder_of(output), (chunk["file"] for chunk in journal_of(output))
        return {name: (job / name).stat().st_ino for name in names if (job / name).exists()}

    def _count_kill(self, output: Path, before: dict[str, int], fault: str) -> None:
        self.score.kills += 1
        if fault:
            self.score.points.add(fault.partition(":")[0])
        after, job = self._kept(output), folder_of(output)
        lost = set()
        if job.exists() and not output.exists():
            made_again = {name for name, file in before.items() if after.get(name) != file}
            begun = {path.name.partition(".")[0] for path in job.glob("chunk-*")} - set(after)
            lost = made_again | begun
        self.score.redone_chunks_max = max(self.score.redone_chunks_max, len(lost))

    def _compare(self, clip: Path, whole: Path, output: Path) -> None:
        score = self.score
        score.jobs += 1
        score.mismatches += digest(output) != digest(whole)
        got, expected = frame_times(output), frame_times(clip)
        score.lost_frames += len(set(expected) ^ set(got)) + abs(len(expected) - len(got))
        score.stray_files += len({path.name for path in output.parent.iterdir()} - {output.name})


def torture(forks: Forks, jobs: int, seed: int, tell: bool = True) -> Score:
    """Torture so many jobs."""
    with tempfile.TemporaryDirectory(prefix="psssr-torture-") as folder:
        run = Torture(forks, Path(folder), seed)
        for number in range(jobs):
            run.run(number)
            if tell:
                print(f"\r{run.score}", end="", file=sys.stderr, flush=True)
    if tell:
        print(file=sys.stderr)
    return run.score


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with Forks() as forks:
        score = torture(forks, options.jobs, options.seed)
    print(score)
    return 0 if score.passed else 1


if __name__ == "__main__":
    sys.exit(main())
