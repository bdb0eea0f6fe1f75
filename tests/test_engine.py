"""A whole window by the engine is as accurate as by the plain networks."""

import threading
from dataclasses import replace

import pytest
import torch
from model_fixtures import MODELS, in_dtype, wan_like

from psssr_fast.config import Sampling, settings_for
from psssr_fast.engine import check_engine, fuse
from psssr_fast.errors import UsageError
from psssr_fast.pipeline import Networks, restore_window
from psssr_fast.runtime.graphs import GraphCache
from psssr_fast.testing import assert_as_accurate
from psssr_fast.upscaler import Upscaler


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("profile", ["released", "paper"])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (5, 40, 56), (7, 33, 47)])
def test_window_is_as_accurate_as_by_the_plain_networks(model, profile, frames, height, width):
    networks, settings = MODELS[model](), settings_for(profile)
    picture = torch.rand(frames, 3, height, width) * 2 - 1
    exact = restore_window(in_dtype(networks, torch.float64), picture.double(), settings)
    eager = restore_window(networks, picture, settings)
    fused = restore_window(fuse(networks, settings.sampling), picture, settings)
    assert_as_accurate(fused, eager, exact)


@pytest.mark.parametrize("model", MODELS)
def test_in_bf16_the_engine_errs_no_more_than_the_plain_networks(model):
    networks, settings = MODELS[model](), settings_for("released")
    picture = torch.rand(5, 3, 48, 64) * 2 - 1
    exact = restore_window(networks, picture, settings)
    low = in_dtype(networks, torch.bfloat16)
    eager = restore_window(low, picture, settings) - exact
    fused = restore_window(fuse(low, settings.sampling), picture, settings) - exact
    assert fused.square().mean().sqrt() <= 1.05 * eager.square().mean().sqrt()


def test_one_timestep_is_the_base_alone():
    networks, settings = wan_like(), settings_for("released")
    settings = replace(settings, sampling=Sampling(timesteps=(699.0,)))
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    fused = restore_window(fuse(networks, settings.sampling), picture, settings)
    torch.testing.assert_close(fused, restore_window(networks, picture, settings))


def test_threads_get_what_they_get_one_after_the_other():
    settings = settings_for("released")
    networks = fuse(wan_like(), settings.sampling)
    pictures = [torch.rand(f, 3, h, 32) * 2 - 1 for f, h in [(1, 16), (5, 32), (5, 48), (1, 32)]]
    serial = [restore_window(networks, picture, settings) for picture in pictures]
    results: dict[tuple[int, int], torch.Tensor] = {}

    def work(thread: int) -> None:
        for step in range(len(pictures)):
            index = (thread + step) % len(pictures)
            results[thread, index] = restore_window(networks, pictures[index], settings)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    assert all(torch.equal(result, serial[index]) for (_, index), result in results.items())


def test_upscaler_says_which_engine_it_runs():
    assert Upscaler.from_pretrained("nano", device="cpu").engine == "fused"
    assert Upscaler.from_pretrained("nano", device="cpu", engine="plain").engine == "plain"
    with pytest.raises(UsageError, match="engine must be 'fused' or 'plain'; got 'turbo'"):
        Upscaler.from_pretrained("nano", engine="turbo")
    assert check_engine("plain") == "plain"


def test_graphs_leave_tensors_on_a_cpu_to_the_function():
    graphs = GraphCache()
    assert graphs.run("twice", lambda x: 2 * x, torch.ones(3)).tolist() == [2, 2, 2]
    assert len(graphs) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    def test_replay_gives_the_bits_of_the_first_run(self):
        settings = settings_for("released")
        fused = fuse(_on_cuda(wan_like()), settings.sampling)
        picture = torch.rand(5, 3, 32, 48, device="cuda") * 2 - 1
        plain = restore_window(replace(fused, graphs=None), picture, settings)
        for _ in range(3):
            assert torch.equal(restore_window(fused, picture, settings), plain)
        assert len(fused.graphs) > 0

    def test_least_recently_used_graph_is_dropped(self):
        graphs = GraphCache(limit=2)
        for size in (3, 4, 5, 3):
            x = torch.arange(float(size), device="cuda")
            assert torch.equal(graphs.run("square", lambda x: x * x, x), x * x)
        assert len(graphs) == 2


def _on_cuda(networks: Networks) -> Networks:
    networks.codec.vae.to("cuda")
    base, draft = networks.base.to("cuda"), networks.draft.to("cuda")
    return replace(networks, base=base, draft=draft, context=networks.context.to("cuda"))
