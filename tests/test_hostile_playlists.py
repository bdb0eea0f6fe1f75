"""Files that point at other files or at hosts: refused, nothing else opened, nobody called."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import HANGS_AFTER, write_video
from PIL import Image

SECRET = "the-secret-that-must-not-come-out"


def write_avi_with_playlist(path: Path, playlist: bytes) -> None:
    """An AVI with a subtitle stream in GAB2 form that holds a playlist."""
    content = bytearray(write_video(path.with_name("plain.avi"), 2).read_bytes())
    body = b"GAB2\0\x02\0" + struct.pack("<I", 0) + b"\x04\0" + struct.pack("<I", len(playlist))
    body += playlist
    chunk = b"01tx" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    movi = content.index(b"movi")
    content[movi + 4 : movi + 4] = chunk
    path.write_bytes(content)


def attacks(folder: Path, port: int) -> dict[str, bytes]:
    """File names, and contents that ask for another file or a connection."""
    url, secret = f"http://127.0.0.1:{port}/a.ts", folder / "secret.txt"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet '
        'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    texts = {
        "hls_url": hls.format(url),
        "hls_file": hls.format(f"file://{secret}"),
        "hls_path": hls.format(secret),
        "hls_concat": hls.format(f"concat:{secret}|{url}"),
        "hls_subfile": hls.format(f"subfile,,start,0,end,9,,:{secret}"),
        "hls_data": hls.format("data:video/mp2t;base64,R0FC"),
        "hls_crypto": hls.format(f"crypto:{secret}"),
        "concat_file": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat_url": f"ffconcat version 1.0\nfile {url}\n",
        "concat_options": f"ffconcat version 1.0\nfile {url}\noption safe 0\n",
        "dash_url": dash.format(url),
        "dash_file": dash.format(secret),
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} "
        "RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "imf": '<?xml version="1.0"?><CompositionPlaylist><Id>x</Id></CompositionPlaylist>',
        "tty": SECRET[:4] * 50,
        "ffmetadata": ";FFMETADATA1\ntitle=x\n",
        "lavfi": "testsrc=size=32x32",
        "rtsp": f"rtsp://127.0.0.1:{port}/",
        "m3u": f"#EXTM3U\n{url}\n",
        "asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
    }
    suffixes = {"hls_url": ".m3u8", "concat_file": ".ffconcat", "dash_url": ".mpd", "sdp": ".sdp"}
    files = {f"{name}.mp4": text.encode() for name, text in texts.items()}
    files |= {f"{name}{suffix}": texts[name].encode() for name, suffix in suffixes.items()}
    files |= {"%d.png": b"no picture", "frame%03d.jpg": b"no picture", "colours.Y": bytes(101376)}
    return {**files, "idx.idx": b"# VobSub index file, v7 (do not modify this line!)\n"}


WATCHED = """
import sys
from psssr_fast.errors import InputError
from psssr_fast.video import open_reader, probe

try:
    open("/begin-of-watching")
except OSError:
    for name in sys.argv[1:]:
        try:
            probe(name)
            with open_reader(name) as reader:
                print("READ", name, len(list(reader)))
        except InputError as error:
            print("REFUSED", error)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, list[str], str, str]:
    """Folder, attacks, what a process says that tries them all, and the system calls it made."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("attacks")
    (folder / "secret.txt").write_text(SECRET)
    for name in ("1.png", "2.png", "frame001.jpg", "colours.U", "colours.V", "idx.sub"):
        Image.new("RGB", (176, 144)).save(folder / name, "PNG")
    names = []
    for name, content in attacks(folder, 9).items():
        (folder / name).write_bytes(content)
        names.append(name)
    for kind in ("hls_url", "hls_file", "hls_path"):
        playlist = (folder / f"{kind}.mp4").read_bytes()
        write_avi_with_playlist(folder / f"gab2_{kind}.avi", playlist)
        names.append(f"gab2_{kind}.avi")
    log = folder / "log"
    done = subprocess.run(
        [strace, "-f", "--seccomp-bpf", "-o", log, "-s", "999",
         "-e", "trace=open,openat,socket,connect,execve",
         sys.executable, "-c", WATCHED, *names],
        cwd=folder, capture_output=True, text=True, timeout=HANGS_AFTER,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, names, done.stdout, log.read_text().partition("/begin-of-watching")[2]


def test_what_points_elsewhere_is_refused(watched):
    _, names, said, _ = watched
    assert SECRET not in said
    for name, line in zip(names, said.splitlines(), strict=True):
        if name.startswith("gab2_"):  # the video in it is read, its subtitles are not
            assert line == f"READ {name} 2"
        else:
            assert line.startswith(f"REFUSED {name}: ")


def test_nothing_else_is_opened_and_nobody_called(watched):
    _, names, _, calls = watched
    assert all(name in calls for name in names)
    assert not any(call in calls for call in ("socket(", "connect(", "execve("))
    neighbours = ("secret.txt", '1.png"', '2.png"', "frame001.jpg", "colours.U", "idx.sub")
    assert [name for name in neighbours if name in calls] == []


@pytest.mark.parametrize(
    ("source", "call"), [("http://127.0.0.1:9/a.mp4", "connect("), ("%d.png", '1.png"')]
)
def test_ffmpeg_would_have_gone_there(tmp_path, source, call):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    (tmp_path / "%d.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    log = tmp_path / "log"
    command = [strace, "-f", "-o", log, "-e", "trace=openat,connect", sys.executable, "-c"]
    code = f"import av; av.open({source!r})"
    subprocess.run([*command, code], cwd=tmp_path, capture_output=True)
    assert call in log.read_text()
