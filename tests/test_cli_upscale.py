"""``psssr upscale``: what becomes of inputs, options, progress and several inputs at once."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import (
    Psssr,
    pictures,
    read,
    stop_while_writing,
    write_frames,
    write_video,
)

from psssr_fast.checkpoint import save_bundle
from psssr_fast.commands.upscale import PictureChanges
from psssr_fast.commands.upscale_options import Filter
from psssr_fast.config import Settings, Windows, settings_for
from psssr_fast.errors import UsageError
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import NANO
from psssr_fast.ops.pixel_format import pack_frames, unpack_frames
from psssr_fast.resize import resize_frames
from psssr_fast.upscaler import Upscaler
from psssr_fast.video import probe


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


@pytest.fixture(scope="module")
def bicubic(tmp_path_factory) -> Path:
    """A model that has learnt nothing: it returns the bicubic picture."""
    path = tmp_path_factory.mktemp("model") / "untrained.safetensors"
    torch.manual_seed(0)
    base, draft = Dit(NANO.dit), Dit(NANO.dit, draft=True)
    networks = (base.state_dict(), draft.state_dict(), NanoCodec(NANO.codec).state_dict())
    save_bundle(path, "nano", *networks, {})
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


FP32 = ("--device", "cpu", "--dtype", "float32")


def enlarged(frames: list[np.ndarray], height: int, width: int) -> np.ndarray:
    low = unpack_frames(torch.from_numpy(np.stack(frames)))
    return pack_frames(resize_frames(low, height, width)).numpy()


def test_png_frames_in_are_png_frames_out_with_the_same_names(psssr, folder, bicubic):
    write_frames(folder / "frames")
    done = psssr("upscale", "frames", "-o", "larger", "--model", bicubic, *FP32)
    assert done.code == 0, done.err
    assert names(folder / "larger") == names(folder / "frames")
    expected = enlarged(pictures(3), 144, 256)
    assert np.array_equal(np.stack(read(folder / "larger")), expected)


def test_a_video_becomes_a_video_beside_it_four_times_as_large(psssr, folder, bicubic):
    write_video(folder / "clip.mkv")
    done = psssr("upscale", "clip.mkv", "--model", bicubic)
    assert done.code == 0, done.err
    info = probe(folder / "clip.psssr4x.mkv")
    assert (info.width, info.height, info.codec) == (256, 144, "h264")
    got = np.stack(read(folder / "clip.psssr4x.mkv")).astype(float)
    wanted = enlarged(read(folder / "clip.mkv"), 144, 256)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() < 4  # half the colour is thrown away by 4:2:0
    assert re.fullmatch(
        r"clip\.psssr4x\.mkv: 5 frames 256x144 in \d+\.\d s \(\d+\.\d\d frames/s\)\n", done.out
    )


def test_the_built_in_model_is_the_default_and_changes_the_picture(psssr, folder, bicubic):
    write_frames(folder / "frames")
    assert psssr("upscale", "frames", "-o", "nano").code == 0
    assert psssr("upscale", "frames", "-o", "bicubic", "--model", bicubic).code == 0
    nano, plain = (np.stack(read(folder / name)).astype(int) for name in ("nano", "bicubic"))
    assert nano.shape == plain.shape
    assert 0 < np.abs(nano - plain).mean() < 20


def test_one_line_says_what_computes(psssr, folder, bicubic):
    write_frames(folder / "frames", 1)
    done = psssr("upscale", "frames", "--model", bicubic, *FP32, "--progress", "none")
    lines = done.err.splitlines()
    assert len(lines) == 1
    for word in ("nano", "cpu", "float32", "sdpa"):
        assert word in lines[0]


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        (["-s", "2"], "clip.psssr2x.mp4", (128, 72)),
        (["--scale", "1.5"], "clip.psssr1.5x.mp4", (96, 54)),
        (["--height", "100"], "clip.psssr100p.mp4", (178, 100)),
    ],
    ids=lambda value: str(value[0]),
)
def test_size_options_decide_size_and_name(psssr, folder, bicubic, options, name, size):
    write_video(folder / "clip.mp4", 2)
    assert psssr("upscale", "clip.mp4", "--model", bicubic, *options).code == 0
    info = probe(folder / name)
    assert (info.width, info.height) == size


def test_several_inputs_with_bad_ones_do_the_others_and_end_with_code_7(psssr, folder, bicubic):
    write_video(folder / "good.mp4", 2)
    write_frames(folder / "frames", 2)
    (folder / "bad.mp4").write_text("no video")
    inputs = ("bad.mp4", "good.mp4", "missing.mp4", "frames")
    done = psssr("upscale", *inputs, "-o", "out", "-s", "2", "--model", bicubic, "--json")
    assert done.code == 7
    document = json.loads(done.out)
    assert document["schema"] == "psssr.upscale/1"
    rows = [(row["input"], row["status"]) for row in document["results"]]
    statuses = ("failed", "done", "failed", "done")
    assert rows == list(zip(inputs, statuses, strict=True))
    assert document["results"][0]["error"]["exit_code"] == 3
    assert document["results"][1]["frames"] == 2
    assert names(folder / "out") == {"good.psssr2x.mp4", "frames.psssr2x"}
    errors = [line for line in done.err.splitlines() if line.startswith("psssr: error: ")]
    assert len(errors) == 2
    assert "bad.mp4" in errors[0]
    assert "missing.mp4" in errors[1]


def test_a_failure_while_running_does_not_stop_the_others(psssr, folder, bicubic, monkeypatch):
    write_frames(folder / "a", 1)
    write_frames(folder / "b", 1)
    real = Upscaler.upscale_video

    def fail_once(self, src, dst, **options):
        if src == "a":
            raise RuntimeError("can't allocate memory")
        return real(self, src, dst, **options)

    monkeypatch.setattr(Upscaler, "upscale_video", fail_once)
    done = psssr("upscale", "a", "b", "--model", bicubic)
    assert done.code == 7
    assert "psssr: error: a: out of memory" in done.err
    assert names(folder) == {"a", "b", "b.psssr4x"}


def test_inputs_are_refused_before_a_model_is_loaded(psssr, folder):
    done = psssr("upscale", "missing.mp4", "--model", "missing_model")
    assert (done.code, "missing_model" in done.err) == (3, False)


def test_existing_outputs_are_kept_replaced_or_skipped_as_told(psssr, folder, bicubic):
    write_video(folder / "clip.mp4", 2)
    output = folder / "clip.psssr4x.mp4"
    output.write_bytes(b"precious")
    kept = psssr("upscale", "clip.mp4", "--model", bicubic)
    assert (kept.code, output.read_bytes()) == (6, b"precious")
    skipped = psssr("upscale", "clip.mp4", "--model", bicubic, "--skip-existing")
    assert (skipped.code, skipped.out) == (0, "clip.psssr4x.mp4: skipped\n")
    assert output.read_bytes() == b"precious"
    assert psssr("upscale", "clip.mp4", "--model", bicubic, "--overwrite").code == 0
    assert len(read(output)) == 2


def test_a_folder_of_frames_is_skipped_only_when_it_is_complete(psssr, folder, bicubic):
    write_frames(folder / "frames", 3)
    arguments = ("upscale", "frames", "-o", "out", "--model", bicubic)
    assert psssr(*arguments).code == 0
    assert psssr(*arguments, "--skip-existing").out == "out: skipped\n"
    (folder / "out/0001.png").unlink()
    done = psssr(*arguments, "--skip-existing")
    assert done.code == 6
    assert "holds PNG files already" in done.err


def test_warnings_are_lines_on_stderr_and_in_the_json(psssr, folder, bicubic):
    write_video(folder / "clip.mp4", 2)
    done = psssr("upscale", "clip.mp4", "-s", "1.25", "-o", "o.mkv", "--model", bicubic, "--json")
    (result,) = json.loads(done.out)["results"]
    assert "80x45 is stored as yuv444p, which many players cannot show" in result["warnings"][-1]
    for warning in result["warnings"]:
        assert f"warning: clip.mp4: {warning}\n" in done.err


def test_encoder_options_reach_the_encoder(psssr, folder, bicubic):
    write_video(folder / "clip.mp4")
    base = ("upscale", "clip.mp4", "-s", "2", "--model", bicubic, "--overwrite", "-o")
    options = ("--codec", "libx265", "--crf", "40", "--pixel-format", "yuv444p")
    done = psssr(*base, "a.mp4", *options, "--preset", "ultrafast", "-e", "x265-params=log-level=0")
    assert done.code == 0, done.err
    info = probe(folder / "a.mp4")
    assert (info.codec, info.pixel_format) == ("hevc", "yuv444p")
    bad = psssr(*base, "b.mp4", "-e", "nothing=1")
    assert (bad.code, "has no option nothing" in bad.err) == (2, True)
    bad = psssr(*base, "b.mp4", "-e", "nothing")
    assert (bad.code, "must be NAME=VALUE; got 'nothing'" in bad.err) == (2, True)
    bad = psssr(*base, "b.mp4", "--codec", "nothing")
    assert (bad.code, "no such encoder: 'nothing'" in bad.err) == (2, True)
    assert names(folder) == {"clip.mp4", "a.mp4"}


def test_picture_options_change_the_settings_of_the_profile():
    settings = settings_for("paper", Windows(overlap_frames=1, overlap_pixels=64))
    assert PictureChanges(None, None, None, None).apply(settings) == settings
    changed = PictureChanges(0.5, Filter.FFT, "5x64x96", "2x16").apply(settings)
    assert changed.frequency_update.strength == 0.5
    assert changed.frequency_update.filter == "fft"
    assert changed.frequency_update.iterate
    assert changed.windows == Windows(5, 64, 96, 2, 16)
    changed = PictureChanges(None, None, "9x720x1280", None).apply(settings)
    assert changed.windows == Windows(9, 720, 1280, 1, 64)
    small = PictureChanges(None, None, "1x64x48", None).apply(settings)
    assert small.windows == Windows(1, 64, 48, 0, 24)  # never more overlap than fits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((3.0, None, None, None), "alpha"),
        ((None, None, "5x64", None), "--window must be FRAMESxHEIGHTxWIDTH; got '5x64'"),
        ((None, None, "5x64x-1", None), "--window must be FRAMESxHEIGHTxWIDTH; got '5x64x-1'"),
        ((None, None, "0x64x64", None), "window frames must be at least 1; got 0"),
        ((None, None, None, "1x2x3"), "--overlap must be FRAMESxPIXELS; got '1x2x3'"),
        ((None, None, "4x64x64", "4x16"), "window frames=4 must be larger than its overlap 4"),
    ],
    ids=lambda value: str(value),
)
def test_picture_options_that_mean_nothing_are_refused_at_once(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        PictureChanges(*changes)


def test_model_and_picture_options_reach_the_upscaler(psssr, folder, bicubic, monkeypatch):
    write_frames(folder / "frames", 1)
    seen: list[tuple[Settings, torch.dtype]] = []
    real = Upscaler.upscale_video

    def spy(self, src, dst, **options):
        seen.append((self.settings, self.networks.dtype))
        return real(self, src, dst, **options)

    monkeypatch.setattr(Upscaler, "upscale_video", spy)
    options = ("--profile", "paper", "--dtype", "bfloat16", "--attention", "sdpa")
    picture = ("--alpha", "0.25", "--window", "5x128x128", "--overlap", "1x32")
    done = psssr("upscale", "frames", "--model", bicubic, *options, *picture, "--json")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    assert (result["profile"], result["attention"]) == ("paper", "sdpa")
    ((settings, dtype),) = seen
    assert dtype == torch.bfloat16
    assert settings.frequency_update.strength == 0.25
    assert settings.frequency_update.iterate
    assert settings.windows == Windows(5, 128, 128, 1, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "nowhere"], "no such device: 'nowhere'"),
        (["--attention", "nothing"], "attention='nothing' cannot run"),
        (["--overwrite", "--skip-existing"], "--overwrite and --skip-existing exclude each other"),
        (["--height", "0"], "--height must be at least 1 pixel; got 0"),
        (["--scale", "nan"], "--scale must be a positive number; got nan"),
        (["--dtype", "int8"], "Invalid value for '--dtype'"),
        (["--scale", "17"], "the scale must lie between one output pixel and 16x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_had_are_usage_errors(psssr, folder, bicubic, options, message):
    write_frames(folder / "frames", 1)
    done = psssr("upscale", "frames", "--model", bicubic, *options)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert names(folder) == {"frames"}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_stops_it_and_leaves_nothing_half_written(folder, bicubic, number, code):
    clip = write_video(folder / "clip.mp4", 400)
    (folder / "done.mp4").write_bytes(b"from before")
    options = ("--model", bicubic, "-o", "done.mp4", "--overwrite", "--progress", "json")
    done = stop_while_writing(folder, number, "upscale", clip, *options)
    assert done.code == code, done.err
    assert names(folder) == {"clip.mp4", "done.mp4"}
    assert (folder / "done.mp4").read_bytes() == b"from before"
    assert "Traceback" not in done.err
    events = [json.loads(line)["event"] for line in done.err.splitlines()]
    assert (events[-1] == "interrupted") == (number == signal.SIGINT)


def test_engine_can_be_named_and_is_reported(psssr, folder, bicubic):
    write_frames(folder / "frames", 1)
    for engine in ("fused", "plain"):
        done = psssr(
            "upscale", "frames", "-o", engine, "--model", bicubic, "--engine", engine, "--json"
        )
        assert done.code == 0, done.err
        (result,) = json.loads(done.out)["results"]
        assert result["engine"] == engine
    wrong = psssr("upscale", "frames", "-o", "no", "--model", bicubic, "--engine", "turbo")
    assert wrong.code == 2
    assert "engine must be 'fused' or 'plain'; got 'turbo'" in wrong.err
