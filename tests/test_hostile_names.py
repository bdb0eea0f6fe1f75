"""File names that are commands, options, patterns or hardly text: only ever names."""

import os
import unicodedata
from pathlib import Path

import pytest
from cli_fixtures import Psssr, write_frames, write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psssr_fast.video import open_reader, probe

NAMES = (
    b" ", b" lead.mp4", b"trail .mp4", b"a b.mp4", b"-rf", b"--help", b"--version.mp4", b"-", b"--",
    b"-s.mp4", b"-i.mp4", b"new\nline.mp4", b"tab\t.mp4", b"carriage\r.mp4", b"bell\a.mp4",
    b"\x1b[2J.mp4", b"%d.mp4", b"%d.png", b"%06d.png", b"%s%n.mp4", b"%.mp4", b"100%.mp4",
    b"*.mp4", b"?.mp4", b"[a-z].mp4", b"{a,b}.mp4", b"; touch canary", b"$(touch canary)",
    b"`touch canary`", b"a & touch canary", b"a | touch canary", b"> canary", b"'quote.mp4",
    b'"quote.mp4', b"\\back.mp4", b"a\\nb.mp4", b"~", b"$HOME", b"${PATH}.mp4", b"#a.mp4",
    b"!a.mp4",
    b"file:a.mp4", b"http:a.mp4", b"concat:a|b", b"subfile,,start,0,end,9,,:a.mp4", b"pipe:0",
    b"fd:", b"data:,", b"async:a.mp4", b"crypto:a.mp4", b"lavfi", b"testsrc", b"default", b":0.0",
    b"caf\xc3\xa9.mp4", b"cafe\xcc\x81.mp4", b"\xe2\x80\xaegnp.mp4", b"\xf0\x9f\x8e\xac.mp4",
    b"\xef\xbb\xbf.mp4", b"\xff\xfe.mp4", b"a\xffb.mp4", b"\xed\xa0\x80.mp4", b"\xc0\xaf.mp4",
    b"x" * 251 + b".mp4", b"\xff" * 255, b".hidden", b"...", b".mp4", b"a.mp4.", b"a.txt",
    b"a.m3u8",
    b"con.mp4", b"nul", b"a.y", b"a.jpg", b"a.wav",
)  # fmt: skip
SANDBOXED = (b"-rf", b"a\xffb.mp4", b"new\nline.mp4", b'"quote.mp4', b"\xff" * 255)


def put(folder: Path, name: bytes, content: bytes) -> str:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as file:
        file.write(content)
    return os.fsdecode(name)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "a.mp4", 1, (32, 16)).read_bytes()


def readable(name: str) -> bool:
    """Whether we promise to read it: FFmpeg takes pictures by their names, URLs are refused."""
    return "://" not in name and not name.lower().endswith((".y", ".jpg", ".png"))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20])[2:-1])
def test_a_name_is_only_a_name(tmp_path, monkeypatch, capsys, clip, name):
    monkeypatch.chdir(tmp_path)
    text = put(tmp_path, name, clip)
    done = Psssr(capsys)("probe", "--", text)
    assert done.code in (0, 3)
    assert (done.code == 0) >= readable(text)
    assert len(done.err.splitlines()) == (done.code != 0)
    assert "Traceback" not in done.err and (done.out + done.err).replace("\n", "").isprintable()
    if done.code == 0:
        with open_reader(text, sandbox=name in SANDBOXED) as reader:
            assert len(list(reader)) == 1
    assert os.listdir(os.fsencode(tmp_path)) == [name]


letters = st.binary(min_size=1, max_size=40) | st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("%d$;*?-'\"\\ \n&|<>()`~:"),
    min_size=1,
    max_size=40,
).map(str.encode)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(letters.filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")))
def test_any_name_is_only_a_name(tmp_path, monkeypatch, clip, name):
    folder = tmp_path / "names"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    text = put(folder, name, clip)
    if readable(text):
        assert probe(text).frames == 1
        with open_reader(text) as reader:
            assert len(list(reader)) == 1
    assert os.listdir(os.fsencode(folder)) == [name]
    os.remove(name)


def test_outputs_are_where_they_were_asked_for_and_no_shell_runs(forks, tmp_path, clip):
    chosen = [name for name in NAMES if len(name) < 200 and readable(os.fsdecode(name))]
    stems = {Path(os.fsdecode(name)).stem: name for name in chosen}  # no two to one output
    names = [put(tmp_path, name, clip) for name in stems.values()]
    (tmp_path / "out").mkdir()
    before = set(os.listdir(os.fsencode(tmp_path)))
    done = forks("-s", "1", "-o", "out", "--", *names, folder=tmp_path)
    assert "Traceback" not in done.err and done.code in (0, 7)
    assert set(os.listdir(os.fsencode(tmp_path))) == before
    failures = [line for line in done.err.splitlines() if line.startswith("psssr: error: ")]
    made = os.listdir(os.fsencode(tmp_path / "out"))
    assert len(made) + len(failures) == len(names)
    assert len(made) > 50


def test_both_forms_of_an_accent_are_two_files(tmp_path, clip):
    composed = unicodedata.normalize("NFC", "é.mp4")
    put(tmp_path, composed.encode(), clip)
    put(tmp_path, unicodedata.normalize("NFD", "é.mp4").encode(), b"no video at all")
    if len(os.listdir(tmp_path)) == 2:
        assert probe(tmp_path / composed).frames == 1


def test_links_are_followed_to_files_and_to_nothing_else(tmp_path, capsys, clip):
    put(tmp_path, b"a.mp4", clip)
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nothing.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.mp4")
    psssr = Psssr(capsys)
    assert psssr("probe", tmp_path / "link.mp4").code == 0
    for name in ("loop", "dangling", "device", "fifo"):
        done = psssr("probe", tmp_path / f"{name}.mp4")
        assert (done.code, len(done.err.splitlines())) == (3, 1), done.err


def test_an_output_that_is_a_link_to_the_input_is_refused(tmp_path, capsys, clip):
    put(tmp_path, b"a.mp4", clip)
    (tmp_path / "out.mp4").symlink_to("a.mp4")
    done = Psssr(capsys)("upscale", tmp_path / "a.mp4", "-o", tmp_path / "out.mp4", "--overwrite")
    assert done.code in (2, 6) and len(done.err.splitlines()) == 1
    assert (tmp_path / "a.mp4").read_bytes() == clip


def test_pictures_in_a_folder_have_any_names(tmp_path):
    folder = write_frames(tmp_path / "%d; touch canary", 2)
    for number, name in enumerate(("$(x).png", "-a.png")):
        (folder / f"{number:04}.png").rename(folder / name)
    with open_reader(folder) as reader:
        assert [frame.name for frame in reader] == ["$(x).png", "-a.png"]
