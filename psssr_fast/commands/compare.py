"""``psssr compare``."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands.shell import (
    OK,
    DebugOption,
    JsonOption,
    Shell,
    counted,
    print_document,
    print_line,
)

if TYPE_CHECKING:
    from psssr_fast.compare import Comparison

Before = Annotated[str, typer.Argument(metavar="A", help="A video, or a folder of PNG frames.")]
After = Annotated[str, typer.Argument(metavar="B", help="Another; sizes may differ.")]
Picture = Annotated[Path, typer.Option("-o", "--output", metavar="OUT.png", help="The picture.")]
FrameNumber = Annotated[
    int | None,
    typer.Option(
        "--frame",
        min=0,
        help="Which frame to look at, from 0.",
        show_default="the middle one",
    ),
]
Crops = Annotated[
    list[str] | None,
    typer.Option(
        "--crop",
        metavar="WxH+X+Y",
        help="Where to look closely, in pixels of the larger video; may be repeated.",
        show_default="where fine detail differs most",
    ),
]
Names = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--names",
        metavar="A B",
        help="What to call the two.",
        show_default="file names",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing picture.", show_default=False)
]


def compare(
    ctx: typer.Context,
    before: Before,
    after: After,
    output: Picture,
    frame: FrameNumber = None,
    crop: Crops = None,
    names: Names = None,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Draw two versions of a video beside each other: frames, crops, temporal profile.

    Sizes may differ: the smaller one is enlarged (bicubic), so that an input can
    be compared with its output. Of videos of one size the PSNR is printed too.
    """
    from psssr_fast.compare import Crop, compare_videos
    from psssr_fast.compare_picture import check_picture_path, draw_comparison, save_picture

    shell: Shell = ctx.obj
    shell.result_is_printed = as_json
    check_picture_path(output, overwrite)
    crops = tuple(Crop.parse(text) for text in crop or ())
    comparison = compare_videos(before, after, frame=frame, crops=crops, names=names)
    save_picture(output, draw_comparison(comparison), overwrite)
    for warning in comparison.warnings:
        shell.console.warning(warning)
    if as_json:
        print_document("compare", _document(comparison, output))
    else:
        print_line(f"{output}: frame {comparison.frame}{_psnr(comparison)}")
    return OK


def _psnr(comparison: "Comparison") -> str:
    if comparison.psnr_luma is None or comparison.psnr_rgb is None:
        return ""
    return (
        f"; PSNR over {counted(comparison.frames, 'frame')}: luma {comparison.psnr_luma:.2f} dB, "
        f"RGB {comparison.psnr_rgb:.2f} dB"
    )


def _document(comparison: "Comparison", output: Path) -> dict[str, object]:
    luma, rgb = comparison.psnr_luma, comparison.psnr_rgb
    return {
        "output": str(output),
        "frame": comparison.frame,
        "crops": [str(crop) for crop in comparison.crops],
        "row": comparison.row,
        "frames": comparison.frames,
        "identical": luma == math.inf,
        # JSON knows no infinity.
        "psnr_luma_db": luma if luma is not None and math.isfinite(luma) else None,
        "psnr_rgb_db": rgb if rgb is not None and math.isfinite(rgb) else None,
        "warnings": list(comparison.warnings),
    }
