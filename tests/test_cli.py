"""``psssr`` as a whole: speed, help, exit codes, one-line errors, JSON on every verb."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_fixtures import Psssr, command, run_process, write_frames, write_video

from psssr_fast import __version__
from psssr_fast.upscaler import Upscaler

VERBS = (
    ("upscale",),
    ("probe",),
    ("compare",),
    ("doctor",),
    ("models", "list"),
    ("models", "verify"),
    ("models", "convert"),
    ("models", "encode-prompt"),
)


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def seconds_for(*arguments: str) -> float:
    """Of a processor: what else the machine does should not matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(*arguments), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_at_most_half_a_second():
    assert min(seconds_for("--help") for _ in range(5)) <= 0.5


@pytest.mark.parametrize("verb", [(), *VERBS], ids=" ".join)
def test_help_imports_no_heavy_package(verb):
    start = (
        "import sys; from psssr_fast.cli import main; code = main(); "
        "print(*[m for m in ('torch', 'numpy', 'av', 'PIL') if m in sys.modules]); sys.exit(code)"
    )
    done = run_process(*verb, "--help", start=start)
    assert (done.code, done.err) == (0, "")
    assert "Usage: psssr" in done.out
    assert done.out.splitlines()[-1] == ""


def test_probing_does_not_import_torch(clip):
    start = (
        "import sys; from psssr_fast.cli import main; code = main(); "
        "print('torch' in sys.modules); sys.exit(code)"
    )
    done = run_process("probe", clip, start=start)
    assert (done.code, done.out.splitlines()[-1]) == (0, "False")


def test_every_verb_has_json_and_debug(psssr):
    for verb in VERBS:
        done = psssr(*verb, "--help")
        assert "--json" in done.out, verb
        assert "--debug" in done.out, verb


def test_version(psssr):
    done = psssr("--version")
    assert (done.code, done.out, done.err) == (0, f"psssr_fast {__version__}\n", "")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "psssr_fast", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"psssr_fast {__version__}\n")


def test_without_a_verb_the_help_is_shown_and_the_code_is_that_of_usage(psssr):
    done = psssr()
    assert (done.code, done.err) == (2, "")
    assert "upscale" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'. See: psssr --help"),
        (["upscale"], "Missing argument 'IN'. See: psssr upscale --help"),
        (["probe", "--nothing", "x"], "No such option: --nothing. See: psssr probe --help"),
        (["compare", "a", "b"], "Missing option '-o' / '--output'. See: psssr compare --help"),
        (["models", "nothing"], "No such command 'nothing'. See: psssr models --help"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_is_one_line_and_code_2(psssr, arguments, message):
    done = psssr(*arguments)
    assert (done.code, done.out, done.err) == (2, "", f"psssr: error: {message}\n")


def test_probe_shows_what_is_in_a_video(psssr, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", audio=True)
    done = psssr("probe", clip)
    assert (done.code, done.err) == (0, "")
    for words in ("64x36", r"frames +5\n", "25 frames/s", "h264", "yuv444p", "aac", "48000 Hz"):
        assert re.search(words, done.out), words


def test_probe_of_several_files_with_a_bad_one_shows_the_others_and_is_code_7(
    psssr, clip, tmp_path
):
    frames = write_frames(tmp_path / "frames")
    done = psssr("probe", clip, tmp_path / "missing.mp4", frames, "--json")
    files = json.loads(done.out)["files"]
    assert done.code == 7
    assert [file.get("codec") for file in files] == ["h264", None, "png"]
    assert "no such file" in files[1]["error"]
    assert done.err.count("\n") == 1


def test_json_documents_say_what_they_are(psssr, clip, tmp_path):
    runs = {
        "psssr.probe/1": ["probe", clip],
        "psssr.models.list/1": ["models", "list"],
        "psssr.models.verify/1": ["models", "verify", "nano"],
        "psssr.compare/1": ["compare", clip, clip, "-o", tmp_path / "c.png"],
        "psssr.upscale/1": ["upscale", clip, "-o", tmp_path / "out.mp4", "-s", "2"],
    }
    for schema, arguments in runs.items():
        done = psssr(*arguments, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["schema"] == schema


def test_an_error_is_a_json_document_too(psssr, tmp_path):
    done = psssr("compare", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c.png", "--json")
    document = json.loads(done.out)
    assert document["schema"] == "psssr.error/1"
    assert (done.code, document["error"]["exit_code"]) == (3, 3)
    assert done.err == f"psssr: error: {document['error']['message']}\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 5, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 5, "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            5,
            "Use smaller windows (--window FRAMESxHEIGHTxWIDTH)",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 6, "the disk is full"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), 6, "the disk is full"),
        (ZeroDivisionError("odd"), 1, "internal error: ZeroDivisionError: odd; run again with"),
        (RuntimeError("odd"), 1, "internal error: RuntimeError: odd; run again with --debug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_inside_becomes_one_line_and_its_code(
    psssr, clip, tmp_path, monkeypatch, error, code, message
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Upscaler, "upscale_video", fail)
    done = psssr("upscale", clip, "-o", tmp_path / "out.mp4", "--progress", "none")
    errors = [line for line in done.err.splitlines() if line.startswith("psssr: error: ")]
    assert done.code == code
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.err


def test_debug_shows_the_traceback(psssr, tmp_path):
    done = psssr("probe", tmp_path / "missing.mp4", "--debug")
    assert done.code == 3
    assert done.err.startswith("Traceback")
    assert "in check_readable" in done.err
    assert "psssr: error: " in done.err.splitlines()[-1]


def test_a_name_with_line_breaks_or_wrong_bytes_stays_on_one_line(psssr, tmp_path):
    name = "two\nlines \x1b[31m" + b"\xff".decode(errors="surrogateescape") + ".mp4"
    done = psssr("probe", tmp_path / name)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert r"two\nlines \x1b[31m\udcff.mp4" in done.err


def test_a_name_with_wrong_bytes_can_be_probed(psssr, tmp_path):
    clip = write_video(tmp_path / (b"\xff\xfe".decode(errors="surrogateescape") + ".mp4"))
    assert r"\udcff\udcfe.mp4" in psssr("probe", clip).out
    assert json.loads(psssr("probe", clip, "--json").out)["files"][0]["path"] == str(clip)


def test_names_that_begin_with_a_dash_come_after_two_dashes(psssr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("-o.mp4"))
    assert psssr("probe", "--", "-o.mp4").code == 0
    done = psssr("upscale", "-s", "2", "--", "-o.mp4")
    assert done.code == 0, done.err
    assert Path("-o.psssr2x.mp4").exists()


def test_a_reader_of_stdout_that_goes_away_is_no_error(clip):
    with subprocess.Popen(
        command("probe", *[clip] * 200), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_real_lack_of_memory_is_code_5_and_leaves_nothing(tmp_path):
    limited = (
        "import resource, sys, torch; from psssr_fast.cli import main; import psssr_fast.upscaler; "
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, size + 2**29)); sys.exit(main())"
    )
    frames = write_frames(tmp_path / "frames", 5, (160, 90))
    output = tmp_path / "out.mp4"
    options = ("-s", "16", "--window", "8x1440x2560", "-e", "threads=1")
    done = run_process("upscale", frames, "-o", output, *options, start=limited)
    assert done.code == 5, done.err
    assert "out of memory" in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [frames]
