"""Small files of many containers and codecs, and ways to damage them."""

import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# File name, video codec, pixel format, audio codec.
SEEDS = (
    ("h264.mp4", "libx264", "yuv420p", "aac"),
    ("frag.mp4", "libx264", "yuv420p", None),
    ("hevc.mkv", "libx265", "yuv420p", None),
    ("av1.mp4", "libsvtav1", "yuv420p", None),
    ("vp9.webm", "libvpx-vp9", "yuv420p", "libopus"),
    ("vp8.webm", "libvpx", "yuv420p", None),
    ("mpeg4.avi", "mpeg4", "yuv420p", "mp2"),
    ("mpeg2.ts", "mpeg2video", "yuv420p", "mp2"),
    ("mpeg1.mpg", "mpeg1video", "yuv420p", None),
    ("prores.mov", "prores_ks", "yuv422p10le", "pcm_s16le"),
    ("mjpeg.mov", "mjpeg", "yuvj420p", None),
    ("ffv1.nut", "ffv1", "yuv420p", "flac"),
    ("huffyuv.avi", "huffyuv", "yuv422p", None),
    ("flv1.flv", "flv", "yuv420p", None),
    ("wmv2.asf", "wmv2", "yuv420p", None),
    ("raw.h264", "libx264", "yuv420p", None),
    ("raw.y4m", "rawvideo", "yuv420p", None),
    ("anim.gif", "gif", "rgb8", None),
    ("anim.apng", "apng", "rgb24", None),
    ("still.png", "png", "rgb24", None),
    ("still.jpg", "mjpeg", "yuvj420p", None),
    ("still.bmp", "bmp", "bgr24", None),
    ("still.webp", "libwebp", "yuv420p", None),
)
_FORMATS = {".png": "image2pipe", ".jpg": "image2pipe", ".bmp": "image2pipe"}
_OPTIONS = {
    "libx265": {"x265-params": "log-level=none", "preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libx264": {"preset": "ultrafast", "g": "4"},
}
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WIDTH, _HEIGHT, _FRAMES = 96, 64, 8


def write_seeds(folder: Path) -> list[Path]:
    """Write the seeds that this build of FFmpeg has encoders for."""
    found = [seed for seed in SEEDS if seed[1] in av.codecs_available]
    return [_write(folder / name, *codecs) for name, *codecs in found]


def _write(path: Path, codec: str, pixel_format: str, sound: str | None) -> Path:
    options = {"movflags": "frag_keyframe+empty_moov"} if path.name == "frag.mp4" else {}
    still = path.name.startswith("still")
    with av.open(
        str(path), "w", format=_FORMATS.get(path.suffix), container_options=options
    ) as output:
        output.metadata["title"] = "A title"
        stream = output.add_stream(codec, rate=25, options=_OPTIONS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, pixel_format
        audio = output.add_stream(sound, rate=48000, layout="mono") if sound else None
        for index in range(1 if still else _FRAMES):
            y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH]
            gray = (128 + 100 * np.sin((x + 2 * y + 5 * index) / 9)).astype(np.uint8)
            picture = av.VideoFrame.from_ndarray(np.stack([gray] * 3, -1), "rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if audio is not None:
            _add_sound(output, audio)
    return path


def _add_sound(output: av.container.OutputContainer, stream: av.AudioStream) -> None:
    layout = stream.codec_context.format.name
    dtype = {"fltp": np.float32, "flt": np.float32}.get(layout, np.int16)
    for index in range(8):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), dtype), layout, "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 960 * index, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def mutate(seeds: list[bytes], rng: random.Random) -> bytes:
    """A seed, damaged in one to twelve places, half of them near its beginning."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 12)):
        if not data:
            break
        near = min(len(data), 512) if rng.random() < 0.5 else len(data)
        _damage(data, rng.randrange(near), seeds, rng)
    return bytes(data)


def _damage(data: bytearray, place: int, seeds: list[bytes], rng: random.Random) -> None:
    length = min(1 << rng.randrange(8), len(data) - place)
    match rng.randrange(9):
        case 0 | 1:
            data[place] ^= 1 << rng.randrange(8)
        case 2:
            data[place] = rng.randrange(256)
        case 3:
            data[place : place + length] = rng.randbytes(length)
        case 4:
            form = rng.choice((">I", "<I", ">H", "<H"))
            value = rng.choice(_INTERESTING) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
            data[place : place + struct.calcsize(form)] = struct.pack(form, value)
        case 5:
            del data[place : place + length]
        case 6:
            data[place:place] = data[place : place + length]
        case 7:
            other = rng.choice(seeds)
            begin = rng.randrange(len(other))
            data[place : place + length] = other[begin : begin + length]
        case _:
            if rng.random() < 0.2:
                del data[place:]
            else:
                data[place : place + length] = bytes(length)
