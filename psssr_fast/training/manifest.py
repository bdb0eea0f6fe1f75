"""What is trained on: every file by its hash, with its licence and the frames that are held out.

A manifest is a JSON file beside (or apart from) the folder of videos and photos it describes:
``{"schema": "psssr.manifest/1", "sources": [{"path": ..., "sha256": ..., "licence": ...}, ...]}``.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from psssr_fast.config import SceneCuts
from psssr_fast.errors import InputError, OutputError, UsageError
from psssr_fast.files import open_input, whole_file
from psssr_fast.scenes import find_cuts
from psssr_fast.video import Frame, open_reader

SCHEMA = "psssr.manifest/1"
NAME = "manifest.json"  # in the folder, unless another file is named
PHOTO_SUFFIXES = {".webp", ".jpg", ".jpeg", ".png"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"}


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        path: below the folder, with forward slashes.
        sha256: of its bytes.
        licence: under which it may be trained on; empty if nobody wrote it down.
        frames, height, width: of its pictures; a photo has one frame.
        held_out: frames at the end that are never trained on.
        cuts: frames that begin a new scene.
    """

    path: str
    sha256: str
    licence: str
    frames: int
    height: int
    width: int
    held_out: int = 0
    cuts: tuple[int, ...] = ()

    @property
    def is_photo(self) -> bool:
        """Whether it is one picture, to be moved over."""
        return Path(self.path).suffix.lower() in PHOTO_SUFFIXES

    def shots(self, held_out: bool = False) -> list[tuple[int, int]]:
        """Spans ``[start, stop)`` of frames without a cut: of those that are trained on, or of
        those that are held out."""
        split = self.frames - self.held_out
        start, stop = (split, self.frames) if held_out else (0, split)
        inner = [cut for cut in self.cuts if start < cut < stop]
        return [(a, b) for a, b in zip([start, *inner], [*inner, stop], strict=True) if a < b]


@dataclass(frozen=True)
class Manifest:
    """All sources of a folder, in the order of their names."""

    folder: Path
    sources: tuple[Source, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the folder is not part of it."""
        return {"schema": SCHEMA, "sources": [asdict(source) for source in self.sources]}


def make_manifest(
    folder: Path,
    licences: Sequence[tuple[str, str]] = (),
    held_out: Sequence[tuple[str, int]] = (),
) -> Manifest:
    """Look at every photo and video below a folder: hash, size, scene cuts.

    Args:
        folder: of videos and photos.
        licences: patterns of paths (``images/kodak_*``) and the licence of what they match; the
            first that matches counts.
        held_out: patterns, and how many frames at the end of what they match to hold out.

    Raises:
        InputError: nothing is there, a file cannot be read, or a pattern matches nothing (a
            renamed file would be trained on).
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; give a folder of videos and photos")
    files = [p for p in sorted(folder.rglob("*")) if _is_material(p)]
    if not files:
        raise InputError(f"{folder}: no photos or videos found below it; give a folder of some")
    names = [file.relative_to(folder).as_posix() for file in files]
    for pattern, _ in (*licences, *held_out):
        if not any(fnmatch(name, pattern) for name in names):
            raise InputError(f"{folder}: nothing below it matches {pattern!r}; check the name")
    sources = []
    for file, name in zip(files, names, strict=True):
        licence = next((text for pattern, text in licences if fnmatch(name, pattern)), "")
        hidden = next((count for pattern, count in held_out if fnmatch(name, pattern)), 0)
        frames, height, width, cuts = _look(file)
        if not 0 <= hidden <= frames:
            raise UsageError(f"{name}: {hidden} of its {frames} frames cannot be held out")
        sources.append(Source(name, sha256(file), licence, frames, height, width, hidden, cuts))
    return Manifest(folder, tuple(sources))


def _is_material(path: Path) -> bool:
    known = path.suffix.lower() in PHOTO_SUFFIXES | VIDEO_SUFFIXES
    return known and os.path.isfile(path) and not path.name.startswith(".")


def _look(file: Path) -> tuple[int, int, int, tuple[int, ...]]:
    """Frames, height, width and cuts."""
    if file.suffix.lower() in PHOTO_SUFFIXES:
        try:
            with Image.open(file) as photo:
                width, height = photo.size
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{file}: not a picture that can be read: {error}") from None
        return 1, height, width, ()
    count, size = 0, (0, 0)

    def pictures(frames: Iterable[Frame]) -> Iterable[np.ndarray]:
        nonlocal count, size
        for frame in frames:
            picture = eight_bit(frame)
            count, size = count + 1, (picture.shape[0], picture.shape[1])
            yield picture

    with open_reader(file) as reader:
        cuts = find_cuts(pictures(reader), SceneCuts())
    return count, *size, cuts


def eight_bit(frame: Frame) -> np.ndarray:
    """A frame as uint8 ``[height, width, 3]``; deeper pixels lose their low bits."""
    pixels = np.asarray(frame.pixels)
    if pixels.dtype != np.uint8:
        pixels = (pixels // 256).astype(np.uint8)
    return pixels[..., :3]


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_manifest(path: Path) -> bool:
    """Return whether a file is one that :func:`write_manifest` wrote."""
    try:
        with open_input(path) as file:
            content = json.loads(file.read(2**28))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("schema") == SCHEMA


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write it as JSON.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with whole_file(path, replace=True) as file:
            file.write(json.dumps(manifest.to_json(), indent=1).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def load_manifest(
    folder: Path, path: Path | None = None, *, allow_unlicensed: bool = False
) -> Manifest:
    """Read the manifest of a folder, or look at the folder if there is none.

    Args:
        folder: of videos and photos.
        path: of the manifest, if it is not ``manifest.json`` in the folder.
        allow_unlicensed: take files whose licence nobody wrote down.

    Raises:
        InputError: it is missing or makes no sense, a file of it is not there, or the licence of
            one is not recorded.
    """
    if path is not None and not os.path.isfile(path):
        raise InputError(f"{path}: no such manifest; write it with `psssr train --write-manifest`")
    path = path or folder / NAME
    manifest = _parse(folder, path) if os.path.isfile(path) else make_manifest(folder)
    unlicensed = [source.path for source in manifest.sources if not source.licence.strip()]
    if unlicensed and not allow_unlicensed:
        more = f" and {len(unlicensed) - 1} more" if len(unlicensed) > 1 else ""
        raise InputError(
            f"{folder}: no licence is recorded for {unlicensed[0]}{more}; write a manifest with "
            "`psssr train --write-manifest FILE --licence 'PATTERN=LICENCE'`, or pass "
            "--allow-unlicensed"
        )
    return manifest


def _parse(folder: Path, path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a manifest: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a manifest: its schema is not {SCHEMA!r}")
    sources = []
    listed = content.get("sources")
    for entry in listed if isinstance(listed, list) else ():
        try:
            source = Source(**{**entry, "cuts": tuple(entry.get("cuts", ()))})
            _check(source)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: an entry makes no sense: {error}") from None
        inside = Path(source.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{path}: {source.path} is not below the folder")
        if not os.path.isfile(folder / inside):
            raise InputError(f"{folder / inside}: no such file, but {path} lists it; write it anew")
        sources.append(source)
    if not sources:
        raise InputError(f"{path}: lists no sources; write it anew")
    return Manifest(folder, tuple(sources))


def _check(source: Source) -> None:
    """Raise ValueError if the values of an entry are of other types, or not possible."""
    texts = (source.path, source.sha256, source.licence)
    numbers = (source.frames, source.height, source.width, source.held_out, *source.cuts)
    if not all(type(text) is str for text in texts):
        raise ValueError("its path, hash and licence must be texts")
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise ValueError("its numbers must be whole and not negative")
    if source.held_out > source.frames or not min(source.frames, source.height, source.width):
        raise ValueError("it must have frames, a size, and no more held-out frames than frames")
