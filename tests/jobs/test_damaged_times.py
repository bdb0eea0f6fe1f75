"""Inputs whose times jump: refused, or with ``--allow-damaged`` carried through to the end."""

from fractions import Fraction

import av
import numpy as np
import pytest
from job_fixtures import SMALL


def write_part(path, frames):
    """So many frames at 25 fps with sound, as a transport stream, which begins at zero again."""
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=48000)
        sound.layout = "mono"
        for index in range(frames):
            shade = np.full((48, 64, 3), 5 * index % 255, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(video.encode(None))
        wave = np.sin(np.arange(1920 * frames) * 0.05).astype(np.float32) * 0.3
        for start in range(0, len(wave) - 1023, 1024):
            piece = av.AudioFrame.from_ndarray(
                wave[None, start : start + 1024], format="fltp", layout="mono"
            )
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return path.read_bytes()


@pytest.fixture
def glued(tmp_path):
    """Four seconds and two more, each from zero on, with sound."""
    path = tmp_path / "glued.ts"
    path.write_bytes(write_part(tmp_path / "b.ts", 100) + write_part(tmp_path / "a.ts", 50))
    return path


def test_glued_clips_are_refused_or_shown_one_after_the_other(forks, glued, tmp_path):
    refused = forks(glued, "-o", "out.mp4", *SMALL, folder=tmp_path)
    assert refused.code == 3 and "--allow-damaged" in refused.err, refused.err
    done = forks(glued, "-o", "all.mp4", *SMALL, "--allow-damaged", "--restart", folder=tmp_path)
    assert done.code == 0, done.err
    assert "50 frame(s) with a time long past: shown at the frame rate" in done.err
    assert "packet(s) of sound or subtitles with falling times left out" in done.err
    with av.open(str(tmp_path / "all.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 150
    with av.open(str(tmp_path / "all.mp4")) as container:
        sound = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert 3.8 < sound < 4.3
