"""Evaluations: of files, of folders, and of a model step by step."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from metric_oracles import as_clip, blurred, photo, write_weights
from PIL import Image

from psssr_fast.errors import InputError, UsageError
from psssr_fast.evaluate import Evaluator, Options, evaluate_files
from psssr_fast.evaluate_model import Trial, degraded, evaluate_model, read_truth
from psssr_fast.evaluate_picture import draw_evaluation, nice_ticks
from psssr_fast.evaluate_sources import Span, eight_bit, open_pictures
from psssr_fast.metrics.psnr import psnr
from psssr_fast.metrics.ssim import ssim
from psssr_fast.upscaler import Upscaler

FRAMES, SIZE = 4, (64, 96)


def moving(blur: int = 0) -> list[np.ndarray]:
    """uint8 pictures ``[64, 96, 3]`` of a photograph that moves."""
    picture = blurred(photo(), blur) if blur else photo()
    cuts = (picture[80 + t : 80 + t + SIZE[0], 90 - t : 90 - t + SIZE[1]] for t in range(FRAMES))
    return [np.round(cut * 255).astype(np.uint8) for cut in cuts]


def write_folder(folder: Path, pictures: list[np.ndarray], suffix: str = "png") -> Path:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index + 8}.{suffix}", lossless=True)
    return folder


def small(pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [
        np.asarray(Image.fromarray(p).resize((24, 16), Image.Resampling.BICUBIC)) for p in pictures
    ]


@pytest.fixture
def clips(tmp_path) -> dict[str, Path]:
    return {
        "truth": write_folder(tmp_path / "truth", moving(), "webp"),
        "soft": write_folder(tmp_path / "soft", moving(1)),
        "softer": write_folder(tmp_path / "softer", moving(3)),
        "low": write_folder(tmp_path / "low", small(moving()), "webp"),
    }


def test_folders_are_measured_frame_by_frame(clips):
    results = {name: clips[name] for name in ("soft", "softer")}
    options = Options(("psnr", "ssim-y"), border=2)
    found = evaluate_files(results, options, reference=clips["truth"])
    assert found.columns == ("soft", "softer", "truth") and found.frames == FRAMES
    truth = as_clip(*(picture / 255 for picture in moving()))
    for name, blur in (("soft", 1), ("softer", 3)):
        result = as_clip(*(picture / 255 for picture in moving(blur)))
        expected = psnr(result, truth, border=2), ssim(result, truth, luma=True, border=2)
        np.testing.assert_allclose(found.values["psnr", name], expected[0], atol=1e-5)
        np.testing.assert_allclose(found.values["ssim-y", name], expected[1], atol=1e-6)
        assert found.mean("psnr", name) == pytest.approx(expected[0].mean().item())
    assert ("psnr", "truth") not in found.values and found.mean("psnr", "truth") is None


def test_an_input_adds_bicubic_and_consistency(clips):
    found = evaluate_files(
        {"soft": clips["soft"]},
        Options(("psnr", "lr-psnr", "drift"), border=3),  # consistency has no border
        reference=clips["truth"],
        low=clips["low"],
        base=clips["softer"],
    )
    assert found.columns == ("bicubic", "soft", "truth")
    means = [found.mean("lr-psnr", name) for name in found.columns]
    assert means[2] > means[1] and means[2] > means[0] > 20
    assert found.mean("drift", "soft") > 1 and found.mean("drift", "truth") is None


def test_spans_pick_frames(clips):
    options = Options(("psnr",))
    whole = evaluate_files({"soft": clips["soft"]}, options, reference=clips["truth"])
    last = evaluate_files(
        {"soft": clips["soft"]},
        Options(("psnr",), span=Span.parse("-2:")),
        reference=clips["truth"],
    )
    assert last.values["psnr", "soft"].tolist() == whole.values["psnr", "soft"][-2:].tolist()
    assert Span.parse("3") == Span(0, 3) and Span.parse("1:-1") == Span(1, -1)
    for text in ("", "-3", "a", "1:2:3", "0"):
        with pytest.raises(UsageError, match="frames must be"):
            Span.parse(text)
    with pytest.raises(UsageError, match="count from the front"):
        Span(-3).within(None, Path("a.ts"))


def test_different_lengths_are_paired_and_said_and_sizes_must_agree(clips, tmp_path):
    short = write_folder(tmp_path / "short", moving()[:2])
    found = evaluate_files({"short": short}, Options(("psnr",)), reference=clips["truth"])
    assert found.frames == 2 and math.isinf(found.mean("psnr", "short"))
    assert "2" in found.warnings[0] and "4" in found.warnings[0]
    assert found.to_json()["metrics"]["psnr"]["mean"] == {"short": None}  # JSON has no infinity
    narrow = write_folder(tmp_path / "narrow", [p[:, :-1] for p in moving()])
    with pytest.raises(InputError, match=r"96x64 and .*95x64"):
        evaluate_files({"narrow": narrow}, Options(), reference=clips["truth"])
    mixed = write_folder(tmp_path / "mixed", [moving()[0], moving()[1][:-1]], "webp")
    with pytest.raises(InputError, match="must have one size"):
        evaluate_files({"mixed": mixed}, Options(("psnr",)), reference=clips["truth"])


def test_a_video_file_is_measured_like_its_frames(clips, tmp_path):
    path = tmp_path / "lossless.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = SIZE[1], SIZE[0], "bgr0"
        for picture in moving():
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    found = evaluate_files({"video": path}, Options(("psnr",)), reference=clips["truth"])
    assert found.frames == FRAMES and math.isinf(found.mean("psnr", "video"))


def test_deep_frames_are_rounded_to_8_bits():
    levels = np.arange(256, dtype=np.uint16) * 257
    assert eight_bit(levels).tolist() == list(range(256))
    assert eight_bit(levels[1:] - 128).tolist() == list(range(1, 256))
    assert eight_bit(levels[1:] - 129).tolist() == list(range(255))


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(InputError):
        open_pictures(write_folder(tmp_path / "empty", []), Span())
    folder = write_folder(tmp_path / "cut", moving(), "webp")
    file = folder / "9.webp"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"9\.webp"):
        list(open_pictures(folder, Span()).frames())


def test_memory_does_not_grow_with_the_clip():
    evaluator = Evaluator(("a",), ("truth",), SIZE, Options(("psnr",)))
    frame = torch.rand(3, *SIZE)
    for _ in range(5):
        evaluator.add({"a": frame}, {"truth": frame})
    moment, shot = evaluator._moment[0], evaluator._shots["a"][0]
    assert moment.before.before is None and shot.before.before is None


def test_pairs_start_with_the_second_frame(clips, tmp_path):
    write_weights(tmp_path, "alex")
    found = evaluate_files(
        {"soft": clips["soft"]},
        Options(("tlp", "lpips-alex"), weights=tmp_path),
        reference=clips["truth"],
    )
    values = found.values["tlp", "soft"]
    assert np.isnan(values[0]) and np.isfinite(values[1:]).all()
    assert found.mean("tlp", "soft") == pytest.approx(values[1:].mean())
    assert found.to_json()["metrics"]["tlp"]["frames"]["soft"][0] is None


def test_flow_metrics_share_the_flow_of_the_truth(clips):
    pytest.importorskip("cv2")
    found = evaluate_files(
        {"soft": clips["soft"], "truth again": clips["truth"]},
        Options(("ewarp", "tof", "tfs")),
        reference=clips["truth"],
    )
    assert "DIS, OpenCV" in found.flow and "Farneback" in found.flow
    for metric in ("ewarp", "tfs"):
        again, truth = (found.values[metric, name][1:] for name in ("truth again", "truth"))
        assert again.tolist() == truth.tolist()
        assert found.mean(metric, "soft") < found.mean(metric, "truth")
    assert found.mean("tof", "truth again") == 0 < found.mean("tof", "soft")


def test_a_model_is_measured_step_by_step(clips):
    trial = Trial(steps=True, device="cpu", dtype=torch.float32)
    options = Options(("psnr", "lr-psnr", "drift"), span=Span(0, 2))
    found = evaluate_model(clips["truth"], trial, options)
    assert found.columns == ("bicubic", "base", "base+1", "base+2", "full", "no FDU", "truth")
    assert found.values["drift", "base"].tolist() == [0, 0]
    means = {name: found.mean("psnr", name) for name in found.columns[:-1]}
    assert len(set(means.values())) == 6  # six different pictures
    assert found.mean("drift", "no FDU") > 2 * found.mean("drift", "full") > 0
    assert found.facts["model"] == "nano" and found.facts["degradation"] == "bicubic"
    low = degraded(read_truth(clips["truth"], options), "bicubic", 0)
    full = Upscaler.from_pretrained("nano", device="cpu", dtype=torch.float32)(low)
    truth = as_clip(*(picture / 255 for picture in moving()[:2]))
    direct = psnr(as_clip(*(picture / 255 for picture in full)), truth)
    np.testing.assert_allclose(found.values["psnr", "full"], direct, atol=1e-5)


def test_a_truth_is_cut_to_what_can_be_shrunk_by_four(tmp_path):
    odd = write_folder(tmp_path / "odd", [picture[:63, :95] for picture in moving()])
    truth = read_truth(odd, Options())
    assert truth.shape == (FRAMES, 60, 92, 3)
    for name in ("bicubic", "bd", "light"):
        low = degraded(truth, name, seed=1)
        assert low.shape == (FRAMES, 15, 23, 3) and low.dtype == np.uint8
        assert abs(low.mean() - truth.mean()) < 2


def test_the_plot_shows_every_metric(clips):
    found = evaluate_files(
        {"soft": clips["soft"]}, Options(("psnr", "ssim", "ssim-y")), reference=clips["truth"]
    )
    picture = draw_evaluation(found)
    assert picture.shape[1:] == (1600, 3) and picture.dtype == np.uint8
    one = evaluate_files({"soft": clips["soft"]}, Options(("psnr",)), reference=clips["truth"])
    assert draw_evaluation(one).shape[0] < picture.shape[0]
    assert nice_ticks(np.array([0.13, 0.48])) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert nice_ticks(np.array([3.0, 3.0]))[0] < 3 < nice_ticks(np.array([3.0, 3.0]))[-1]
