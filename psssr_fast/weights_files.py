"""Safetensors files: found in a directory, judged by their content, read. Knows no model.

Nothing here unpickles. A header is read and checked by this module before the safetensors library
sees the file, so that a wrong, cut or hostile file is refused in milliseconds, in one line.
"""

import hashlib
import json
import os
import secrets
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from psssr_fast.errors import ModelError, OutputError
from psssr_fast.files import Folder

Shape = tuple[int, ...]

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # what a weight may be stored as
# Bytes. The header of 1,000 tensors is 0.1 MB, and Python objects take up to 25 times as many.
MAX_HEADER = 4 * 2**20
MAX_TENSORS = 10_000
MAX_DIMENSION = 2**20  # keeps the arithmetic on a hostile header small
MAX_JSON = MAX_HEADER  # of an index or config file
MAX_DEPTH = 2  # folders below the given one
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")

_PICKLE_ADVICE = "nothing of it was executed; make a safetensors file: psssr models convert"
_SIGNATURES = (
    ((b"PK\x03\x04", b"PK\x05\x06"), f"a zip archive, as PyTorch pickles are; {_PICKLE_ADVICE}"),
    (tuple(bytes([0x80, n]) for n in range(1, 6)), f"a Python pickle; {_PICKLE_ADVICE}"),
    (
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x78\x9c"),
        f"a compressed file, as joblib's pickles may be; {_PICKLE_ADVICE}",
    ),
    ((b"version https://git-lfs",), "a Git LFS pointer without the weights; run: git lfs pull"),
    ((b"<!DOCTYPE", b"<!doctype", b"<html"), "a web page; download the file itself"),
)


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about a tensor: safetensors dtype name, shape, and the file it is in."""

    dtype: str
    shape: Shape
    file: Path


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file, or a set of shards that belong together.

    Attributes:
        path: the file; for shards, their index.
        shards: the files that hold the tensors.
        tensors: by name as written in the files.
        metadata: free text that the writer left.
    """

    path: Path
    shards: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Broken:
    """A file that looks like weights by its name and cannot be used."""

    path: Path
    error: ModelError


@dataclass(frozen=True)
class Scan:
    """What a directory holds.

    Attributes:
        files: readable safetensors files and sharded sets.
        broken: files named ``.safetensors`` that are not, with the reason.
        pickles: files named like pickles; never opened.
    """

    files: tuple[WeightFile, ...]
    broken: tuple[Broken, ...]
    pickles: tuple[Path, ...]


def shown(text: object, limit: int = 200) -> str:
    """``text`` fit for a one-line message: no control characters, not endless."""
    plain = str(text)
    plain = plain if plain.isprintable() else ascii(plain)
    return plain if len(plain) <= limit else plain[:limit] + "..."


def is_file(path: Path) -> bool:
    """Tell whether ``path`` is a file, or a link to one. No name makes this raise, however odd."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_weight_file(path: Path) -> WeightFile:
    """Read and check the header of a safetensors file; the tensors are not read.

    Raises:
        ModelError: not a safetensors file, cut short, damaged, or its header is out of bounds.
    """
    header, size = _read_header(path)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise ModelError(f"{shown(path)}: damaged: its metadata is not a table of texts")
    if len(header) > MAX_TENSORS:
        raise ModelError(f"{shown(path)}: {len(header)} tensors; at most {MAX_TENSORS} are read")
    tensors, end = {}, 0
    for name, entry in header.items():
        tensors[name], stop = _tensor_info(path, name, entry)
        end = max(end, stop)
    if end > size:
        raise ModelError(
            f"{shown(path)}: cut short: its tensors need {end} bytes, {size} are there;"
            " copy or download it again"
        )
    try:
        with safe_open(path, framework="pt"):  # its own, stricter reading of the header
            pass
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{shown(path)}: damaged: {shown(error)}") from None
    texts = {str(key): str(value) for key, value in metadata.items()}
    return WeightFile(path, (path,), tensors, texts)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON object at the start of a file, and the number of bytes that follow it."""
    try:
        if not path.is_file():
            raise ModelError(f"{shown(path)}: not a file")
        total = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
            bounded = 2 <= length <= min(MAX_HEADER, total - 8)
            file.seek(8)
            text = file.read(length) if bounded else b""
    except OSError as error:
        raise ModelError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    if not text or text[:1] != b"{":
        raise ModelError(f"{shown(path)}: {_diagnosis(start, length, total)}")
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: damaged header: {shown(error)}") from None
    return header, total - 8 - length


def _diagnosis(start: bytes, length: int, total: int) -> str:
    """Why a file that starts like this cannot be safetensors."""
    if total == 0:
        return "empty file; copy or download it again"
    if start[8:9] == b"{" and length <= MAX_HEADER:  # five zero bytes: no pickle has them here
        return f"cut short: a header of {length} bytes in a file of {total}; download it again"
    for signatures, meaning in _SIGNATURES:
        if start.startswith(signatures):
            return f"not a safetensors file but {meaning}"
    if start[8:9] == b"{":
        return f"a header of {length} bytes; at most {MAX_HEADER} are read"
    return "not a safetensors file"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {shown(name)} appears twice")
    return table


def _tensor_info(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int]:
    """A checked entry of the header, and where its bytes end."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(), int(stop)]} if all(
            type(dimension) is int and dimension >= 0 for dimension in shape
        ):
            return TensorInfo(dtype, tuple(shape), path), stop
    raise ModelError(f"{shown(path)}: damaged header: the entry of {shown(name)} makes no sense")


def read_sharded(index: Path) -> WeightFile:
    """Read the headers of the shards that an ``*.safetensors.index.json`` lists.

    Raises:
        ModelError: a shard is missing, is outside the index's folder, or does not hold what the
            index says.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{shown(index)}: not an index of shards: no 'weight_map'")
    if len(weight_map) > MAX_TENSORS:
        raise ModelError(f"{shown(index)}: {len(weight_map)} tensors; at most {MAX_TENSORS}")
    shards: dict[str, WeightFile] = {}
    tensors = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & set("/\\\0"):
            raise ModelError(f"{shown(index)}: shard {shown(shard)} is not a plain file name")
        if shard not in shards:
            refuse_outside(index.parent / shard, index.parent)
            shards[shard] = read_weight_file(index.parent / shard)
        if name not in shards[shard].tensors:
            raise ModelError(f"{shown(index)}: {shown(name)} is not in {shown(shard)}")
        tensors[name] = shards[shard].tensors[name]
    for shard, file in shards.items():
        unlisted = file.tensors.keys() - tensors.keys()
        if unlisted:
            raise ModelError(f"{shown(index)}: does not list {shown(min(unlisted))} of {shard}")
    metadata = {key: text for file in shards.values() for key, text in file.metadata.items()}
    return WeightFile(index, tuple(file.path for file in shards.values()), tensors, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        ModelError: unreadable, too large, or not a JSON object.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{shown(path)}: not a file")
        if path.stat().st_size > MAX_JSON:
            raise ModelError(f"{shown(path)}: larger than {MAX_JSON} bytes")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: not JSON: {shown(error)}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{shown(path)}: not a JSON object")
    return content


def scan_directory(root: Path) -> Scan:
    """Look for weights in ``root`` and up to two folders below; hidden folders are passed over.

    Raises:
        ModelError: the directory cannot be listed.
    """
    try:
        paths = list(_walk(root, MAX_DEPTH))
    except OSError as error:
        raise ModelError(f"{shown(root)}: cannot be listed: {error.strerror}") from None
    files: list[WeightFile] = []
    broken: list[Broken] = []
    sharded: set[Path] = set()
    indices = [path for path in paths if path.name.endswith(".safetensors.index.json")]
    for path in [*indices, *(path for path in paths if path.suffix == ".safetensors")]:
        if path in sharded:
            continue
        try:
            refuse_outside(path, root)
            files.append(read_sharded(path) if path in indices else read_weight_file(path))
            sharded.update(files[-1].shards)
        except ModelError as error:
            broken.append(Broken(path, error))
    pickles = tuple(path for path in paths if path.suffix in PICKLE_SUFFIXES)
    return Scan(tuple(files), tuple(broken), pickles)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif depth and not path.is_symlink():
            yield from _walk(path, depth - 1)


def refuse_outside(path: Path, root: Path) -> None:
    """Raise ModelError for a link out of ``root``, but for the blobs of a Hugging Face cache."""
    try:
        home, target = root.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{shown(path)}: cannot be followed: {shown(error)}") from None
    homes = [home]
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            homes.append(folder.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in homes):
        raise ModelError(f"{shown(path)}: a link out of its directory; copy the file there instead")


def check_tensor(file: WeightFile, name: str) -> None:
    """Refuse a tensor that cannot be a weight, by its header.

    Raises:
        ModelError: not floating point, empty, or of absurd size.
    """
    info = file.tensors[name]
    if info.dtype not in FLOAT_DTYPES:
        raise ModelError(
            f"{shown(file.path)}: {shown(name)} is {shown(info.dtype)}; needed one of"
            f" {', '.join(FLOAT_DTYPES)}"
        )
    if not all(1 <= dimension <= MAX_DIMENSION for dimension in info.shape):
        raise ModelError(f"{shown(file.path)}: {shown(name)} has shape {shown(info.shape)}")


def read_tensors(file: WeightFile, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, tensor)`` of the named tensors of ``file``, memory-mapped on the CPU.

    Raises:
        ModelError: a tensor is no weight or holds NaN or infinity, or the file cannot be read.
    """
    wanted = set(names)
    for shard in file.shards:
        try:
            with safe_open(shard, framework="pt") as handle:
                for name in sorted(wanted):
                    if file.tensors[name].file == shard:
                        check_tensor(file, name)
                        yield name, _finite(shard, name, handle.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{shown(shard)}: cannot be read: {shown(error)}") from None


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not torch.stack(torch.aminmax(tensor)).isfinite().all():  # 15x faster than isfinite alone
        raise ModelError(f"{shown(path)}: {shown(name)} holds NaN or infinity")
    return tensor


def write_weight_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file under a temporary name, then move it into place.

    Raises:
        OutputError: it cannot be written; ``path`` is as it was before.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with published(path, replace=True) as temporary:
            save_with_mode(held, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{shown(path)}: cannot be written: {shown(error)}") from None


@contextmanager
def published(path: Path, replace: bool) -> Iterator[Path]:
    """Give an empty file beside ``path``; what the block makes of it gets that name in the end.

    Raises:
        FileExistsError: something has the name, and not ``replace``.
        OSError: it cannot be written.
    """
    with Folder(path.absolute().parent) as folder:
        # In ASCII: safetensors takes no name that is not UTF-8, and the file is renamed at the end.
        stem = path.name[:40].encode("ascii", "replace").decode()
        name = f".{stem}.{secrets.token_hex(8)}.tmp"
        os.close(folder.create(name))
        try:
            yield path.with_name(name)
            with path.with_name(name).open("rb") as file:
                os.fsync(file.fileno())
            folder.publish(name, folder, path.name, replace)
        finally:
            folder.unlink(name)
        folder.sync()


def save_with_mode(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write over an existing file and keep its permissions; the library's own are 0600."""
    mode = path.stat().st_mode
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)


def content_sha256(file: WeightFile) -> str:
    """SHA-256 of the bytes of a file; of the sorted hashes of its shards if it has several."""
    digests = []
    for shard in file.shards:
        with shard.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
