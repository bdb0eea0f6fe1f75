"""``psssr selftest``."""

import logging
import time
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands import upscale_options as options
from psssr_fast.commands.shell import (
    OK,
    SOME_FAILED,
    DebugOption,
    JsonOption,
    print_document,
    print_line,
)

if TYPE_CHECKING:
    from psssr_fast.selftest import Result

Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="Leave out what starts processes: kills, mostly.", show_default=False
    ),
]


def selftest(
    ctx: typer.Context,
    quick: Quick = False,
    device: options.Device = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Try on this machine what is promised: kills, full disks, bad inputs, lack of memory, NaN.

    Takes less than a minute. Exit code 7 if a check fails.
    """
    from psssr_fast.loading import resolve_device
    from psssr_fast.selftest import Status, run_checks

    resolve_device(device)  # a device that is not there is no failure of a check
    begin, results = time.monotonic(), []
    logging.disable()  # what goes wrong here does so on purpose
    try:
        for result in run_checks(device, quick=quick):
            results.append(result)
            if not as_json:
                _print(result)
    finally:
        logging.disable(logging.NOTSET)
    seconds = round(time.monotonic() - begin, 1)
    counts = {status: sum(result.status is status for result in results) for status in Status}
    if as_json:
        counted = {str(status).lower(): number for status, number in counts.items()}
        found = [result.to_json() for result in results]
        print_document("selftest", {"seconds": seconds, "counts": counted, "checks": found})
    else:
        told = ", ".join(f"{number} {status}" for status, number in counts.items())
        print_line(f"{told} in {seconds:.0f} s")
    return SOME_FAILED if counts[Status.FAIL] else OK


def _print(result: "Result") -> None:
    print_line(f"{result.status:<4}  {result.name:<15}  {result.seconds:>5.1f} s  {result.detail}")
