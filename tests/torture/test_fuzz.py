"""A thousand damaged files in every run; more on demand, see ``fuzz.py``."""

import random
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import BEGIN, Score, Worker, fuzz, opened_elsewhere
from fuzz_files import mutate, write_seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    return write_seeds(tmp_path_factory.mktemp("seeds"))


def test_whole_files_are_decoded(seeds):
    assert len(seeds) >= 15
    worker = Worker(None)
    outcomes = {path.name: worker.attempt(path)[:2] for path in seeds}
    worker.close()
    assert outcomes == dict.fromkeys(outcomes, ("decoded", ""))


def test_a_thousand_damaged_files_do_no_harm(tmp_path):
    score = fuzz(tmp_path, 1000, seed=1)
    print(score)
    assert sum(score.counts.values()) == 1000
    assert score.good(), (str(score), score.bad, score.opened_elsewhere)
    assert score.counts["decoded"] > 50 and score.counts["damaged"] > 50
    assert score.peak < 1 << 30
    assert (score.opened_elsewhere is None) == (shutil.which("strace") is None)
    seen = "".join(log.read_text() for log in tmp_path.glob("opened-*.log"))
    assert not seen or all(f"{tmp_path}/1-{number}.bin" in seen for number in range(1000))


def test_the_same_seed_damages_alike(seeds):
    contents = [path.read_bytes() for path in seeds]
    runs = [[mutate(contents, random.Random(3)) for _ in range(20)] for _ in range(2)]
    assert runs[0] == runs[1] and len(set(runs[0])) == 1


def test_a_worker_that_dies_or_hangs_is_noticed_and_made_anew(tmp_path, seeds, monkeypatch):
    monkeypatch.setattr("fuzz.HANG_SECONDS", 3)
    worker = Worker(None)
    good = seeds[0]
    assert worker.attempt(good)[0] == "decoded"
    worker._process.send_signal(signal.SIGSTOP)  # in the middle of the next file
    threading.Timer(0.5, worker._process.send_signal, [signal.SIGKILL]).start()
    assert worker.attempt(good)[:2] == ("crashes", "exit code -9")
    assert worker.attempt(good)[0] == "decoded"
    worker._process.send_signal(signal.SIGSTOP)
    assert worker.attempt(good)[0] == "hangs"
    assert worker.attempt(good)[0] == "decoded"
    worker.close()


def test_what_is_opened_elsewhere_is_seen(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        '7 openat(AT_FDCWD, "/tmp/before", O_RDONLY) = 3\n'
        f'7 openat(AT_FDCWD, "{BEGIN}", O_RDONLY) = -1\n'
        '7 openat(AT_FDCWD, "/tmp/mine", O_RDONLY) = 3\n'
        '7 openat(AT_FDCWD, "/tmp/other", O_RDONLY) = 3\n'
        "7 socket(AF_INET, SOCK_STREAM, 0) = 3\n"
    )
    found = opened_elsewhere(log, {"/tmp/mine"})
    assert ["/tmp/other" in found[0], "socket" in found[1], len(found)] == [True, True, 2]
    score = Score(opened_elsewhere=found)
    assert not score.good() and "opened_elsewhere=2" in str(score)
