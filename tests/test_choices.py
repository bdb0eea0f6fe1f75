"""What was measured is kept in a file, which may be missing, damaged or not ours."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from cli_fixtures import Psssr

from psssr_fast.runtime import choices, cpu

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "choices.json"
    monkeypatch.setenv(choices.VARIABLE, str(path))
    cpu.fastest_dtype.cache_clear()
    yield path
    cpu.fastest_dtype.cache_clear()


def test_answers_are_kept_for_this_machine_beside_those_of_others(path):
    assert choices.recall(CPU) == {}
    assert choices.remember(CPU, {"a": "1", "b": "2"}) == path
    content = json.loads(path.read_text())
    content["machines"]["another"] = {"a": "9"}
    path.write_text(json.dumps(content))
    choices.remember(CPU, {"b": "3"})
    assert choices.recall(CPU) == {"a": "1", "b": "3"}
    assert json.loads(path.read_text())["machines"]["another"] == {"a": "9"}
    assert os.listdir(path.parent) == [path.name]  # nothing half-written beside it


def test_another_machine_has_other_answers(path, monkeypatch):
    choices.remember(CPU, {"a": "1"})
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert choices.recall(CPU) == {}


DAMAGED = (
    "", "{", "[]", "null", '{"schema": "psssr.choices/0", "machines": {}}', "\x00\xff",
    '{"schema": "psssr.choices/1", "machines": [1]}',
    '{"schema": "psssr.choices/1", "machines": {"a": 3}}',
)  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_ignored_in_one_line_and_replaced(path, caplog, text):
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    assert choices.recall(CPU) == {}
    assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()
    assert str(path) in caplog.text
    choices.remember(CPU, {"a": "1"})
    assert choices.recall(CPU) == {"a": "1"}


def test_off_keeps_nothing(path, monkeypatch):
    monkeypatch.setenv(choices.VARIABLE, "off")
    assert choices.remember(CPU, {"a": "1"}) is None
    assert choices.recall(CPU) == {} and not path.exists()


def test_a_file_that_cannot_be_replaced_is_an_error_and_leaves_nothing(path):
    path.mkdir(parents=True)  # a folder has its place
    with pytest.raises(OSError):
        choices.remember(CPU, {"a": "1"})
    assert os.listdir(path.parent) == [path.name]


def test_the_default_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv(choices.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choices.choices_path() == tmp_path / "psssr_fast" / "choices.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choices.choices_path() == tmp_path / ".cache" / "psssr_fast" / "choices.json"


def test_readers_never_see_half_a_file(path, caplog):
    choices.remember(CPU, {"question": "0"})
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            choices.remember(CPU, {"question": str(number) * 500})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert choices.recall(CPU)
    writer.join()
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_remembered_dtype_is_not_measured_again(path, monkeypatch, dtype):
    choices.remember(CPU, {cpu.QUESTION: str(dtype)})
    monkeypatch.setattr(cpu, "_workload", None)
    assert cpu.fastest_dtype() is dtype


def test_an_unknown_answer_is_measured_instead(path):
    choices.remember(CPU, {cpu.QUESTION: "torch.float8"})
    assert cpu.fastest_dtype() in (torch.float32, torch.bfloat16)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "psssr_fast", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_warm_up_on_a_cpu_in_a_process_of_its_own(path, capsys):
    small = ("warmup", "--device", "cpu", "--size", "32x48", "--frames", "2", "--json")
    done = run(*small, PSSSR_CHOICES=str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "psssr.warmup/1"
    (choice,) = found["choices"]
    assert choice["question"] == cpu.QUESTION
    assert choice["answer"] == f"torch.{found['dtype']}"
    assert 0 < choice["seconds"] <= choice["usual"]
    assert (found["path"], found["graphs"], found["kernels"]) == (str(path), 0, None)
    (answers,) = json.loads(path.read_text())["machines"].values()
    assert answers == {cpu.QUESTION: choice["answer"]}
    doctor = json.loads(Psssr(capsys)("doctor", "--json").out)
    assert doctor["choices"] == f"{path}: 1 for this machine"


def test_warm_up_that_cannot_write_is_exit_6_and_one_line(path, capsys):
    path.mkdir(parents=True)
    small = ("warmup", "--device", "cpu", "--size", "32x48", "--frames", "1")
    done = Psssr(capsys)(*small)
    assert done.code == 6
    assert "cannot be written" in done.err.splitlines()[-1]
