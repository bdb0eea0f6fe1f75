"""Attention behind one signature: ``[batch, tokens, heads, head_dim]`` in and out."""

from psssr_fast.attention.backend import Attention, Backend, Problem, WindowAttention
from psssr_fast.attention.select import BACKENDS, Selected, choose_backend, select_attention

__all__ = [
    "BACKENDS",
    "Attention",
    "Backend",
    "Problem",
    "Selected",
    "WindowAttention",
    "choose_backend",
    "select_attention",
]
