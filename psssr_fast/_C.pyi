"""Types of the compiled CPU kernels; what they compute is said by the ops that call them."""

from torch import Tensor

def unpack_frames(frames: Tensor) -> Tensor: ...
def pack_frames(picture: Tensor, truncate: bool) -> Tensor: ...
def frequency_update(
    consistent: Tensor,
    sharp: Tensor,
    columns: Tensor,
    rows: Tensor,
    strength: float,
    literal: bool,
    border: int,
    eps: float,
    detail: bool,
) -> tuple[Tensor, Tensor]: ...
def qk_norm_rope(
    x: Tensor,
    weight: Tensor,
    cosines: Tensor | None,
    sines: Tensor | None,
    heads: int,
    eps: float,
) -> Tensor: ...
