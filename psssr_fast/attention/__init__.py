"""Attention behind one signature: ``[batch, tokens, heads, head_dim]`` in and out."""

from psssr_fast.attention.backend import Attention, Backend, Problem
from psssr_fast.attention.select import BACKENDS, choose_backend, select_attention

__all__ = [
    "BACKENDS",
    "Attention",
    "Backend",
    "Problem",
    "choose_backend",
    "select_attention",
]
