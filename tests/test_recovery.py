"""Running out of memory, at any point and however often, changes nothing but the time it takes."""

import json
import logging
import threading
import time
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from cli_fixtures import Psssr, write_video
from model_fixtures import MODELS, in_dtype, upscaler
from torch.utils._python_dispatch import TorchDispatchMode

from psssr_fast import recovery as recoveries
from psssr_fast.config import settings_for
from psssr_fast.engine import fuse
from psssr_fast.errors import NotFinite, OutOfMemory
from psssr_fast.faults import injected
from psssr_fast.forecast import empty_networks
from psssr_fast.models.sizes import WAN_1_3B
from psssr_fast.pipeline import restore_window
from psssr_fast.recovery import Recovery, in_turns, ladder, modules_of, with_execution
from psssr_fast.runtime.execution import Execution
from psssr_fast.runtime.graphs import GraphCache
from psssr_fast.runtime.memory import rehearse
from psssr_fast.runtime.residence import Room, SharedLock

POINTS = ("resize", "encode", "base", "draft", "decode", "update")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def clip(frames: int = 5, height: int = 16, width: int = 18) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.fixture
def steps(caplog):
    """The lines that the ladder logged so far."""
    caplog.set_level(logging.INFO, "psssr_fast.recovery")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("point", POINTS)
def test_whichever_allocation_fails_the_picture_is_the_same_bits(point, steps, caplog):
    up, given = upscaler(), clip()
    expected = up(given)
    for number in range(1, 100):
        caplog.clear()
        with injected(f"{point}:{number}:oom") as (fault,):
            result = up(given)
        assert np.array_equal(result, expected), (point, number)
        if fault.passes < number:
            break
        assert len(steps()) == 1
        assert "out of memory on a window of" in steps()[0]
        assert "the picture stays the same" in steps()[0]
    assert 2 < number < 99
    assert steps() == []


def test_several_failures_in_a_row_are_climbed_down_step_by_step(steps):
    up, given = upscaler(), clip()
    expected = up(given)
    with injected("draft:3:oom,decode:7:oom"):
        assert np.array_equal(up(given), expected)
    assert len(steps()) == len(set(steps())) == 2


def test_decodes_in_one_batch_are_the_first_to_be_taken_apart(steps):
    up, given = upscaler(), clip()
    expected = up(given)
    up.execution = Execution(batched_decodes=True)
    with injected("decode:2:oom"):
        assert np.array_equal(up(given), expected)
    assert len(steps()) == 1 and "decoded one after the other" in steps()[0]


def test_a_file_keeps_its_bytes_and_the_report_tells(tmp_path):
    source = write_video(tmp_path / "in.mp4", frames=6, size=(24, 16))
    up = upscaler()
    up.upscale_video(source, tmp_path / "whole.mp4")
    with injected("encode:3:oom"):
        report = up.upscale_video(source, tmp_path / "short.mp4")
    assert (tmp_path / "short.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    (warning,) = report.warnings
    assert "at most 2 of a window's frames at once; the picture stays the same" in warning


def test_the_command_line_tells_in_json_and_gives_up_with_code_5(tmp_path, capsys):
    psssr, source = Psssr(capsys), write_video(tmp_path / "in.mp4", frames=3, size=(24, 16))
    command = ("upscale", source, "--device", "cpu", "--progress", "none", "--json", "-o")
    with injected("draft:1:oom"):
        done = psssr(*command, tmp_path / "one.mp4")
    assert done.code == 0, done.err
    (warning,) = json.loads(done.out)["results"][0]["warnings"]
    assert warning.startswith("out of memory on a window of 3 frames 96x64 on cpu: at most 2")
    with injected("draft:1+:oom"):
        done = psssr(*command, tmp_path / "none.mp4")
    assert done.code == 5 and "--vram-limit" in done.err.splitlines()[-1]
    assert not (tmp_path / "none.mp4").exists()


def test_what_worked_is_remembered_for_the_windows_to_come(steps):
    up = upscaler()
    recovery = up.recovery()
    frames = [torch.rand(3, 20, 18) * 2 - 1 for _ in range(6)]
    with injected("encode:1:oom") as (fault,):
        restored = list(up._restore(iter(frames), (80, 72), cuts=(), recovery=recovery))
    assert len(restored) == 6 and fault.passes > 2
    assert recovery.execution == Execution(frames=2)
    assert recovery.warnings == tuple(steps()) and len(steps()) == 1


@pytest.mark.parametrize("point", [*POINTS, "*"])
def test_what_never_fits_ends_as_out_of_memory_and_says_what_was_tried(point, steps):
    with injected(f"{point}:1+:oom"), pytest.raises(OutOfMemory) as caught:
        upscaler()(clip())
    assert caught.value.exit_code == 5
    assert "--vram-limit" in str(caught.value) and "\n" not in str(caught.value)
    assert len(steps()) == len(set(steps())) == 2
    assert all(step in str(caught.value) for step in steps())


class _FailingAt(TorchDispatchMode):
    """Fails at one operator of all that run."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.seen = number, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen == self.number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


def test_any_operator_of_a_window_may_run_out_of_memory():
    nets, picture = MODELS["nano"](), torch.rand(4, 3, 32, 32) * 2 - 1
    settings = settings_for("released")
    nets = fuse(nets, settings.sampling)
    Recovery(nets, settings).restore(picture)  # tables that stay are made
    with _FailingAt(0) as whole:
        expected = Recovery(nets, settings).restore(picture)
    assert whole.seen > 300
    for number in range(1, whole.seen + 1, 17):
        recovery = Recovery(nets, settings)
        with _FailingAt(number):
            assert torch.equal(recovery.restore(picture), expected), number
        assert len(recovery.warnings) == 1


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 8, 33])
def test_no_step_of_the_ladder_comes_twice_and_each_has_less_in_memory(device, frames):
    now, taken = Execution(batched_decodes=True), []
    while (following := next(ladder(now, device, frames), None)) is not None:
        taken.append(now := following)
    everything = [Execution(batched_decodes=True), *taken]
    assert len(set(everything)) == len(everything)
    in_use = [
        (x.batched_decodes, x.graphs, min(x.frames or frames, frames), not x.offload)
        for x in everything
    ]
    for before, after in pairwise(in_use):
        assert after != before
        assert all(a <= b for a, b in zip(after, before, strict=True))
    expected = 1 + (2 if device == CUDA else 0) + min(2, frames - 1)
    assert len(taken) == expected


def test_a_failed_attempt_holds_on_to_nothing():
    up, kept = upscaler(), []
    recovery = up.recovery()

    def run():
        assert all(reference() is None for reference in kept)
        tensor = torch.zeros(1000)
        kept.append(weakref.ref(tensor))
        if len(kept) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert recovery.attempt(run, 8, 64, 64) == "done"
    assert len(kept) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_slices_give_the_same_bits(model, dtype):
    settings = settings_for("paper")
    nets = fuse(in_dtype(MODELS[model](), dtype), settings.sampling)
    picture = torch.rand(6, 3, 80, 96) * 2 - 1
    expected = restore_window(nets, picture, settings)
    for frames in (4, 3, 2, 1):
        sliced = Recovery(nets, settings, Execution(frames=frames)).restore(picture)
        assert torch.equal(sliced, expected), frames


def test_every_step_needs_less_memory_in_the_full_size_model():
    settings = settings_for("released")
    nets = empty_networks(WAN_1_3B, torch.bfloat16, settings.sampling, "fused", CUDA)
    picture = torch.empty(9, 3, 720, 1280, device="meta")

    def peak(execution):
        chosen = with_execution(nets, execution)
        return rehearse(lambda: restore_window(chosen, picture, settings, execution), CUDA).bytes

    whole, by_two, by_one = (peak(Execution(frames=frames)) for frames in (None, 2, 1))
    assert by_one < by_two < whole
    assert by_one < 0.8 * whole


def test_networks_that_take_turns_are_never_two_on_the_device(monkeypatch):
    settings = settings_for("released")
    nets = fuse(MODELS["wan"](), settings.sampling)
    picture = torch.rand(5, 3, 16, 16) * 2 - 1
    expected = restore_window(nets, picture, settings)
    modules = modules_of(nets)
    inside, log = set(modules), []
    there = torch.device("cpu:0")  # equal to "cpu" for tensors, told apart from it below

    def moved(module, device):
        (inside.add if device is there else inside.discard)(module)
        log.append(len(inside))

    for module in modules:
        monkeypatch.setattr(module, "to", lambda device, module=module: moved(module, device))
    with Room(there, modules) as room:
        assert not inside
        log.clear()
        assert torch.equal(
            restore_window(in_turns(nets, modules, room), picture, settings), expected
        )
        assert max(log) == 1 and len(log) == 7  # codec, base, draft, codec
    assert inside == set(modules)


def test_who_sends_networks_away_waits_for_the_others_and_keeps_them_out():
    lock, inside, order = SharedLock(), threading.Barrier(3), []

    def share(name):
        with lock.shared():
            inside.wait(60)  # both sharers at once
            time.sleep(0.05)
            order.append(name)

    def take():
        with lock.exclusive():
            order.append("alone")
            time.sleep(0.05)
            order.append("alone")

    sharers = [threading.Thread(target=share, args=("shared",)) for _ in range(2)]
    for thread in sharers:
        thread.start()
    inside.wait(60)
    taker = threading.Thread(target=take)
    taker.start()
    for thread in (*sharers, taker):
        thread.join(10)
    with lock.shared():
        order.append("later")
    assert order == ["shared", "shared", "alone", "alone", "later"]


def test_where_networks_run_is_known_while_another_thread_has_sent_them_away():
    up = upscaler()
    for module in modules_of(up.networks):
        module.to("meta")
    nets = up.networks
    assert next(nets.base.parameters()).is_meta
    assert nets.device == replace(nets, graphs=GraphCache()).device == CPU
    assert up.recovery().rest == CPU


def test_graphs_that_read_networks_where_they_were_are_dropped(monkeypatch):
    graphs = GraphCache()
    nets = replace(MODELS["wan"](), graphs=graphs)
    for module in modules_of(nets):
        monkeypatch.setattr(module, "to", lambda device: None)
    for offload, left in ((False, 1), (True, 0)):
        graphs._entries["captured by another job"] = None
        with recoveries._lodging(nets, Execution(offload=offload), CUDA):
            assert len(graphs) == left


def test_the_copy_in_float32_is_made_when_all_networks_are_at_home(monkeypatch):
    recovery, copies = (
        Recovery(in_dtype(MODELS["nano"](), torch.bfloat16), settings_for("paper")),
        [],
    )
    recovery._device = CUDA
    monkeypatch.setattr(
        recoveries, "in_float32", lambda networks: copies.append(networks) or "copy"
    )

    def window(networks, picture):
        if networks != "copy":
            raise NotFinite("overflowed", (0,))
        return picture

    monkeypatch.setattr(recovery, "_window", window)
    thread = threading.Thread(target=recovery.restore, args=(torch.zeros(1, 3, 8, 8),))
    with recoveries._LODGERS.exclusive():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and copies == []
    thread.join(10)
    assert copies == [recovery.networks]
