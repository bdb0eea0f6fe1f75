"""Attention backends: what runs, and why the others do not."""

import sys
import types

import pytest
import torch

from psssr_fast.attention import BACKENDS, Problem, choose_backend, select_attention
from psssr_fast.attention.sdpa import attention_sdpa
from psssr_fast.errors import UsageError

CPU = Problem(torch.device("cpu"), torch.float32, head_dim=128)


def test_auto_is_sdpa_everywhere():
    name, attention = select_attention(CPU)
    assert name == "sdpa"
    assert attention is attention_sdpa


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


@pytest.mark.parametrize("name", ["flash2", "flash3", "xformers"])
def test_a_backend_that_cannot_run_says_every_reason_and_what_can(name):
    with pytest.raises(UsageError) as error:
        choose_backend(CPU, name)
    message = str(error.value)
    assert "needs a CUDA device, got cpu" in message
    assert "needs float16 or bfloat16, got torch.float32" in message
    assert "Usable here: sdpa, or 'auto'" in message
    assert "\n" not in message


def test_masked_problems_are_refused_by_backends_without_a_mask():
    problem = Problem(torch.device("cpu"), torch.bfloat16, head_dim=32, masked=True)
    for backend in BACKENDS:
        assert any("has no mask" in o for o in backend.objections(problem)) == (
            backend.name != "sdpa"
        )


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(UsageError, match="no such backend; known: flash3, flash2, xformers, sdpa"):
        choose_backend(CPU, "magic")


def test_a_backend_whose_package_is_broken_is_refused_by_name(monkeypatch):
    """The package is there and no objection holds, but its function fails: never a fallback."""

    def broken(q, k, v):
        raise RuntimeError("no kernel image")

    package = types.ModuleType("flash_attn")
    package.flash_attn_func = broken
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    flash2 = next(b for b in BACKENDS if b.name == "flash2")
    monkeypatch.setattr("psssr_fast.attention.select.choose_backend", lambda problem, name: flash2)
    with pytest.raises(UsageError, match=r"'flash2' is installed but does not run .*no kernel"):
        select_attention(CPU, "flash2")
