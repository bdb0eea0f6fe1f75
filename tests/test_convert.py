"""From pickle to safetensors, in a process of its own."""

import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from psssr_fast.convert import Converted, convert_pickle, main, read_pickle
from psssr_fast.errors import ModelError, OutputError, UsageError

GOLDEN = Path(__file__).parent / "golden"


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo sings > '{self.path}'",)


def read_back(folder: Path, content: object, **options: Any) -> dict[str, Tensor]:
    """What the child reads when ``content`` was saved."""
    torch.save(content, folder / "in.pth", **options)
    return read_pickle(folder / "in.pth")


def unreadable(path: Path, match: str) -> str:
    """The message with which the child refuses to read ``path``."""
    with pytest.raises(ModelError, match=match) as raised:
        read_pickle(path)
    assert str(raised.value).isprintable()
    return str(raised.value)


def refused(folder: Path, match: str, error: type[Exception] = ModelError) -> str:
    """The message with which ``in.pth`` is refused; nothing but ``in.pth`` is left behind."""
    with pytest.raises(error, match=match) as raised:
        convert_pickle(folder / "in.pth", folder / "out.safetensors", trust=True)
    assert str(raised.value).isprintable()
    assert [path.name for path in folder.iterdir()] == ["in.pth"]
    return str(raised.value)


def test_a_vae_comes_out_as_it_went_in(tmp_path):
    state = load_file(GOLDEN / "vae.safetensors")
    torch.save(state, tmp_path / "in.pth")
    report = convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)
    out = load_file(tmp_path / "out.safetensors")
    assert out.keys() == state.keys()
    assert all(torch.equal(out[name], state[name]) for name in state)
    parameters = sum(tensor.numel() for tensor in state.values())
    assert report == Converted(tmp_path / "out.safetensors", 194, parameters)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]
    (tmp_path / "any").touch()
    assert report.path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_the_older_format_of_torch_is_read(tmp_path):
    out = read_back(tmp_path, {"a": torch.arange(3.0)}, _use_new_zipfile_serialization=False)
    assert out["a"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("key", ["model_state", "state_dict"])
def test_a_nested_state_dict_is_unwrapped(tmp_path, key):
    out = read_back(tmp_path, {"epoch": 3, key: OrderedDict(a=nn.Parameter(torch.ones(2)))})
    assert out.keys() == {"a"} and out["a"].tolist() == [1.0, 1.0]


def test_dtypes_are_kept_and_shared_or_strided_tensors_become_separate(tmp_path):
    both = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    state = {"whole": both, "row": both[1], "turned": both.T, "again": both, "f16": both.half()}
    torch.save(state, tmp_path / "in.pth")
    convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)
    out = load_file(tmp_path / "out.safetensors")
    assert {name: t.dtype for name, t in out.items()} == {n: t.dtype for n, t in state.items()}
    assert all(torch.equal(out[name], state[name]) for name in state)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    canary = tmp_path.parent / f"{tmp_path.name}-canary"
    path = tmp_path / "in.pth"
    torch.save({"a": Canary(canary)}, path)
    message = refused(tmp_path, r"in.pth: refused: .* nothing of it was executed: .*system")
    assert "weights_only" not in message  # torch's advice to switch it off is not passed on
    torch.save({"a": Canary(canary)}, path, _use_new_zipfile_serialization=False)
    unreadable(path, r"nothing of it was executed: .*system")
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Canary(canary), protocol=protocol))
        unreadable(path, r"refused|cut short or damaged")
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # the canary does sing
    assert canary.read_text() == "sings\n"


def test_a_module_instead_of_a_state_dict_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "in.pth")
    unreadable(
        tmp_path / "in.pth", r"more than tensors.*it asks for torch.nn.modules.linear.Linear"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(1), "step": 7}, "step is a int; needed a tensor"),
        ({"a": {"b": torch.ones(1)}}, "a is a dict; needed a tensor"),
        ({3: torch.ones(1)}, "3 is a Tensor; needed a tensor"),
        ({"a": torch.ones(1, dtype=torch.int64)}, "a is torch.int64"),
        ({"a": torch.ones(2, 2).to_sparse()}, "needed dense floats"),
        ({}, "holds a dict"),
        ([torch.ones(1)], "holds a list; needed a table of named tensors"),
        (torch.ones(1), "holds a Tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_content_that_is_no_table_of_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "in.pth")
    unreadable(tmp_path / "in.pth", message)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_pickle_is_refused_in_one_line(tmp_path, zipped, part):
    path = tmp_path / "in.pth"
    torch.save({"a": torch.randn(999)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    unreadable(path, r"cut short or damaged|refused")


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04", b"\x80\x02"])
def test_what_torch_did_not_save_is_refused(tmp_path, content):
    (tmp_path / "in.pth").write_bytes(content)
    unreadable(tmp_path / "in.pth", r"neither a zip|cut short or damaged|refused")


def test_a_safetensors_file_is_not_a_pickle(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "in.pth")
    unreadable(tmp_path / "in.pth", "neither a zip archive nor a pickle")


def test_trust_must_be_stated(tmp_path):
    with pytest.raises(UsageError, match=r"--i-trust-this-file"):
        convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=False)


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"in.pth: no such file"):
        convert_pickle(tmp_path / "in.pth", tmp_path / "out.safetensors", trust=True)


def test_the_output_must_be_named_safetensors(tmp_path):
    with pytest.raises(UsageError, match=r"must end in .safetensors"):
        convert_pickle(tmp_path / "in.pth", tmp_path / "out.bin", trust=True)


def test_an_existing_output_is_replaced_only_on_request(tmp_path):
    src, dst = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save({"a": torch.ones(1)}, src)
    dst.write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        convert_pickle(src, dst, trust=True)
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    with pytest.raises(ModelError):
        convert_pickle(tmp_path / "bad.pth", dst, trust=True, overwrite=True)
    assert dst.read_text() == "precious"
    convert_pickle(src, dst, trust=True, overwrite=True)
    assert load_file(dst)["a"].tolist() == [1.0]


def test_an_output_that_cannot_be_written_is_exit_code_6(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pth")
    with pytest.raises(OutputError, match="cannot be written: No such file") as raised:
        convert_pickle(tmp_path / "in.pth", tmp_path / "no" / "out.safetensors", trust=True)
    assert raised.value.exit_code == 6
    full = subprocess.CompletedProcess([], 6, stdout="No space left on device\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: full)
    refused(tmp_path, r"out.safetensors: cannot be written: No space left", OutputError)


def test_the_child_says_that_it_cannot_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("psssr_fast.convert._limit_resources", lambda src: None)
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pth")
    code = main(str(tmp_path / "in.pth"), str(tmp_path / "no" / "out.safetensors"))
    assert code == 6 and "No such file" in capsys.readouterr().out


def test_the_child_gets_no_secrets_and_imports_nothing_from_where_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}
    run = subprocess.run

    def spy(command: list[str], **options: Any) -> Any:
        seen.update(options["env"])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the working directory')")
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pth")
    convert_pickle("in.pth", "out.safetensors", trust=True)
    assert "PATH" in seen and "HF_TOKEN" not in seen and "secret" not in str(seen)


def test_a_child_that_dies_is_one_line(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pth")
    died = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: died)
    refused(tmp_path, "ended by signal 9")
    crashed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nKeyError: 'a'\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: crashed)
    refused(tmp_path, "cannot be read as PyTorch weights: KeyError: 'a'")


@pytest.mark.parametrize("name", [b"a\xff\xfe", "ä\n".encode(), b"?" * 60])
def test_a_name_in_any_encoding_is_a_name(tmp_path, name):
    torch.save({"w": torch.ones(2)}, tmp_path / "in.pth")
    target = tmp_path / (os.fsdecode(name) + ".safetensors")
    convert_pickle(tmp_path / "in.pth", target, trust=True)
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", target.name}
