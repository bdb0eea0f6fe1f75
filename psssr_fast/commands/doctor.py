"""``psssr doctor``."""

import dataclasses
from typing import TYPE_CHECKING

import typer

from psssr_fast.commands.shell import (
    OK,
    DebugOption,
    JsonOption,
    print_document,
    print_fields,
    print_line,
)

if TYPE_CHECKING:
    from psssr_fast.doctor import Examination


def doctor(ctx: typer.Context, as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """Show what this installation can use: devices, attention, codecs, and why not the rest."""
    from psssr_fast.doctor import examine

    found = examine()
    if as_json:
        print_document("doctor", dataclasses.asdict(found))
    else:
        _print(found)
    return OK


def _print(found: "Examination") -> None:
    print_line("Software")
    print_fields({item.name: item.version or f"no: {item.problem}" for item in found.software})
    print_line("Devices")
    for device in found.devices:
        print_line(f"  {device}")
    for problem in found.attention:
        print_line(f"Attention for {problem.problem}")
        print_fields(
            {
                backend.name: "no: " + "; ".join(backend.objections)
                if backend.objections
                else "usable"
                for backend in problem.backends
            }
        )
    print_line("Encoders in this build of PyAV")
    print_fields({codec.name: "yes" if codec.present else "no" for codec in found.encoders})
    print_line("Models")
    for model in found.models:
        print_fields({model.name: model.problem or f"ok, {model.parameters:,} parameters"})
    print_fields({"cache": found.cache, "measured choices": found.choices})
