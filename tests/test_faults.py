"""Faults happen where and when they are asked for, and nowhere else."""

import errno
import subprocess
import sys
import threading

import pytest
import torch

from psssr_fast.errors import UsageError
from psssr_fast.faults import fault, injected, parse_faults


def failing(points: str, passes: int = 4, name: str = "here") -> list[int]:
    """Which of some passes of a point fail."""
    failed = []
    with injected(points):
        for number in range(1, passes + 1):
            try:
                fault(name)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failed.append(number)
    return failed


@pytest.mark.parametrize(
    ("points", "failed"),
    [
        ("here:2:enospc", [2]),
        ("here:2+:enospc", [2, 3, 4]),
        ("*:3:enospc", [3]),
        ("there:1+:enospc", []),
        ("here:1:enospc,here:4:enospc", [1, 4]),
        ("", []),
    ],
)
def test_the_nth_pass_fails(points, failed):
    assert failing(points) == failed


def test_out_of_memory_is_torchs_own_error():
    with injected("here:1:oom"), pytest.raises(torch.OutOfMemoryError):
        fault("here")


@pytest.mark.parametrize("text", ["here", "here:0:oom", "here:x:oom", ":1:oom", "here:1:explode"])
def test_what_is_no_fault_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="PSSSR_FAULT must be POINT:N:ACTION") as caught:
        parse_faults(text)
    assert "\n" not in str(caught.value)


def test_several_threads_meet_a_fault_once():
    met = []

    def work():
        for _ in range(100):
            try:
                fault("here")
            except OSError:
                met.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    with injected("here:400:eio"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(met) == 1


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("term", -15), ("int", -2)])
def test_the_environment_asks_a_process_for_a_signal_without_importing_torch(action, code):
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "from psssr_fast.faults import fault; fault('here'); assert 'torch' not in sys.modules; "
        "print('once', flush=True); fault('here'); print('twice')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PSSSR_FAULT": f"here:2:{action}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (code, "once\n")
