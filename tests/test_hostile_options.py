"""Values of options and names that no file can have: one line, the documented code, no escape."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from cli_fixtures import Psssr, write_video

from psssr_fast import convert, weights_source
from psssr_fast.commands.batch import Batch
from psssr_fast.commands.shell import as_psssr_error
from psssr_fast.errors import ModelError, UsageError, lacks_memory
from psssr_fast.video import EncoderSettings
from psssr_fast.weights_source import find_source

LONG, DEEP, BYTE, ESCAPE = "x" * 300, "y/" * 3000, "\udcff", "a\x1b[2J\x1b]0;title\x07\nb"
NUMBER = "9" * 5000


@pytest.fixture
def psssr(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_video(Path("clip.mp4"), 1)
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    return Psssr(capsys)


UPSCALE = ("upscale", "clip.mp4", "--progress", "none")
CASES = [
    *((("probe", "--", name), 3) for name in (LONG, DEEP, ESCAPE, BYTE, "a\0b", "loop/x", "")),
    *((("upscale", "--", name), 3) for name in (LONG, DEEP, ESCAPE, BYTE, "a\0b", "~nobody.mp4")),
    *((("plan", "--", name), 3) for name in (LONG, ESCAPE, "a\0b", "fifo")),
    *((("compare", "clip.mp4", name, "-o", "c.png"), 3) for name in (LONG, ESCAPE, "a\0b")),
    *((("eval", name, "--reference", "clip.mp4"), 3) for name in (LONG, ESCAPE, "fifo")),
    *(((*UPSCALE, "-o", name), 6) for name in (LONG + ".mp4", DEEP + "a.mp4", "loop/a.mp4")),
    *(((*UPSCALE, "-o", name), 2) for name in ("a\0b.mp4", "clip.mp4\0")),
    *(((*UPSCALE, "clip.mp4", "-o", name), 6) for name in (LONG, DEEP)),
    *(((*UPSCALE, "--model", name), 4)
      for name in (LONG, DEEP, ESCAPE, BYTE, "a\0b", "~nosuchuser", "loop", "clip.mp4/x", "fifo")),
    *((("models", "verify", name), 4) for name in (LONG, ESCAPE, "~nosuchuser/x", "loop", "fifo")),
    *((("models", "convert", "--i-trust-this-file", name, "d.safetensors"), 4)
      for name in (LONG, DEEP, ESCAPE, BYTE, "loop", "fifo", ".")),
    *((("models", "convert", "--i-trust-this-file", name), 2) for name in ("", ".", "/")),
    (("models", "convert", "--i-trust-this-file", "clip.mp4", LONG + ".safetensors"), 4),
    (("models", "convert", "--i-trust-this-file", "clip.mp4", "a\0b.safetensors"), 2),
    *(((*UPSCALE, option, text), 2)
      for option in ("--codec", "--preset", "--pixel-format")
      for text in (ESCAPE, BYTE, "a\0b", "")[: 3 if option == "--preset" else 4]),
    *(((*UPSCALE, "-e", text), 2)
      for text in (BYTE, f"a={BYTE}", f"{BYTE}=a", "a\0b=c", "a=b\0c", "=", "=a")),
    *(((*UPSCALE, option, NUMBER), 2) for option in ("--height", "--crf", "--max-frames")),
    *(((*UPSCALE, "--window", text), 2)
      for text in (f"{NUMBER}x8x8", f"{10**9}x8x8", "٣x8x8", "8x8", ESCAPE)),
    *(((*UPSCALE, option, text), 2)
      for option in ("--device", "--attention", "--engine", "--profile", "--dtype", "--scale")
      for text in (ESCAPE, BYTE)),
    (("eval", "clip.mp4", "--reference", "clip.mp4", "--metrics", f"psnr,{ESCAPE}{BYTE}"), 2),
    (("eval", "clip.mp4", "--reference", "clip.mp4", "--weights", LONG), 4),
    *((("plan", "clip.mp4", "--rates", name), 2) for name in ("fifo", LONG, ESCAPE)),
    *((("train", "--plan", "--config", name), 2) for name in ("fifo", LONG, ESCAPE)),
    *((("bench", "--size", text), 2) for text in (f"{NUMBER}x8", ESCAPE, BYTE)),
    ((ESCAPE,), 2),
    (("probe", f"--{ESCAPE}"), 2),
]  # fmt: skip


def test_values_that_are_none_are_refused(psssr):
    wrong = []
    for arguments, code in CASES:
        done = psssr(*arguments)
        errors = [line for line in done.err.splitlines() if "error: " in line]
        printable = (done.out + done.err).replace("\n", "").isprintable()
        if (done.code, len(errors), printable) != (code, 1, True) or "Traceback" in done.err:
            wrong.append((arguments, done))
    assert [(arguments, done.code, done.err) for arguments, done in wrong] == []


def test_a_traceback_is_escaped(psssr):
    name = f"{ESCAPE}{BYTE}.mp4"
    for arguments in (
        ("probe", name),
        ("upscale", name),
        ("upscale", name, "clip.mp4", "-s", "99"),
    ):
        done = psssr(*arguments, "--debug")
        assert done.code in (3, 7) and done.err.startswith("Traceback")
        assert done.err.replace("\n", "").isprintable()
        assert r"a\x1b[2J\x1b]0;title\x07" in done.err


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": "libx264\0"}, {"preset": BYTE}, {"pixel_format": "yuv420p\0x"}, {"preset": 5},
        {"options": (("a", BYTE),)}, {"options": (("a\0", "b"),)}, {"options": (("a", 1),)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_the_encoder_are_text(settings):
    with pytest.raises(UsageError, match="must be printable text; got"):
        EncoderSettings(**settings)


@pytest.mark.parametrize("name", ["~nosuchuser", LONG, DEEP, "a\0b", "owner/name\0", BYTE, "\n"])
def test_names_of_models_that_no_file_can_have(name):
    with pytest.raises(ModelError, match="no model ") as raised:
        find_source(name, offline=True)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_a_folder_that_may_not_be_entered_is_told(monkeypatch):
    """Root may enter all of them, so the system is stood in for."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(weights_source.os, "stat", refuse)
    with pytest.raises(ModelError, match="no model '/x/y': permission denied"):
        find_source("/x/y")


NO_MEMORY = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    RuntimeError("Resource temporarily unavailable"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory"),
    OSError(12, "Cannot allocate memory"),
    BlockingIOError(11, "Resource temporarily unavailable"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_a_lack_of_memory_or_threads_is_code_5_wherever_it_is_noticed(
    psssr, monkeypatch, tmp_path, error
):
    assert lacks_memory(error) and as_psssr_error(error).exit_code == 5

    def fail(*arguments, **options):
        raise error

    torch.save({"a": torch.ones(1)}, "in.pth")
    monkeypatch.setattr(Batch, "_load_in", fail)
    monkeypatch.setattr(convert.subprocess, "run", fail)
    monkeypatch.setattr("psssr_fast.video.probe", fail)
    for arguments in (
        ("probe", "clip.mp4"),
        ("upscale", "clip.mp4"),
        ("models", "convert", "--i-trust-this-file", "in.pth"),
    ):
        done = psssr(*arguments)
        assert (done.code, done.err.count("\n")) == (5, 1), done.err


@pytest.mark.parametrize(
    "error", [OSError("odd"), RuntimeError("odd"), ValueError(""), KeyError("a")]
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not lacks_memory(error) and as_psssr_error(error).exit_code == 1


def test_a_warning_of_a_library_is_escaped_in_every_verb(psssr, monkeypatch):
    def probe(*arguments, **options):
        warnings.showwarning(UserWarning(ESCAPE), UserWarning, "x.py", 1)
        raise UsageError("enough")

    monkeypatch.setattr("psssr_fast.video.probe", probe)
    done = psssr("probe", "clip.mp4")
    assert done.err.splitlines() == [
        r"warning: a\x1b[2J\x1b]0;title\x07\nb", "psssr: error: enough",
    ]  # fmt: skip
