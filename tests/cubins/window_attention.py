import torch
from compile_only import ARCHITECTURES, Case

from psssr_fast.kernels.window_attention import window_attention_triton

NONE = (0, 0, 0)


def _launch(dtype, heads, head_dim, grid, window, shift=NONE, reach=NONE) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    q = torch.empty(1, tokens, heads, head_dim, dtype=dtype, device="meta")
    window_attention_triton(q, q, q, grid, window, shift, reach)


def _case(name, *launch, tma=True, architectures=ARCHITECTURES) -> Case:
    half = launch[0] != torch.float32
    return Case(
        name,
        lambda: _launch(*launch),
        tensor_cores=half,
        tma=half and tma,
        architectures=architectures,
    )


CLIP = (1, 1, 28_800)  # 29 frames of 720x1280, as one sequence
NANO = (8, 45, 80)  # 8 frames of 720x1280
FILM = (8, 135, 240)  # 29 frames of 2160x3840
WINDOW = (4, 8, 8)
CASES = [  # a configuration that several architectures share is compiled for one or two of them
    _case("nano, shifted", torch.bfloat16, 4, 32, NANO, WINDOW, (2, 4, 4)),
    _case("Wan, full", torch.bfloat16, 12, 128, CLIP, CLIP),
    _case("Wan at 4K, tiles", torch.bfloat16, 12, 128, FILM, WINDOW, NONE, (1, 1, 1)),
    _case("Wan, full, fp16", torch.float16, 12, 128, CLIP, CLIP, architectures=(90,)),
    _case("heads of 64", torch.bfloat16, 12, 64, CLIP, CLIP, architectures=(80, 90)),
    _case("heads of 96", torch.bfloat16, 12, 96, CLIP, CLIP, tma=False, architectures=(90, 100)),
    _case("heads of 240", torch.bfloat16, 4, 240, NANO, WINDOW, tma=False, architectures=(90, 100)),
    _case("heads of 256", torch.bfloat16, 4, 256, NANO, WINDOW),
    _case("nano, fp32", torch.float32, 4, 32, NANO, WINDOW, (2, 4, 4), architectures=(80,)),
    _case(
        "Wan at 4K, tiles, fp32",
        torch.float32,
        12,
        128,
        FILM,
        WINDOW,
        NONE,
        (1, 1, 1),
        architectures=(90,),
    ),
    _case("heads of 256, fp32", torch.float32, 4, 256, NANO, WINDOW, architectures=(90,)),
]
