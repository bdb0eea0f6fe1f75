"""The first signal stops and says what is kept; the second ends at once; both can be resumed."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from job_fixtures import SMALL, digest, folder_of, journal_of, write_clip


@pytest.fixture(scope="module")
def long(forks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    clip = write_clip(folder / "clip.mp4", range(0, 4000, 40))
    assert forks(clip, "-o", "whole.mp4", *SMALL, folder=folder).code == 0
    return clip, folder / "whole.mp4"


@pytest.mark.parametrize(("action", "code"), [("int", 130), ("term", 143)])
def test_a_signal_keeps_the_chunks_and_says_so(forks, long, tmp_path, action, code):
    clip, whole = long
    command = (clip, "-o", "out.mp4", *SMALL)
    done = forks(*command, folder=tmp_path, fault=f"journaled:3:{action}")
    assert done.code == code, done.err
    kept = len(journal_of(tmp_path / "out.mp4"))
    assert kept >= 3
    assert f"out.mp4: {6 * kept} of 100 frames are kept; run the same command again" in done.err
    assert "Traceback" not in done.err
    left = {path.name for path in folder_of(tmp_path / "out.mp4").iterdir()}
    assert {"plan.json", "journal.jsonl", "lock"} < left
    assert all(re.fullmatch(r"chunk-\d{6}|plan\.json|journal\.jsonl|lock", name) for name in left)
    assert forks(*command, folder=tmp_path).code == 0
    assert digest(tmp_path / "out.mp4") == digest(whole)


STUCK = """
import hashlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind "&"
from psssr_fast.commands.stopping import stoppable
try:
    with stoppable():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in which Python sees no signal
except KeyboardInterrupt:
    print("in good order")
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_the_second_signal_ends_it_at_once(number, code):
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        process = psutil.Process(run.pid)
        begin = process.cpu_times().user
        while process.cpu_times().user < begin + 0.1:  # then it is in the middle of the hash
            time.sleep(0.01)
        run.send_signal(number)
        time.sleep(0.05)
        run.send_signal(number)  # the same press of Ctrl-C, passed on by whoever started it
        time.sleep(0.6)
        assert run.poll() is None
        begin = process.cpu_times().user
        while run.poll() is None and process.cpu_times().user < begin + 20:
            run.send_signal(number)
            time.sleep(0.6)  # the thread that sees them may be late on a busy machine
        assert run.poll() == code


ENDING = """
import threading
import torch  # which takes a while to leave
from psssr_fast.commands.stopping import stoppable
with stoppable():
    print("ready", flush=True)
    threading.Event().wait(60)
"""


def test_more_signals_on_the_way_out_do_not_change_the_exit_code():
    with subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        until = time.monotonic() + 0.25  # one press, passed on again and again
        while run.poll() is None:
            if time.monotonic() < until:
                run.send_signal(signal.SIGTERM)
            time.sleep(0.0005)
        assert run.returncode == 143
