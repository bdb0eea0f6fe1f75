"""Hostile weights in every disguise: refused with exit code 4, in seconds, in little memory."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import HANGS_AFTER, Psssr, write_video
from safetensors.torch import save

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import ModelError

NAMES = (
    "model.pt", "model.pth", "model.bin", "model.ckpt", "model.pkl", "model.pickle",
    "model.joblib", "model.zip", "model.safetensors", "model.npz", "model",
)  # fmt: skip


class Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def torch_file(canary: Canary, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": canary}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def torch_script(canary: Canary) -> bytes:
    """A TorchScript archive: constants and code beside the pickles."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(canary))
        archive.writestr("m/constants.pkl", pickle.dumps(canary))
        archive.writestr("m/code/__torch__.py", "import os")
        archive.writestr("m/version", "3\n")
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Canary], bytes]] = {
    **{f"protocol {n}": lambda c, n=n: pickle.dumps(c, protocol=n) for n in range(6)},
    "torch zip": lambda c: torch_file(c, True),
    "torch legacy": lambda c: torch_file(c, False),
    "TorchScript": torch_script,
    "joblib zlib": lambda c: zlib.compress(pickle.dumps(c)),
    "joblib gzip": lambda c: gzip.compress(pickle.dumps(c)),
    "joblib bz2": lambda c: bz2.compress(pickle.dumps(c)),
    "joblib xz": lambda c: lzma.compress(pickle.dumps(c)),
    "after a safetensors": lambda c: save({"a": torch.ones(1)}) + pickle.dumps(c),
    "before a safetensors": lambda c: pickle.dumps(c) + save({"a": torch.ones(1)}),
    "zip after a safetensors": lambda c: save({"a": torch.ones(1)}) + torch_script(c),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", PICKLES)
def test_no_pickle_runs_under_any_name(tmp_path, kind):
    canary, folder = tmp_path / "canary", tmp_path / "model"
    folder.mkdir()
    content = PICKLES[kind](Canary(canary))
    for name in NAMES:
        (folder / name).write_bytes(content)
        for source in (folder / name, folder):
            with pytest.raises(ModelError) as raised:
                load_checkpoint(source)
            assert raised.value.exit_code == 4
            assert str(raised.value).isprintable()
        (folder / name).unlink()
    assert not canary.exists()


def test_the_canary_sings_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_the_command_line_says_how_to_convert(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", 1)
    (tmp_path / name).write_bytes(torch_file(Canary(tmp_path / "canary"), True))
    done = Psssr(capsys)("upscale", "clip.mp4", "--model", name)
    assert done.code == 4 and "psssr models convert" in done.err
    assert len(done.err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", name}


def header(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def many(count: int) -> bytes:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(f'"{n}":{entry}' for n in range(count)) + "}").encode()


def dump(folder: Path, files: dict[str, bytes]) -> None:
    """Write files; those that begin with ``LONG`` go on for 100 MB."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content.removeprefix(LONG))
        if content.startswith(LONG):
            os.truncate(folder / name, 100_000_000)


LONG = b"LONG"
WHOLE = Path(__file__).parent / "golden"
INDEX = "model.safetensors.index.json"
HEAVY: dict[str, Callable[[], dict[str, bytes]]] = {
    "header of 2**63": lambda: {"a.safetensors": struct.pack("<Q", 2**63) + b"{}"},
    "header of 100 MB": lambda: {
        "a.safetensors": LONG + struct.pack("<Q", 99_999_992) + b'{"a":"'
    },
    "header of a million tensors": lambda: {"a.safetensors": header(many(1_000_000))},
    "header as large as allowed": lambda: {"a.safetensors": header(many(60_000))},
    "header of lists": lambda: {
        "a.safetensors": header(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}")
    },
    "header of long numbers": lambda: {"a.safetensors": header(b'{"a":' + b"9" * 4_000_000 + b"}")},
    "header nested": lambda: {"a.safetensors": header(b'{"a":' * 800_000)},
    "index of 100 MB": lambda: {INDEX: LONG + b'{"weight_map":{"a":"'},
    "index of lists": lambda: {INDEX: b'{"weight_map":[' + b"[]," * 1_300_000 + b"[]]}"},
    "index of many shards": lambda: {
        INDEX: b'{"weight_map":{%b}}' % b",".join(b'"%d":"%d.st"' % (n, n) for n in range(90_000))
    },
    "index out of its folder": lambda: {INDEX: b'{"weight_map":{"a":"../../etc/passwd"}}'},
    "config of 100 MB": lambda: _with_config(LONG + b'{"num_heads":"'),
    "config of a billion heads": lambda: _with_config(b'{"num_heads": 1000000000}'),
    "config of 10**4000 heads": lambda: _with_config(b'{"num_heads": 1' + b"0" * 4000 + b"}"),
    "config of negative heads": lambda: _with_config(b'{"num_heads": -2}'),
    "config of no heads": lambda: _with_config(b'{"num_heads": 0}'),
    "config of heads in words": lambda: _with_config(b'{"num_heads": "two"}'),
    "config of a billion steps": lambda: _with_config(b'{"num_heads": 2, "k_select": 1000000000}'),
    "config of no steps": lambda: _with_config(b'{"num_heads": 2, "k_select": 0}'),
    "config a list": lambda: _with_config(b"[]"),
    "config nested": lambda: _with_config(b'{"a":' * 100_000),
}  # fmt: skip


def _with_config(config: bytes) -> dict[str, bytes]:
    names = ("foundation_dit", "base_lora", "draft", "vae")
    files = {f"{name}.safetensors": (WHOLE / f"{name}.safetensors").read_bytes() for name in names}
    return {**files, "config.json": config}


LOAD_ALL = """
import json, sys, time
from pathlib import Path
from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import ModelError

def peak():  # of this process; ru_maxrss would be that of the one it was forked from
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) >> 10

before = peak()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        load_checkpoint(folder)
        told = None
    except ModelError as error:
        told = str(error)
    seconds = time.process_time() - start
    print(json.dumps([folder.name, told, seconds, peak() - before, peak()]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, list[Any]]:
    """What a process of its own says to each of ``HEAVY``: message, seconds, MiB more, MiB."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in HEAVY.items():
        dump(folder / name, make())
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(folder)],
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: rest for name, *rest in lines}


@pytest.mark.parametrize("kind", HEAVY)
def test_heavy_files_are_refused_in_five_seconds(refusals, kind):
    message, seconds, _, _ = refusals[kind]
    assert message is not None and message.isprintable() and len(message) < 2000
    assert seconds < 5


def test_all_of_them_together_take_less_than_500_mib(refusals):
    assert max(peak for *_, peak in refusals.values()) < 500
    assert max(more for *_, more, _ in refusals.values()) < 200
