"""``psssr models list`` and ``verify``: what is there, and whether it is sound."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from psssr_fast.checkpoint import save_bundle
from psssr_fast.errors import ModelError
from psssr_fast.models.codec import NanoCodec
from psssr_fast.models.dit import Dit
from psssr_fast.models.sizes import NANO
from psssr_fast.weights_report import checkpoint_sha256, describe, verify

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    for name in ("foundation_dit", "base_lora", "draft", "vae"):
        shutil.copyfile(GOLDEN / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text('{"num_heads": 2}')
    return tmp_path


def test_every_part_is_described(model_dir):
    report = describe(model_dir)
    rows = {part.file: (part.kind, part.layout, part.tensors, part.dtype) for part in report.parts}
    assert rows == {
        "base_lora.safetensors": ("PS-SR base", "original", 124, "F32"),
        "draft.safetensors": ("PS-SR draft", "original", 73, "F32"),
        "foundation_dit.safetensors": ("Wan2.1 DiT", "original", 177, "F32"),
        "vae.safetensors": ("Wan2.1 VAE", "original", 194, "F32"),
    }
    weights = load_file(model_dir / "vae.safetensors").values()
    assert report.parts[3].parameters == sum(tensor.numel() for tensor in weights)
    assert report.ok and report.model == "wan2.1-1.3b-custom" and not report.has_prompt
    assert report.sha256 == "" and not any(part.problem for part in report.parts)


def test_files_that_are_not_used_say_why(model_dir):
    (model_dir / "old.pth").write_bytes(b"")
    (model_dir / "cut.safetensors").write_bytes(b"")
    save_file({"shared.weight": torch.ones(1)}, model_dir / "umt5.safetensors")
    report = describe(model_dir)
    problems = {part.file: part.problem for part in report.parts if part.problem}
    assert problems == {
        "old.pth": "never read; run: psssr models convert",
        "cut.safetensors": f"{model_dir}/cut.safetensors: empty file; copy or download it again",
        "umt5.safetensors": "not recognised; ignored",
    }
    assert not report.ok and report.model == "" and "cut.safetensors: empty" in report.problem


def test_an_incomplete_model_is_described_and_not_ok(model_dir):
    (model_dir / "draft.safetensors").unlink()
    report = verify(model_dir)
    assert len(report.parts) == 3 and not report.ok and report.sha256 == ""
    assert "missing PS-SR draft" in report.problem
    with pytest.raises(ModelError, match="missing PS-SR draft"):
        checkpoint_sha256(model_dir)


def test_only_verify_finds_nan(model_dir):
    path = model_dir / "draft.safetensors"
    state = load_file(path)
    state["head.head.bias"][0] = float("nan")
    save_file(state, path)
    assert describe(model_dir).ok
    report = verify(model_dir)
    assert not report.ok and "head.head.bias holds NaN or infinity" in report.problem


def test_the_hash_is_of_content_and_not_of_names(model_dir):
    first = verify(model_dir).sha256
    assert len(first) == 64 and first == checkpoint_sha256(model_dir)
    (model_dir / "vae.safetensors").rename(model_dir / "a.safetensors")
    assert verify(model_dir).sha256 == first
    path = model_dir / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert verify(model_dir).sha256 != first


def test_the_hash_of_one_file_is_its_sha256(tmp_path):
    path = tmp_path / "mine.safetensors"
    base, draft = Dit(NANO.dit, draft=False), Dit(NANO.dit, draft=True)
    codec = NanoCodec(NANO.codec)
    save_bundle(path, "nano", base.state_dict(), draft.state_dict(), codec.state_dict(), {})
    report = verify(path)
    assert report.ok and report.model == "nano"
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_broken_file_by_itself_is_reported(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04 and so on")
    report = verify(path)
    assert not report.ok and "a zip archive" in report.problem


def test_a_source_that_is_nowhere_raises():
    with pytest.raises(ModelError, match="no model"):
        describe("missing")
