"""``psssr selftest`` tells what holds from what does not, in a table and in JSON."""

import json
import logging
import pickle

import pytest
from cli_fixtures import Psssr, run_process

from psssr_fast import selftest
from psssr_fast.selftest import CHECKS, Check, Failure, Lab, NotHere, Status, run_checks
from psssr_fast.selftest_lab import Ended


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"), "cpu")


def hold(lab):
    return "it holds"


def fail(lab):
    raise Failure("it does not")


def break_down(lab):
    raise KeyError("a mistake")


def skip(lab):
    raise NotHere("no such thing here")


def test_a_real_process_makes_the_checks_that_need_no_other(tmp_path):
    done = run_process("selftest", "--quick", "--json", "--device", "cpu", cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    document = json.loads(done.out)
    assert document["schema"] == "psssr.selftest/1"
    status = {check["name"]: check["status"] for check in document["checks"]}
    assert list(status) == [check.name for check in CHECKS if not check.slow]
    assert {name for name, told in status.items() if told != "pass"} <= {"permission"}
    assert document["counts"]["fail"] == 0 and done.err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_one_point_is_survived_here(lab, monkeypatch):
    monkeypatch.setattr(selftest, "KILLS", ("chunk-renamed:2:kill",))
    assert "1 kills, the same bytes; frames kept: " in selftest.kill_and_resume(lab)


@pytest.mark.parametrize(
    ("checks", "code", "counts"),
    [
        ((hold, skip), 0, {"pass": 1, "fail": 0, "skip": 1}),
        ((hold, fail, hold), 7, {"pass": 2, "fail": 1, "skip": 0}),
        ((break_down,), 7, {"pass": 0, "fail": 1, "skip": 0}),
    ],
    ids=["skip", "failure", "mistake"],
)
def test_the_exit_code_says_whether_a_check_failed(psssr, monkeypatch, checks, code, counts):
    made = tuple(Check(run.__name__, run) for run in checks)
    monkeypatch.setattr(selftest, "CHECKS", made)
    table = psssr("selftest")
    assert table.code == code
    assert [line.split()[0].lower() for line in table.out.splitlines()[:-1]] == [
        {hold: "pass", skip: "skip"}.get(run, "fail") for run in checks
    ]
    document = json.loads(psssr("selftest", "--json").out)
    assert document["counts"] == counts
    details = [check["detail"] for check in document["checks"]]
    expected = {hold: "it holds", skip: "no such thing here", fail: "it does not"}
    assert details == [expected.get(run, "KeyError: 'a mistake'") for run in checks]
    assert logging.root.manager.disable == logging.NOTSET


def test_quick_leaves_out_what_starts_processes(monkeypatch):
    made = (Check("fast", hold), Check("slow", fail, slow=True))
    monkeypatch.setattr(selftest, "CHECKS", made)
    assert [result.name for result in run_checks("cpu", quick=True)] == ["fast"]
    assert [result.status for result in run_checks("cpu")] == [Status.PASS, Status.FAIL]


def test_a_device_that_is_not_there_is_a_usage_error(psssr):
    done = psssr("selftest", "--device", "tpu")
    assert done.code == 2 and done.err.count("\n") == 1


def test_the_pickle_of_the_check_would_run_if_it_were_loaded(lab, monkeypatch):
    """Otherwise its refusal would prove nothing."""
    found = []

    def unpickle(folder, **_):
        path = next(folder.glob("model.*"))
        found.append(path.name)
        pickle.loads(path.read_bytes())
        raise selftest.ModelError("refused, but too late")

    monkeypatch.setattr(selftest, "load_checkpoint", unpickle)
    with pytest.raises(Failure, match="ran its code"):
        selftest.pickles(lab)
    assert found == ["model.safetensors"]


def test_a_process_that_was_not_killed_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(Lab, "upscale_elsewhere", lambda *_: Ended(0, "{}", ""))
    with pytest.raises(Failure, match="not killed; exit code 0"):
        selftest.kill_and_resume(Lab(tmp_path, "cpu"))


def test_a_process_that_fails_is_a_failure_with_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Lab, "upscale_elsewhere", lambda *_: Ended(6, "", "one\nfull disk\n"))
    with pytest.raises(Failure, match="exit code 6 elsewhere: full disk"):
        selftest.kill_and_resume(Lab(tmp_path, "cpu"))
