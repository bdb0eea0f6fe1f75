"""What becomes of a job whose files were torn or changed: the same output, or one line."""

import hashlib
import random
import shutil
from pathlib import Path

import pytest
from job_fixtures import KILLED, SMALL, copy_video, digest, folder_of, journal_of

from psssr_fast.errors import InputError, OutputError
from psssr_fast.jobs.chunks import ChunkReader
from psssr_fast.jobs.finished import load_finished
from psssr_fast.jobs.folder import JobFolder
from psssr_fast.jobs.journal import Chunk, Ending, Journal, canonical
from psssr_fast.jobs.plan import digest_of, kept_dtype, save_plan


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
    chunk.write_bytes(content)
    about = Chunk(0, chunk.name, "", 0, 1, (0,), 1)
    with JobFolder(folder) as job, pytest.raises(OutputError, match="the chunk will be made anew"):
        next(iter(ChunkReader(job, about, b"\1" * 32, Path("out"))))
    assert not chunk.exists()
    done = forks(clip, "-o", "out.mp4", *SMALL, folder=tmp_path / "a")
    assert done.code == 0, done.err
    assert digest(tmp_path / "a/out.mp4") == digest(whole)


CHUNK = {
    "index": 0, "file": "chunk-000000", "sha256": "0" * 64, "bytes": 9, "frames": 2,
    "pts": [0, 40], "end": 80, "delay": 1, "cuts": [], "warnings": [], "run": "",
}  # fmt: skip
IMPOSSIBLE = {
    "a file that is a number": {"file": 5},
    "a file of another place": {"file": "../chunk-000000"},
    "a file by a path": {"file": "/etc/passwd"},
    "another chunk's file": {"file": "chunk-000001"},
    "the lock as a chunk": {"file": "lock"},
    "another index": {"index": 1},
    "an index that is true": {"index": False},
    "no digest": {"sha256": "x"},
    "no bytes": {"bytes": 0},
    "bytes that are text": {"bytes": "9"},
    "frames that are text": {"frames": "2"},
    "fewer frames": {"frames": 1},
    "no frames": {"frames": 0, "pts": []},
    "times that fall": {"pts": [40, 0]},
    "equal times": {"pts": [0, 0]},
    "times of 2^70": {"pts": [0, 2**70]},
    "times of floats": {"pts": [0.0, 40.0]},
    "times that are a table": {"pts": {"0": 40}},
    "an end before the last": {"end": 40},
    "a negative delay": {"delay": -1},
    "a delay of more than its frames": {"delay": 2},
    "a cut outside": {"cuts": [2]},
    "a cut before": {"cuts": [-1]},
    "cuts that are text": {"cuts": ["0"]},
    "warnings of numbers": {"warnings": [1]},
    "a run that is a table": {"run": {}},
    "one field more": {"more": 1},
}


def journal_with(folder: Path, *entries: object, images: bool = False) -> Journal:
    """A journal of these lines, each with its right check."""
    folder.mkdir(mode=0o700, exist_ok=True)
    check, lines = "plan", []
    for entry in entries:
        check = hashlib.sha256(check.encode() + canonical(entry)).hexdigest()
        lines.append(canonical({"check": check, **entry}) + b"\n")
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    with JobFolder(folder) as job:
        return Journal(job, "plan", images)


def test_a_possible_line_counts(tmp_path):
    later = {**CHUNK, "index": 1, "file": "chunk-000001", "pts": [80, 90], "end": 91, "cuts": [3]}
    end = {"frames": 4, "warnings": ["one"]}
    journal = journal_with(tmp_path / "job", {"chunk": CHUNK}, {"chunk": later}, {"end": end})
    assert [chunk.pts for chunk in journal.chunks] == [(0, 40), (80, 90)]
    assert journal.ending is not None
    assert (journal.frames, journal.damaged) == (4, False)


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_line_whose_values_cannot_be_true_ends_the_journal(tmp_path, change):
    later = {**CHUNK, "index": 1, "file": "chunk-000001", "pts": [80, 90], "end": 91}
    shift = {
        name: [value + 80 for value in change[name]]
        for name in ("pts",)
        if isinstance(change.get(name), list)
    }
    for journal in (
        journal_with(tmp_path / "a", {"chunk": {**CHUNK, **change}}),
        journal_with(tmp_path / "b", {"chunk": CHUNK}, {"chunk": {**later, **change, **shift}}),
    ):
        if change in ({"index": 1}, {"file": "chunk-000001"}, {"cuts": [2]}):
            continue  # right for the second
        assert journal.damaged
        assert len(journal.chunks) in (0, 1)
        assert all(chunk.file == "chunk-000000" for chunk in journal.chunks)


@pytest.mark.parametrize(
    "entries",
    [
        [{"end": {"frames": 0, "warnings": []}}],
        [{"end": {"frames": 2, "warnings": []}}],
        [{"end": {}}],
        [{"chunk": CHUNK}, {"end": {"frames": 3, "warnings": []}}],
        [{"chunk": CHUNK}, {"end": {"frames": True, "warnings": []}}],
        [{"chunk": CHUNK}, {"end": {"frames": 2, "warnings": "x"}}],
        [{"chunk": CHUNK}, {"end": []}],
        [{"other": 1}],
        [{"chunk": CHUNK, "end": {"frames": 2, "warnings": []}}],
        [{"chunk": [CHUNK]}],
    ],
)
def test_an_end_that_cannot_be_is_none(tmp_path, entries):
    journal = journal_with(tmp_path / "job", *entries)
    assert journal.damaged
    assert journal.ending is None


@pytest.mark.parametrize(
    "name",
    [
        "thesis.txt",
        "png",
        ".psssr-frame.partial",
        "../0000.png",
        "/0000.png",
        "..",
        "",
        "a/b.png",
        "a\0.png",
    ],
)
def test_a_frame_is_named_like_a_file_of_its_folder(tmp_path, name):
    frame = {**CHUNK, "frames": 1, "pts": [0], "delay": 0}
    assert not journal_with(
        tmp_path / "a", {"chunk": {**frame, "file": "0.png"}}, images=True
    ).damaged
    assert journal_with(tmp_path / "b", {"chunk": {**frame, "file": name}}, images=True).damaged


def test_a_journal_that_another_process_writes_is_noticed(tmp_path):
    journal = journal_with(tmp_path / "job", {"chunk": CHUNK})
    with JobFolder(tmp_path / "job") as job:
        journal = Journal(job, "plan")
        with (tmp_path / "job/journal.jsonl").open("ab") as file:
            file.write(b"theirs\n")
        with pytest.raises(OutputError, match="changed by another process"):
            journal.append(Ending(2, ()))


@pytest.mark.parametrize(
    "change",
    [
        {"frames": "14"}, {"frames": -1}, {"warnings": [1]}, {"files": []}, {"files": {}},
        {"plan": []}, {"plan": 1}, {"files": [{"name": "", "sha256": "", "bytes": "x"}]},
        {"files": [{"name": "../x", "sha256": "", "bytes": 1}] * 2}, {"files": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_note_of_the_end_with_wrong_values_is_none(tmp_path, change):
    (tmp_path / "job").mkdir(mode=0o700)
    done = {
        "plan": {"a": {"b": 1}}, "frames": 14, "warnings": [],
        "files": [{"name": "", "sha256": "0", "bytes": 1, "inode": 1, "mtime_ns": 1}],
    }  # fmt: skip
    with JobFolder(tmp_path / "job") as job:
        for content, known in ((done, True), ({**done, **change}, False)):
            note = {"sha256": digest_of(content), "done": content}
            (tmp_path / "job/done.json").write_bytes(canonical(note))
            assert (load_finished(job) is not None) is known


@pytest.mark.parametrize(
    "plan",
    [{"encoder": 1}, {"encoder": {"threads": "x"}}, {"computing": []}, {"computing": {"dtype": 5}}],
    ids=str,
)
def test_a_plan_with_wrong_values_is_another_plan(clip, tmp_path, plan):
    output = tmp_path / "out.mp4"
    folder_of(output).mkdir(mode=0o700)
    with JobFolder(folder_of(output)) as job:
        save_plan(job, plan)
    assert kept_dtype(output) is None
    with pytest.raises(InputError, match="with another plan"):
        copy_video(clip, output)
