"""Damaged files: the same bytes give the same answer everywhere; no frame is lost in silence."""

import gc
import hashlib
import json
import os
import random
import subprocess
import sys

import av
import pytest

from psssr_fast.errors import InputError
from psssr_fast.video import open_reader
from psssr_fast.video.matroska import Contents, count_frames

CODECS = {  # of each kind of file: the encoder's name and options
    "h264.mp4": ("libx264", (("g", "10"), ("preset", "veryfast"))),
    "slices.mkv": ("libx264", (("g", "10"), ("preset", "veryfast"), ("slices", "3"))),
    "hevc.mkv": ("libx265", (("x265-params", "log-level=none:keyint=10:pools=1"),)),
    "vp9.webm": ("libvpx-vp9", (("deadline", "realtime"), ("cpu-used", "8"), ("g", "10"))),
    "mpeg4.avi": ("mpeg4", (("g", "10"),)),
    "mjpeg.avi": ("mjpeg", ()),
    "mpeg2.ts": ("mpeg2video", (("g", "10"), ("bf", "2"))),
    "ffv1.mkv": ("ffv1", (("slices", "4"), ("level", "3"))),
}
FRAMES = 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_clip):
    """``whole("hevc.mkv")``: a healthy file of 30 frames."""
    folder = tmp_path_factory.mktemp("whole")

    def get(name):
        path, (codec, options) = folder / name, CODECS[name]
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        times = range(FRAMES)
        if not path.exists():
            make_clip(path, pts=times, codec=codec, options=options, pixel_format=pixels)
        return path

    return get


def damaged(path, seed, times):
    """The content of a file with bits flipped in the part where its frames are."""
    content, flips = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(times):
        place = flips.randrange(len(content) // 4, len(content) * 4 // 5)
        content[place] ^= 1 << flips.randrange(8)
    return bytes(content)


def answer(path, allow_damaged):
    """Everything that a reader says of a file."""
    frames, error, warnings = [], None, ()
    try:
        with open_reader(path, allow_damaged=allow_damaged) as reader:
            for frame in reader:
                pixels = hashlib.sha256(frame.pixels).hexdigest()
                frames.append((frame.pts, frame.duration, frame.name, pixels))
                warnings = reader.warnings
            warnings = reader.warnings
    except InputError as reason:
        error = str(reason)
    return frames, error, list(warnings)


ONE_PROCESSOR = (
    "import os; hasattr(os, 'sched_setaffinity') and "
    "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
)
ANSWER = "import json, sys; from test_damage import answer; " + (
    "print(json.dumps([answer(path, allow) for path in sys.argv[1:] for allow in (False, True)]))"
)


def test_the_answer_depends_on_the_bytes_alone(tmp_path, whole):
    """On one processor, with the others taken away, it is the same to the last bit and word."""
    paths = []
    for name in CODECS:
        for seed in range(6):
            path = tmp_path / f"{seed}-{name}"
            path.write_bytes(damaged(whole(name), seed, (1, 3, 20)[seed % 3]))
            paths.append(str(path))
    here = [answer(path, allow) for path in paths for allow in (False, True)]
    assert sum(error is not None for _, error, _ in here) > 10
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", f"{ONE_PROCESSOR}; {ANSWER}", *paths],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_frames_before_an_error_have_no_hole(tmp_path, whole):
    """Of frames that the decoder holds back, those shown after the damage are not given."""
    times = [frame[0] for frame in answer(whole("h264.mp4"), False)[0]]
    assert len(times) == FRAMES
    stopped = 0
    for seed in range(30):
        path = tmp_path / "damaged.mp4"
        path.write_bytes(damaged(whole("h264.mp4"), seed, 1))
        frames, error, _ = answer(path, False)
        assert [frame[0] for frame in frames] == times[: len(frames)]
        stopped += error is not None
    assert stopped > 5


@pytest.mark.parametrize("options", [{}, {"live": "1"}, {"cluster_time_limit": "200"}], ids=str)
@pytest.mark.parametrize("name", ["slices.mkv", "vp9.webm"])
def test_the_frames_of_a_matroska_file_are_counted(tmp_path, make_clip, name, options):
    codec, encoder = CODECS[name]
    path = make_clip(
        tmp_path / name, pts=range(FRAMES), codec=codec, options=encoder,
        container_options=tuple(options.items()),
        audio=("eng",), sound="libopus",
    )  # fmt: skip
    assert count_frames(path, 0) == Contents(FRAMES)
    assert count_frames(path, 1) is None
    frames, error, warnings = answer(path, False)
    assert (len(frames), error, warnings) == (FRAMES, None, [])


TAILS = {
    "nothing": b"",
    "zeros, as of a file made large in advance": bytes(4096),
    "a tag of another format": b"ID3\4\0\0" + bytes(20),
    "a broken last element": b"\xff\xff\xff\xff",
    "a signature, which old versions of the format have": b"\x1b\x53\x86\x67\x82\xec\x80",
    "an element of the future": b"\x1d\x11\x22\x33\x81\0",
}


@pytest.mark.parametrize("name", ["slices.mkv", "vp9.webm"])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_recording_that_says_no_size_may_have_more_behind_its_last_frame(
    tmp_path, whole, name, tail
):
    """As live recorders leave it: all frames are there, and what is skipped is said."""
    content = bytearray(whole(name).read_bytes())
    size = content.index(b"\x18\x53\x80\x67") + 4
    content[size : size + 8] = b"\x01" + b"\xff" * 7
    path = tmp_path / f"live.{name.rpartition('.')[2]}"
    path.write_bytes(content + tail)
    frames, error, warnings = answer(path, False)
    assert (len(frames), error) == (len(answer(whole(name), False)[0]), None)
    assert any("no reader knows is skipped" in line for line in warnings) == bool(tail)


def test_a_file_that_ends_in_a_hole_is_not_whole(tmp_path, whole):
    """As of a download that was made as large as the whole file in advance."""
    content = whole("vp9.webm").read_bytes()
    path = tmp_path / "hole.webm"
    path.write_bytes(content[: len(content) * 2 // 3].ljust(len(content), b"\0"))
    assert answer(path, False)[1]
    assert answer(path, True)[2]


def test_other_files_are_not_counted(whole):
    assert count_frames(whole("h264.mp4"), 0) is None


@pytest.mark.parametrize("number", [1, 13, 28])
def test_a_block_that_the_demuxer_skips_is_missed(tmp_path, whole, number):
    """Whatever bit of what comes before a frame is flipped: its name, size, track, time, flags."""
    content = whole("vp9.webm").read_bytes()
    with av.open(str(whole("vp9.webm"))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    begin = content.index(packets[number]) - 4  # of the body of the block
    path, lost = tmp_path / "damaged.webm", 0
    for place in range(begin - 3, begin + 1):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            frames, error, _ = answer(path, False)
            kept, _, warnings = answer(path, True)
            assert (len(frames) == FRAMES or error) and (len(kept) == FRAMES or warnings)
            lost += len(kept) < FRAMES
    assert lost > 10


def test_a_file_that_was_read_leaves_nothing_to_collect(whole):
    """Decoders and pictures are freed when the reader is closed, not when Python gets round to it:
    until then they hold threads and megabytes."""
    open_reader(whole("h264.mp4"))
    gc.collect()
    gc.disable()
    try:
        for name in CODECS:
            answer(whole(name), False)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = {type(item).__name__ for item in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found & {"VideoFrame", "VideoCodecContext", "InputContainer", "VideoReader"}
