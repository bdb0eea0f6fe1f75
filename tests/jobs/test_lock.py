"""One process at a time, and a lock whose owner has died is no obstacle."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from cli_fixtures import command, write_frames
from job_fixtures import KILLED, SMALL, copy_video, digest, folder_of, meanwhile, write_clip
from model_fixtures import upscaler

from psssr_fast.config import Windows, settings_for
from psssr_fast.errors import OutputError
from psssr_fast.jobs import lock as locks
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.lock import JobLock


def holder(folder):
    """Who is at work on the job of a folder, which need not be there."""
    found = JobFolder.find(folder)
    if found is None:
        return None
    with found:
        return locks.holder(found)


def test_a_second_process_is_told_who_is_at_work_within_a_second(clip, tmp_path):
    long = write_clip(tmp_path / "long.mp4", range(0, 4000, 10))
    arguments = ("upscale", long, "-o", tmp_path / "out.mp4", *SMALL)
    with subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL) as first:
        while holder(folder_of(tmp_path / "out.mp4")) is None:
            time.sleep(0.02)
        # A process that only asks, as another run does before it loads anything.
        code = "import sys, time; begin = time.monotonic()\n" + (
            "from psssr_fast.jobs.place import check_place\n"
            "try:\n    check_place(sys.argv[1], sys.argv[2])\n"
            "except OSError as error:\n"
            "    print(error.exit_code, 'torch' in sys.modules, error)\n"
        )
        asked = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out.mp4"), str(long)],
            capture_output=True,
            text=True,
        )
        second = subprocess.run(command(*arguments), capture_output=True, text=True)
        first.send_signal(signal.SIGKILL)
    assert f"6 False {tmp_path}/out.mp4: locked by pid {first.pid}," in asked.stdout, asked.stderr
    assert second.returncode == 6
    assert f"out.mp4: locked by pid {first.pid}," in second.stderr
    assert not (tmp_path / "out.mp4").exists()


def test_the_lock_of_a_killed_process_is_taken_over(forks, clip, whole, tmp_path):
    arguments = (clip, "-o", "out.mp4", *SMALL)
    assert forks(*arguments, folder=tmp_path, fault="journaled:1:kill").code == KILLED
    lock = folder_of(tmp_path / "out.mp4") / "lock"
    owner = json.loads(lock.read_text())
    owner["pid"] = os.getpid()  # which lives, but began at another time
    lock.write_text(json.dumps(owner))
    done = forks(*arguments, folder=tmp_path)
    assert done.code == 0, done.err
    assert digest(tmp_path / "out.mp4") == digest(whole)


def try_to_lock(folder, results, all_have_tried):
    try:
        with JobLock(folder, folder):
            results.put("had it")
            all_have_tried.wait()
    except OutputError as error:
        results.put(str(error))


@pytest.mark.parametrize("system_locks", [True, False], ids=["flock", "no flock"])
def test_of_many_processes_one_gets_it(tmp_path, monkeypatch, system_locks):
    if not system_locks:
        monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / "job").mkdir()
    dead = replace(JobLock(tmp_path / "job", tmp_path).owner, pid=2**22 - 1)
    (tmp_path / "job/lock").write_text(json.dumps(asdict(dead)))
    context = multiprocessing.get_context("fork")
    results, all_have_tried = context.Queue(), context.Event()
    crowd = [
        context.Process(target=try_to_lock, args=(tmp_path / "job", results, all_have_tried))
        for _ in range(5)
    ]
    for process in crowd:
        process.start()
    told = [results.get(timeout=600) for _ in crowd]
    all_have_tried.set()
    for process in crowd:
        process.join()
    if system_locks:
        assert sum(text == "had it" for text in told) == 1
    assert all(text == "had it" or "locked by pid" in text for text in told)


def test_a_fork_that_outlives_the_job_does_not_keep_its_locks(tmp_path):
    """As of a pool of processes that the caller made meanwhile."""
    children = []

    def fork() -> None:
        if not children:
            ready, told = os.pipe()
            process = os.fork()
            if process == 0:
                os.close(told)
                os.read(ready, 1)  # until the parent closes its end
                os._exit(0)
            children.append((process, told))

    frames = write_frames(tmp_path / "frames", 2)
    with meanwhile("image-renamed", fork, "1+"):
        copy_video(frames, tmp_path / "out")
    try:
        copy_video(frames, tmp_path / "out", overwrite=True)
    finally:
        for process, told in children:
            os.close(told)
            os.waitpid(process, 0)
    assert len(children) == 1


def test_a_lock_that_could_not_be_taken_names_nobody(tmp_path, monkeypatch):
    calls, real = [], locks._read

    def fail(folder):
        calls.append(real(folder))
        if calls[-1] is not None:  # it names this process by now
            raise OSError(5, "Input/output error")
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(locks, "_read", fail)
        with pytest.raises(OSError, match="Input/output"), JobLock(tmp_path / "job", tmp_path):
            pytest.fail("entered")
    assert calls[-1] is not None
    assert holder(tmp_path / "job") is None
    with JobLock(tmp_path / "job", tmp_path) as lock:
        assert holder(tmp_path / "job") == lock.owner


def test_a_lock_that_was_taken_away_is_noticed_before_anything_is_kept(tmp_path):
    with JobLock(tmp_path / "job", tmp_path / "out.mp4") as lock:
        lock.check()
        thief = replace(lock.owner, pid=1, token="other")
        (tmp_path / "job/lock").write_text(json.dumps(asdict(thief)))
        with pytest.raises(OutputError, match="locked by pid 1,"):
            lock.check()


def test_another_machine_counts_as_alive_while_it_gives_signs_of_life(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    path = folder / "lock"
    elsewhere = locks.Owner(1, 1, "another kernel", "elsewhere", "token")
    path.write_text(json.dumps(asdict(elsewhere)))
    assert holder(folder) == elsewhere
    with pytest.raises(OutputError, match="locked by pid 1 on elsewhere"), JobLock(folder, folder):
        pass
    long_ago = time.time() - locks.SILENCE - 1
    os.utime(path, (long_ago, long_ago))
    assert holder(folder) is None
    path.write_text(json.dumps(asdict(replace(elsewhere, host=locks.socket.gethostname()))))
    assert holder(folder) is None  # this machine, before it was started anew


def test_a_sign_of_life_from_the_future_is_none(tmp_path):
    """A clock that was wrong, or a forged time, must not keep an output locked for years."""
    folder = tmp_path / ".out.mp4.psssr-job"
    folder.mkdir(mode=0o700)
    path = folder / "lock"
    elsewhere = locks.Owner(1, 1, "another kernel", "elsewhere", "token")
    path.write_text(json.dumps(asdict(elsewhere)))
    future = time.time() + 366 * 86400
    os.utime(path, (future, future))
    assert holder(folder) is None
    soon = time.time() + locks.SILENCE / 2  # clocks of two machines differ
    os.utime(path, (soon, soon))
    assert holder(folder) == elsewhere
    with (
        pytest.raises(
            OutputError, match=r"If elsewhere does not run it any more, .* remove "
        ) as error,
        JobLock(folder, tmp_path / "out.mp4"),
    ):
        pass
    assert str(path) in str(error.value), "what to remove is not said"
    path.unlink()  # the stated way out
    with JobLock(folder, tmp_path / "out.mp4"):
        assert holder(folder).pid == os.getpid()


def test_the_silence_of_another_machine_is_told_by_the_clock_of_the_disk(tmp_path, monkeypatch):
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    elsewhere = locks.Owner(1, 1, "another kernel", "elsewhere", "token")
    (folder / "lock").write_text(json.dumps(asdict(elsewhere)))
    monkeypatch.setattr("time.time", lambda: 0.0)  # this machine's clock is decades behind
    assert holder(folder) == elsewhere


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"5", b'"text"', b"\xff\xfe", b"[" * 4000, b"{" * 4000,
        b'{"pid":"1","started":1,"boot":"","host":"h","token":"t"}',
        b'{"pid":1,"started":1,"boot":null,"host":"h","token":"t"}',
        b'{"pid":1,"started":1,"boot":"b","host":["h"],"token":"t"}',
        b'{"pid":1e99,"started":1,"boot":"b","host":"h","token":"t"}',
        b'{"pid":99999999999999999999999,"started":1,"boot":"b","host":"h","token":"t"}',
        b'{"pid":1,"started":1,"boot":"b","host":"\\u001b[2J","token":"t"}',
        b'{"pid":1,"started":1,"boot":"b","host":"h","token":"t","more":1}',
    ],
    ids=lambda content: str(content[:30]),
)  # fmt: skip
def test_a_lock_that_names_nobody_is_free(tmp_path, content):
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    (folder / "lock").write_bytes(content)
    with JobLock(folder, tmp_path / "out.mp4") as lock:
        assert holder(folder) == lock.owner


def test_a_job_that_lost_its_lock_leaves_the_new_owners_files(clip, tmp_path):
    """Before its first chunk: what a file system without locks, and a long silence, can lead to."""
    output, folder = tmp_path / "out.mp4", folder_of(tmp_path / "out.mp4")

    def take_over(progress):
        lock = folder / "lock"
        if progress.frames_done == 1:
            lock.write_text(json.dumps({**json.loads(lock.read_text()), "token": "another"}))
            (folder / "chunk-000007").write_bytes(b"theirs")

    up = upscaler()
    up.settings = settings_for("released", Windows(4, 64, 64, 1, 16))
    with pytest.raises(OutputError, match="locked by pid"):
        up.upscale_video(clip, output, scale=1, chunk_frames=6, progress=take_over)
    assert (folder / "chunk-000007").read_bytes() == b"theirs"
    assert (folder / "plan.json").exists()
