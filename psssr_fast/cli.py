"""``psssr``: the command line. Nothing heavy is imported before a verb needs it."""

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
    READER_GONE,
    USAGE,
    Shell,
    messages_to,
    print_document,
)
from psssr_fast.commands.streams import SafeStream, open_descriptors, safe_streams
from psssr_fast.commands.train import train
from psssr_fast.commands.upscale import upscale
from psssr_fast.commands.warmup import warmup
from psssr_fast.errors import OutputError

# typer has no public name for its usage errors; this is the class, in every version.
_TyperUsageError = typer.BadParameter.__mro__[1]

_EXIT_CODES = (
    "Exit codes: 0 done, 2 usage, 3 bad input, 4 model or weights, 5 out of memory or threads, "
    "6 output or disk, 7 some of several inputs or checks failed, 130 interrupted, 1 a mistake of "
    "this program."
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
    open_descriptors()
    shell = Shell()
    with safe_streams() as out, messages_to(shell):
        return _conclude(shell, _run(shell, arguments), out)


def _run(shell: Shell, arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="psssr", standalone_mode=False, obj=shell) or OK
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


def _conclude(shell: Shell, code: int, out: SafeStream) -> int:
    """The exit code, once it is known whether stdout took what was printed."""
    out.flush()
    failure = out.failure
    if failure is None:
        return code
    lost = code == OK and shell.result_is_printed
    if isinstance(failure, BrokenPipeError):  # whoever read it has gone: no reason to complain
        return READER_GONE if lost else code
    reason = (isinstance(failure, OSError) and failure.strerror) or str(failure)
    text = f"stdout cannot be written: {reason}; not all that was to be printed there is there"
    if not lost:
        shell.console.warning(text)
        return code
    shell.console.error(text, OutputError.exit_code)
    return OutputError.exit_code


def _refuse(shell: Shell, error: Any) -> int:
    """Say in one line what typer did not understand; it has none where it printed the help."""
    message = error.format_message()
    if message:
        path = "psssr" if error.ctx is None else error.ctx.command_path
        shell.console.error(f"{message.rstrip('.')}. See: {path} --help", USAGE)
    return USAGE
