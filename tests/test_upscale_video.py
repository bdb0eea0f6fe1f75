"""Files in, files out: the whole product on the bundled clip."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from model_fixtures import upscaler
from PIL import Image

from psssr_fast.arrays import to_planar
from psssr_fast.config import Windows, settings_for
from psssr_fast.errors import InputError, OutputError, UsageError
from psssr_fast.resize import resize_frames
from psssr_fast.upscaler import Progress
from psssr_fast.video import EncoderSettings, open_reader

CLIP = Path(__file__).parents[1] / "examples" / "demo_180p.mp4"
LARGE = Windows(frames=8, height=720, width=1280, overlap_frames=1, overlap_pixels=64)


def bicubic_upscaler():
    """Untrained networks: every frame comes out as its bicubic enlargement."""
    return upscaler(trained=False, settings=settings_for("released", LARGE))


def packets(path, kind):
    """``(pts in seconds, payload)`` of every packet of the first stream of a kind, by time."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        found = [
            (p.pts * Fraction(p.time_base), bytes(p)) for p in container.demux(stream) if p.size
        ]
    return sorted(found)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("video") / "out.mp4"
    seen: list[Progress] = []
    report = bicubic_upscaler().upscale_video(
        CLIP, output, scale=1.5, encoder=EncoderSettings(crf=1), progress=seen.append
    )
    return output, report, seen


def test_frames_timestamps_and_audio_are_the_inputs(done):
    output, report, _ = done
    assert report.frames == 64
    assert [t for t, _ in packets(output, "video")] == [t for t, _ in packets(CLIP, "video")]
    assert packets(output, "audio") == packets(CLIP, "audio")


def test_every_frame_is_the_enlargement_of_its_own(done):
    """No frame is lost, repeated or out of order: each is nearest to its own source frame."""
    output, _, _ = done
    with open_reader(output) as reader:
        outputs = [to_planar(frame.pixels) for frame in reader]
    with open_reader(CLIP) as reader:
        inputs = [resize_frames(to_planar(f.pixels)[None], 270, 480)[0] for f in reader]
    assert len(outputs) == len(inputs)
    for index, frame in enumerate(outputs):
        near = range(max(0, index - 2), min(len(inputs), index + 3))
        distance = {i: float((frame - inputs[i]).abs().mean()) for i in near}
        assert min(distance, key=distance.__getitem__) == index


def test_report_and_progress_tell_the_truth(done):
    output, report, seen = done
    assert (report.width, report.height) == (480, 270)
    assert report.output == str(output)
    assert report.fps == pytest.approx(report.frames / report.seconds)
    assert (report.model, report.profile, report.attention) == ("test", "released", "sdpa")
    assert [p.frames_done for p in seen] == list(range(1, 65))
    assert {p.frames_total for p in seen} == {64}


def test_a_callback_that_raises_leaves_nothing_behind(tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.frames_done == 3:
            raise Stop

    with pytest.raises(Stop):
        bicubic_upscaler().upscale_video(CLIP, tmp_path / "out.mp4", scale=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path):
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        bicubic_upscaler().upscale_video(CLIP, output)
    assert output.read_bytes() == b"precious"


def test_png_folder_to_png_folder_is_lossless(tmp_path):
    folder = tmp_path / "frames"
    with open_reader(CLIP) as reader:
        frames = [frame.pixels[:40, :60] for frame, _ in zip(reader, range(3), strict=False)]
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"shot_{index:02}.png")
    bicubic_upscaler().upscale_video(folder, tmp_path / "out", scale=1)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["shot_00.png", "shot_01.png", "shot_02.png"]
    for name, frame in zip(names, frames, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), frame)


def test_encoder_settings_reach_the_file(tmp_path):
    settings = EncoderSettings(crf=40, preset="ultrafast")
    big, small = tmp_path / "big.mp4", tmp_path / "small.mp4"
    up = bicubic_upscaler()
    up.upscale_video(CLIP, big, scale=1)
    up.upscale_video(CLIP, small, scale=1, encoder=settings)
    assert small.stat().st_size < big.stat().st_size / 2


def test_a_truncated_input_is_refused_unless_damage_is_allowed(tmp_path):
    damaged, output = tmp_path / "damaged.mp4", tmp_path / "out.mp4"
    whole = CLIP.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    up = bicubic_upscaler()
    with pytest.raises(InputError, match=r"truncated after frame \d+ of 64"):
        up.upscale_video(damaged, output, scale=1)
    assert not output.exists()
    report = up.upscale_video(damaged, output, scale=1, allow_damaged=True)
    assert 0 < report.frames < 64
    assert any("truncated" in warning for warning in report.warnings)
    assert len(packets(output, "video")) == report.frames


def test_a_folder_of_frames_becomes_a_video_of_the_given_rate(tmp_path):
    folder, output = tmp_path / "frames", tmp_path / "out.mp4"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(np.full((32, 48, 3), 60 * index, np.uint8)).save(folder / f"{index}.png")
    rate = Fraction(30000, 1001)
    bicubic_upscaler().upscale_video(folder, output, scale=1, frame_rate=rate)
    assert [t for t, _ in packets(output, "video")] == [n / rate for n in range(3)]


def test_two_frames_survive_x265(tmp_path):
    """It leaves the dts of such short clips uninitialised: two of three files failed to write."""
    folder, output = tmp_path / "frames", tmp_path / "out.mp4"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(np.full((64, 96, 3), 90 * index, np.uint8)).save(folder / f"{index}.png")
    up, settings = bicubic_upscaler(), EncoderSettings(codec="libx265")
    for _ in range(10):
        up.upscale_video(folder, output, scale=1, encoder=settings, overwrite=True)
        assert [t for t, _ in packets(output, "video")] == [0, Fraction(1, 25)]


def test_frames_too_narrow_for_x265_are_refused_before_any_work(tmp_path):
    """It corrupts memory below 64 pixels."""
    with pytest.raises(UsageError, match="libx265 needs a width of at least 64 pixels; got 32"):
        bicubic_upscaler().upscale_video(
            CLIP, tmp_path / "out.mp4", scale=0.1, encoder=EncoderSettings(codec="libx265")
        )
    assert list(tmp_path.iterdir()) == []
