"""``psssr compare``: what is measured, and that the picture shows it."""

import json
import math
import os

import numpy as np
import pytest
import torch
from cli_fixtures import Psssr, pictures, read, write_frames, write_video
from PIL import Image

from psssr_fast import compare_picture
from psssr_fast.compare import Crop, choose_crops, compare_videos, crop_edge
from psssr_fast.compare_picture import COLUMN, MARGIN, WIDTH, draw_comparison, save_picture
from psssr_fast.errors import InputError, OutputError, UsageError
from psssr_fast.ops.pixel_format import pack_frames, unpack_frames
from psssr_fast.resize import resize_frames


def write_pngs(folder, frames):
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:04}.png")
    return folder


def picture_in(path):
    with Image.open(path) as image:
        return np.asarray(image)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_is_over_all_frames_and_right(tmp_path):
    before = [noise((36, 64, 3), seed) for seed in range(4)]
    after = [np.clip(frame.astype(int) + 7, 0, 255).astype(np.uint8) for frame in before]
    found = compare_videos(write_pngs(tmp_path / "a", before), write_pngs(tmp_path / "b", after))
    a, b = (np.stack(frames).astype(np.float64) for frames in (before, after))
    luma = np.array([65.481, 128.553, 24.966]) / 255
    assert found.frames == 4
    assert found.psnr_rgb == pytest.approx(10 * math.log10(255**2 / np.mean((a - b) ** 2)))
    luma_error = np.mean(((a - b) @ luma) ** 2)
    assert found.psnr_luma == pytest.approx(10 * math.log10(255**2 / luma_error))


def test_equal_videos_have_infinite_psnr(tmp_path):
    frames = write_frames(tmp_path / "a", 2)
    found = compare_videos(frames, frames)
    assert (found.psnr_luma, found.psnr_rgb) == (math.inf, math.inf)


def test_the_smaller_one_is_enlarged_as_the_pipeline_does_it(tmp_path):
    small = pictures(3)
    low = unpack_frames(torch.from_numpy(np.stack(small)))
    large = pack_frames(resize_frames(low, 144, 256)).numpy()
    a, b = write_pngs(tmp_path / "a", small), write_pngs(tmp_path / "b", large)
    for found in (compare_videos(a, b), compare_videos(b, a)):
        assert np.array_equal(found.before.frame, found.after.frame)
        assert np.array_equal(found.before.profile, found.after.profile)
        assert found.before.frame.shape == (144, 256, 3)
        assert (found.psnr_luma, found.frames) == (None, 0)
    assert (found.before.enlarged, found.after.enlarged) == (False, True)
    assert (found.after.width, found.after.height) == (64, 36)


def test_the_temporal_profile_is_one_row_of_every_frame(tmp_path):
    frames = pictures(5)
    path = write_pngs(tmp_path / "a", frames)
    found = compare_videos(path, path, crops=(Crop(10, 6, 20, 9),))
    assert (found.row, found.column, found.first_profile_frame) == (12, 25, 0)
    assert np.array_equal(found.before.profile, np.stack(frames)[:, 12])


def test_the_profile_of_a_long_video_surrounds_the_chosen_frame(tmp_path, monkeypatch):
    monkeypatch.setattr("psssr_fast.compare.PROFILE_FRAMES", 4)
    frames = pictures(12)
    path = write_pngs(tmp_path / "a", frames)
    found = compare_videos(path, path, frame=8)
    assert found.first_profile_frame == 6
    assert np.array_equal(found.after.profile, np.stack(frames[6:10])[:, found.row])


def test_the_middle_frame_is_taken_or_the_one_that_is_asked_for(tmp_path):
    path = write_frames(tmp_path / "a", 7)
    frames = read(path)
    assert np.array_equal(compare_videos(path, path).before.frame, frames[3])
    found = compare_videos(path, path, frame=6)
    assert found.frame == 6
    assert np.array_equal(found.before.frame, frames[6])
    with pytest.raises(UsageError, match="no frame 7: the videos have 7 frames, counted from 0"):
        compare_videos(path, path, frame=7)


def test_a_video_shorter_than_it_says_is_compared_at_its_last_frame(tmp_path):
    long, short = write_frames(tmp_path / "long", 9), write_frames(tmp_path / "short", 2)
    found = compare_videos(long, short)
    assert found.frame == 1
    assert found.frames == 2
    assert found.warnings[-1].startswith(f"{long} has 9 frames and {short} 2")


def test_crops_lie_where_fine_detail_differs_and_apart():
    before = np.full((720, 1280, 3), 100, np.uint8)
    after = before.copy()
    places = ((600, 100), (40, 1000), (300, 500))  # y, x; weaker from one to the next
    for strength, (y, x) in zip((90, 60, 30), places, strict=True):
        after[y : y + 60, x : x + 60] += noise((60, 60, 3)) % strength
    after += 50  # much, but no fine detail
    crops = choose_crops(before, after)
    assert len(crops) == 3
    for crop, (y, x) in zip(crops, places, strict=True):
        assert crop.x <= x and x + 60 <= crop.x + crop.width
        assert crop.y <= y and y + 60 <= crop.y + crop.height
    assert crops == choose_crops(before, after)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (36, 64), (180, 320), (720, 400)], ids=str)
def test_crops_of_any_picture_lie_inside_and_do_not_overlap(size):
    height, width = size
    crops = choose_crops(noise((*size, 3)), noise((*size, 3), 1))
    covered = np.zeros(size, int)
    for crop in crops:
        assert crop.x + crop.width <= width and crop.y + crop.height <= height
        covered[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] += 1
    assert covered.max() == 1
    assert 1 <= len(crops) <= 3


@pytest.mark.parametrize("height", [36, 144, 720, 1080, 2160])
def test_automatic_crops_are_magnified_to_fill_their_place(height):
    edge = crop_edge(height)
    assert 250 < edge * (compare_picture.TILE // edge) <= compare_picture.TILE


@pytest.mark.parametrize("text", ["", "10x10", "10x10+1", "0x10+1+1", "10x10+-1+1", "axb+1+1"])
def test_a_crop_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="crop must be WIDTHxHEIGHT"):
        Crop.parse(text)


def test_a_crop_outside_and_too_many_crops_are_refused(tmp_path):
    path = write_frames(tmp_path / "a", 1)
    assert str(Crop.parse("60x30+4+6")) == "60x30+4+6"
    compare_videos(path, path, crops=(Crop(60, 30, 4, 6),))
    with pytest.raises(UsageError, match=r"crop 60x30\+5\+6 lies outside of the 64x36 picture"):
        compare_videos(path, path, crops=(Crop(60, 30, 5, 6),))
    with pytest.raises(UsageError, match="at most 12 crops"):
        compare_videos(path, path, crops=(Crop(1, 1, 0, 0),) * 13)


def test_pictures_of_different_shapes_are_refused(tmp_path):
    wide, tall = write_frames(tmp_path / "a", 1), write_frames(tmp_path / "b", 1, (36, 64))
    with pytest.raises(InputError, match="different shapes cannot be compared"):
        compare_videos(wide, tall)


def test_the_picture_shows_frames_crops_and_profiles(tmp_path):
    before, after = noise((720, 1280, 3)), noise((720, 1280, 3), 1)
    a, b = write_pngs(tmp_path / "a", [before] * 4), write_pngs(tmp_path / "b", [after] * 4)
    crop = Crop(97, 97, 300, 200)
    sheet = draw_comparison(compare_videos(a, b, crops=(crop,), names=("one", "two")))
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == WIDTH
    for frame, x in ((before, MARGIN), (after, MARGIN + 291 + compare_picture.PAIR_GAP)):
        magnified = crop.of(frame).repeat(3, 0).repeat(3, 1)
        assert contains(sheet, magnified, x)
    row = 200 + 97 // 2
    shown = COLUMN // 2
    first = 300 + 97 // 2 - shown // 2
    for frame, x in ((before, MARGIN), (after, MARGIN + COLUMN + compare_picture.GAP)):
        strip = frame[row, first : first + shown].repeat(2, 0)[None].repeat(4 * 60, 0)
        assert contains(sheet, strip, x)
    size = COLUMN, round(720 * (COLUMN / 1280))
    small = np.asarray(Image.fromarray(after).resize(size, Image.Resampling.LANCZOS))
    place = sheet[:, MARGIN + COLUMN + compare_picture.GAP :][:, :COLUMN]
    assert contains(place, small[-60:], 0)  # below the marks


def contains(sheet, part, x):
    """Whether ``part`` is in ``sheet`` somewhere, with its left edge at ``x``."""
    height, width = part.shape[:2]
    column = sheet[:, x : x + width]
    starts = np.flatnonzero((column == part[0]).all(axis=(1, 2)))
    return any(np.array_equal(column[y : y + height], part) for y in starts)


def test_the_same_videos_give_the_same_picture(tmp_path):
    a, b = write_frames(tmp_path / "a", 3), write_frames(tmp_path / "b", 3, (128, 72))
    first, second = (draw_comparison(compare_videos(a, b)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("size", [(1, 1), (16, 600), (600, 16)], ids=str)
def test_a_picture_of_odd_shape_is_drawn_too(tmp_path, size):
    path = write_frames(tmp_path / "a", 2, size)
    names = ("a name that is far too long for its column " * 9, "[b]\u4e16")
    sheet = draw_comparison(compare_videos(path, path, names=names))
    assert sheet.shape[1] == WIDTH
    background = np.array(compare_picture.BACKGROUND)
    assert (sheet[:, -MARGIN:] == background).all()  # nothing runs over the margin
    assert (sheet[-8:] == background).all()


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    picture = noise((20, 30, 3))
    save_picture(tmp_path / "a.png", picture)
    assert np.array_equal(picture_in(tmp_path / "a.png"), picture)
    with pytest.raises(OutputError, match="exists already"):
        save_picture(tmp_path / "a.png", picture)
    with pytest.raises(UsageError, match=r"end its name with \.png"):
        save_picture(tmp_path / "a.jpg", picture)
    with pytest.raises(OutputError, match="there is no folder"):
        save_picture(tmp_path / "b/a.png", picture)

    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written: No space left on device"):
        save_picture(tmp_path / "a.png", picture + 1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert np.array_equal(picture_in(tmp_path / "a.png"), picture)


def test_the_command_writes_the_picture_and_tells_the_numbers(tmp_path, capsys):
    psssr = Psssr(capsys)
    a = write_video(tmp_path / "a.mp4", 4)
    b = write_frames(tmp_path / "b", 4)
    output = tmp_path / "c.png"
    done = psssr("compare", a, b, "-o", output, "--names", "before", "after", "--frame", "2")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{output}: frame 2; PSNR over 4 frames: luma ")
    assert picture_in(output).shape[1] == WIDTH
    again = psssr("compare", a, b, "-o", output, "--crop", "9x9+1+2", "--json", "--overwrite")
    document = json.loads(again.out)
    assert (document["crops"], document["frame"]) == (["9x9+1+2"], 2)
    assert f"luma {document['psnr_luma_db']:.2f} dB" in done.out
    same = json.loads(psssr("compare", a, a, "-o", output, "--json", "--overwrite").out)
    assert (same["identical"], same["psnr_luma_db"]) == (True, None)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-o", "c.jpg"], 2, "c.jpg: the picture is written as PNG"),
        (["-o", "a/0000.png"], 6, "a/0000.png: exists already"),
        (["-o", "c.png", "--frame", "1"], 2, "no frame 1: the videos have 1 frame"),
        (["-o", "c.png", "--frame", "-1"], 2, "Invalid value for '--frame'"),
        (["-o", "c.png", "--crop", "big"], 2, "crop must be WIDTHxHEIGHT+X+Y"),
        (["-o", "c.png", "--names", "one"], 2, "--names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_refuses_what_it_cannot_do(
    tmp_path, monkeypatch, capsys, options, code, message
):
    monkeypatch.chdir(tmp_path)
    write_frames(tmp_path / "a", 1)
    done = Psssr(capsys)("compare", "a", "a", *options)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
