"""Files that are wrong, cut short or hostile are refused quickly, in one line, and never run."""

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import ModelError
from psssr_fast.weights_files import (
    content_sha256,
    read_sharded,
    read_tensors,
    read_weight_file,
    scan_directory,
    write_weight_file,
)

SMALL = save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})
ENTRY = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo sings > '{self.path}'",)


def with_header(header: object, body: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def torch_zip(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def fast_and_small() -> Iterator[None]:
    """No test here takes 64 MiB of Python objects, or 20 s of a processor."""
    tracemalloc.start()
    start = time.process_time()
    yield
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
    assert seconds < 20


HOSTILE = {
    "empty file": (b"", "empty file"),
    "short file": (b"abc", "not a safetensors file"),
    "text": (b"these are not the weights you are looking for", "not a safetensors file"),
    "zip": (torch_zip({"a": torch.ones(2)}), "a zip archive, as PyTorch pickles are.* convert"),
    "pickle 2": (pickle.dumps({"a": 1}, protocol=2), "a Python pickle; .* convert"),
    "pickle 4": (pickle.dumps({"a": [1] * 99}, protocol=4), "a Python pickle; .* convert"),
    "pickle 5": (pickle.dumps({"a": 1}, protocol=5), "a Python pickle; .* convert"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "header of 2**63": (struct.pack("<Q", 2**63) + b"{}" + b" " * 99, "header of 9223372036"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}" + b" " * 99, "a header of 18446744073709551615"),
    "header of 0": (struct.pack("<Q", 0) + b"{}", "cut short"),
    "header cut": (SMALL[:60], "cut short"),
    "header of 640 bytes cut": (struct.pack("<Q", 0x280) + b'{"a"', "cut short"),
    "tensors cut": (SMALL[:-1], "cut short: its tensors need 32 bytes, 31 are there"),
    "bytes too many": (SMALL + b"\0", "damaged"),
    "header no JSON": (with_header(b'{"a": nonsense}'), "damaged header"),
    "header a list": (with_header(b"[1, 2, 3]"), "not a safetensors file"),
    "header nested": (with_header(b'{"a":' * 200_000), "damaged header"),
    "header not UTF-8": (with_header(b'{"\xff\xfe": 1}'), "damaged header"),
    "same name twice": (
        with_header(b'{"aa": %b, "aa": %b}' % ((json.dumps(ENTRY).encode(),) * 2)),
        "the name aa appears twice",
    ),
    "overlap": (with_header({"a": ENTRY, "b": ENTRY}), "damaged: .*invalid offset"),
    "hole": (
        with_header({"a": {**ENTRY, "data_offsets": [8, 72]}}, b"\0" * 72),
        "damaged: .*offset",
    ),
    "backwards": (with_header({"a": {**ENTRY, "data_offsets": [64, 0]}}), "damaged"),
    "far away": (with_header({"a": {**ENTRY, "data_offsets": [0, 2**62]}}), "cut short"),
    "shape too large": (with_header({"a": {**ENTRY, "shape": [2**62, 2**62]}}), "damaged"),
    "shape negative": (with_header({"a": {**ENTRY, "shape": [-4, -4]}}), "makes no sense"),
    "shape of texts": (with_header({"a": {**ENTRY, "shape": ["16"]}}), "makes no sense"),
    "unknown dtype": (with_header({"a": {**ENTRY, "dtype": "F99"}}), "damaged"),
    "no offsets": (with_header({"a": {"dtype": "F32", "shape": [16]}}), "makes no sense"),
    "entry a number": (with_header({"a": 1}), "makes no sense"),
    "metadata a list": (with_header({"__metadata__": [1], "a": ENTRY}), "metadata"),
    "10,001 tensors": (
        with_header({str(n): {**ENTRY, "data_offsets": [0, 0]} for n in range(10_001)}),
        "10001 tensors; at most 10000",
    ),
    "a name with line breaks": (
        with_header({"a\n\x1b[2J\nb": {**ENTRY, "shape": ["x"]}}),
        r"a\\n\\x1b\[2J\\nb",
    ),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_is_no_safetensors_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(ModelError, match=message) as raised:
            load_checkpoint(source)
        assert raised.value.exit_code == 4
        assert str(raised.value).startswith(str(path)) and str(raised.value).isprintable()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.bin"])
def test_a_pickle_never_runs(tmp_path, name, protocol):
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps({"a": Canary(canary)}, protocol=protocol))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(ModelError):
            load_checkpoint(source)
    assert not canary.exists()


def test_a_pickle_in_a_zip_never_runs(tmp_path):
    canary = tmp_path / "canary"
    for name in ("archive/data.pkl", "data.pkl"):
        with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as archive:
            archive.writestr(name, pickle.dumps(Canary(canary)))
        with pytest.raises(ModelError, match="a zip archive"):
            load_checkpoint(tmp_path)
    assert not canary.exists()


def test_a_huge_header_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 150 * 2**20) + b"{")
        file.truncate(200 * 2**20)  # sparse
    with pytest.raises(ModelError, match="a header of 157286400 bytes; at most 4194304 are read"):
        read_weight_file(path)


@pytest.mark.parametrize("shape", [[0], [4, 0], [2**21]])
def test_a_tensor_of_absurd_size_is_refused(tmp_path, shape):
    path = tmp_path / "model.safetensors"
    count = 0 if 0 in shape else shape[0]
    header = {"prompt_embedding": {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * count]}}
    path.write_bytes(with_header(header, bytes(2 * count)))
    with pytest.raises(ModelError, match="prompt_embedding has shape"):
        load_checkpoint(tmp_path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cut=st.integers(0, len(SMALL)), position=st.integers(0, len(SMALL) - 1), bit=st.integers(0, 7)
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, cut, position, bit):
    damaged = bytearray(SMALL)
    damaged[position] ^= 1 << bit
    path = tmp_path / "model.safetensors"
    for content in (SMALL[:cut], bytes(damaged)):
        path.write_bytes(content)
        try:
            file = read_weight_file(path)
            dict(read_tensors(file, file.tensors))
        except ModelError as error:
            assert str(error).isprintable()
        else:
            assert len(content) == len(SMALL)


def test_every_bit_of_the_file_counts_in_its_hash(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(SMALL)
    first = content_sha256(read_weight_file(path))
    path.write_bytes(SMALL[:-1] + bytes([SMALL[-1] ^ 1]))
    assert content_sha256(read_weight_file(path)) != first


def test_a_file_is_written_with_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    write_weight_file(tmp_path / "model.safetensors", {"a": torch.ones(1)}, {})
    mode = (tmp_path / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "any").stat().st_mode


def write_shards(folder: Path, weight_map: object) -> Path:
    (folder / "one.safetensors").write_bytes(save({"a": torch.ones(1)}))
    (folder / "two.safetensors").write_bytes(save({"b": torch.ones(2)}))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards_are_read_as_one_file(tmp_path):
    index = write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    file = read_sharded(index)
    assert {name: info.shape for name, info in file.tensors.items()} == {"a": (1,), "b": (2,)}
    assert dict(read_tensors(file, ["b"]))["b"].tolist() == [1.0, 1.0]
    assert [found.path for found in scan_directory(tmp_path).files] == [index]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../one.safetensors"}, "is not a plain file name"),
        ({"a": "/etc/passwd"}, "is not a plain file name"),
        ({"a": "..\\one.safetensors"}, "is not a plain file name"),
        ({"a": ".."}, "is not a plain file name"),
        ({"a": ""}, "is not a plain file name"),
        ({"a": ["one.safetensors"]}, "is not a plain file name"),
        ({"a": "three.safetensors"}, "three.safetensors: not a file"),
        ({"b": "one.safetensors"}, "b is not in one.safetensors"),
        ({"b": "two.safetensors", "c": "two.safetensors"}, "c is not in two.safetensors"),
        ({}, "no 'weight_map'"),
        ([], "no 'weight_map'"),
    ],
    ids=str,
)
def test_an_index_that_lies_is_refused(tmp_path, weight_map, message):
    with pytest.raises(ModelError, match=message):
        read_sharded(write_shards(tmp_path, weight_map))


def test_an_index_that_leaves_a_tensor_out_is_refused(tmp_path):
    index = write_shards(tmp_path, {"a": "one.safetensors"})
    save_file({"a": torch.ones(1), "z": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=r"does not list z of one.safetensors"):
        read_sharded(index)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 200_000])
def test_an_index_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors.index.json").write_bytes(content)
    (broken,) = scan_directory(tmp_path).broken
    assert str(broken.error).startswith(str(broken.path)) and str(broken.error).isprintable()


def test_links_out_of_the_directory_are_refused(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    write_shards(outside, {"a": "one.safetensors"})
    (inside / "link.safetensors").symlink_to(outside / "one.safetensors")
    with pytest.raises(ModelError, match="a link out of its directory"):
        load_checkpoint(inside)
    (inside / "link.safetensors").unlink()
    (inside / "folder").symlink_to(outside)
    assert not scan_directory(inside).files


def test_links_into_the_blobs_of_a_hugging_face_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    (snapshot / "vae").mkdir(parents=True)
    (blobs / "abcd").write_bytes(SMALL)
    (snapshot / "vae" / "model.safetensors").symlink_to("../../../blobs/abcd")
    (found,) = scan_directory(snapshot).files
    assert found.path.name == "model.safetensors"


def test_folders_are_searched_two_levels_down_and_hidden_ones_not_at_all(tmp_path):
    for folder in ("a", "a/b", "a/b/c", ".hidden"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(SMALL)
    found = [str(file.path.relative_to(tmp_path)) for file in scan_directory(tmp_path).files]
    assert found == ["a/b/model.safetensors", "a/model.safetensors"]


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="not a file"):
        load_checkpoint(tmp_path)


def test_a_directory_without_weights_says_what_is_needed(tmp_path):
    with pytest.raises(ModelError, match=r"missing Wan2.1-T2V-1.3B DiT .*; found: nothing$"):
        load_checkpoint(tmp_path)


def test_pickles_in_a_directory_are_named_with_the_command_to_convert_them(tmp_path):
    for name in ("Wan2.1_VAE.pth", "a.pt", "b.bin", "c.ckpt"):
        (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(ModelError, match="psssr models convert FILE") as raised:
        load_checkpoint(tmp_path)
    assert "(Wan2.1_VAE.pth, a.pt, b.bin, c.ckpt)" in str(raised.value)
