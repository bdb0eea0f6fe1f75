"""Disturb jobs at every file operation that they make, and compare what comes out in the end.

    python tests/torture/file_operations.py
    python tests/torture/file_operations.py --kind png --what power --every 5 --seed 3

A job is ``psssr upscale`` in a process of its own; a library loaded into it (``interpose.c``)
counts what it does to files. For each operation, in runs of their own,

- ``kill``: SIGKILL just before it, and after half of the bytes of a write;
- ``error``: it fails once, or it and later ones fail, with errors that its kind may give;
- ``power``: the power fails just after it. Of what was not synced, the disk holds nothing, or
  all, or some (``disk_states.py``).

Then the same command runs until it succeeds. The last line is a scoreboard:

- ``wrong_outputs``: other bytes than an undisturbed run's;
- ``lost_frames``: frames that are missing;
- ``lost_outputs``: outputs that were not complete under their name, at any time, or that replaced
  one that was; or not there though the run had ended with success;
- ``strays``: other files left, in the folder of the output or below;
- ``touched``: files of the user that changed;
- ``refusals``: runs that did not end with success though nothing disturbed them;
- ``crashes``: runs that ended other than with success or an error of the output;
- ``redone_chunks_max``: the most chunks that were made twice.

The exit code is 1 unless the last is at most 1 and the others are 0. ``--only`` repeats what the
line of a failure names.
"""

import argparse
import errno
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from disk_states import after_each
from disturbed_jobs import KINDS, Case, Kind, Outcome, Target
from operations import ALL, ERRORS, SPACE, Disturbance, DisturbedForks, Operation, steady

WHAT = ("kill", "error", "power")


def kills(target: Target) -> Iterator[Case]:
    """A kill before each operation, and in the middle of each write."""
    for each in target.operations:
        for how in ("kill", "half") if each.kind == "write" else ("kill",):
            asked = Disturbance(each.number, how)
            yield Case(f"kill-{asked}", about(each), asked)


def failures(target: Target) -> Iterator[Case]:
    """Errors of each operation, once and from then on."""
    for each in target.operations:
        asked = [Disturbance(each.number, "error", error) for error in ERRORS[each.kind]]
        asked.append(Disturbance(each.number, "error", errno.EIO, ALL))
        if each.kind in SPACE:
            asked.append(Disturbance(each.number, "error", errno.ENOSPC, SPACE))
        if each.kind == "write":
            asked.append(Disturbance(each.number, "short"))
            asked.append(Disturbance(each.number, "short", errno.ENOSPC, SPACE))
        yield from (Case(f"error-{one}", about(each), one) for one in asked)


def power_cuts(target: Target, seed: int) -> Iterator[Case]:
    """What the disk may hold after each operation; the same states with the same chunks once."""
    operations, seen = target.operations, set()
    for number, name, state in after_each(target.disk, operations, seed):
        ended, made = number == len(operations), len(target.chunks(operations[:number]))
        key = ended, made, tuple(sorted(state.items(), key=lambda item: item[0]))
        if key in seen:
            continue
        seen.add(key)
        after = about(operations[number - 1]) if number else "the start"
        yield Case(
            f"power-{number}-{name}", f"after {after}", state=state, before=number, ended=ended
        )


def about(operation: Operation) -> str:
    """The operation in words."""
    return f"{operation.kind} {'/'.join(steady(operation.path).split('/')[-2:])}"


def cases(target: Target, what: Sequence[str], seed: int) -> list[Case]:
    """All cases of a job; a file system that refuses operations is tried with power cuts only."""
    found: list[Case] = []
    if target.kind.refused:
        return list(power_cuts(target, seed)) if "power" in what else []
    if "kill" in what:
        found += kills(target)
    if "error" in what:
        found += failures(target)
    if "power" in what:
        found += power_cuts(target, seed)
    return found


class Torture:
    """Jobs tortured by several processes at once.

    A context manager.

    Args:
        folder: to work in.
        workers: how many at once.
        seed: decides everything that is random.

    Attributes:
        outcome: of all cases.
        operations: of the jobs, undisturbed.
        states: that power cuts left.
        failed: what did not end as promised, one text each.
    """

    def __init__(self, folder: Path, workers: int = 1, seed: int = 0) -> None:
        self.outcome, self.failed = Outcome(), list[str]()
        self.operations = self.states = 0
        self._folder, self._workers, self._seed = folder, workers, seed
        self._idle: SimpleQueue[DisturbedForks] = SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for number in range(self._workers):
            own = self._folder / f"worker-{number}"
            own.mkdir()
            self._idle.put(self._stack.enter_context(DisturbedForks(own)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, kind: Kind, what: Sequence[str] = WHAT, every: int = 1, only: str = "") -> None:
        """Torture one kind of job.

        Args:
            what: sorts of disturbance, of :data:`WHAT`.
            every: leave out all but each such case.
            only: the name of the one case to try.
        """
        forks = self._idle.get()
        target = Target(kind, self._folder / kind.name, forks)
        self._idle.put(forks)
        self.operations += len(target.operations)
        chosen = cases(target, what, self._seed)[0 if only else self._seed % every :: every]
        if only:
            chosen = [case for case in chosen if case.name == only]
        self.states += sum(case.state is not None for case in chosen)
        with ThreadPoolExecutor(self._workers) as pool:
            for case, outcome in pool.map(lambda case: (case, self._try(target, case)), chosen):
                self.outcome.add(outcome)
                if only or not outcome.passed:
                    what_happened = "\n  ".join((str(outcome), *outcome.said))
                    self.failed.append(
                        f"--kind {kind.name} --only {case.name}: {case.about}\n  {what_happened}\n"
                    )

    def _try(self, target: Target, case: Case) -> Outcome:
        forks = self._idle.get()
        try:
            return target.try_case(case, forks)
        finally:
            self._idle.put(forks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kind", choices=(*names, "all"), default="all")
    parser.add_argument("--what", choices=(*WHAT, "all"), default="all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try each N-th case")
    parser.add_argument("--only", default="", metavar="CASE", help="try this one, and tell of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args(arguments)
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="psssr-operations-") as folder,
        Torture(Path(folder), asked.workers, asked.seed) as torture,
    ):
        for kind in KINDS:
            if asked.kind in (kind.name, "all"):
                what = WHAT if asked.what == "all" else (asked.what,)
                torture.run(kind, what, asked.every, asked.only)
                print("".join(torture.failed), end="", flush=True)
                torture.failed.clear()
    if not torture.outcome.runs:
        parser.error(f"there is no case {asked.only!r}")
    seconds = time.monotonic() - begin
    print(
        f"operations={torture.operations} states={torture.states} {torture.outcome} "
        f"seconds={seconds:.0f}"
    )
    return 0 if torture.outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
