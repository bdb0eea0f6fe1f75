"""Standard streams that are closed, full or left by their reader decide over no job."""

import errno
import io
import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from cli_fixtures import HANGS_AFTER, command, write_video
from job_fixtures import digest

from psssr_fast.cli import main
from psssr_fast.commands.shell import Shell, messages_to
from psssr_fast.commands.streams import SafeStream, safe_streams
from psssr_fast.upscaler import Upscaler

FULL = f"cannot be written: {os.strerror(errno.ENOSPC)}"


class Broken(io.StringIO):
    """Raises an error where it is written to, or only where it is flushed, as buffers do."""

    def __init__(self, error: Exception, at: str = "write") -> None:
        super().__init__()
        self.error, self.at = error, at

    def write(self, text: str) -> int:
        if self.at == "write":
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        raise self.error


def broken(kind: str) -> Broken | None:
    """A stream that cannot be written; ``None`` is what Python makes of a closed one."""
    errors = {
        "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "full at the end": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "terminal gone": OSError(errno.EIO, os.strerror(errno.EIO)),
        "reader gone": BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
        "would block": BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        "closed": ValueError("I/O operation on closed file."),
    }
    return Broken(errors[kind], "flush" if kind.endswith("end") else "write") if kind else None


KINDS = ("", "full", "full at the end", "terminal gone", "reader gone", "would block", "closed")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 2)


@pytest.fixture(scope="module")
def expected(clip, tmp_path_factory) -> str:
    return digest(upscaled(clip, tmp_path_factory.mktemp("normal"), "none"))


def upscaled(clip: Path, folder: Path, style: str, *more: str, code: int = 0) -> Path:
    output = folder / "out.mp4"
    options = ("-s", "1", "--dtype", "float32", "--progress", style)
    assert main(["upscale", str(clip), "-o", str(output), *options, *more]) == code
    return output


@pytest.mark.parametrize(
    ("style", "kind"),
    [*(("plain", kind) for kind in KINDS), ("auto", ""), ("bar", ""), ("bar", "full"),
     ("json", "full")],
)  # fmt: skip
def test_a_job_does_not_depend_on_its_log(clip, expected, tmp_path, monkeypatch, style, kind):
    monkeypatch.setattr(sys, "stderr", broken(kind))
    assert digest(upscaled(clip, tmp_path, style)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_upscale_says_on_stdout_is_one_line_less(clip, tmp_path, monkeypatch, capsys, kind):
    (tmp_path / "out.mp4").touch()
    monkeypatch.setattr(sys, "stdout", broken(kind))
    upscaled(clip, tmp_path, "none", "--skip-existing")
    told = capsys.readouterr().err.splitlines()[1:]
    assert len(told) == (kind != "reader gone")
    assert all(line.startswith("warning: stdout cannot be written: ") for line in told)


@pytest.mark.parametrize("kind", KINDS)
def test_a_json_document_that_is_lost_is_code_6(clip, tmp_path, monkeypatch, capsys, kind):
    """Or 1, as ever, where the reader went away."""
    (tmp_path / "out.mp4").touch()
    monkeypatch.setattr(sys, "stdout", broken(kind))
    gone = kind == "reader gone"
    upscaled(clip, tmp_path, "none", "--skip-existing", "--json", code=1 if gone else 6)
    told = capsys.readouterr().err.splitlines()[1:]
    assert len(told) == (not gone)
    assert all(line.startswith("psssr: error: stdout cannot be written: ") for line in told)


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["plain", "json"])
def test_an_error_keeps_its_code(monkeypatch, capsys, more):
    monkeypatch.setattr(sys, "stdout", broken("full"))
    assert main(["probe", "missing.mp4", *more]) == 3
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("psssr: error: missing.mp4: no such file")
    assert [line.startswith("warning: stdout cannot") for line in told[1:]] == [True] * len(more)


def test_a_pipe_of_the_job_itself_that_breaks_is_an_error(clip, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(Upscaler, "upscale_video", fail)
    upscaled(clip, tmp_path, "none", code=1)
    assert "internal error: BrokenPipeError" in capsys.readouterr().err


def test_streams_are_put_back_and_tell_what_they_are(monkeypatch):
    before = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", before[0])
    monkeypatch.setattr(sys, "stderr", before[1])
    with safe_streams():
        print("result")
        print("log", file=sys.stderr)
        sys.stderr.writelines(["a\n", "b\n"])
        with pytest.raises(TypeError):  # that is how libraries tell text from binary streams
            sys.stdout.write(b"")
    assert (sys.stdout, sys.stderr) == before
    assert [stream.getvalue() for stream in before] == ["result\n", "log\na\nb\n"]
    closed = SafeStream(None, retries=True)
    assert not closed.isatty() and closed.encoding == "utf-8"
    with pytest.raises(OSError):
        closed.fileno()


@pytest.mark.parametrize(("retries", "text"), [(True, "two"), (False, "")])
def test_a_log_goes_on_when_there_is_room_again_and_a_result_does_not(retries, text):
    stream = broken("full")
    safe = SafeStream(stream, retries)
    safe.write("one")
    stream.at = "nowhere"
    safe.write("two")
    assert stream.getvalue() == text
    assert isinstance(safe.failure, OSError)


def test_messages_of_libraries_are_escaped_and_no_error(capsys):
    with messages_to(Shell()) as handler:
        record = logging.LogRecord("x", logging.INFO, "", 0, "%d frames", ("many",), None)
        handler.emit(record)
        logging.getLogger("psssr_fast.x").info("name \x1b[2J\nnext")
        warnings.showwarning(UserWarning("odd \x1b[2J"), UserWarning, "x.py", 1)
    assert capsys.readouterr().err.splitlines() == [
        "psssr: %d frames ('many',)",
        r"psssr: name \x1b[2J\nnext",
        r"warning: odd \x1b[2J",
    ]


# Real processes: what Python does before and after us counts, too.


def shell(line: str, folder: Path, *arguments: object) -> tuple[int, str, str]:
    """Run ``psssr ARGUMENTS`` in a shell, as ``line`` says: ``{}`` stands for the command."""
    program = shlex.join(command(*arguments))
    done = subprocess.run(
        ["bash", "-c", line.format(program)], cwd=folder, capture_output=True, timeout=HANGS_AFTER
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("line", "style"), [("{} <&- >&- 2>&-", "plain"), ("{} > /dev/full 2> /dev/full", "bar")]
)
def test_nothing_but_video_gets_into_the_output(clip, expected, tmp_path, line, style):
    """A descriptor that is closed would be given to the next file: the output."""
    options = ("-s", "1", "--dtype", "float32", "--progress", style)
    code, out, err = shell(line, tmp_path, "upscale", clip, "-o", "out.mp4", *options)
    assert (code, out, err) == (0, "", "")
    assert digest(tmp_path / "out.mp4") == expected
    assert os.listdir(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("{} <&-", 0, ""),
        ("{} 2>&-", 0, ""),
        ("{} 2> /dev/full", 0, ""),
        ("{} >&-", 6, "psssr: error: stdout cannot be written: it is closed"),
        ("{} > /dev/full", 6, f"psssr: error: stdout {FULL}"),
        ("{} > /dev/full 2>&-", 6, ""),
        ("set -o pipefail; {} | true", 1, ""),
        ("set -o pipefail; {} 2>&1 >&- | true", 6, ""),
    ],
)
def test_a_result_that_cannot_be_printed(clip, tmp_path, line, code, told):
    found = shell(line, tmp_path, "probe", *[clip] * 200)  # more than a pipe or buffer takes
    assert found[0] == code
    assert found[2].startswith(told) and found[2].count("\n") == bool(told)
    assert bool(found[1]) == (code == 0)


@pytest.mark.parametrize("line", ["{} 2>&-", "{} 2> /dev/full", "set -o pipefail; {} 2>&1 | true"])
def test_an_error_that_cannot_be_told_keeps_its_code(tmp_path, line):
    assert shell(line, tmp_path, "probe", "missing.mp4") == (3, "", "")


def test_help_and_version_that_are_not_printed(tmp_path):
    for option in ("--help", "--version"):
        code, out, err = shell("{} > /dev/full", tmp_path, option)
        assert (code, out, err.count("\n")) == (6, "", 1) and FULL in err


def test_processes_started_from_here_have_open_streams_too(tmp_path):
    """An end of a pipe would otherwise be what they take for their stderr."""
    program = (
        "import os, subprocess, sys; from psssr_fast.commands.streams import open_descriptors; "
        "open_descriptors(); "
        'child = \'import os; os.write(2, b"in the file"); print(os.path.samestat(os.fstat(2), '
        "os.stat(os.devnull)))'; "
        "sys.exit(b'True' not in subprocess.check_output([sys.executable, '-c', child]))"
    )
    line = shlex.join([sys.executable, "-c", program]) + " <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], timeout=HANGS_AFTER).returncode == 0


def test_events_in_json_hold_tracebacks_as_well(clip, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("odd \x1b[2J\nline")

    monkeypatch.setattr(Upscaler, "upscale_video", fail)
    upscaled(clip, tmp_path, "json", "--debug", code=1)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert any("Traceback" in event.get("message", "") for event in events)
