"""What weights files are there and whether they are sound, without building a model."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from psssr_fast.checkpoint import find_parts
from psssr_fast.errors import ModelError
from psssr_fast.weights_files import content_sha256
from psssr_fast.weights_parts import Assembly, Kind, Part, assemble
from psssr_fast.weights_source import find_source


@dataclass(frozen=True)
class PartReport:
    """One weights file.

    Attributes:
        kind: what it holds.
        layout: whose tensor names it uses: original, diffusers, or "" for ours.
        file: its path, relative to the source if it is a directory.
        tensors, parameters: how many.
        dtype: what the tensors are stored as; several are joined by "+".
        problem: why it is not used; empty if it is.
    """

    kind: str
    layout: str
    file: str
    tensors: int
    parameters: int
    dtype: str
    problem: str


@dataclass(frozen=True)
class Report:
    """What :func:`describe` and :func:`verify` found.

    Attributes:
        source: what was asked for.
        path: where that is.
        model: name of the model's size; empty if the parts make no model.
        parts: every weights file, used or not.
        problem: why the parts make no model; empty if they do.
        has_prompt: whether a prompt embedding is there.
        sha256: of the content of all files in use, whatever they are called; empty unless
            verified.
    """

    source: str
    path: str
    model: str
    parts: tuple[PartReport, ...]
    problem: str
    has_prompt: bool
    sha256: str

    @property
    def ok(self) -> bool:
        """Whether the model can be loaded."""
        return not self.problem


def describe(source: str | Path, *, offline: bool = False, revision: str | None = None) -> Report:
    """Say what ``source`` holds, by its headers: names, shapes and dtypes are checked.

    Args:
        source, offline, revision: as for :func:`psssr_fast.checkpoint.load_checkpoint`.

    Raises:
        ModelError: there is no such source. Faults of its files are in the report.
    """
    return _examine(source, offline=offline, revision=revision)[0]


def verify(source: str | Path, *, offline: bool = False, revision: str | None = None) -> Report:
    """Like :func:`describe`, and read every byte: NaN and infinity are found, content is hashed.

    Raises:
        ModelError: there is no such source. Faults of its files are in the report.
    """
    report, assembly = _examine(source, offline=offline, revision=revision)
    if assembly is None:
        return report
    try:
        for part in assembly.parts:
            part.read()
    except ModelError as error:
        return replace(report, model="", problem=str(error))
    return replace(report, sha256=_sha256(assembly.parts))


def checkpoint_sha256(source: str | Path, *, offline: bool = False) -> str:
    """Hash of the content of all weights files that ``source`` uses, whatever they are called.

    Raises:
        ModelError: ``source`` is no complete model.
    """
    report, assembly = _examine(source, offline=offline, revision=None)
    if assembly is None:
        raise ModelError(report.problem)
    return _sha256(assembly.parts)


def _sha256(parts: Iterable[Part]) -> str:
    """Of one file its own SHA-256; of several that of their sorted SHA-256."""
    files = {part.file.path: part.file for part in parts}
    digests = sorted(content_sha256(file) for file in files.values())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def _examine(
    source: str | Path, *, offline: bool, revision: str | None
) -> tuple[Report, Assembly | None]:
    path = find_source(source, offline=offline, revision=revision)
    try:
        found = find_parts(path)
    except ModelError as error:
        return Report(str(source), str(path), "", (), str(error), False, ""), None
    rows = [_row(part, path) for part in found.parts]
    rows += [
        PartReport("unreadable", "", _relative(broken.path, path), 0, 0, "", str(broken.error))
        for broken in found.broken
    ]
    rows += [
        PartReport(
            "pickle", "", _relative(pickle, path), 0, 0, "", "never read; run: psssr models convert"
        )
        for pickle in found.pickles
    ]
    assembly, problem = None, ""
    try:
        if found.broken:
            raise found.broken[0].error
        assembly = assemble(found.parts, path, found.pickles)
    except ModelError as error:
        problem = str(error)
    report = Report(
        source=str(source),
        path=str(path),
        model="" if assembly is None else assembly.size.name,
        parts=tuple(rows),
        problem=problem,
        has_prompt=assembly is not None and assembly.prompt is not None,
        sha256="",
    )
    return report, assembly


def _row(part: Part, root: Path) -> PartReport:
    infos = part.file.tensors.values()
    return PartReport(
        kind=str(part.kind),
        layout=part.layout,
        file=_relative(part.file.path, root),
        tensors=len(infos),
        parameters=sum(prod(info.shape) for info in infos),
        dtype="+".join(sorted({info.dtype for info in infos})),
        problem="not recognised; ignored" if part.kind is Kind.UNKNOWN else "",
    )


def _relative(path: Path, root: Path) -> str:
    return path.name if path == root else str(path.relative_to(root))
