"""The Wan VAE at full size, whole and chunked: on a GPU the paper's clip, elsewhere a small one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from psssr_fast.models.sizes import VaeSize
from psssr_fast.models.vae import WanVae

CUDA = torch.cuda.is_available()
CLIPS = [(5, 48, 64)] + ([(29, 720, 1280)] if CUDA else [])  # frames, height, width


@pytest.fixture(scope="module")
def vae() -> WanVae:
    device, dtype = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
    return WanVae(VaeSize()).requires_grad_(False).to(device, dtype)


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: "x".join(map(str, clip)))
@pytest.mark.parametrize("direction", ["encode", "decode"])
def bench_vae(benchmark, vae, direction, clip, chunked):
    frames, height, width = clip
    latent_shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    shape = (1, 3, *clip) if direction == "encode" else latent_shape
    weight = vae.conv1.weight
    x = torch.rand(shape, dtype=weight.dtype, device=weight.device) * 2 - 1

    def call() -> None:
        getattr(vae, direction)(x, chunked=chunked)
        if CUDA:
            torch.cuda.synchronize()

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    benchmark.pedantic(call, warmup_rounds=1, rounds=3)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        getattr(WanVae(VaeSize()), direction)(torch.empty(shape), chunked=chunked)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["TFLOP/s"] = round(counter.get_total_flops() / seconds / 1e12, 3)
    benchmark.extra_info["frames/s"] = round(frames / seconds, 3)
    benchmark.extra_info["device"] = torch.cuda.get_device_name() if CUDA else "cpu"
    if CUDA:
        benchmark.extra_info["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
