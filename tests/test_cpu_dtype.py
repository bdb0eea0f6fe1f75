import platform
import subprocess
import sys

import pytest
import torch

from psssr_fast.runtime import cpu
from psssr_fast.upscaler import Upscaler


@pytest.fixture(autouse=True)
def forgotten():
    cpu.fastest_dtype.cache_clear()
    yield
    cpu.fastest_dtype.cache_clear()


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"),
    [(2.0, 1.0, torch.bfloat16), (1.0, 1.0, torch.float32), (1.0, 3.0, torch.float32)],
)
def test_faster_dtype_is_chosen_and_ties_go_to_fp32(monkeypatch, fp32, bf16, chosen):
    times = {torch.float32: fp32, torch.bfloat16: bf16}
    monkeypatch.setattr(cpu, "_workload", lambda dtype: dtype)
    monkeypatch.setattr(cpu, "_seconds", times.__getitem__)
    assert cpu.fastest_dtype() is chosen
    assert Upscaler.from_pretrained("nano", device="cpu").networks.dtype is chosen


def test_named_dtype_is_not_measured(monkeypatch):
    monkeypatch.setattr(cpu, "_workload", None)
    for dtype in (torch.float32, torch.bfloat16):
        assert Upscaler.from_pretrained("nano", device="cpu", dtype=dtype).networks.dtype is dtype


def test_real_measurement_is_made_once(monkeypatch):
    first = cpu.fastest_dtype()
    monkeypatch.setattr(cpu, "_workload", None)
    assert cpu.fastest_dtype() is first


def test_bf16_moves_pixels_by_a_level_at_most():
    clip = (torch.rand(3, 24, 40, 3) * 255).to(torch.uint8).numpy()
    exact, low = (
        Upscaler.from_pretrained("nano", device="cpu", dtype=dtype)(clip).astype(int)
        for dtype in (torch.float32, torch.bfloat16)
    )
    difference = abs(exact - low)
    assert difference.max() <= 3 and difference.mean() < 0.3  # noise, the worst there is


FAULTS = """
import resource, sys, torch
from psssr_fast.runtime.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def run():
    blocks = [torch.zeros(2**23) for _ in range(3)]
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their ways")
def test_memory_that_is_kept_is_not_fetched_again():
    """In processes of their own: it would stay for all tests after it."""

    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert faults("keep") < 0.5 * faults("default")
