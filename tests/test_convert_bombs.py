"""Small pickles that ask for much: memory, time, bytes of output. Refused in one line, exit 4."""

import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from cli_fixtures import HANGS_AFTER
from safetensors.torch import load_file
from torch import Tensor

from psssr_fast import convert
from psssr_fast.convert import convert_pickle, read_pickle
from psssr_fast.errors import ModelError, OutOfMemory, UsageError

ONE = torch.ones(1)


class Rebuilt:
    """Pickled, it is a call that makes a tensor; so the file says what a real one never would."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def unreadable(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as raised:
        read_pickle(path)
    assert str(raised.value).isprintable() and raised.value.exit_code == 4


def rebuilt(tensor: Tensor, *geometry: Any) -> Rebuilt:
    """A tensor over the memory of another: offset, shape, strides."""
    storage = tensor.untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=tensor.dtype, _internal=True)
    return Rebuilt(torch._utils._rebuild_tensor_v2, typed, *geometry, False, {})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "tensor",
    [
        ONE.expand(200_000_000),
        ONE.expand(2**20, 2**20, 2**10),
        torch.ones(100).as_strided((90, 11), (1, 1)),
        torch.ones(8, 8).unfold(0, 3, 1).unfold(1, 3, 1),
        rebuilt(ONE, 0, (2**40,), (1,)),
        rebuilt(ONE, 0, (2**62, 4), (0, 0)),
        rebuilt(ONE, 2**40, (1,), (1,)),
        rebuilt(ONE, -1, (1,), (1,)),
        rebuilt(torch.ones(9), 1, (3,), (-1,)),
    ],
    ids=[
        "stride 0", "petabytes", "overlapping rows", "windows", "longer than its memory",
        "overflow", "beyond its memory", "before its memory", "backwards",
    ],
)  # fmt: skip
def test_a_tensor_may_not_be_larger_than_its_memory(tmp_path, tensor, zipped):
    torch.save({"w": tensor}, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    unreadable(tmp_path / "in.pth", "refused: w has|cut short or damaged|memory")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_that_share_memory_are_bounded_by_the_file(tmp_path, zipped):
    """A few names for one matrix are usual, hundreds are not."""
    matrix, path = torch.randn(100, 100), tmp_path / "in.pth"
    tied = dict.fromkeys("abcd", matrix)
    torch.save(tied, path, _use_new_zipfile_serialization=zipped)
    assert read_pickle(path).keys() == tied.keys()
    torch.save({str(n): matrix for n in range(300)}, path, _use_new_zipfile_serialization=zipped)
    unreadable(path, "share memory, and written separately they take more than 4 times")


def test_transposed_and_partial_tensors_are_no_bombs(tmp_path):
    matrix = torch.randn(64, 32)
    state = {"turned": matrix.T, "row": matrix[3], "every second": matrix[::2], "none": matrix[:0]}
    torch.save(state, tmp_path / "in.pth")
    found = read_pickle(tmp_path / "in.pth")
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(3, device="meta"), "is on meta; needed are plain tensors"),
        (lambda: torch.quantize_per_tensor(ONE, 0.1, 0, torch.qint8), "torch.qint8"),
        (lambda: torch.ones(2, 2).to_sparse_csr(), "needed dense floats"),
        (lambda: torch.ones(2, dtype=torch.complex64), "torch.complex64"),
        (lambda: torch.nested.nested_tensor([ONE, ONE]), "plain tensors|refused"),
    ],
    ids=["meta", "quantized", "sparse", "complex", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused(tmp_path, make, message):
    torch.save({"w": make()}, tmp_path / "in.pth")
    unreadable(tmp_path / "in.pth", message)


def test_a_negated_view_is_stored_with_its_sign(tmp_path):
    value = torch.complex(ONE, ONE).conj().imag
    assert value.is_neg()
    torch.save({"w": value}, tmp_path / "in.pth")
    convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)
    assert load_file(tmp_path / "out.safetensors")["w"].item() == -1.0


def archive(path: Path, change: Any = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """What torch.save writes, packed anew; ``change`` gets the table of its entries."""
    torch.save({"w": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {info.filename: source.read(info) for info in source.infolist()}
    if change is not None:
        change(entries)
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return path


def test_compressed_archives_are_refused(tmp_path):
    path = archive(tmp_path / "in.pth", compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    unreadable(path, "refused: in/.* in it is compressed")


def test_an_archive_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = archive(tmp_path / "in.pth")
    content = path.read_bytes()
    size = (400_000).to_bytes(4, "little")
    at = content.rindex(size)  # of the central directory; it comes twice, packed and unpacked
    content = content[: at - 4] + (2**31 - 1).to_bytes(4, "little") * 2 + content[at + 4 :]
    path.write_bytes(content)
    unreadable(path, "refused: its entries claim|cut short or damaged")


def test_a_tensor_longer_than_its_entry_is_refused(tmp_path):
    def cut(entries: dict[str, bytes]) -> None:
        entries["in/data/0"] = entries["in/data/0"][:100]

    unreadable(archive(tmp_path / "in.pth", cut), "cut short or damaged|refused")


def test_an_archive_of_very_many_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "MAX_TENSORS", 100)

    def add(entries: dict[str, bytes]) -> None:
        entries.update({f"in/data/{n}": b"" for n in range(300)})

    unreadable(archive(tmp_path / "in.pth", add), r"30\d entries; at most 200")


def test_a_table_of_very_many_tensors_is_refused(tmp_path):
    torch.save({str(n): ONE for n in range(10_001)}, tmp_path / "in.pth")
    unreadable(tmp_path / "in.pth", "10001 tensors; at most 10000 are converted")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x02}" + b"(" * 200_000 + b"u.",
        b"\x80\x02\x8b\xff\xff\xff\x7f" + b"9" * 10,  # LONG4 of 2 GB
        b"\x80\x02X\xff\xff\xff\x7fa.",  # a text of 2 GB
    ],
    ids=["lists in lists", "marks", "number", "text"],
)
def test_deep_and_huge_pickles_are_refused(tmp_path, content):
    (tmp_path / "in.pth").write_bytes(content)
    unreadable(tmp_path / "in.pth", "cut short or damaged|refused|holds a")


def test_time_and_output_of_the_child_follow_the_size_of_the_file(tmp_path, monkeypatch):
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    path = tmp_path / "in.pth"
    path.touch()
    found = []
    for size in (1000, 10**10):
        os.truncate(path, size)
        convert._limit_resources(path)
        kinds = (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_AS)
        found.append([limits[kind][0] for kind in kinds])
    small, large = found
    assert small[0] == 60 and large[0] == 60 + 1000
    assert small[1] < 10 * 2**20 and 4 * 10**10 < large[1] < 5 * 10**10
    assert small[2] < 64 * 2**30 and large[2] - small[2] > 4 * 10**10


def pairs(levels: int) -> bytes:
    """A table whose keys are pairs of the pair before."""
    nested = (b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(levels))
    return b"\x80\x02}()q\x00" + b"".join(nested) + b"K\x01u."


def hashing(folder: Path) -> Path:
    """A pickle of 200 bytes that computes for ever: the hash of nested pairs, each one twice."""
    (folder / "in.pth").write_bytes(pairs(60))
    return folder / "in.pth"


@pytest.mark.filterwarnings("ignore")
def test_a_child_that_computes_for_ever_is_ended(tmp_path, monkeypatch):
    program = (
        "import sys, resource; from psssr_fast import convert; convert._CPU_SECONDS = 0; "
        "real = resource.setrlimit; "
        "resource.setrlimit = lambda kind, pair: real(kind, (int(resource.getrusage(0).ru_utime) "
        "+ 2,) * 2 if kind == resource.RLIMIT_CPU else pair); "
        "convert.main(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, hashing(tmp_path), tmp_path / "out"], capture_output=True
    )
    assert done.returncode < 0, done
    ended = subprocess.CompletedProcess([], -24, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ended)
    with pytest.raises(ModelError, match="more than 60 s of processor time"):
        convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)


def test_a_child_that_sleeps_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_WALL_SECONDS", 0)  # before torch is imported
    torch.save({"w": ONE}, tmp_path / "in.pth")
    others = psutil.Process().children()  # of fixtures that other tests share
    with pytest.raises(ModelError, match="took more than 0 s; ended"):
        convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
    assert psutil.Process().children() == others


@pytest.mark.parametrize("computing", [False, True], ids=["starting", "computing"])
def test_the_child_ends_with_its_parent(tmp_path, computing):
    """Killed, the parent can tell nobody any more."""
    program = (
        "import sys; from psssr_fast.convert import convert_pickle; "
        "convert_pickle(sys.argv[1], sys.argv[2], trust=True)"
    )
    command = [sys.executable, "-c", program, hashing(tmp_path), tmp_path / "out.safetensors"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        process, until = psutil.Process(parent.pid), time.monotonic() + HANGS_AFTER
        while not (children := process.children()):
            assert time.monotonic() < until and parent.poll() is None
            time.sleep(0.05)
        # The limit is set after all that is meant to end the child with its parent.
        while computing and children[0].rlimit(psutil.RLIMIT_CPU)[0] != 60:
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.kill()
    assert psutil.wait_procs(children, timeout=HANGS_AFTER)[1] == []


def test_a_process_that_cannot_be_started_is_a_lack_of_memory(tmp_path, monkeypatch):
    def fail(command, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", fail)
    torch.save({"w": ONE}, tmp_path / "in.pth")
    with pytest.raises((OutOfMemory, BlockingIOError)):
        convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_links_at_the_output_are_not_followed(tmp_path, overwrite):
    torch.save({"w": ONE}, tmp_path / "in.pth")
    (tmp_path / "out.safetensors").symlink_to("precious")
    if overwrite:
        convert_pickle(
            tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True, overwrite=True
        )
        assert not (tmp_path / "out.safetensors").is_symlink()
    else:
        with pytest.raises(UsageError, match="exists"):
            convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)
    assert not (tmp_path / "precious").exists()


def test_the_bomb_of_pairs_is_a_pickle():
    """With few levels it ends, so that what ends above is the computing."""
    assert pickle.loads(pairs(2)) == {(): ((), ()), (((), ()), ((), ())): 1}
