"""Video in and out: files through FFmpeg (PyAV), folders of PNG frames, one frame at a time."""

from psssr_fast.video.encoder import EncoderSettings
from psssr_fast.video.info import ColorTags, Frame, Reader, StreamInfo, VideoInfo
from psssr_fast.video.limits import DEFAULT_LIMITS, Limits
from psssr_fast.video.outputs import check_output, is_image_output
from psssr_fast.video.reader import DEFAULT_IMAGE_RATE, open_reader, probe

__all__ = [
    "DEFAULT_IMAGE_RATE",
    "DEFAULT_LIMITS",
    "ColorTags",
    "EncoderSettings",
    "Frame",
    "Limits",
    "Reader",
    "StreamInfo",
    "VideoInfo",
    "check_output",
    "is_image_output",
    "open_reader",
    "probe",
]
