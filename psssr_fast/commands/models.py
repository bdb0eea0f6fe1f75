"""``psssr models``."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psssr_fast.commands.shell import (
    OK,
    DebugOption,
    JsonOption,
    print_document,
    print_fields,
    print_line,
)
from psssr_fast.commands.stopping import stoppable
from psssr_fast.errors import ModelError, UsageError

if TYPE_CHECKING:
    from psssr_fast.weights_report import Report

models = typer.Typer(name="models", help="List, check and prepare weights.", no_args_is_help=True)

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing file.", show_default=False)
]


@models.command("list")
def list_models(as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """List the models that are built in."""
    from psssr_fast.weights_report import describe
    from psssr_fast.weights_source import EMBEDDED

    reports: list[Report] = []
    missing: dict[str, str] = {}
    for name in EMBEDDED:
        try:
            reports.append(describe(name))
        except ModelError as error:
            missing[name] = str(error)
    if as_json:
        found = [dataclasses.asdict(report) for report in reports]
        absent = [{"source": name, "problem": problem} for name, problem in missing.items()]
        print_document("models.list", {"models": found + absent})
        return OK
    for report in reports:
        _print_report(report)
    for name, problem in missing.items():
        print_line(f"{name}: {problem}")
    print_line("--model also takes a directory with weights, or OWNER/NAME on Hugging Face.")
    return OK


@models.command()
def verify(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="nano, a directory, a file, or OWNER/NAME."),
    ],
    offline: Annotated[
        bool, typer.Option("--offline", help="Never touch the network.", show_default=False)
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of OWNER/NAME.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Read every weight of a model: is it complete, undamaged, finite? Exit code 4 if not."""
    from psssr_fast import weights_report

    report = weights_report.verify(source, offline=offline, revision=revision)
    if as_json:
        print_document("models.verify", {"ok": report.ok, **dataclasses.asdict(report)})
    else:
        _print_report(report)
    if report.ok:
        return OK
    ctx.obj.console.error(report.problem, ModelError.exit_code)
    return ModelError.exit_code


@models.command()
def convert(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SRC.pth", help="What torch.save wrote.")],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="DST.safetensors", help="Default: SRC with another ending."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--i-trust-this-file",
            help="A pickle can run code when it is read; this one comes from somebody you trust. "
            "It is read with weights_only=True even so.",
            show_default=False,
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Turn a PyTorch pickle into a safetensors file, in a process of its own."""
    from psssr_fast.convert import convert_pickle

    ctx.obj.result_is_printed = as_json
    with stoppable():  # SIGTERM removes what is half written, too
        made = convert_pickle(
            source,
            _beside(source) if target is None else target,
            trust=trust,
            overwrite=overwrite,
        )
    if as_json:
        content = {**dataclasses.asdict(made), "path": str(made.path)}
        print_document("models.convert", content)
    else:
        print_line(f"{made.path}: {made.tensors} tensors, {made.parameters:,} parameters")
    return OK


@models.command("encode-prompt")
def encode_prompt(
    ctx: typer.Context,
    encoder: Annotated[
        Path, typer.Argument(metavar="ENCODER_DIR", help="A local umT5 with its tokenizer.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PROMPT.safetensors", help="The file to make.")
    ],
    text: Annotated[
        str | None, typer.Option("--text", help="The prompt.", show_default="that of the release")
    ] = None,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Encode the prompt once, so that the text encoder is not needed to run a model."""
    from psssr_fast.models import prompt

    ctx.obj.result_is_printed = as_json
    if os.path.lexists(output) and not overwrite:  # before minutes of work
        raise UsageError(f"{output} exists; choose another name, or pass --overwrite")
    sentence = prompt.DEFAULT_PROMPT if text is None else text
    with stoppable():
        embedding = prompt.encode_prompt(sentence, encoder)
        prompt.save_prompt(
            output, embedding, text=sentence, encoder=encoder.name, overwrite=overwrite
        )
    shape = list(embedding.shape)
    if as_json:
        content = {"path": str(output), "text": sentence, "shape": shape}
        print_document("models.encode-prompt", content)
    else:
        print_line(f"{output}: {shape[0]} tokens of {shape[1]} numbers: {sentence}")
    return OK


def _beside(source: Path) -> Path:
    """Where the weights of a pickle are put; UsageError for a path that ends in no name."""
    if not source.name:
        raise UsageError(f"{source}: not the name of a file; give the pickle to convert")
    return source.with_suffix(".safetensors")


def _print_report(report: "Report") -> None:
    print_line(f"{report.source}: {report.model if report.ok else 'not usable'}")
    for part in report.parts:
        kind = f"{part.kind} ({part.layout} names)" if part.layout else part.kind
        count = f", {part.tensors} tensors, {part.parameters:,} parameters, {part.dtype}"
        print_line(f"  {part.file}: {kind}{count if part.tensors else ''}")
        if part.problem:
            print_line(f"    {part.problem}")
    print_fields(
        {
            "path": report.path,
            "prompt": "yes" if report.has_prompt else None,
            "sha256": report.sha256 or None,
        }
    )
