"""Low-rank adapters: a frozen linear layer plus a trained product of two thin matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTED = ("q", "k", "v", "o", "0", "2")  # of attention; and both layers of the feed-forward


class LoraLinear(nn.Module):
    """``W x + b + B A x``; ``A`` starts random, ``B`` at zero. Scale 1: alpha is the rank.

    Attributes:
        enabled: whether the adapter counts.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        # fp32 whatever the frozen layer is in: small steps must not be rounded away
        self.lora_A.to(linear.weight.device)
        self.lora_B.to(linear.weight.device)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        if not self.enabled:
            return out
        adapted = F.linear(x.to(self.lora_A.weight.dtype), self.lora_A.weight)
        return out + F.linear(adapted, self.lora_B.weight).to(out.dtype)


def attach_lora(network: nn.Module, rank: int) -> None:
    """Freeze a transformer and put adapters on every projection and feed-forward layer of its
    blocks; their names are then those of the PS-SR release once ``linear.`` is taken out."""
    network.requires_grad_(False)
    blocks = network.get_submodule("blocks")
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name in ADAPTED:
                setattr(module, name, LoraLinear(child, rank))


@contextmanager
def without_lora(network: nn.Module) -> Iterator[None]:
    """The network as it was before it got adapters, for as long as this lasts."""
    adapters = [module for module in network.modules() if isinstance(module, LoraLinear)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """All that was trained of an adapted network, by the names of the PS-SR release."""
    return {
        name: parameter.detach()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain network that computes the same: adapters added to the weights,
    in fp32, rounded once to the weights' dtype."""
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            weight = state.pop(f"{name}.linear.weight")
            if module.linear.bias is not None:
                state[f"{name}.bias"] = state.pop(f"{name}.linear.bias")
            left, right = state.pop(f"{name}.lora_B.weight"), state.pop(f"{name}.lora_A.weight")
            wide = torch.promote_types(weight.dtype, torch.float32)
            total = weight.to(wide, copy=True).addmm_(left.to(wide), right.to(wide))
            state[f"{name}.weight"] = total.to(weight.dtype)
    return state
