"""The same bits every time, whatever else the machine does and however the work is cut up."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import run_process, write_video
from model_fixtures import SMALL, networks

from psssr_fast.config import settings_for
from psssr_fast.pipeline import restore_window
from psssr_fast.runtime.determinism import deterministic
from psssr_fast.runtime.execution import Execution
from psssr_fast.upscaler import Upscaler
from psssr_fast.video import open_reader
from psssr_fast.windows import window_starts


def switches() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )


@pytest.fixture
def loose():
    """Torch as users have it; the other tests run with deterministic algorithms anyway."""
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before


def test_switches_are_set_for_the_block_and_put_back_even_after_an_error(loose):
    before = switches()
    with pytest.raises(RuntimeError, match="anything"), deterministic(3):
        assert switches() == (True, False, False, 3)
        raise RuntimeError("anything")
    assert switches() == before != (True, False, False, 3)


def test_the_last_of_several_threads_puts_them_back(loose):
    before, second_inside, first_left = switches(), threading.Event(), threading.Event()

    def second():
        with deterministic(2):
            second_inside.set()
            first_left.wait(60)
            seen.append(torch.are_deterministic_algorithms_enabled())

    seen = []
    thread = threading.Thread(target=second)
    with deterministic(2):
        thread.start()
        assert second_inside.wait(60)
    first_left.set()
    thread.join()
    assert seen == [True] and switches() == before


def test_windows_are_computed_with_the_switches_and_callers_never_see_them(loose, monkeypatch):
    seen, before = [], switches()

    def watched(*arguments):
        seen.append(switches())
        return restore_window(*arguments)

    monkeypatch.setattr("psssr_fast.recovery.restore_window", watched)
    settings = settings_for("released", SMALL)
    up = Upscaler(networks(trained=True), settings, "test", "sdpa", deterministic=True)
    for _ in up.stream(torch.rand(6, 3, 8, 8)):
        assert switches() == before
    assert len(seen) == 2 and {entry[0] for entry in seen} == {True}


def test_the_dtype_is_chosen_by_rule_and_not_by_a_clock(monkeypatch):
    monkeypatch.setattr("psssr_fast.loading.fastest_dtype", lambda: torch.bfloat16)
    loaded = Upscaler.from_pretrained("nano", device="cpu", deterministic=True)
    assert loaded.networks.dtype == torch.float32
    assert loaded.threads == torch.get_num_threads()
    given = Upscaler.from_pretrained("nano", device="cpu", deterministic=True, dtype=torch.bfloat16)
    assert given.networks.dtype == torch.bfloat16
    assert Upscaler.from_pretrained("nano", device="cpu").networks.dtype == torch.bfloat16


def test_two_processes_with_different_numbers_of_threads_write_the_same_file(tmp_path, monkeypatch):
    clip = write_video(tmp_path / "in.mp4", frames=10, size=(32, 24))
    digests = set()
    for threads in (1, 2):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        output = tmp_path / f"{threads}.mp4"
        done = run_process(
            "upscale", clip, "-o", output, "--device", "cpu", "--deterministic",
            "--window", "4x64x64", "--overlap", "1x16",
        )  # fmt: skip
        assert done.code == 0, done.err
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decodes_alone_or_together_and_windows_side_by_side_give_the_same_bits(dtype):
    up = Upscaler.from_pretrained("nano", device="cpu", dtype=dtype)
    settings = settings_for("released")
    nets = up.networks
    pictures = torch.rand(4, 5, 3, 64, 80) * 2 - 1
    serial = [restore_window(nets, picture, settings) for picture in pictures]
    together = Execution(batched_decodes=True)
    for picture, expected in zip(pictures, serial, strict=True):
        assert torch.equal(restore_window(nets, picture, settings, together), expected)
    results = {}

    def work(index):
        results[index] = restore_window(nets, pictures[index], settings)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[index], expected) for index, expected in enumerate(serial))


def test_other_tiles_give_nearly_the_same_picture_and_no_seams():
    """On a real video: 45 dB, and gradients at the tiles' borders as without tiles, within 5 %."""
    with open_reader(Path(__file__).parent / "data/bbb_360p_heldout.mp4") as reader:
        frames = [frame.pixels[60:124, 200:296] for frame, _ in zip(reader, range(2), strict=False)]
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    up = Upscaler.from_pretrained("nano", device="cpu", dtype=torch.float32)
    whole = up(clip)
    for height, width, overlap in ((160, 224, 64), (192, 128, 32)):
        cut = replace(up.settings.windows, height=height, width=width, overlap_pixels=overlap)
        up.settings = replace(up.settings, windows=cut)
        tiled = up(clip)
        assert -10 * (tiled - whole).square().mean().log10() >= 45
        for axis, size in ((2, height), (3, width)):
            starts = window_starts(whole.shape[axis], size, overlap)
            borders = {edge for start in starts for edge in (start, start + size)}
            inside = sorted(edge for edge in borders if 0 < edge < whole.shape[axis])
            assert inside
            score = at_borders(tiled, axis, inside) / at_borders(whole, axis, inside)
            assert score <= 1.05


def at_borders(picture: torch.Tensor, axis: int, borders: list[int]) -> float:
    """Mean gradient across the borders, over the mean elsewhere."""
    steps = picture.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(dim=1)
    there = torch.zeros(len(steps), dtype=torch.bool)
    there[[border - 1 for border in borders]] = True
    return float(steps[there].mean() / steps[~there].mean())
