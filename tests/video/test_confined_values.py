"""What a confined process that was taken over can say: values that no video has are refused."""

import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import write_frames, write_video

from psssr_fast.errors import InputError
from psssr_fast.video import DEFAULT_LIMITS, Frame, Limits, VideoInfo, open_reader, probe, wire
from psssr_fast.video._patience import Patience
from psssr_fast.video._values import FrameCheck, check_info, check_notes
from psssr_fast.video.hdr import LightLevel, MasteringDisplay
from psssr_fast.video.info import ColorTags, StreamInfo
from psssr_fast.video.sandbox import Allowance, ConfinedReader

RATE = Fraction(25)
LARGE = 10**40
ZERO = (Fraction(0), Fraction(0))
SOUND = StreamInfo(1, "aac")

change = dataclasses.replace


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("values") / "clip.mp4", 3)


@pytest.fixture(scope="module")
def info(clip) -> VideoInfo:
    return probe(clip)


def frame(info: VideoInfo, index: int = 0, **changes: object) -> Frame:
    pixels = np.full((info.height, info.width, 3), index, np.uint8)
    return change(Frame(pixels, index * 512, 512, "a.png"), **changes)


IMPOSSIBLE: dict[str, dict[str, object]] = {
    "no width": {"width": 0, "stored_width": 0}, "a negative height": {"height": -36},
    "other size than stored": {"width": 66}, "no turn of a size": {"rotation": 90},
    "a turn by 45 degrees": {"rotation": 45}, "images": {"kind": "images"},
    "a time base of 0": {"time_base": Fraction(0)}, "a negative one": {"time_base": Fraction(-1)},
    "a large one": {"time_base": Fraction(2**31)}, "a small one": {"time_base": Fraction(1, 2**31)},
    "no rate": {"average_rate": Fraction(0)}, "a large rate": {"average_rate": Fraction(2**31)},
    "a negative rate": {"average_rate": Fraction(-25)},
    "flat pixels": {"sample_aspect_ratio": Fraction(0)},
    "wide pixels": {"sample_aspect_ratio": Fraction(2**31)},
    "mirrored pixels": {"sample_aspect_ratio": Fraction(-1)},
    "a late start": {"start_time": Fraction(2**36)},
    "an early start": {"start_time": -Fraction(2**36)},
    "a fine start": {"start_time": Fraction(1, 2**32)}, "a late end": {"end_time": Fraction(2**36)},
    "no number of frames": {"frames": -1}, "a long time": {"duration_s": 1e30},
    "no pixel format": {"pixel_format": "nonsense"}, "an odd one": {"pixel_format": "yuv420p\n"},
    "a hardware format": {"pixel_format": "cuda"}, "another depth": {"bit_depth": 10},
    "a large depth": {"bit_depth": 2**40}, "no depth": {"bit_depth": 0},
    "a tag below 0": {"color": ColorTags(primaries=-1)}, "a high tag": {"color": ColorTags(9999)},
    "no such range": {"color": ColorTags(range=3)}, "other colours": {"color_used": ColorTags()},
    "no codec": {"codec": ""}, "a codec of two lines": {"codec": "h264\nx"},
    "a long codec": {"codec": "x" * 1000}, "no container": {"container": "nonsense"},
    "negative chapters": {"chapters": -1}, "many chapters": {"chapters": 2**31},
    "many streams": {"audio": (SOUND,) * 201}, "many subtitles": {"subtitles": (SOUND,) * 201},
    "much data": {"data": (SOUND,) * 201}, "many files": {"attachments": ("a",) * 201},
    "much text": {"attachments": ("a" * (2**23 + 1),)}, "no text": {"attachments": ("\udcff",)},
    "a title without end": {"audio": (change(SOUND, title="a" * (2**23 + 1)),)},
    "no language": {"audio": (change(SOUND, language="\ud800"),)},
    "a negative stream": {"audio": (change(SOUND, index=-1),)},
    "a high stream": {"audio": (change(SOUND, index=2**31),)},
    "a fast sound": {"audio": (change(SOUND, sample_rate=2**40),)},
    "sound of many": {"audio": (change(SOUND, channels=2**31),)},
    "a late sound": {"audio": (change(SOUND, start_time=Fraction(2**40)),)},
    "sound of no codec": {"audio": (change(SOUND, codec="a b"),)},
    "many warnings": {"warnings": ("a",) * 1001},
    "light below 0": {"light_level": LightLevel(-1, 0)},
    "bright light": {"light_level": LightLevel(0, 2**32)},
    "no display": {"mastering_display": MasteringDisplay(*[ZERO] * 4, Fraction(-1), Fraction(1))},
    "a large one of a display": {
        "mastering_display": MasteringDisplay(*[ZERO] * 3, (Fraction(2**31), Fraction(0)), *ZERO)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_description_that_no_video_has_is_refused(info, name):
    check_info(info, False, DEFAULT_LIMITS)
    with pytest.raises(ValueError):
        check_info(change(info, **IMPOSSIBLE[name]), False, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("limits", "changes"),
    [
        (Limits(), {"width": 2**21, "stored_width": 2**21}),
        (Limits(), {"stored_width": 2**40, "width": 2**40}),
        (Limits(max_frames=2), {}), (Limits(max_duration_s=0.1), {}),
        (Limits(max_frames=10), {"frames": 2**40, "frames_exact": False}),
    ],
)  # fmt: skip
def test_a_description_beyond_the_limits_is_refused(info, limits, changes):
    with pytest.raises(InputError, match=r"at most .* are read"):
        check_info(change(info, **changes), False, limits)


FRAMES: dict[str, dict[str, object]] = {
    "a time of 2^70": {"pts": 2**70}, "of 2^63": {"pts": 2**63 - 1}, "of -2^63": {"pts": -(2**63)},
    "a thousand years": {"pts": 2**62}, "no duration": {"duration": 0},
    "a negative one": {"duration": -1}, "a long one": {"duration": 2**62},
    "fewer rows": {"pixels": np.zeros((35, 64, 3), np.uint8)},
    "no colour": {"pixels": np.zeros((36, 64), np.uint8)},
    "opacity in it": {"pixels": np.zeros((36, 64, 4), np.uint8)},
    "16 bits": {"pixels": np.zeros((36, 64, 3), np.uint16)},
    "floats": {"pixels": np.zeros((36, 64, 3), np.float32)},
    "alpha of floats": {"alpha": np.zeros((36, 64), np.float32)},
    "alpha of 16 bits": {"alpha": np.zeros((36, 64), np.uint16)},
    "alpha of another size": {"alpha": np.zeros((3, 5), np.uint8)},
    "alpha in three": {"alpha": np.zeros((36, 64, 1), np.uint8)},
    "a path": {"name": "../../a.png"}, "an absolute path": {"name": "/a.png"},
    "a NUL": {"name": "a\0b.png"}, "two lines": {"name": "a\nb.png"}, "long": {"name": "a" * 256},
}  # fmt: skip


def checker(info: VideoInfo, **options: object) -> FrameCheck:
    settings = {"names": None, "size": 4000, "limits": DEFAULT_LIMITS, **options}
    return FrameCheck(info, **settings)


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_no_video_has_is_refused(info, name):
    checker(info).accept(frame(info))
    with pytest.raises(ValueError):
        checker(info).accept(frame(info, **FRAMES[name]))


def test_times_grow_and_frames_end_before_the_next(info):
    for second in ({"pts": 0}, {"pts": -1}, {"pts": 511}):
        judge = checker(info)
        judge.accept(frame(info))
        with pytest.raises(ValueError, match="does not grow"):
            judge.accept(frame(info, **second))
    judge = checker(info)
    judge.accept(frame(info, duration=None))
    assert judge.accept(frame(info, pts=1, duration=None)).name == "frame_000002.png"


def test_frames_are_named_and_counted_here(info):
    names = [checker(info).accept(frame(info, name=name)).name for name in ("", "x.sh", "a.png")]
    assert names == ["frame_000001.png"] * 3
    judge = checker(info, size=4 * 20)
    many = change(info, frames=None, frames_exact=False)
    for judge, most in (
        (checker(many, size=80), 276), (checker(info, size=10**9), 262),
        (checker(many, names=["a.png"] * 3), 3),
    ):  # fmt: skip
        for index in range(most):
            judge.accept(frame(info, index % 200, pts=index, duration=1))
        with pytest.raises(ValueError, match="more frames than"):
            judge.accept(frame(info, pts=most, duration=1))


def test_limits_are_held_to_by_frames_too(info):
    judge = checker(info, limits=Limits(max_frames=1))
    judge.accept(frame(info))
    with pytest.raises(InputError, match="2 frames or more"):
        judge.accept(frame(info, 1))
    judge = checker(info, limits=Limits(max_duration_s=2))
    judge.accept(frame(info, pts=-5, duration=None))
    judge.accept(frame(info, pts=2 * 12800 - 5, duration=None))
    with pytest.raises(InputError, match="s long, and at most 2 s"):
        judge.accept(frame(info, pts=2 * 12800 - 4, duration=None))


def test_pictures_of_a_folder_are_known_by_number_and_name(info):
    names = ["a.png", "b\n.png"]
    assert checker(info, names=names).accept(frame(info, pts=0)).name == "a.png"
    found = checker(info, names=names).accept(frame(info, pts=1, name="b\n.png"))
    assert found.name == "b\n.png"
    for changes in ({"pts": 0, "name": "b\n.png"}, {"pts": 2}, {"pts": -1}):
        with pytest.raises(ValueError):
            checker(info, names=names).accept(frame(info, **changes))


def test_warnings_are_bounded():
    check_notes(["a"] * 1000, 0, DEFAULT_LIMITS)
    check_notes(["a"] * 1500, 500, DEFAULT_LIMITS)
    for notes in (["a"] * 1001, ["a" * 2**24]):
        with pytest.raises(ValueError):
            check_notes(notes, 0, DEFAULT_LIMITS)


def test_numbers_are_finite_and_have_64_bits():
    unpack = wire.Unpacker(lambda _: None, 0).value
    assert unpack(int, 2**63 - 1) == 2**63 - 1 and unpack(int, -(2**63)) == -(2**63)
    assert unpack(Fraction, [1, 2]) == Fraction(1, 2) and unpack(float, 3) == 3.0
    for hint, content in (
        (int, 2**63), (int, -(2**63) - 1), (int, True), (int, 1.0), (float, float("inf")),
        (float, float("nan")), (Fraction, [2**63, 1]), (Fraction, [True, 1]), (Fraction, [1]),
        (Fraction, ["1", "2"]), (Fraction, [1.5, 1]),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            unpack(hint, content)


class Clock:
    """Stands for the time and for the processor time of a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int = 0) -> None:
        self.now = self.used = 0.0
        monkeypatch.setattr("psssr_fast.video._patience.time.monotonic", lambda: self.now)
        monkeypatch.setattr(Patience, "_processor_time", lambda _: self.used)
        self.patience = Patience(1, 10, size)
        self.patience.begin()

    def pass_by(self, seconds: float, used: float, moved: bool = False) -> str | None:
        self.now, self.used = self.now + seconds, self.used + used
        return self.patience.fault(moved)

    def until_fault(self, used: float, moved: bool, seconds: float = 1) -> str:
        for _ in range(100_000):
            fault = self.pass_by(seconds, used, moved)
            if fault:
                return fault
        raise AssertionError("waited for ever")


def test_a_process_is_waited_for_while_it_works_but_not_for_ever(monkeypatch):
    clock = Clock(monkeypatch)
    assert "gave nothing for 10 s" in clock.until_fault(used=0, moved=False) and clock.now == 11
    clock = Clock(monkeypatch)  # one of a dozen that share a processor
    assert "took more than 41 s" in clock.until_fault(used=1 / 12, moved=False)
    clock = Clock(monkeypatch)
    assert "computed for 20 s" in clock.until_fault(used=2, moved=False) and clock.now == 11
    clock = Clock(monkeypatch)  # dribbles bytes, or beats
    assert "took more than 41 s" in clock.until_fault(used=0, moved=True)


def test_a_large_file_may_be_looked_through_for_longer(monkeypatch):
    clock = Clock(monkeypatch, size=100 << 20)
    assert "took more than 441 s" in clock.until_fault(used=0.1, moved=True)
    clock = Clock(monkeypatch, size=100 << 20)
    assert clock.pass_by(60, 60) is None
    clock.patience.end()
    clock.patience.begin()
    assert "took more than 41 s" in clock.until_fault(used=0.1, moved=True)


def test_time_is_bounded_over_all_frames(monkeypatch):
    clock, frames = Clock(monkeypatch), 0
    while not (fault := clock.pass_by(30, 1, True)):
        clock.patience.end()
        clock.patience.begin()
        frames += 1
        assert frames < 10
    assert "took more than" in fault and frames == 1
    clock = Clock(monkeypatch)
    for _ in range(10_000):
        assert clock.pass_by(9, 1, True) is None
        clock.patience.end()
        clock.patience.begin()


def sent(*messages: tuple[int, object]) -> bytes:
    return b"".join(bytes(part) for kind, it in messages for part in wire.pack(kind, it))


Script = Callable[[str, bytes], None]


@pytest.fixture
def script(monkeypatch, tmp_path) -> Iterator[Script]:
    """Has a shell with these commands run as the confined process; $1 is a file with bytes."""
    real = subprocess.Popen
    started = []

    def prepare(commands: str, content: bytes = b"") -> None:
        file = tmp_path / "sent"
        file.write_bytes(content)

        def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
            if "psssr_fast.video.confined" in command:
                command = ["sh", "-c", commands, "sh", str(file)]
            started.append(real(command, **options))
            return started[-1]

        monkeypatch.setattr(subprocess, "Popen", start)

    yield prepare
    assert started and all(process.poll() is not None for process in started)


SEND = 'cat "$1"'
HEAD = wire.HEADER.pack
WAIT = "; sleep 60"


def hostile(info: VideoInfo) -> dict[str, tuple[str, bytes]]:
    told, shown = (wire.INFO, info), (wire.FRAME, frame(info))
    beat = sent((wire.BEAT, None))
    return {
        "a huge message": (SEND, HEAD(wire.INFO, 2**32 - 1)),
        "a large frame's text": (SEND, sent(told) + HEAD(wire.FRAME, 2**20)),
        "deep JSON": (SEND, HEAD(wire.INFO, 2**20) + b"[" * 2**20),
        "a number without end": (SEND, HEAD(wire.INFO, 2**20) + b"1" * 2**20),
        "a float too large": (SEND, sent((wire.INFO, change(info, duration_s=LARGE)))),
        "infinity": (SEND, sent((wire.INFO, change(info, duration_s=float("inf"))))),
        "not a number": (SEND, sent((wire.INFO, change(info, duration_s=float("nan"))))),
        "no kind": (SEND, HEAD(77, 2) + b"{}"), "no JSON": (SEND, HEAD(wire.INFO, 2) + b"{]"),
        "an error that is none": (SEND, sent((wire.ERROR, [1, 2]))),
        "an error of a list": (SEND, sent((wire.ERROR, {"code": 3, "message": [[1]]}))),
        "a second description": (SEND, sent(told, told)),
        "a beat between frames": (SEND, sent(told, shown, (wire.BEAT, None))),
        "a late note": (SEND, sent(told, (wire.NOTE, ["a"]))),
        "beats without end": ('while cat "$1"; do :; done', beat),
        "an end, and no frame after": (SEND, sent(told, shown)),
        "frames without end": (SEND, sent(told) + frames_without_end(info)),
        "the end of something else": (SEND, sent(told, (wire.END, [1]))),
        "no end of warnings": (SEND, sent(told, (wire.END, ["a"] * 2000))),
        "silence": (SEND + WAIT, sent(told)),
        "half a frame": (SEND + WAIT, sent(told, shown)[:-100]),
    }  # fmt: skip


def frames_without_end(info: VideoInfo) -> bytes:
    return sent(*((wire.FRAME, frame(info, 0, pts=i, duration=1)) for i in range(300)))


# What is said of it; of most there is more than one right thing to say.
HOSTILE = {
    "a huge message": "", "a large frame's text": "", "deep JSON": "", "a number without end": "",
    "a float too large": "", "infinity": "", "not a number": "", "no kind": "", "no JSON": "",
    "an error that is none": "", "an error of a list": "no message",
    "a second description": "out of turn", "a beat between frames": "out of turn",
    "a late note": "out of turn", "beats without end": "too soon",
    "an end, and no frame after": "ended early", "frames without end": "more frames than",
    "the end of something else": "", "no end of warnings": "too many warnings",
    "silence": "(gave nothing|took more)", "half a frame": "(gave nothing|took more)",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_process_is_one_line_and_ended(clip, info, script, name):
    cases = hostile(info)
    assert list(cases) == list(HOSTILE)
    script(*cases[name])
    allowance = Allowance(seconds=0.3 if "sleep" in cases[name][0] else 20)
    said = f"clip.mp4: the confined process.*{HOSTILE[name]}"
    with (
        pytest.raises(InputError, match=said) as caught,
        ConfinedReader(clip, RATE, allowance=allowance) as reader,
    ):
        list(reader)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


def test_an_honest_process_is_taken_at_its_word(clip, info, script):
    frames = [frame(info, i) for i in range(3)]
    content = sent(
        (wire.NOTE, ["no filter", "no\nwalls"]), (wire.BEAT, None), (wire.INFO, info),
        *((wire.FRAME, it) for it in frames), (wire.END, ["odd\x1b"]),
    )  # fmt: skip
    script(SEND + WAIT, content)
    with open_reader(clip, sandbox=True) as reader:
        found = list(reader)
    assert [it.name for it in found] == [f"frame_00000{i}.png" for i in (1, 2, 3)]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found, frames, strict=True))
    weaker = "the sandbox is weaker than it should be on this system: no filter, no\\nwalls"
    assert reader.warnings == (weaker, "odd\\x1b") and reader.info.warnings == (weaker,)


def test_names_of_a_folder_are_those_in_it(tmp_path, script):
    folder = write_frames(tmp_path / "frames", 2)
    names = sorted(item.name for item in folder.iterdir())
    with open_reader(folder, sandbox=True) as reader:
        found = list(reader)
    assert [it.name for it in found] == names
    script(SEND, sent((wire.INFO, reader.info), (wire.FRAME, change(found[0], name="../a.png"))))
    with (
        pytest.raises(InputError, match="another name"),
        open_reader(folder, sandbox=True) as other,
    ):
        list(other)
