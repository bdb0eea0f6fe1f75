"""Small jobs whose file operations are disturbed, and what must hold of them afterwards."""

import errno
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from cli_fixtures import Done, write_frames
from disk_states import Disk, State, read_state, write_state
from job_fixtures import KILLED, SMALL, frame_times, write_clip
from operations import NONE, Disturbance, DisturbedForks, Operation

LIMIT = 4  # runs after a disturbed one
OF_THE_OUTPUT = 6  # exit code
FRAMES = 18  # of a video: three chunks
USERS: State = {"holiday.txt": b"mine", "holiday.mp4": b"mine, too"}
OLDER = b"an older video"
IN_THE_FOLDER = "notes.txt"  # of the user, put among the frames after a disturbed run


@dataclass(frozen=True)
class Kind:
    """A sort of job.

    Attributes:
        name: for the command line.
        output: name of the output.
        older: an output is there already, and is to be replaced.
        refused: kinds of operations that the file system does not know.
    """

    name: str
    output: str
    older: bool = False
    refused: tuple[str, ...] = ()

    @property
    def images(self) -> bool:
        """Whether the output is a folder of PNG frames."""
        return "." not in self.output

    @property
    def usual(self) -> Disturbance:
        """What befalls every run, also one that nothing else disturbs."""
        return Disturbance(1, "short", errno.EINVAL, self.refused) if self.refused else NONE


KINDS = (
    Kind("mp4", "out.mp4"),
    Kind("png", "frames"),
    Kind("overwrite", "out.mp4", older=True),
    # No file system tells before whether it can rename without replacing, or has hard links.
    Kind("mp4-linked", "out.mp4", refused=("publish",)),
    Kind("png-linked", "frames", refused=("publish",)),
    Kind("mp4-plain", "out.mp4", refused=("publish", "link")),
    Kind("png-plain", "frames", refused=("publish", "link")),
)


@dataclass(frozen=True)
class Case:
    """One way to disturb a job.

    Attributes:
        name: what ``--only`` takes.
        about: the operation, for people.
        disturbance: of a run.
        state: what the disk holds after a power cut; then there is no disturbed run.
        before: how many operations came before the power cut.
        ended: the run had ended with success before it.
    """

    name: str
    about: str
    disturbance: Disturbance = NONE
    state: State | None = None
    before: int = 0
    ended: bool = False


@dataclass
class Outcome:
    """What came of one case, or of many."""

    runs: int = 0
    wrong_outputs: int = 0
    lost_frames: int = 0
    lost_outputs: int = 0
    strays: int = 0
    touched: int = 0
    refusals: int = 0
    crashes: int = 0
    redone_chunks_max: int = 0
    said: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if name != "said")

    @property
    def passed(self) -> bool:
        """Whether all is as promised."""
        counts = {name: value for name, value in vars(self).items() if name not in ("runs", "said")}
        return counts.pop("redone_chunks_max") <= 1 and not any(counts.values())

    def add(self, other: "Outcome") -> None:
        """Count what came of another case."""
        for name, value in vars(other).items():
            if name == "redone_chunks_max":
                self.redone_chunks_max = max(self.redone_chunks_max, value)
            elif name != "said":
                setattr(self, name, getattr(self, name) + value)


class Target:
    """A job of one kind, undisturbed and disturbed.

    Args:
        kind: of job.
        folder: to work in, new for each kind.
        forks: runs it undisturbed, to know its operations and its output.

    Attributes:
        operations: of an undisturbed run.
        disk: as that run found it.
    """

    def __init__(self, kind: Kind, folder: Path, forks: DisturbedForks) -> None:
        self.kind, self._folder = kind, folder
        folder.mkdir()
        if kind.images:
            source = write_frames(folder / "input", 4, (32, 24))
        else:
            source = write_clip(folder / "clip.mkv", range(0, FRAMES * 40, 40))
        more = ("--overwrite",) if kind.older else ()
        self._arguments = (source, "-o", kind.output, *SMALL, *more)
        place = self._new_place("whole")
        self.disk, replayed = Disk(place), Disk(place)
        done, self.operations = forks.run(*self._arguments, folder=place, disturbance=kind.usual)
        if done.code != 0:
            raise RuntimeError(f"{kind.name}: {done.err}")
        self._replay(replayed, self.operations, place)
        self._whole = self._made(read_state(place))
        if not kind.images and frame_times(place / kind.output) != frame_times(source):
            raise RuntimeError(f"{kind.name}: an undisturbed run loses frames")

    def _replay(self, disk: Disk, operations: list[Operation], place: Path) -> None:
        """Make sure that these operations, and no others, made what is there."""
        for operation in operations:
            disk.apply(operation)
        if disk.everything() != read_state(place):
            raise RuntimeError(f"{place.name}: not all of its file operations are recorded")

    def _new_place(self, name: str) -> Path:
        place = self._folder / name
        place.mkdir()
        older = {self.kind.output: OLDER} if self.kind.older else {}
        write_state({**USERS, **older}, place)
        return place

    def _made(self, state: State) -> State:
        """Of a state, what belongs to the output, complete or not."""
        output = self.kind.output
        names = (name for name in state if name == output or name.startswith(f"{output}/"))
        return {name: state[name] for name in names if not name.endswith(f"/{IN_THE_FOLDER}")}

    def try_case(self, case: Case, forks: DisturbedForks) -> Outcome:
        """Disturb the job, bring it to its end, and judge."""
        outcome, place = Outcome(), self._folder / case.name
        if case.state is None:
            self._new_place(case.name)
            operations = self._disturb(case, place, forks, outcome)
        else:
            place.mkdir()
            write_state(case.state, place)
            operations = self.operations[: case.before]
            made = self._made(case.state)
            whole = made == self._whole if case.ended else self._is_whole_or_older(made)
            outcome.lost_outputs += not whole
        mine = dict(USERS)
        if self.kind.images and (place / self.kind.output).is_dir():
            mine[f"{self.kind.output}/{IN_THE_FOLDER}"] = b"put here meanwhile"
            write_state({name: mine[name] for name in mine.keys() - USERS.keys()}, place)
        counts = Counter(self.chunks(operations))
        complete = self._made(read_state(place)) == self._whole
        counts.update(self._bring_to_end(place, forks, outcome))
        if not complete:  # or it was made anew because that was asked for
            outcome.redone_chunks_max = sum(count - 1 for count in counts.values())
        self._judge(read_state(place), mine, outcome)
        shutil.rmtree(place)
        return outcome

    def _disturb(
        self, case: Case, place: Path, forks: DisturbedForks, outcome: Outcome
    ) -> list[Operation]:
        asked, disk = case.disturbance, Disk(place)
        done, operations = forks.run(*self._arguments, folder=place, disturbance=asked)
        if asked.how != "half":  # of which the record does not tell
            self._replay(disk, operations, place)
        outcome.runs += 1
        outcome.said.append(f"exit {done.code}: {done.err.strip()}")
        if asked.how in ("kill", "half"):
            if done.code != KILLED:
                raise RuntimeError(f"{self.kind.name} {case.name}: not killed")
        elif done.code not in (0, OF_THE_OUTPUT) or "Traceback" in done.err:
            outcome.crashes += 1
        made = self._made(read_state(place))
        if done.code == 0:
            outcome.lost_outputs += made != self._whole
        else:
            outcome.lost_outputs += not self._is_whole_or_older(made)
        return operations

    def _is_whole_or_older(self, made: State) -> bool:
        """Whether all that has the name of an output, or of a frame, is complete."""
        if self.kind.images:
            frames = [name for name in made if not Path(name).name.startswith(".")]
            return all(made[name] == self._whole.get(name) for name in frames)
        older = OLDER if self.kind.older else None
        return made == self._whole or made.get(self.kind.output) == older

    def _bring_to_end(self, place: Path, forks: DisturbedForks, outcome: Outcome) -> list[str]:
        made = []
        for _ in range(LIMIT):
            done, operations = forks.run(
                *self._arguments, folder=place, disturbance=self.kind.usual
            )
            outcome.runs += 1
            outcome.said.append(f"exit {done.code}: {done.err.strip()}")
            made += self.chunks(operations)
            if done.code == 0 or self._says_complete(done, place):
                break
            outcome.refusals += 1
            outcome.crashes += done.code != OF_THE_OUTPUT or "Traceback" in done.err
        return made

    def _says_complete(self, done: Done, place: Path) -> bool:
        says = "exists already" in done.err or "holds PNG files already" in done.err
        return says and self._made(read_state(place)) == self._whole

    def _judge(self, state: State, mine: State, outcome: Outcome) -> None:
        made = self._made(state)
        outcome.wrong_outputs += made != self._whole
        if self.kind.images:
            outcome.lost_frames += len(self._whole.keys() - made.keys())
        elif self.kind.output not in made:
            outcome.lost_frames += FRAMES
        strays = state.keys() - self._whole.keys() - mine.keys()
        outcome.strays += len(strays)
        if strays:
            outcome.said.append(f"strays: {', '.join(sorted(strays))}")
        outcome.touched += sum(state.get(name) != content for name, content in mine.items())

    def chunks(self, operations: list[Operation]) -> list[str]:
        """Which chunks got their names, once for each time."""
        moved = [each for each in operations if each.kind in ("rename", "publish", "link")]
        names = [Path(each.second) for each in moved if each.result >= 0]
        if self.kind.images:
            return [path.name for path in names if path.parent.name == self.kind.output]
        return [path.name for path in names if path.name.startswith("chunk-")]
