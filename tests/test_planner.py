"""Memory is predicted as it is then measured, and windows are chosen by it."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from psssr_fast.benchmark import random_networks
from psssr_fast.config import Sampling, Settings, Windows, settings_for
from psssr_fast.engine import fuse
from psssr_fast.errors import OutOfMemory
from psssr_fast.forecast import (
    Forecaster,
    Rates,
    _tensors,
    empty_networks,
    free_memory,
    known_rates,
    model_size,
)
from psssr_fast.models.sizes import NANO, WAN_1_3B, DitSize, ModelSize, VaeSize, resized
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.runtime.cost import Work
from psssr_fast.runtime.memory import measure_peak, rehearse, tensor_bytes
from psssr_fast.runtime.planner import (
    GIB,
    Job,
    Limit,
    Need,
    Plan,
    Time,
    check_fit,
    count_all,
    count_windows,
    make_plan,
    shape_of,
)
from psssr_fast.runtime.planner import resized as resized_windows
from psssr_fast.runtime.ranges import STAGES, listening, stage
from psssr_fast.upscaler import Upscaler
from psssr_fast.windows import window_starts

REDUCED = resized(
    WAN_1_3B,
    DitSize(dim=48, ffn_dim=96, heads=2, layers=4, kept_blocks=(1, 3), text_dim=16, freq_dim=16),
    VaeSize(dim=8),
)
TOLERANCE = 0.1
SMALL_CHANGE = 2**16  # bytes; nobody plans for less


@dataclass
class Model:
    """Networks with numbers, and the same on the meta device."""

    size: ModelSize
    real: Networks
    forecast: Forecaster


def model(
    size: ModelSize,
    dtype: torch.dtype,
    engine: str,
    device: torch.device,
    settings: Settings | None = None,
) -> Model:
    settings = settings or settings_for("released", size.windows)
    real, _ = random_networks(size, dtype, device, settings)
    if engine == "fused":
        real = fuse(real, settings.sampling)
    empty = empty_networks(size, dtype, settings.sampling, engine, device)
    return Model(size, real, Forecaster(size, empty, settings, device, dtype))


def is_close(predicted: int, measured: int) -> bool:
    return abs(predicted - measured) <= max(TOLERANCE * measured, SMALL_CHANGE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("size", "engine", "shapes"),
    [
        (NANO, "plain", ((1, 16, 16), (8, 70, 110), (2, 201, 131))),
        (NANO, "fused", ((5, 101, 131),)),
        (REDUCED, "plain", ((1, 33, 129), (6, 64, 48))),
        (REDUCED, "fused", ((5, 48, 48),)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_peak_of_a_window_is_predicted_within_a_tenth(size, engine, shapes, dtype, device):
    if device.type == "cuda":
        pytest.skip("what cuDNN takes is bounded, not predicted: see the next test")
    subject = model(size, dtype, engine, device)
    for shape in shapes:
        frames, height, width = shape
        picture = torch.rand(frames, 3, height, width) * 2 - 1
        settings = subject.forecast.settings
        restore_window(subject.real, picture, settings)  # tables that stay are made
        measured = measure_peak(partial(restore_window, subject.real, picture, settings), device)
        assert is_close(subject.forecast.peak(shape).total, measured), (shape, measured)


@pytest.mark.parametrize("size", [NANO, REDUCED], ids=lambda size: size.name)
def test_on_a_gpu_the_peak_lies_between_tensors_and_the_most_scratch(size, device):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    subject = model(size, torch.bfloat16, "plain", device)
    shape = (29, 3, 384, 640)
    picture = torch.rand(shape, device=device) * 2 - 1
    settings = subject.forecast.settings
    restore_window(subject.real, picture, settings)
    measured = measure_peak(lambda: restore_window(subject.real, picture, settings), device)
    peak = subject.forecast.peak((29, 384, 640))
    assert (1 - TOLERANCE) * peak.bytes <= measured <= (1 + TOLERANCE) * peak.total


def test_weights_are_counted_once_and_wherever_they_are(device):
    subject = model(REDUCED, torch.float32, "plain", device)
    networks = subject.real
    modules = (networks.base, networks.draft, networks.codec.vae)
    parameters = sum(p.nbytes for module in modules for p in module.parameters())
    buffers = sum(b.nbytes for module in modules for b in module.buffers())
    context = networks.context.nbytes
    assert subject.forecast.weights == parameters + buffers + context
    assert tensor_bytes(_tensors(networks)) == subject.forecast.weights
    twice = (networks.base, [networks.base], {"again": networks.base})
    assert tensor_bytes(_tensors(twice)) == tensor_bytes(_tensors(networks.base))


@pytest.mark.parametrize(
    ("frames", "windows"),
    [
        (8, Windows(8, 720, 1280, 1, 64)),
        (15, Windows(8, 720, 1280, 1, 64)),
        (9, Windows(5, 96, 200, 2, 32)),
    ],
    ids=["one window", "two windows", "tiles"],
)
def test_the_peak_of_a_whole_clip_is_predicted_within_a_tenth(frames, windows):
    cpu, settings = torch.device("cpu"), settings_for("released", windows)
    upscaler = Upscaler.from_pretrained(device="cpu", dtype=torch.bfloat16, settings=settings)
    clip = torch.rand(frames, 3, 36, 60)

    def run() -> None:
        for _ in upscaler.stream(clip, scale=4):
            pass

    run()
    empty = empty_networks(NANO, torch.bfloat16, settings.sampling, upscaler.engine, cpu)
    need = Forecaster(NANO, empty, settings, cpu, torch.bfloat16).need(
        Job(frames, 36, 60, 144, 240), windows
    )
    assert is_close(need.total - need.weights, measure_peak(run, cpu))


def test_the_full_size_is_rehearsed_in_two_seconds_and_without_memory():
    device = torch.device("cuda")
    networks = empty_networks(WAN_1_3B, torch.bfloat16, Sampling(), "plain", device)
    picture = torch.empty(29, 3, 720, 1280, device="meta")
    settings = settings_for("released")

    def run() -> object:
        return restore_window(networks, picture, settings)

    rehearse(run, device)
    begin = time.process_time()
    peak = rehearse(run, device)
    assert time.process_time() - begin < 2
    assert 8.2 * GIB < peak.bytes < 8.8 * GIB  # the decoder's norms, in fp32, on four frames
    assert peak.stage == "decode"
    assert list(peak.stages) == list(STAGES)
    assert max(peak.stages.values(), key=lambda part: part.peak).peak == peak.bytes
    assert peak.captured > peak.bytes


def test_both_decodes_as_one_batch_take_what_was_said(device):
    subject = model(REDUCED, torch.float32, "plain", device)
    codec, job, windows = subject.forecast.networks.codec, Job(5, 20, 32, 80, 128), REDUCED.windows
    with torch.no_grad():
        latents, _ = codec.encode(torch.empty(2, 3, 5, 80, 128, device="meta"))
    batch = rehearse(lambda: codec.decode(latents, None), device)
    peak = subject.forecast.peak((5, 80, 128))
    expected = max(peak.stages["decode"].before + batch.total, peak.total)
    predicted = subject.forecast.need(job, windows, together=True)
    assert predicted.window + predicted.scratch == pytest.approx(expected, rel=0.1)
    assert predicted.window > subject.forecast.need(job, windows).window


def test_a_codec_that_draws_one_after_the_other_keeps_but_a_picture_more(device):
    subject = model(NANO, torch.float32, "plain", device)
    job, windows = Job(5, 20, 32, 80, 128), NANO.windows
    one, both = (subject.forecast.need(job, windows, together=x).window for x in (False, True))
    assert one <= both <= one + 5 * 3 * 80 * 128 * 4


def test_stages_are_announced_in_order_and_only_to_listeners(device):
    heard = []

    def listener(name):
        heard.append(name)
        return nullcontext()

    subject = model(NANO, torch.float32, "plain", device)
    picture, settings = torch.rand(2, 3, 16, 16, device=device), settings_for("released")
    restore_window(subject.real, picture, settings)
    with listening(listener):
        restore_window(subject.real, picture, settings)
    assert heard == ["encode", "base", "draft", "decode", "decode", "update"]
    assert stage("encode") is stage("base")  # one object that does nothing


def test_a_profile_has_the_stages_without_asking(device):
    subject = model(NANO, torch.float32, "plain", device)
    picture, settings = torch.rand(2, 3, 16, 16, device=device), settings_for("released")
    with torch.profiler.profile() as recorded:
        restore_window(subject.real, picture, settings)
    names = {event.key for event in recorded.key_averages()}
    assert {f"psssr.{name}" for name in STAGES} <= names


@dataclass
class Linear:
    """A forecast in which everything grows with what a window holds, without a model."""

    per_pixel: float = 100.0
    weights: int = GIB
    asked: int = 0

    def need(self, job: Job, windows: Windows, together: bool = False) -> Need:
        self.asked += 1
        frames = shape_of(job, windows)[0]
        clip = frames * job.height * job.width
        window = int((1 + together) * self.per_pixel * math.prod(shape_of(job, windows)))
        return Need(self.weights, clip, window, 0, "decode")

    def flops(self, job: Job, windows: Windows) -> int:
        return math.prod(shape_of(job, windows))

    def seconds(self, job: Job, windows: Windows) -> Time | None:
        return Time(2.0, False, "as measured")


JOB = Job(frames=100, input_height=270, input_width=480, height=1080, width=1920)
OWN = Windows()  # 33x720x1280


def plan_for(limit: int | None, job: Job = JOB, **options) -> Plan:
    given = None if limit is None else Limit(limit, "--vram-limit")
    return make_plan(job, OWN, Linear(), given, frames_multiple=4, **options)


def test_windows_stay_as_they_are_if_they_fit():
    for limit in (None, 10 * GIB):
        plan = plan_for(limit)
        assert (plan.windows, plan.fits) == (OWN, True)
        assert plan.counts == (4, 2, 2) == count_all(JOB, OWN)
        assert plan.time == Time(2.0 * 16, False, "as measured")
        assert plan.describe()["windows"] == (
            "33x720x1280, overlap 8x128; 4 over time, 2 down, 2 across"
        )


@pytest.mark.parametrize("limit", [1.3, 1.5, 2, 2.5, 3, 3.9])
@pytest.mark.parametrize("frames", [5, 31, 100, None])
def test_smaller_windows_fit_and_are_valid_and_no_larger_than_the_models(limit, frames):
    job = Job(frames, 270, 480, 1080, 1920)
    plan = plan_for(int(limit * GIB), job)
    shape, own = shape_of(job, plan.windows), shape_of(job, OWN)
    assert plan.need.total <= limit * GIB
    assert all(a <= b for a, b in zip(shape, own, strict=True))
    if plan.windows != OWN:
        assert shape[0] % 4 == 1 or shape[0] == own[0]
        assert shape[1] % 16 == 0 or shape[1] == own[1]
        assert "the model's own windows need" in plan.reason
    assert (plan.counts[0] is None) == (frames is None)


def test_of_windows_that_fit_those_with_the_least_work_are_taken():
    job, forecast = Job(33, 180, 320, 720, 1280), Linear()
    limit = Limit(int(2.5 * GIB), "--vram-limit")
    plan = make_plan(job, OWN, forecast, limit, frames_multiple=4)

    def work(windows: Windows) -> int:
        return math.prod(count_all(job, windows)) * forecast.flops(job, windows)

    others = [
        resized_windows(OWN, frames, height, width)
        for frames in (17, 21, 25, 29, 33)
        for height in range(128, 721, 16)
        for width in range(128, 1281, 16)
    ]
    fitting = [other for other in others if forecast.need(job, other).total <= limit.bytes]
    assert work(plan.windows) <= 1.05 * min(map(work, fitting))


def test_few_rehearsals_suffice():
    forecast = Linear()
    make_plan(JOB, OWN, forecast, Limit(2 * GIB, "--vram-limit"), frames_multiple=4)
    assert forecast.asked <= 5


def test_what_cannot_fit_is_refused_with_the_numbers():
    words = (
        r"even windows of \d+x\d+x\d+ need 1\.\d\d GiB .*weights 1.00 GiB .*0.90 GiB \(--vram-limit"
    )
    with pytest.raises(OutOfMemory, match=words) as caught:
        plan_for(int(0.9 * GIB))
    assert caught.value.exit_code == 5


def test_fixed_windows_are_not_changed_but_can_be_refused():
    plan = plan_for(2 * GIB, fixed=True)
    assert (plan.windows, plan.fits) == (OWN, False)
    assert "does not fit" in plan.describe()["memory"]
    with pytest.raises(OutOfMemory, match=r"--window 33x720x1280 needs \d"):
        check_fit(plan, "--window")
    check_fit(plan_for(10 * GIB, fixed=True), "--window")
    check_fit(plan_for(None, fixed=True), "--window")


def test_decodes_run_together_where_they_can_and_fit():
    assert plan_for(20 * GIB, batches=True).decodes == "together"
    assert plan_for(20 * GIB).decodes == "in turn"
    tight = plan_for(None).together.total - 1
    assert plan_for(tight, batches=True).decodes == "in turn"
    assert plan_for(None, batches=True).decodes == "in turn"


def test_windows_are_counted_as_they_are_cut():
    for length in (1, 7, 8, 9, 15, 16, 100):
        for size, overlap in ((1, 0), (8, 1), (8, 4), (16, 15)):
            assert count_windows(length, size, overlap) == len(window_starts(length, size, overlap))


def test_the_size_of_a_model_comes_from_its_name_or_its_files():
    assert model_size("wan2.1-1.3b") is WAN_1_3B
    assert model_size("nano") == NANO


def test_without_a_measured_card_there_is_no_time():
    assert known_rates(torch.device("cpu"), torch.bfloat16) is None
    rates = Rates({"all": 10.0, "base": 5.0}, at_least=True, source="a card")
    assert rates.seconds({"base": Work(10), "decode": Work(20)}) == 4.0


def test_free_memory_is_most_of_what_the_system_says(device):
    limit = free_memory(device)
    assert limit is not None
    assert 0 < limit.bytes < 2**45
    assert str(device) in limit.source
