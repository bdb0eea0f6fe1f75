"""What becomes of a job whose files were torn or changed: the same output, or one line."""

import random
import shutil
from pathlib import Path

import pytest
from job_fixtures import KILLED, SMALL, digest, folder_of, journal_of

from psssr_fast.errors import OutputError
from psssr_fast.jobs.chunks import ChunkReader
from psssr_fast.jobs.journal import Chunk


@pytest.fixture(scope="module")
def stopped(forks, clip, tmp_path_factory) -> Path:
    """A folder with a job of which two chunks of three are kept."""
    folder = tmp_path_factory.mktemp("stopped")
    done = forks(clip, "-o", "out.mp4", *SMALL, folder=folder, fault="journaled:2:kill")
    assert done.code == KILLED
    return folder


def change(content: bytes, rng: random.Random) -> bytes:
    """Cut off, or one bit or a piece changed."""
    place = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            return content[:place]
        case 1:
            return (
                content[:place]
                + bytes([content[place] ^ 1 << rng.randrange(8)])
                + (content[place + 1 :])
            )
        case 2:
            return content[:place] + content[place + rng.randrange(1, 40) :]
    return content + content[place:]


@pytest.mark.parametrize("name", ["journal.jsonl", "plan.json", "chunk-000000", "chunk-000001"])
def test_a_damaged_file_never_changes_the_output(forks, clip, whole, stopped, tmp_path, name):
    rng, outcomes = random.Random(name), set()
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        shutil.copytree(stopped, folder)
        path = folder_of(folder / "out.mp4") / name
        path.write_bytes(change(path.read_bytes(), rng))
        done = forks(clip, "-o", "out.mp4", *SMALL, folder=folder)
        outcomes.add(done.code)
        if done.code == 0:
            assert digest(folder / "out.mp4") == digest(whole)
            assert [path.name for path in folder.iterdir()] == ["out.mp4"]
        else:
            assert done.code == 3, done.err
            assert "Traceback" not in done.err
            assert "--restart" in done.err.splitlines()[-1]
            assert not (folder / "out.mp4").exists()
    assert outcomes == ({3} if name == "plan.json" else {0})


def test_a_journal_of_another_job_does_not_count(forks, clip, whole, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "a")
    journal = folder_of(tmp_path / "a/out.mp4") / "journal.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    for lines in ((second, first), (second,), (first, first, second)):
        journal.write_bytes(b"".join(lines))
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert forks(clip, "-o", "out.mp4", *SMALL, folder=tmp_path / "b").code == 0
        assert digest(tmp_path / "b/out.mp4") == digest(whole)
        shutil.rmtree(tmp_path / "b")


def test_missing_and_stray_files_are_no_obstacle(forks, clip, whole, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "a")
    job = folder_of(tmp_path / "a/out.mp4")
    (job / "chunk-000001").unlink()
    (job / "chunk-000007").write_bytes(b"stray")
    (job / "chunk-000002.partial-1").write_bytes(b"stray")
    (job / "done.json").write_bytes(b"{}")
    assert len(journal_of(tmp_path / "a/out.mp4")) == 2
    done = forks(clip, "-o", "out.mp4", *SMALL, folder=tmp_path / "a")
    assert done.code == 0, done.err
    assert "chunk-000001 is damaged" in done.err
    assert digest(tmp_path / "a/out.mp4") == digest(whole)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out.mp4"]


def test_chunks_of_another_encoder_are_made_anew(forks, clip, whole, stopped, tmp_path):
    """As of x265 on another processor, which writes its features into its parameters: whole files,
    that fit their hashes but not the output."""
    shutil.copytree(stopped, tmp_path / "a")
    folder = folder_of(tmp_path / "a/out.mp4")
    chunk = folder / "chunk-000000"
    content = bytearray(chunk.read_bytes())
    place = content.index(b"\n") + 1
    content[place : place + 32] = bytes(32)
    reader = ChunkReader(chunk, Chunk(0, chunk.name, "", 0, 1, (0,), 1), b"\1" * 32, Path("out"))
    chunk.write_bytes(content)
    with pytest.raises(OutputError, match="the chunk will be made anew"):
        next(iter(reader))
    assert not chunk.exists()
    done = forks(clip, "-o", "out.mp4", *SMALL, folder=tmp_path / "a")
    assert done.code == 0, done.err
    assert digest(tmp_path / "a/out.mp4") == digest(whole)
