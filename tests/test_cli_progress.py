"""How ``psssr upscale`` shows how far it is."""

import json
import os
import pty
import re
import subprocess

import pytest
from cli_fixtures import Psssr, command, write_frames, write_video

from psssr_fast.commands.plan import Job
from psssr_fast.commands.progress import Meter, PlainProgress, Rate
from psssr_fast.upscaler import Progress


@pytest.fixture
def psssr(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Psssr(capsys)


def test_progress_json_is_nothing_but_json_lines(psssr, tmp_path):
    write_video(tmp_path / "clip.mp4", 3)
    inputs = ("clip.mp4", "missing.mp4")
    done = psssr("upscale", *inputs, "-s", "2", "--progress", "json")
    assert done.code == 7
    events = [json.loads(line) for line in done.err.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["error", "log", "start"]
    assert kinds[-1] == "done"
    assert set(kinds[3:-1]) <= {"progress", "warning"}
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[-1].keys() == {"event", "input", "frame", "total", "fps", "eta_s"}
    assert (progress[-1]["frame"], progress[-1]["total"], progress[-1]["eta_s"]) == (3, 3, 0)
    assert events[0]["exit_code"] == 3
    assert (events[-1]["output"], events[-1]["frames"]) == ("clip.psssr2x.mp4", 3)


def test_downloads_draw_no_bar_of_their_own_between_the_lines(psssr, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "")  # so that it is as before afterwards
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    psssr("upscale", "missing.mp4", "--progress", "bar")
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    psssr("upscale", "missing.mp4", "--progress", "json")
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_progress_json_reports_a_model_that_cannot_be_loaded_as_json(psssr, tmp_path):
    write_frames(tmp_path / "frames", 1)
    done = psssr("upscale", "frames", "--model", "missing", "--progress", "json")
    (event,) = map(json.loads, done.err.splitlines())
    assert (done.code, event["event"], event["exit_code"]) == (4, "error", 4)


def test_plain_progress_is_a_line_every_few_seconds(capsys):
    console, job = PlainProgress(pause=0), Job("in.mp4", "out.mp4")
    console.start(job)
    console.advance(job, Progress(1, 7201, 1.0))
    console.advance(job, Progress(2, 7202, 2.0))
    console.advance(job, Progress(24, None, 12.0))
    console.start(job)
    console.advance(job, Progress(24, 24, 12.0))
    slow = PlainProgress(pause=60)
    slow.start(job)
    slow.advance(job, Progress(1, 2, 1.0))
    assert capsys.readouterr().err.splitlines() == [
        "psssr: in.mp4 -> out.mp4",
        "psssr: in.mp4: 1/7201 frames, 1.00 frames/s",
        "psssr: in.mp4: 2/7202 frames, 1.00 frames/s, 2:00:00 left",
        "psssr: in.mp4: 24 frames, 1.00 frames/s",
        "psssr: in.mp4 -> out.mp4",
        "psssr: in.mp4: 24/24 frames, 2.00 frames/s, 0:00 left",
        "psssr: in.mp4 -> out.mp4",
    ]


def test_frames_that_come_in_bursts_do_not_mislead_about_the_speed():
    meter = Meter()  # windows of 8 frames take 4 seconds: 2 frames a second
    times = {frame: 4.0 * ((frame - 1) // 8 + 1) for frame in range(1, 33)}
    rates = {frame: meter.measure(Progress(frame, 32, time)) for frame, time in times.items()}
    assert rates[1] == Rate(0.25, None)
    assert rates[9] == Rate(2.0, 11.5)
    assert rates[25] == Rate(2.0, 3.5)
    assert rates[32] == Rate(2.0, 0.0)
    assert Meter().measure(Progress(5, None, 1.0)) == Rate(5.0, None)


def test_on_a_terminal_there_is_a_bar(tmp_path):
    write_frames(tmp_path / "[red]frames", 40)
    terminal, slave = pty.openpty()
    done = subprocess.Popen(
        command("upscale", "[red]frames", "-s", "2"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # what a terminal answers when its last program has left it
            break
    os.close(terminal)
    assert done.wait() == 0
    text = shown.decode()
    assert "[red]frames" in text
    assert re.search(r"\d+/40 frames", text)
    assert re.search(r"\d\.\d\d frames/s, \d+:\d\d left", text)
    assert "━" in text


def test_frames_of_an_earlier_run_do_not_count_for_the_speed():
    meter = Meter()
    meter.measure(Progress(101, 200, 1.0, frames_resumed=100))
    assert meter.measure(Progress(105, 200, 2.0, frames_resumed=100)) == Rate(1.0, 95.0)
