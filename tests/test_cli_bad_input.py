"""What was tried as bad input, and what it gets: README's table is made of these rows."""

import pickle
import resource
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import pytest
import torch
from cli_fixtures import (
    Done,
    Psssr,
    command,
    stop_while_writing,
    write_frames,
    write_silence,
    write_video,
)

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- bad-input:begin -->", "<!-- bad-input:end -->"


@dataclass(frozen=True)
class Row:
    """One thing that was tried.

    Attributes:
        tried: in words.
        command: as typed, without ``psssr``.
        message: part of the one line that the user gets.
        code: exit code.
        how: called in this process; a process that is sent Ctrl-C when it has kept some frames; a
            process that may write no file of more than 2 kB.
    """

    tried: str
    command: str
    message: str
    code: int
    how: Literal["call", "interrupt", "disk full"] = "call"


ROWS = (
    Row(
        "missing file",
        "upscale missing.mp4",
        "missing.mp4: no such file or folder. Check the path.",
        3,
    ),
    Row(
        "empty file",
        "upscale empty.mp4",
        "empty.mp4: empty file (0 bytes). Give a file that ffmpeg can read, "
        "or a folder of PNG frames.",
        3,
    ),
    Row(
        "text file",
        "upscale text.mp4",
        "text.mp4: not a video: Invalid data found when processing input.",
        3,
    ),
    Row(
        "MP4 cut off, index at its end",
        "upscale truncated.mp4",
        "bytes are missing, and with them the index. Get a complete copy.",
        3,
    ),
    Row(
        "MP4 cut off, index at its beginning",
        "upscale truncated_faststart.mp4",
        "truncated_faststart.mp4: truncated after frame",
        3,
    ),
    Row(
        "sound without video",
        "upscale audio.m4a",
        "audio.m4a: no video stream; found 1 audio stream(s).",
        3,
    ),
    Row(
        "network address",
        "upscale https://host/a.mp4",
        "https://host/a.mp4: network addresses are not read. Download the file and give its path.",
        3,
    ),
    Row(
        "folder without frames",
        "upscale empty/",
        "empty/: no PNG files in this folder. Give a folder of PNG frames.",
        3,
    ),
    Row(
        "PNG frames of two sizes",
        "upscale sizes/",
        "sizes/0002.png: 48x32, but 0000.png is 64x36; all frames must have one size.",
        3,
    ),
    Row("one bad file of two", "upscale clip.mp4 text.mp4", "text.mp4: not a video", 7),
    Row("one frame", "upscale one_frame.mp4", "one_frame.psssr4x.mp4: 1 frame 256x144", 0),
    Row("odd size", "upscale odd.mp4", "odd.psssr4x.mp4: 2 frames 260x148", 0),
    Row(
        "odd output size",
        "upscale odd.mp4 -s 3",
        "warning: odd.mp4: 195x111 is stored as yuv444p, which many players cannot "
        "show; even sides avoid it",
        0,
    ),
    Row("name beginning with a dash", "upscale -- -s.mp4", "-s.psssr4x.mp4: 2 frames 256x144", 0),
    Row(
        "output in no folder",
        "upscale clip.mp4 -o no/out.mp4",
        "no/out.mp4: there is no folder no. Make it first.",
        6,
    ),
    Row(
        "output under a file",
        "upscale clip.mp4 -o text.mp4/a.mp4",
        "text.mp4/a.mp4: there is no folder text.mp4. Make it first.",
        6,
    ),
    Row(
        "output exists",
        "upscale clip.mp4 -o odd.mp4",
        "odd.mp4: exists already. Pass --overwrite or choose another name.",
        6,
    ),
    Row(
        "something else where the job's folder is to be",
        "upscale clip.mp4 -o taken.mp4",
        ".taken.mp4.psssr-job: not used for the job: it is a file, not a folder. Nothing of it was "
        "touched.",
        6,
    ),
    Row(
        "output is the input",
        "upscale clip.mp4 -o ./clip.mp4",
        "./clip.mp4: the output is the input. Choose another name.",
        2,
    ),
    Row(
        "unknown suffix",
        "upscale clip.mp4 -o out.xyz",
        "out.xyz: no video format '.xyz'; known: .mp4, .m4v, .mov, .mkv, .webm.",
        2,
    ),
    Row(
        "several inputs, one output",
        "upscale clip.mp4 odd.mp4 -o out.mp4",
        "out.mp4: -o must be a folder, because there are several inputs",
        2,
    ),
    Row(
        "no room for the output (`ulimit -f 2`)",
        "upscale clip.mp4",
        "clip.psssr4x.mp4: cannot be written: File too large. Free some space and run the same "
        "command again",
        6,
        "disk full",
    ),
    Row(
        "scale of nothing",
        "upscale clip.mp4 --scale 0",
        "--scale must be a positive number; got 0",
        2,
    ),
    Row(
        "scale of letters",
        "upscale clip.mp4 --scale abc",
        "Invalid value for '-s' / '--scale': must be a number, as 4 or 1.5; got 'abc'",
        2,
    ),
    Row(
        "scale too large",
        "upscale clip.mp4 --scale 100",
        "output 6400x3600 from input 64x36: the scale must lie between one output pixel and 16x",
        2,
    ),
    Row(
        "scale and height",
        "upscale clip.mp4 --scale 4 --height 720",
        "--scale and --height exclude each other; give one of them",
        2,
    ),
    Row("unknown option", "upscale clip.mp4 --best", "No such option: --best", 2),
    Row(
        "missing model",
        "upscale clip.mp4 --model no_model",
        "no model 'no_model': no such file or directory; known are: nano (embedded), "
        "a directory of weights, a Hugging Face repository owner/name",
        4,
    ),
    Row(
        "pickle as model",
        "upscale clip.mp4 --model model.pth",
        "model.pth: not a safetensors file but a Python pickle; nothing of it was "
        "executed; make a safetensors file: psssr models convert",
        4,
    ),
    Row(
        "pickle named safetensors",
        "upscale clip.mp4 --model pickle.safetensors",
        "pickle.safetensors: not a safetensors file but a zip archive, as PyTorch pickles "
        "are; nothing of it was executed; make a safetensors file: psssr models convert",
        4,
    ),
    Row(
        "cut-off model",
        "upscale clip.mp4 --model cut.safetensors",
        "are there; copy or download it again",
        4,
    ),
    Row(
        "too little memory allowed",
        "upscale clip.mp4 --vram-limit 0.001",
        "there may be 1.0 MiB (--vram-limit). Allow more, or use a smaller output or a smaller "
        "model",
        5,
    ),
    Row(
        "Ctrl-C, and any other end",
        "upscale long.mp4",
        "frames are kept; run the same command again to go on",
        130,
        "interrupt",
    ),
)


class Canary:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with all that the commands name."""
    folder = tmp_path_factory.mktemp("bad")
    write_video(folder / "clip.mp4", 2)
    write_video(folder / "-s.mp4", 2)
    write_video(folder / "one_frame.mp4", 1)
    write_video(folder / "odd.mp4", 2, (65, 37))
    write_video(folder / "long.mp4", 400, (32, 18))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is not a video.\n" * 50)
    for name, faststart in (("truncated.mp4", False), ("truncated_faststart.mp4", True)):
        whole = write_video(folder / name, 50, faststart=faststart).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
    with av.open(str(folder / "audio.m4a"), "w") as container:
        write_silence(container, container.add_stream("aac", rate=48000, layout="mono"))
    (folder / "empty").mkdir()
    (folder / ".taken.mp4.psssr-job").write_text("precious")
    write_frames(folder / "sizes", 2)
    other = write_frames(folder / "other", 1, (48, 32))
    (other / "0000.png").rename(folder / "sizes/0002.png")
    other.rmdir()
    (folder / "model.pth").write_bytes(pickle.dumps(Canary()))
    torch.save({"weight": torch.zeros(2)}, folder / "pickle.safetensors")
    nano = (README.parent / "psssr_fast/weights/nano.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(nano[: len(nano) // 2])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_with_full_disk(folder: Path, arguments: list[str]) -> Done:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = subprocess.run(
        command(*arguments), cwd=folder, preexec_fn=limit, capture_output=True, text=True
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.tried.replace(" ", "_"))
def test_bad_input(row, prepared, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    before = contents(folder)
    arguments = row.command.split()
    match row.how:
        case "call":
            done = Psssr(capsys)(*arguments)
        case "interrupt":
            done = stop_while_writing(folder, signal.SIGINT, *arguments, begun=".*/journal.jsonl")
        case "disk full":
            done = run_with_full_disk(folder, arguments)
    assert done.code == row.code, done.err
    assert any(row.message in line for line in (done.out + done.err).splitlines()), done.err
    assert "Traceback" not in done.err
    errors = [line for line in done.err.splitlines() if line.startswith("psssr: error: ")]
    assert len(errors) == (row.code not in (0, 130))
    after = contents(folder)
    assert {name: after[name] for name in before} == before, "an input was changed"
    made = after.keys() - before.keys()
    kept = {name for name in made if name.startswith(".long.psssr4x.mp4.psssr-job/")}
    assert bool(kept) == (row.how == "interrupt")
    assert len(made - kept) == (row.code in (0, 7)), f"left behind: {made}"


def test_no_message_is_promised_that_says_nothing():
    assert all(len(row.message.split()) >= 3 for row in ROWS)
    assert len({row.tried for row in ROWS}) == len(ROWS)


def table(rows: tuple[Row, ...]) -> str:
    """README's table."""
    lines = ["| tried | command | what you are told | exit code |", "|---|---|---|---|"]
    lines += [
        f"| {row.tried} | `psssr {row.command}` | {row.message} | {row.code} |" for row in rows
    ]
    return "\n".join(lines)


def test_readme_table_is_true():
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(ROWS)
