"""Plans: what is refused, what is adopted, and where a resumed run begins."""

import json
import shutil
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from job_fixtures import KILLED, SMALL, digest, folder_of, journal_of, write_clip

from psssr_fast.config import Windows
from psssr_fast.jobs.assemble import decoding_times
from psssr_fast.jobs.plan import chunk_length, restart_frame
from psssr_fast.windows import TemporalBlender, stream_windows

STOP = "journaled:1:kill"


@pytest.mark.parametrize(("frames", "overlap"), [(8, 1), (4, 0), (5, 3), (9, 8), (1, 0)])
def test_restarted_windows_blend_to_the_same_bits(frames, overlap):
    """Every length, every place to go on, with and without a cut; the networks add a noise that
    depends on where a frame lies in its window."""
    torch.manual_seed(0)
    bounds = Windows(frames, 16, 16, overlap, 0)
    noise = torch.randn(frames, 1, 1, 1)

    def run(video, cuts, first=0):
        blender = TemporalBlender(bounds)
        for window in stream_windows(video[first:], bounds, cuts, first):
            clip = torch.stack(window.items)
            blender.push(window, clip + noise[: len(clip)])
            yield from blender.pop_finished(window)

    for length, cut in product((1, frames, 2 * frames + 1, 23), (None, 7)):
        video = list(torch.randn(length, 1, 1, 1))
        cuts = () if cut is None or cut >= length else (cut,)
        whole = torch.stack(list(run(video, cuts)))
        for done in range(length + 1):
            known = tuple(cut for cut in cuts if cut < done)
            first = restart_frame(done, bounds, known)
            again = list(run(video, cuts, first))[done - first :]
            assert len(again) == length - done
            assert all(torch.equal(a, b) for a, b in zip(again, whole[done:], strict=True))


def test_chunks_are_whole_numbers_of_windows():
    nano, wan = Windows(8, 64, 64, 1, 0), Windows(33, 64, 64, 8, 0)
    assert chunk_length(None, nano) == 98
    assert chunk_length(None, wan) == 100
    assert [chunk_length(n, nano) for n in (1, 7, 8, 14)] == [7, 7, 14, 14]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    gaps=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    start=st.integers(-50, 50),
    data=st.data(),
)
def test_decoding_times_grow_and_precede_showing(gaps, start, data):
    shown = [start + sum(gaps[:i]) for i in range(len(gaps))]
    order = data.draw(st.permutations(range(len(shown))))
    delay = max(index - rank for index, rank in enumerate(order))
    times = list(decoding_times(shown, delay))
    assert len(times) == len(shown)
    assert all(a < b for a, b in pairwise(times))
    assert all(time <= shown[rank] for time, rank in zip(times, order, strict=True))


@pytest.fixture
def stopped(forks, clip, tmp_path):
    """A job of which one chunk is kept."""
    shutil.copy(clip, tmp_path / "clip.mp4")
    command = ("clip.mp4", "-o", "out.mp4", *SMALL)
    assert forks(*command, folder=tmp_path, fault=STOP).code == KILLED
    assert len(journal_of(tmp_path / "out.mp4")) == 1
    return command


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--crf", "30"], "encoder.crf was 16, now 30"),
        (["--alpha", "0.5"], "computing.settings.frequency_update.strength was 1.0, now 0.5"),
        (["--engine", "plain"], 'computing.engine was "fused", now "plain"'),
        (["--chunk-frames", "9"], "chunk_frames was 6, now 9"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_plan_is_refused_with_the_difference(
    forks, stopped, whole, tmp_path, options, difference
):
    done = forks(*stopped, *options, folder=tmp_path)
    assert done.code == 3
    (line,) = [line for line in done.err.splitlines() if "error" in line]
    assert difference in line
    assert "--restart" in line
    assert len(journal_of(tmp_path / "out.mp4")) == 1, "what was kept is lost"
    assert forks(*stopped, folder=tmp_path).code == 0
    assert digest(tmp_path / "out.mp4") == digest(whole)


def test_a_changed_input_is_refused_and_restart_begins_again(forks, stopped, tmp_path):
    write_clip(tmp_path / "clip.mp4", range(0, 15 * 40, 40))
    done = forks(*stopped, folder=tmp_path)
    assert done.code == 3
    assert "source.sha256 was" in done.err
    done = forks(*stopped, "--restart", "--json", folder=tmp_path)
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    assert (result["frames"], result["resumed_frames"]) == (15, 0)
    assert not folder_of(tmp_path / "out.mp4").exists()


def test_an_input_that_was_only_touched_or_renamed_is_the_same(forks, stopped, whole, tmp_path):
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clip.mp4").rename(tmp_path / "renamed.mp4")
    done = forks("renamed.mp4", *stopped[1:], folder=tmp_path)
    assert done.code == 0, done.err
    assert digest(tmp_path / "out.mp4") == digest(whole)


def test_what_the_first_run_chose_by_itself_is_kept(forks, clip, tmp_path):
    """The number of the encoder's threads, and the dtype that happened to be faster."""
    command = [str(clip), "-o", "out.mp4", *SMALL]
    at = command.index("--dtype")
    other = [*command[:at], "--dtype", "bfloat16", *command[at + 2 :]]
    assert forks(*other, folder=tmp_path).code == 0
    expected = digest(tmp_path / "out.mp4")
    (tmp_path / "out.mp4").unlink()
    assert forks(*other, folder=tmp_path, fault=STOP).code == KILLED
    automatic = [*command[:at], *command[at + 2 :]]
    done = forks(*automatic, folder=tmp_path)
    assert done.code == 0, done.err
    assert digest(tmp_path / "out.mp4") == expected


def test_unfinished_jobs_of_two_dtypes_go_on_together(forks, clip, tmp_path):
    at = SMALL.index("--dtype")
    automatic, expected = [*SMALL[:at], *SMALL[at + 2 :]], {}
    for name, dtype in (("a", "float32"), ("b", "bfloat16"), ("c", "float32")):
        shutil.copy(clip, tmp_path / f"{name}.mp4")
        command, output = (f"{name}.mp4", *automatic, "--dtype", dtype), f"{name}.psssr1x.mp4"
        assert forks(*command, folder=tmp_path).code == 0
        expected[output] = digest(tmp_path / output)
        (tmp_path / output).unlink()
        assert forks(*command, folder=tmp_path, fault=STOP).code == KILLED
    assert len(set(expected.values())) == 2
    done = forks("a.mp4", "b.mp4", "c.mp4", *automatic, "--json", folder=tmp_path)
    assert done.code == 0, done.err
    assert all(result["resumed_frames"] for result in json.loads(done.out)["results"])
    assert {name: digest(tmp_path / name) for name in expected} == expected
