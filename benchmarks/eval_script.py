"""What the scripts that measure quality share: options, which metrics there are, tables, errors."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from psssr_fast.errors import ModelError, PsssrError
from psssr_fast.metrics.catalogue import METRICS, WEIGHTS_VARIABLE, Metric, choose

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests/data/bbb_360p_heldout.mp4"
INTERRUPTED = 130


def add_options(parser: argparse.ArgumentParser, frames: str) -> None:
    """Add what every such script takes."""
    folder = os.environ.get(WEIGHTS_VARIABLE)
    parser.add_argument("--model", default="nano", help="as for psssr upscale")
    parser.add_argument(
        "--frames",
        default=frames,
        metavar="SPAN",
        help="N (the first N), START:STOP, START:, or --frames=-N: for the last N "
        "(default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster")
    parser.add_argument(
        "--weights",
        type=Path,
        default=None if folder is None else Path(folder),
        metavar="DIR",
        help="where lpips_alex.safetensors is; without, LPIPS is left out",
    )


def measurable(wanted: Sequence[str], size: tuple[int, int], weights: Path | None) -> list[Metric]:
    """Of the metrics wanted, those that can be computed here, in the order wanted; says which not.

    Raises:
        ModelError: there is no folder ``weights``.
    """
    if weights is not None and not weights.is_dir():
        raise ModelError(f"{weights}: no such folder; --weights needs one with the metrics' files")
    found, missing = choose(None, ("truth", "input", "base"), weights, size)
    for metric in missing:
        if metric.name in wanted:
            print(f"not computed: {metric.name}: {metric.why}", file=sys.stderr)
    here = {metric.name for metric in found}
    by_name = {metric.name: metric for metric in METRICS}
    return [by_name[name] for name in wanted if name in here]


def shown(value: float | None, digits: int) -> str:
    """A cell of a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def run(main: Callable[[], None]) -> None:
    """Run a script: what goes wrong is one line and the exit code that ``psssr`` would have."""
    try:
        main()
    except PsssrError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
