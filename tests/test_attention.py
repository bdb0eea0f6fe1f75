"""Attention backends: what runs, and why the others do not."""

import logging
import sys
import types

import pytest
import torch

from psssr_fast.attention import BACKENDS, Problem, choose_backend, select_attention
from psssr_fast.attention import backend as backend_module
from psssr_fast.attention.sdpa import FASTEST, attention_sdpa, fastest_kernel
from psssr_fast.attention.triton import attention_triton, windows_triton
from psssr_fast.errors import UsageError
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import DitSize

CPU = Problem(torch.device("cpu"), torch.float32, head_dim=128)
GPU = Problem(torch.device("cuda"), torch.bfloat16, head_dim=128)
WINDOWS = Problem(torch.device("cuda"), torch.bfloat16, head_dim=32, masked=True)


def by_name(name):
    return next(backend for backend in BACKENDS if backend.name == name)


@pytest.fixture
def gpu(monkeypatch):
    """Pretend to have a GPU of a compute capability, with a cuDNN, until something runs on it."""

    def pretend(capability, cudnn=91900):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)

    return pretend


@pytest.fixture
def runs_on_cpu(monkeypatch):
    """Let backends prove themselves on the CPU what they claim of a GPU."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, device, **k: zeros(*a, device="cpu", **k))


def test_auto_is_sdpa_on_a_cpu():
    assert select_attention(CPU) == ("sdpa", attention_sdpa, None)
    masked = Problem(CPU.device, torch.float32, head_dim=32, masked=True)
    assert select_attention(masked) == select_attention(masked, "sdpa") == select_attention(CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sdpa_is_softmax_attention_with_tokens_before_heads(dtype):
    q, k, v = torch.randn(3, 2, 5, 3, 8, dtype=dtype)
    mask = torch.rand(2, 1, 1, 5) < 0.7
    mask[..., 0] = True
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / 8**0.5
    exact = torch.einsum(
        "bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v.double()
    )
    error = (attention_sdpa(q, k, v, mask).double() - exact).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("name", ["flash2", "flash3", "xformers", "sdpa-cudnn", "sdpa-flash"])
def test_a_backend_that_cannot_run_says_every_reason_and_what_can(name):
    with pytest.raises(UsageError) as error:
        choose_backend(CPU, name)
    message = str(error.value)
    assert "needs a CUDA device, got cpu" in message
    assert "needs float16 or bfloat16, got torch.float32" in message
    assert "Usable here: sdpa, or 'auto'" in message
    assert "\n" not in message


def test_the_triton_kernel_says_why_not():
    with pytest.raises(UsageError, match=r"'triton' cannot run float32, .*needs a CUDA device"):
        choose_backend(CPU, "triton")
    problem = Problem(torch.device("cuda"), torch.float64, head_dim=24)
    assert by_name("triton").objections(problem)[:2] == [
        "needs float16 or bfloat16 or float32, got torch.float64",
        "needs head_dim a multiple of 16, <= 256, got 24",
    ]


def test_what_is_not_installed_is_an_objection(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert by_name("triton").objections(GPU) == ["package 'triton' is not installed"]
    assert by_name("xformers").objections(GPU) == ["package 'xformers' is not installed"]


def test_masked_problems_are_refused_by_backends_without_a_mask():
    problem = Problem(torch.device("cpu"), torch.bfloat16, head_dim=32, masked=True)
    able = {b.name for b in BACKENDS if not any("has no mask" in o for o in b.objections(problem))}
    assert able == {"sdpa", "triton"}


def test_a_gpu_that_is_too_old_is_refused(gpu):
    gpu((7, 5))
    for name in ("triton", "flash2", "sdpa-cudnn", "sdpa-flash"):
        assert any("(Ampere) or later, got 7.5" in o for o in by_name(name).objections(GPU)), name
    gpu((10, 0))
    assert any("9.x (Hopper), got 10.x" in o for o in by_name("flash3").objections(GPU))


@pytest.mark.parametrize(
    ("capability", "problem", "name"),
    [
        ((8, 0), GPU, "sdpa-flash"),
        ((8, 9), GPU, "sdpa-flash"),
        ((9, 0), GPU, "sdpa-cudnn"),
        ((9, 0), Problem(GPU.device, torch.float16, head_dim=64), "sdpa-cudnn"),
        ((9, 0), Problem(GPU.device, torch.float16, head_dim=192), "sdpa"),
        ((9, 0), Problem(GPU.device, torch.float32, head_dim=128), "sdpa"),
        ((10, 0), GPU, "sdpa-cudnn"),
        ((12, 0), GPU, "sdpa"),
        ((7, 5), GPU, "sdpa"),
        ((9, 0), WINDOWS, "triton"),
        ((8, 6), WINDOWS, "triton"),
        ((7, 5), WINDOWS, "sdpa"),
    ],
    ids=str,
)
def test_auto_is_what_was_measured_to_be_fastest(gpu, capability, problem, name):
    gpu(capability)
    assert choose_backend(problem).name == name
    assert choose_backend(problem, "sdpa").name == name.replace("triton", "sdpa")


def test_the_table_names_backends_once():
    assert {row.backend for row in FASTEST} <= {backend.name for backend in BACKENDS}
    assert len({(row.capability, row.head_dim) for row in FASTEST}) == len(FASTEST)
    assert fastest_kernel(CPU) is None


def test_an_old_cudnn_is_refused_and_auto_says_what_it_does_instead(gpu, caplog):
    gpu((9, 0), cudnn=91002)
    with pytest.raises(UsageError, match="needs cuDNN 91501 or later, got 91002"):
        choose_backend(GPU, "sdpa-cudnn")
    with caplog.at_level(logging.WARNING):
        assert select_attention(GPU) == ("sdpa", attention_sdpa, None)
    assert "sdpa-cudnn cannot run bfloat16, head_dim=128, on cuda: needs cuDNN" in caplog.text
    gpu((9, 0), cudnn=None)
    assert "no cuDNN" in by_name("sdpa-cudnn").objections(GPU)[0]


def test_a_kernel_that_fails_its_proof_is_not_run_by_auto_and_is_an_error_by_name(
    gpu, runs_on_cpu, caplog
):
    """The direct kernels do not exist for the tensors of a CPU."""
    gpu((9, 0))
    with caplog.at_level(logging.WARNING):
        assert select_attention(GPU).name == "sdpa"
    assert "sdpa-cudnn cannot run" in caplog.text and "Could not run 'aten::" in caplog.text
    for name in ("sdpa-cudnn", "sdpa-flash"):
        with pytest.raises(UsageError, match=f"'{name}' is installed but does not run .*aten::"):
            select_attention(GPU, name)


def test_the_direct_kernels_take_what_they_are_given():
    """Shapes and arguments only: the meta device computes nothing."""
    q = torch.empty(2, 70, 3, 128, dtype=torch.bfloat16, device="meta")
    k = torch.empty(2, 512, 3, 128, dtype=torch.bfloat16, device="meta")
    for name in ("sdpa-cudnn", "sdpa-flash"):
        assert by_name(name).load()(q, k, k, None).shape == q.shape


def test_the_triton_backend_proves_its_windows_and_brings_them(gpu, runs_on_cpu):
    gpu((9, 0))
    assert select_attention(WINDOWS) == ("triton", attention_triton, windows_triton)
    assert select_attention(GPU, "triton") == ("triton", attention_triton, windows_triton)


def test_triton_attention_is_sdpa_where_there_is_a_mask_or_a_gradient(device):
    q, k, v = torch.randn(3, 2, 40, 2, 16, device=device)
    k, v = k[:, :30], v[:, :30]
    expected = attention_sdpa(q, k, v)
    torch.testing.assert_close(attention_triton(q, k, v), expected, rtol=1e-3, atol=1e-3)
    mask = torch.ones(2, 1, 1, 30, dtype=torch.bool, device=device).tril()
    assert torch.equal(attention_triton(q, k, v, mask), attention_sdpa(q, k, v, mask))
    attention_triton(q.requires_grad_(), k, v).sum().backward()
    assert q.grad is not None


def test_a_model_attends_in_windows_by_the_function_it_is_given():
    size = DitSize(
        dim=32, ffn_dim=32, heads=2, layers=2, kept_blocks=(0, 1), in_channels=4, out_channels=2,
        text_dim=0, freq_dim=8, patch=(1, 1, 1), attention_window=(2, 2, 3),
    )  # fmt: skip
    plain, calls = Dit(size).eval(), []

    def windows(q, k, v, grid, window, shift):
        calls.append((grid, window, shift))
        return windows_triton(q, k, v, grid, window, shift)

    model = Dit(size, windows=windows).eval()
    model.load_state_dict(plain.state_dict())
    latents, time = torch.randn(2, 4, 3, 5, 2), torch.tensor([700.0, 600.0])
    with torch.no_grad():
        torch.testing.assert_close(model(latents, time).velocity, plain(latents, time).velocity)
    assert calls == [((3, 5, 2), (2, 2, 2), shift) for shift in ((0, 0, 0), (1, 1, 0))]
    assert torch.equal(model(latents, time).velocity, plain(latents, time).velocity)
    assert len(calls) == 2, "where gradients are needed it is plain attention"


def test_unknown_backend_lists_the_known_ones():
    names = "flash3, flash2, xformers, triton, sdpa-cudnn, sdpa-flash, sdpa"
    with pytest.raises(UsageError, match=f"no such backend; known: {names}"):
        choose_backend(CPU, "magic")


@pytest.mark.parametrize("wrong", ["raises", "computes nonsense"])
def test_a_backend_whose_package_is_broken_is_refused_by_name(monkeypatch, runs_on_cpu, wrong):
    """The package is there and no objection holds, but its function fails: never a fallback."""

    def broken(q, k, v):
        if wrong == "raises":
            raise RuntimeError("no kernel\nimage")
        return v * 2

    package = types.ModuleType("flash_attn")
    package.flash_attn_func = broken
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(backend_module, "find_spec", lambda name: package)
    reason = "no kernel image" if wrong == "raises" else "it computes wrong numbers"
    with pytest.raises(UsageError, match=f"'flash2' is installed but does not run .*: {reason}"):
        select_attention(GPU, "flash2")
