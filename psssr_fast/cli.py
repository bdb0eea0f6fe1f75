"""``psssr``: the command line. Nothing heavy is imported before a verb needs it."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from psssr_fast import __version__
from psssr_fast.commands.bench import bench
from psssr_fast.commands.compare import compare
from psssr_fast.commands.doctor import doctor
from psssr_fast.commands.evaluate import evaluate
from psssr_fast.commands.explain import explain
from psssr_fast.commands.models import models
from psssr_fast.commands.probe import probe
from psssr_fast.commands.selftest import selftest
from psssr_fast.commands.shell import (
    INTERRUPTED,
    OK,
    USAGE,
    Shell,
    print_document,
)
from psssr_fast.commands.train import train
from psssr_fast.commands.upscale import upscale
from psssr_fast.commands.warmup import warmup

# typer has no public name for its usage errors; this is the class, in every version.
_TyperUsageError = typer.BadParameter.__mro__[1]

_EXIT_CODES = (
    "Exit codes: 0 done, 2 usage, 3 bad input, 4 model or weights, 5 out of memory, 6 output or "
    "disk, 7 some of several inputs or checks failed, 130 interrupted, 1 a mistake of this program."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(upscale)
app.command("plan")(explain)
app.command()(probe)
app.command()(compare)
app.add_typer(models)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(warmup)
app.command()(doctor)
app.command()(train)
app.command()(selftest)


def _print_version(value: bool) -> None:
    if value:
        print(f"psssr_fast {__version__}")
        raise typer.Exit


@app.callback(epilog=_EXIT_CODES)
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Video super-resolution with PS-SR."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``psssr``.

    Args:
        arguments: of the command line; those of this process if left out.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may be in any encoding
    try:
        code = _run(Shell(), arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has gone: no reason to complain
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(shell: Shell, arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="psssr", standalone_mode=False, obj=shell) or OK
    except BrokenPipeError:
        raise
    except Exception as error:  # the outermost place: every failure becomes one line and a code
        if isinstance(error, _TyperUsageError):
            return _refuse(shell, error)
        failure = shell.report(error)
        if shell.json:
            content = {"message": str(failure), "exit_code": failure.exit_code}
            print_document("error", {"error": content})
        return failure.exit_code
    if code == INTERRUPTED:
        shell.console.interrupted()
    return code


def _refuse(shell: Shell, error: Any) -> int:
    """Say in one line what typer did not understand; it has none where it printed the help."""
    message = error.format_message()
    if message:
        path = "psssr" if error.ctx is None else error.ctx.command_path
        shell.console.error(f"{message.rstrip('.')}. See: {path} --help", USAGE)
    return USAGE
