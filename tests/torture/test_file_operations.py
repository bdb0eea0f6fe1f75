"""Some of the torture at file operations in every run of the tests, and whether its tools see."""

import errno
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from disk_states import Disk, State, read_state
from disturbed_jobs import KINDS, Outcome
from file_operations import Torture
from operations import ALL, NONE, SPACE, Disturbance, Interposer, Operation, can_interpose

needs_interposer = pytest.mark.skipif(not can_interpose(), reason="needs Linux and cc")

PROGRAM = """
import ctypes, os
def write(file, content):
    while content:
        content = content[os.write(file, content):]
os.mkdir("folder")
folder = os.open("folder", os.O_RDONLY)
file = os.open("a", os.O_RDWR | os.O_CREAT, dir_fd=folder)
write(file, b"0123456789")
os.pwrite(file, b"xy", 4)
os.writev(file, [b"ab", b"cd"])
os.ftruncate(file, 11)
os.fsync(file)
os.utime(file)
os.close(file)
os.close(os.open(f"/proc/self/fd/{folder}/a", os.O_WRONLY | os.O_APPEND))
os.link("a", "b", src_dir_fd=folder, dst_dir_fd=folder)
os.rename("a", "c", src_dir_fd=folder)
again = os.open("c", os.O_RDWR)
os.close(os.open(f"/proc/self/fd/{again}", os.O_WRONLY | os.O_TRUNC))
libc = ctypes.CDLL(None)
assert libc.renameat2(-100, b"c", -100, b"d", 1) == 0
number = {"x86_64": 316, "aarch64": 276}[os.uname().machine]
assert libc.syscall(number, -100, b"d", -100, b"e", 1) == 0
os.fsync(folder)
os.unlink("b", dir_fd=folder)
os.rmdir("folder")
open("/dev/null", "w").close()
"""
KINDS_OF_PROGRAM = [
    "mkdir", "create", "write", "write", "write", "resize", "sync", "times", "close", "open",
    "close", "link", "rename", "open", "truncate", "close", "publish", "publish", "sync-folder",
    "unlink", "rmdir",
]  # fmt: skip


class Program:
    """Runs a program whose file operations count in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._interposer, self._folder, self._runs = Interposer(folder), folder, 0

    def __call__(self, disturbance: Disturbance = NONE) -> tuple[int, list[Operation], State]:
        """Return the exit code, the operations, and what is there then."""
        place = self._folder / f"place-{self._runs}"
        place.mkdir()
        self._runs += 1
        self._interposer.ask(place, disturbance)
        disk = Disk(place)
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", PROGRAM], cwd=place, capture_output=True,
            env=self._interposer.environment,
        )  # fmt: skip
        operations = self._interposer.operations()
        for operation in operations:
            disk.apply(operation)
        if disturbance.how != "half":
            assert disk.everything() == read_state(place), done.stderr.decode()
        return done.returncode, operations, read_state(place)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    return Program(tmp_path_factory.mktemp("program"))


@needs_interposer
def test_every_operation_is_counted_and_recorded(program):
    code, operations, state = program()
    assert code == 0
    assert [each.kind for each in operations] == KINDS_OF_PROGRAM
    assert [each.number for each in operations] == list(range(1, len(operations) + 1))
    written = b"".join(each.content for each in operations)
    assert written == b"0123456789" + b"xy" + b"abcd"
    assert state == {"e": b""}


@needs_interposer
def test_a_kill_comes_before_any_operation_or_within_a_write(program):
    for number, kind in enumerate(KINDS_OF_PROGRAM, 1):
        code, operations, _ = program(Disturbance(number, "kill"))
        assert (code, len(operations)) == (-9, number - 1)
        if kind == "write":
            code, operations, state = program(Disturbance(number, "half"))
            contents = {3: b"01234", 4: b"0123x56789", 5: b"0123xy6789ab"}
            assert (code, state["folder/a"]) == (-9, contents[number])


@needs_interposer
def test_an_operation_fails_once_or_from_then_on(program):
    for number in range(1, len(KINDS_OF_PROGRAM) + 1):
        code, operations, _ = program(Disturbance(number, "error", errno.EIO))
        assert (code, operations[number - 1].result) == (1, -errno.EIO)
    code, operations, _ = program(Disturbance(3, "error", errno.EINTR))
    assert (code, [each.result for each in operations[2:4]]) == (0, [-errno.EINTR, 10])
    code, operations, _ = program(Disturbance(3, "short"))
    assert (code, [each.result for each in operations[2:4]]) == (0, [5, 5])
    code, operations, _ = program(Disturbance(3, "short", errno.ENOSPC, SPACE))
    assert (code, [each.result for each in operations[2:4]]) == (1, [5, -errno.ENOSPC])
    code, operations, _ = program(Disturbance(1, "error", errno.EROFS, ALL))
    assert (code, [each.result for each in operations]) == (1, [-errno.EROFS])


class Script:
    """Operations on a disk that begins with the file ``old`` in the root and in ``folder``."""

    def __init__(self, place: Path) -> None:
        (place / "folder").mkdir()
        (place / "old").write_bytes(b"old")
        (place / "folder/old").write_bytes(b"old")
        self.disk, self._place = Disk(place), place
        names = ("", "folder", "old", "folder/old")
        self._inodes = {name: (place / name).stat().st_ino for name in names}

    def __call__(self, kind: str, path: str = "", second: str = "", content: bytes = b"") -> None:
        """Make one operation; new files are known by their first name."""
        inode = self._inodes.setdefault(path, 2**40 + len(self._inodes))
        names = str(self._place / path), str(self._place / second)
        self.disk.apply(Operation(0, kind, 0, inode, *names, 0, content))
        if kind == "rename":
            self._inodes[second] = self._inodes.pop(path)

    def states(self, names: str = "") -> list[State]:
        """States that the disk may hold now, whose names begin so, of many seeds."""
        seeds = (random.Random(seed) for seed in range(40))
        return [
            state
            for rng in seeds
            for name, state in self.disk.states(rng)
            if name.startswith(names)
        ]


@pytest.fixture
def script(tmp_path) -> Script:
    return Script(tmp_path.resolve())


@pytest.mark.parametrize("synced", [False, True])
def test_contents_are_sure_when_they_were_synced_before_the_name(script, synced):
    script("create", "new")
    script("write", "new", content=b"four")
    if synced:
        script("sync", "new")
    script("rename", "new", "old")
    script("sync-folder")
    contents = {state["old"] for state in script.states()}
    assert contents == ({b"four"} if synced else {b"", b"four", b"fo", bytes(4)})


def test_a_name_is_sure_when_its_folder_and_those_above_were_synced(script):
    script("mkdir", "made")
    script("create", "made/file")
    script("sync-folder", "made")
    kept = {("made/file" in state) for state in script.states()}
    assert kept == {False, True}
    assert all("made/file" in state for state in script.states() if "made" in state)
    script("sync-folder")
    assert all("made/file" in state for state in script.states())


def test_removals_are_in_order_only_in_a_journal(script):
    script("unlink", "folder/old")
    script("unlink", "old")
    later_alone = ["folder/old" in state and "old" not in state for state in script.states()]
    assert any(later_alone)
    assert not any(
        "folder/old" in state and "old" not in state for state in script.states("ordered")
    )
    script("sync-folder", "")
    assert not any("old" in state for state in script.states())
    assert not any("folder/old" in state for state in script.states("journal"))
    assert any("folder/old" in state for state in script.states())


@pytest.mark.parametrize("synced", ["", "folder"])
def test_what_is_moved_is_never_lost_but_may_have_both_names(script, synced):
    script("unlink", "old")
    script("rename", "folder/old", "moved")
    script("sync-folder", synced)
    found = {("folder/old" in state, "moved" in state) for state in script.states()}
    assert found == {"": {(True, True), (False, True)}, "folder": {(False, True)}}[synced]


def test_links_are_other_names_of_one_file(script):
    script("create", "new")
    script("link", "new", "also")
    script("write", "new", content=b"four")
    script("sync", "new")
    script("sync-folder")
    script("unlink", "new")
    assert all(state["also"] == b"four" for state in script.states())
    assert script.disk.everything()["also"] == b"four" and "new" not in script.disk.everything()


def test_an_outcome_passes_only_if_all_is_as_promised():
    assert Outcome(runs=3, redone_chunks_max=1).passed
    names = [name for name in vars(Outcome()) if name not in ("runs", "said")]
    assert len(names) == 8
    assert not any(Outcome(**{name: 2}).passed for name in names)


@needs_interposer
def test_disturbed_jobs_come_to_the_right_end(tmp_path):
    with Torture(tmp_path, seed=5) as torture:
        for kind in KINDS[:2]:
            torture.run(kind, every=80)
    assert torture.outcome.passed, "\n".join(torture.failed)
    assert torture.operations > 150 and torture.states >= 2 and torture.outcome.runs >= 30
