"""Where scenes begin: what the detectors find, what they must not, and what they read for it."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import count, permutations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psssr_fast.arrays import to_planar
from psssr_fast.commands.upscale import PictureChanges
from psssr_fast.commands.upscale_options import Detector
from psssr_fast.config import SceneCuts, Settings
from psssr_fast.errors import UsageError
from psssr_fast.scenes import (
    HISTORY,
    LOOKAHEAD,
    find_cuts,
    lookahead,
    mark_scenes,
    small_picture,
)
from psssr_fast.video import open_reader

ROOT = Path(__file__).parents[1]
AUTO = SceneCuts()
WIDTH, HEIGHT = 160, 90


def clip(path: Path) -> list[np.ndarray]:
    with open_reader(path) as reader:
        return [np.array(Image.fromarray(f.pixels).resize((WIDTH, HEIGHT))) for f in reader]


@pytest.fixture(scope="module")
def shots() -> dict[str, list[np.ndarray]]:
    """Single shots of real pictures, 160x90: two of film, and a photograph seen in five ways."""
    photo = np.asarray(Image.open(ROOT / "tests/data/photo_256.png").convert("RGB"))
    grain = np.random.default_rng(0)

    def moved(speed: float, top: int, frames: int = 24) -> list[np.ndarray]:
        return [photo[top : top + HEIGHT, int(i * speed) :][:, :WIDTH] for i in range(frames)]

    def noisy(picture: np.ndarray) -> np.ndarray:
        return (picture + grain.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)

    return {
        "film": clip(ROOT / "examples/demo_180p.mp4"),
        "film, another picture": clip(ROOT / "tests/data/bbb_360p_heldout.mp4"),
        "photo, still, with grain": [noisy(photo[10:100, 20:180]) for _ in range(24)],
        "photo, slow pan": moved(1, 150),
        "photo, fast pan": moved(10, 60, 16),
        "photo, upside down": [picture[::-1] for picture in moved(2, 120)],
        "photo, dark": [picture // 6 for picture in moved(1, 30)],
    }


def joined(shots: dict[str, list[np.ndarray]], names: list[str], lengths: list[int]):
    """Parts of shots, one after the other, and where the cuts are."""
    parts = [shots[name][:length] for name, length in zip(names, lengths, strict=True)]
    cuts = np.cumsum([len(part) for part in parts])[:-1]
    return [frame for part in parts for frame in part], tuple(int(cut) for cut in cuts)


# What is found.


def test_cuts_between_real_shots_are_found_and_nothing_else(shots):
    """Every ordered pair of shots but the two films, which show one place: 40 cuts.

    Three are missed: from one part of the photograph into a pan over another part, so fast that its
    own frames differ almost as much.
    """
    names = list(shots)
    missed, invented = [], []
    for first, second in permutations(names, 2):
        if {first, second} != set(names[:2]):
            frames, cuts = joined(shots, [first, second], [64, 64])
            seen = find_cuts(frames, AUTO)
            missed += [(first, second)] * len(set(cuts) - set(seen))
            invented += [(first, second)] * len(set(seen) - set(cuts))
    assert invented == []
    assert missed == [
        ("photo, still, with grain", "photo, fast pan"),
        ("photo, slow pan", "photo, fast pan"),
        ("photo, upside down", "photo, fast pan"),
    ]


def test_short_scenes_are_found_down_to_one_frame(shots):
    names = ["film", "photo, slow pan", "photo, still, with grain", "photo, dark"]
    frames, cuts = joined(shots, names, [10, 1, 10, 10])
    assert find_cuts(frames, AUTO) == cuts
    frames, cuts = joined(shots, names, [10, 2, 3, 10])
    assert find_cuts(frames, AUTO) == cuts


@pytest.mark.parametrize("name", ["film", "photo, slow pan", "photo, dark"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_flashes_are_no_cuts(shots, name, frames):
    shot = [picture.copy() for picture in shots[name][:24]]
    for picture in shot[11 : 11 + frames]:
        picture[:] = picture // 4 + 190
    assert find_cuts(shot, AUTO) == ()


@pytest.mark.parametrize("frames", [8, 12, 24])
def test_fades_and_dissolves_are_no_cuts(shots, frames):
    film, still = shots["film"], shots["photo, still, with grain"][:12]
    weights = np.linspace(0, 1, frames)
    to_black = [(film[10 + i] * (1 - w)).astype(np.uint8) for i, w in enumerate(weights)]
    from_black = [(still[0] * w).astype(np.uint8) for w in weights]
    assert find_cuts([*film[:10], *to_black, *from_black, *still], AUTO) == ()
    dissolve = [
        (film[10 + i] * (1 - w) + still[0] * w).astype(np.uint8) for i, w in enumerate(weights)
    ]
    assert find_cuts([*film[:10], *dissolve, *still], AUTO) == ()


def test_a_sudden_fast_pan_is_no_cut_and_a_cut_out_of_it_is(shots):
    pan = shots["photo, fast pan"]
    assert find_cuts([pan[0]] * 12 + pan + [pan[-1]] * 12, AUTO) == ()
    frames, cuts = joined(shots, ["photo, fast pan", "film"], [16, 20])
    assert find_cuts(frames, AUTO) == cuts


def test_frames_without_anything_in_common_are_motion_not_cuts():
    noise = np.random.default_rng(1).integers(0, 256, (12, HEIGHT, WIDTH, 3), np.uint8)
    assert find_cuts(noise, AUTO) == ()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (7, 5), (36, 64), (301, 3), (1080, 1920)])
def test_any_size(size):
    dark, bright = np.full((*size, 3), 20, np.uint8), np.full((*size, 3), 180, np.uint8)
    assert find_cuts([dark] * 5 + [bright] * 5, AUTO) == (5,)


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_few_frames(frames):
    pictures = [np.full((9, 9, 3), 60 * (i == frames - 1), np.uint8) for i in range(frames)]
    marked = list(mark_scenes(pictures, AUTO))
    assert [begins for _, begins in marked] == [False, False, True][:frames]
    assert all(frame is picture for (frame, _), picture in zip(marked, pictures, strict=True))


def test_a_higher_threshold_finds_less():
    grey = [np.full((90, 160, 3), value, np.uint8) for value in [100] * 6 + [160] * 6]
    assert find_cuts(grey, SceneCuts(threshold=0.1)) == (6,)
    assert find_cuts(grey, SceneCuts(threshold=0.6)) == ()


def test_off_finds_nothing(shots):
    frames, _ = joined(shots, ["film", "photo, dark"], [9, 9])
    assert find_cuts(frames, SceneCuts(detector="off")) == ()
    assert lookahead(SceneCuts(detector="off")) == 0


# What is read.


@settings(deadline=None)
@given(st.data())
def test_a_decision_reads_the_stated_frames_and_no_others(data):
    levels = data.draw(st.lists(st.sampled_from([0, 40, 90, 200]), min_size=1, max_size=40))
    frames = [np.full((4, 4, 3), level, np.uint8) for level in levels]
    cuts = find_cuts(frames, AUTO)
    for index in range(len(frames)):
        begin = max(0, index - HISTORY)
        part = frames[begin : index + LOOKAHEAD + 1]
        assert (index - begin in find_cuts(part, AUTO)) == (index in cuts)


def test_what_was_usual_long_ago_counts_no_more_even_at_the_end():
    levels = [0, 200, 0, 200, 0, 200, 90, 90, 90, 90, 90, 90, 240]
    frames = [np.full((4, 4, 3), level, np.uint8) for level in levels]
    assert find_cuts(frames, AUTO)[-1:] == (12,)


def test_frames_leave_as_soon_as_the_look_ahead_allows():
    read = count()
    frames = (np.full((4, 4, 3), 100 * (next(read) > 7), np.uint8) for _ in range(20))
    for index, (_, _begins) in enumerate(mark_scenes(frames, AUTO)):
        assert next(read) == min(20, index + 1 + lookahead(AUTO))
        read = count(min(20, index + 1 + lookahead(AUTO)))


@pytest.mark.parametrize("size", [(90, 160), (37, 61), (400, 300)])
def test_all_forms_of_a_frame_look_the_same(size):
    frame = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    for other in (to_planar(frame), frame.astype(np.uint16) * 257):
        assert np.array_equal(small_picture(frame), small_picture(other))
    assert small_picture(frame).shape == (min(36, size[0]), min(64, size[1]))


def test_brightness_is_the_average_of_a_cell():
    frame = np.zeros((72, 128, 3), np.uint8)
    frame[:, ::2] = 255
    assert (small_picture(frame) == round(255 * (127 / 255) ** 0.5)).all()


# Settings.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"detector": "magic"}, "detector must be 'auto', 'scenedetect' or 'off'; got 'magic'"),
        ({"threshold": 0.0}, r"threshold must lie in \(0, 1\); got 0.0"),
        ({"threshold": float("nan")}, r"threshold must lie in \(0, 1\); got nan"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        SceneCuts(**wrong)


def test_settings_hold_them_and_survive_json():
    written = json.loads(json.dumps(asdict(Settings())))["scenes"]
    assert SceneCuts(**written) == AUTO


def test_the_command_line_chooses_the_detector():
    unchanged = PictureChanges(None, None, None, None)
    assert unchanged.apply(Settings()).scenes == AUTO
    changed = replace(unchanged, scene_cuts=Detector.OFF).apply(Settings())
    assert changed.scenes == SceneCuts(detector="off")
    assert [choice.value for choice in Detector] == list(
        get_args(SceneCuts.__annotations__["detector"])
    )


# PySceneDetect.

INSTALLED = importlib.util.find_spec("scenedetect") is not None


@pytest.mark.skipif(not INSTALLED, reason="scenedetect-headless is not installed")
def test_scenedetect_finds_cuts_and_reads_no_further_than_stated(shots):
    other = SceneCuts(detector="scenedetect")
    frames, cuts = joined(
        shots, ["film", "photo, slow pan", "photo, still, with grain"], [20, 20, 20]
    )
    assert find_cuts(frames, other) == cuts
    assert find_cuts([to_planar(frame) for frame in frames], other) == cuts
    read = count()
    counted = (frames[next(read)] for _ in range(len(frames)))
    next(mark_scenes(counted, other))
    assert next(read) == 1 + lookahead(other)


@pytest.mark.skipif(INSTALLED, reason="scenedetect-headless is installed")
def test_without_scenedetect_one_is_told_what_to_install():
    with pytest.raises(UsageError, match=r"pip install 'psssr_fast\[scenes\]', or use 'auto'"):
        mark_scenes([], SceneCuts(detector="scenedetect"))


def test_scenedetect_is_not_imported_unless_asked_for():
    code = "import sys, psssr_fast.scenes; print('scenedetect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
