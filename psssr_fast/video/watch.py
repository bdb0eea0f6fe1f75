"""Looking at decoded pictures for what changes on the way, and for what is lost."""

from fractions import Fraction

import av
from av.sidedata.sidedata import Type

from psssr_fast.video.color import tags_of
from psssr_fast.video.hdr import side_data_of
from psssr_fast.video.info import VideoInfo

_LOST = {
    Type.A53_CC: "closed captions in the video",
    Type.AFD: "active format descriptions",
    Type.STEREO3D: "the layout of its 3D views",
    Type.SPHERICAL: "its 360-degree projection",
    Type.DYNAMIC_HDR_PLUS: "HDR10+ metadata",
    Type.DYNAMIC_HDR_VIVID: "HDR Vivid metadata",
    Type.DOVI_RPU_BUFFER: "Dolby Vision metadata",
    Type.DOVI_METADATA: "Dolby Vision metadata",
    Type.AMBIENT_VIEWING_ENVIRONMENT: "its ambient viewing environment",
    Type.ICC_PROFILE: "its ICC profile",
    Type.S12M_TIMECODE: "timecodes of single frames",
}
INTERLACED = "interlaced: frames are processed whole; deinterlace first for a good picture"


def lost_with(picture: av.VideoFrame) -> list[str]:
    """What comes with a picture and cannot be carried over, one line each."""
    names = {_LOST[kind] for kind in side_data_of(picture) if kind in _LOST}
    return [f"dropped: {name}" for name in sorted(names)]


class Watcher:
    """Notices, picture by picture, what the description of a video did not tell.

    Args:
        info: the description, of the first picture.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._info = info
        self._notes: dict[str, None] = {}
        self._interlaced = 0
        self._aspect: Fraction | None = None  # of the first; the container may say another
        self._changed: set[str] = set()

    def look(self, picture: av.VideoFrame, number: int, aspect: Fraction | None) -> None:
        """Look at picture ``number`` (from 1); its decoder says that its pixels have the shape
        ``aspect``."""
        if picture.interlaced_frame:
            self._interlaced += 1
        if tags_of(picture) != self._info.color:
            self._once("its colour tags change", number)
        if self._aspect is None:
            self._aspect = aspect or Fraction(1)
        elif (aspect or 1) != self._aspect:
            self._once("the shape of its pixels changes", number)
        self._notes.update(dict.fromkeys(lost_with(picture)))

    def _once(self, what: str, number: int) -> None:
        if what not in self._changed:
            self._changed.add(what)
            self._notes[f"{what} at frame {number}: all frames are taken as the first"] = None

    def warnings(self) -> list[str]:
        """One line for each kind of thing that was noticed."""
        found = list(self._notes)
        if self._interlaced and not self._info.interlaced:
            found.append(f"{self._interlaced} frame(s) {INTERLACED}")
        return found
