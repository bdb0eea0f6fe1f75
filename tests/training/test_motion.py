"""The moving camera: where it looks is known exactly, and pixels follow."""

import pytest
import torch

from psssr_fast.training.draws import Draw
from psssr_fast.training.motion import Path, draw_path, film, view

SIZE = (32, 40)


def seen(axis, path, frames=3):
    """Photo pixels that the camera sees along an axis, ``[frames, height, width]``."""
    rows = path.rolling * torch.arange(SIZE[0]) / SIZE[0]
    places = view(path, torch.arange(frames)[:, None] + rows, SIZE[1])
    return places[..., "xy".index(axis)]


def inner(x):
    return x[..., 4:-4, 4:-4]


def test_a_standing_camera_copies_pixels():
    photo = (torch.rand(3, 100, 120) * 255).byte()
    clip = film(photo, Path(centre=(59.5, 49.5)), 2, SIZE)
    expected = photo[:, 34:66, 40:80].float() / 255
    torch.testing.assert_close(clip[:, 0], expected, atol=1e-5, rtol=0)
    assert torch.equal(clip[:, 0], clip[:, 1])


def test_detail_between_pixels_is_averaged_and_lies_where_it_did():
    small = (torch.rand(3, 100, 120) * 255).byte()
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    clip = film(large, Path(centre=(59.5, 49.5)), 1, SIZE, detail=2)
    torch.testing.assert_close(clip[:, 0], small[:, 34:66, 40:80] / 255, atol=1e-5, rtol=0)
    ramp = torch.arange(200).byte().expand(3, 160, 200).contiguous()
    for place, detail in ((39.5, 1.6), (50.25, 2.0)):
        clip = film(ramp, Path((place, 40), velocity=(0.5, 0)), 2, SIZE, detail) * 255
        expected = (place + torch.arange(-19.5, 20) + 0.5) * detail - 0.5
        # torch's bicubic is exact on ramps only at whole and half pixels: 0.04 off at the most
        torch.testing.assert_close(clip[0, 0, 10], expected, atol=0.05, rtol=0)
        torch.testing.assert_close(clip[0, 1, 10], expected + detail / 2, atol=0.05, rtol=0)


def test_half_a_pixel_is_the_mean_of_two_on_a_ramp():
    ramp = torch.arange(200).byte().expand(3, 100, 200).contiguous()
    clip = film(ramp, Path((99.5, 49.5), velocity=(0.5, 0)), 3, SIZE)[0, :, 10, :] * 255
    expected = 80.0 + torch.arange(40) + 0.5 * torch.arange(3)[:, None]
    torch.testing.assert_close(clip, expected, atol=1e-3, rtol=0)


def test_pan_and_acceleration_are_exact_in_fractions_of_a_pixel():
    path = Path((100, 90), velocity=(1.3, -0.6), acceleration=(0.2, 0.1))
    for axis, start, speed, gain in (("x", 100, 1.3, 0.2), ("y", 90, -0.6, 0.1)):
        places = seen(axis, path)
        middle = places[:, 15:17, 19:21].mean((1, 2))
        expected = torch.tensor([start + speed * t + 0.5 * gain * t * t for t in range(3)])
        torch.testing.assert_close(middle, expected, atol=1e-4, rtol=0)


def test_zoom_and_rotation_change_the_steps_between_pixels():
    places = seen("x", Path((100, 100), zoom=0.8, zoom_speed=0.05))
    steps = places.diff(dim=2).mean((1, 2))
    expected = torch.tensor([0.8 * (1 + 0.05 * t) for t in range(3)])
    torch.testing.assert_close(steps, expected, atol=1e-4, rtol=0)
    turned = seen("x", Path((100, 100), turn=0.3))[0]
    cosine, sine = torch.tensor(0.3).cos(), torch.tensor(0.3).sin()
    torch.testing.assert_close(inner(turned).diff(dim=1).mean(), cosine, atol=1e-4, rtol=0)
    torch.testing.assert_close(inner(turned).diff(dim=0).mean(), -sine, atol=1e-4, rtol=0)


def test_perspective_makes_one_edge_larger():
    steps = inner(seen("x", Path((100, 100), tilt=(0.2, 0.0)))[0]).diff(dim=1)
    assert steps[:, 0].mean() > 1.05 and steps[:, -1].mean() < 0.95


def test_exposure_smears_along_the_motion_only():
    step = torch.zeros(3, 100, 200, dtype=torch.uint8)
    step[:, :, 100:] = 255
    still = film(step, Path((100, 50)), 1, SIZE)[0, 0, 16]
    smeared = film(step, Path((100, 50), velocity=(8, 0), exposure=1.0), 1, SIZE)[0, 0, 16]
    between = lambda line: int(((line > 0.05) & (line < 0.95)).sum())  # noqa: E731
    assert between(still) <= 2
    assert 5 <= between(smeared) <= 9  # 8 pixels in the frame's time, at 4 moments
    along = film(step, Path((100, 50), velocity=(0, 8), exposure=1.0), 1, SIZE)[0, 0, 16]
    torch.testing.assert_close(along, still, atol=1e-5, rtol=0)


def test_a_rolling_shutter_leans_what_moves_sideways():
    places = seen("x", Path((100, 100), velocity=(6, 0), rolling=0.5), 1)[0]
    lean = places[24] - places[8]  # 16 of 32 rows later: a quarter of the frame's time
    torch.testing.assert_close(lean[4:-4].mean(), torch.tensor(6 * 0.25), atol=1e-4, rtol=0)


def test_drawn_cameras_move_within_their_limits_and_mostly_inside():
    photo, frames = (400, 600), 8
    paths = [draw_path(Draw(seed), photo, frames, (128, 128)) for seed in range(400)]
    speeds = torch.tensor([path.velocity for path in paths])
    assert speeds.abs().max() <= 3 and speeds.abs().max() > 2.8
    assert 0.04 < (speeds == 0).all(1).float().mean() < 0.17  # a tenth stands
    assert 0.2 < sum(path.exposure > 0 for path in paths) / 400 < 0.36
    assert all(path.zoom == 1 for path in paths)  # there is no detail to zoom into
    zooms = [draw_path(Draw(s), photo, frames, (128, 128), detail=2).zoom for s in range(400)]
    assert 0.75 <= min(zooms) < 0.77 and 0.98 < max(zooms) <= 1
    for path in paths:
        for middle, length in zip(path.centre, photo[::-1], strict=True):
            assert 64 - 30 < middle < length - 64 + 30


@pytest.mark.parametrize("photo", [(128, 128), (130, 700)])
def test_small_photos_are_mirrored_at_their_edges(photo):
    picture = (torch.rand(3, *photo) * 255).byte()
    for seed in range(5):
        path = draw_path(Draw(seed), photo, 8, (128, 128))
        clip = film(picture, path, 8, (128, 128))
        assert clip.shape == (3, 8, 128, 128) and clip.isfinite().all()
        assert clip.min() >= 0 and clip.max() <= 1 and clip.std() > 0.05
