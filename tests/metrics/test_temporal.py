"""Temporal metrics on motion that is known, with flow that is given and with OpenCV's."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from metric_oracles import as_clip, blurred, photo, write_weights
from torch import Tensor

from psssr_fast.errors import InputError, UsageError
from psssr_fast.metrics import flow as flow_module
from psssr_fast.metrics.consistency import drift, lr_consistency
from psssr_fast.metrics.flow import Motion, optical_flow, visible, warp
from psssr_fast.metrics.lpips import Lpips
from psssr_fast.metrics.temporal import flow_length, frame_change, tfs, tlp, tof, warping_error
from psssr_fast.ops.frequency_update import butterworth, luma

needs_opencv = pytest.mark.skipif(
    importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed"
)
PAN = (5, -3)  # pixels a frame that the content moves: right, and up


def panning(frames: int = 3, size: tuple[int, int] = (120, 160), blur: int = 0) -> Tensor:
    """A photograph that moves by whole pixels."""
    picture = blurred(photo(), blur) if blur else photo()
    height, width = size
    starts = [(60 - PAN[1] * t, 60 - PAN[0] * t) for t in range(frames)]
    return as_clip(*(picture[y : y + height, x : x + width] for y, x in starts))


def known(clip: Tensor, pan: tuple[float, float] = PAN) -> Motion:
    """A clip whose flow needs no estimate."""
    flow = torch.tensor(pan, dtype=torch.float32)[:, None, None].expand(2, *clip.shape[-2:])
    motion = Motion(clip)
    motion.__dict__["forward"] = flow.expand(len(clip) - 1, *flow.shape)
    motion.__dict__["visible"] = visible(flow, -flow).expand(len(clip) - 1, *clip.shape[-2:])
    return motion


def test_warping_follows_the_flow():
    clip = panning(2)
    fetched = warp(clip[1], known(clip).forward[0])
    inside = known(clip).visible[0]
    assert inside.sum() == (120 - 3) * (160 - 5)
    torch.testing.assert_close(fetched[:, inside], clip[0][:, inside], atol=1e-5, rtol=0)


def test_warping_is_bilinear_between_pixels():
    ramp = torch.arange(8.0).expand(1, 4, 8).contiguous()
    flow = torch.zeros(2, 4, 8)
    flow[0] = 0.25
    assert warp(ramp, flow)[0, 0].tolist() == pytest.approx([*np.arange(7) + 0.25, 7])


def test_pixels_that_go_nowhere_or_elsewhere_are_not_visible():
    forward = torch.zeros(2, 20, 20)
    assert visible(forward, forward).all()
    backward = forward.clone()
    backward[0, 5, 5] = 1  # the way back does not close
    assert not visible(forward, backward)[5, 5] and visible(forward, backward).sum() == 399
    forward[0, :, 10:] = 2  # a border between two motions, and the last two columns leave
    seen = visible(forward, -forward)
    assert not seen[:, 9].any() and not seen[:, 18:].any() and seen[:, :7].all()


def test_a_pan_has_no_warping_error_and_flicker_has_its_own_square():
    clip = panning()
    motion = known(clip)
    assert warping_error(clip, motion).tolist() == pytest.approx([0, 0], abs=1e-10)
    bright = clip.clone()
    bright[1] += 0.1
    assert warping_error(bright, motion).tolist() == pytest.approx([0.01, 0.01], rel=1e-4)
    still = known(clip, (0, 0))
    between = (clip[1:] - clip[:-1]).double().square().flatten(1).mean(1)
    assert warping_error(clip, still).tolist() == pytest.approx(between.tolist(), rel=1e-5)


def test_tof_is_the_mean_distance_of_two_flows():
    clip = panning()
    motions = [Motion(clip), Motion(clip)]
    for motion, pan in zip(motions, ((1.0, 2.0), (4.0, -2.0)), strict=True):
        flow = torch.tensor(pan)[:, None, None].expand(2, 2, *clip.shape[-2:])
        motion.__dict__["farneback"] = flow
    assert tof(*motions).tolist() == pytest.approx([5, 5])
    with pytest.raises(InputError, match="one shape"):
        tof(Motion(clip[..., 1:]), motions[1])


def test_tfs_is_change_over_motion():
    clip = panning(4)
    change, length = frame_change(clip), flow_length(known(clip))
    expected = 255 * (clip[1:] - clip[:-1]).abs().mean((1, 2, 3)).numpy()
    assert change.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert length.tolist() == pytest.approx([math.hypot(*PAN)] * 3, rel=1e-6)
    uneven = length * torch.tensor([0.0, 1.0, 2.0])  # a moment of rest
    found = tfs(change, uneven)
    assert found.tolist() == pytest.approx((expected / math.hypot(*PAN)).tolist(), rel=1e-5)
    assert tfs(change, length * 0).isnan().all()


def test_tlp_compares_changes(tmp_path):
    write_weights(tmp_path, "alex")
    lpips = Lpips("alex", weights=tmp_path)
    clip = panning(3, (60, 60))
    frozen = clip[:1].expand(3, 3, 60, 60)
    assert tlp(clip, clip, lpips).tolist() == [0, 0]
    changes = [lpips(clip[t : t + 1], clip[t + 1 : t + 2]).item() for t in range(2)]
    assert tlp(frozen, clip, lpips).tolist() == pytest.approx(changes, rel=1e-4)
    with pytest.raises(InputError, match="two frames"):
        tlp(clip[:1], clip[:1], lpips)


def test_a_result_that_gives_its_input_back_is_consistent():
    truth = as_clip(photo())
    low = torch.nn.functional.interpolate(truth, scale_factor=0.25, mode="bicubic", antialias=True)
    low = low.clamp(0, 1).mul(255).round().div(255)
    assert lr_consistency(truth, low).item() == pytest.approx(59, abs=0.5)
    assert lr_consistency(truth * 0.9, low).item() < 40
    with pytest.raises(InputError, match="no larger"):
        lr_consistency(low, truth)


def test_drift_is_the_rms_of_the_low_passed_difference():
    base = as_clip(photo()[:101, :121])
    assert drift(base + 2 / 255, base).item() == pytest.approx(2, rel=1e-4)
    x = torch.arange(121.0)
    fine = torch.cos(torch.pi * x) * 0.05  # the highest frequency there is
    assert drift(base + fine, base).item() < 0.1 * (0.05 * 255)
    result = as_clip(blurred(photo()[:101, :121], 2))
    spectrum = torch.fft.fft2((luma(result) - luma(base))[0].double() * 255)
    low = torch.fft.ifft2(spectrum * butterworth(101, 121, 0.2, 2)).real
    assert drift(result, base).item() == pytest.approx(low.square().mean().sqrt().item(), rel=0.02)


def test_motion_needs_two_frames():
    with pytest.raises(InputError, match="two frames"):
        Motion(panning(1))


def test_without_opencv_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(flow_module, "flow_available", lambda: False)
    with pytest.raises(UsageError, match=r"OpenCV.*psssr_fast\[metrics\]"):
        optical_flow(*panning(2))


@needs_opencv
def test_opencv_finds_a_pan():
    clip = panning()
    motion = Motion(clip)
    middle = motion.forward[:, :, 20:-20, 20:-20].flatten(2)
    assert middle.median(2).values.numpy() == pytest.approx(np.array([PAN, PAN]), abs=0.1)
    assert motion.visible.float().mean() > 0.7
    unaligned = (clip[1:] - clip[:-1]).square().mean().item()
    assert warping_error(clip, motion).max() < 0.01 * unaligned
    assert torch.equal(motion.forward, Motion(clip).forward)


@needs_opencv
def test_tof_is_zero_for_the_truth_and_grows_with_wrong_motion():
    truth = Motion(panning())
    wobbling = panning()
    wobbling[1] = wobbling[1].roll(2, -1)
    assert tof(Motion(panning()), truth).tolist() == [0, 0]
    soft = tof(Motion(panning(blur=2)), truth)
    assert (soft < 1).all() and (tof(Motion(wobbling), truth) > soft + 0.5).all()


@needs_opencv
def test_small_pictures_have_no_flow():
    with pytest.raises(InputError, match="16x16"):
        optical_flow(*panning(2, (15, 40)))
