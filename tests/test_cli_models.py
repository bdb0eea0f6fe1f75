"""``psssr models``: the verbs around weights files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_fixtures import Psssr
from safetensors import safe_open
from safetensors.torch import load_file

from psssr_fast.models import prompt
from psssr_fast.weights_source import EMBEDDED

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def psssr(capsys):
    return Psssr(capsys)


def test_the_built_in_model_is_listed(psssr):
    done = psssr("models", "list")
    assert (done.code, done.err) == (0, "")
    assert "nano: nano" in done.out
    (model,) = json.loads(psssr("models", "list", "--json").out)["models"]
    assert (model["source"], model["model"], model["problem"]) == ("nano", "nano", "")


def test_a_missing_built_in_model_is_listed_as_missing(psssr, monkeypatch, tmp_path):
    monkeypatch.setitem(EMBEDDED, "nano", tmp_path / "nothing")
    done = psssr("models", "list")
    assert done.code == 0
    assert "nano: the embedded model nano is not in this installation" in done.out
    (model,) = json.loads(psssr("models", "list", "--json").out)["models"]
    assert "not in this installation" in model["problem"]


def test_a_directory_of_weights_is_verified_part_by_part(psssr, tmp_path):
    for name in ("foundation_dit", "base_lora", "draft", "vae"):
        shutil.copyfile(GOLDEN / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text('{"num_heads": 2}')
    done = psssr("models", "verify", tmp_path)
    assert (done.code, done.err) == (0, "")
    for words in ("PS-SR base (original names)", "Wan2.1 VAE", "sha256", "177 tensors"):
        assert words in done.out
    (tmp_path / "draft.safetensors").unlink()
    done = psssr("models", "verify", tmp_path)
    assert done.code == 4
    assert "not usable" in done.out
    assert done.err.startswith("psssr: error: ")
    assert "draft" in done.err
    document = json.loads(psssr("models", "verify", tmp_path, "--json").out)
    assert (document["schema"], document["ok"]) == ("psssr.models.verify/1", False)


def test_a_model_that_is_not_there_is_code_4(psssr):
    done = psssr("models", "verify", "nowhere")
    assert (done.code, done.out) == (4, "")
    assert "no model 'nowhere'" in done.err


def test_a_pickle_is_converted_only_if_it_is_trusted(psssr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"a.weight": torch.arange(6.0).view(2, 3)}
    torch.save(weights, "model.pth")
    refused = psssr("models", "convert", "model.pth")
    assert (refused.code, [path.name for path in tmp_path.iterdir()]) == (2, ["model.pth"])
    assert "--i-trust-this-file" in refused.err
    done = psssr("models", "convert", "model.pth", "--i-trust-this-file")
    assert (done.code, done.out) == (0, "model.safetensors: 1 tensors, 6 parameters\n")
    assert torch.equal(load_file("model.safetensors")["a.weight"], weights["a.weight"])
    again = psssr("models", "convert", "model.pth", "model.safetensors", "--i-trust-this-file")
    assert (again.code, "exists" in again.err) == (2, True)


def test_converting_gives_a_json_document(psssr, tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "m.pth")
    target = tmp_path / "other.safetensors"
    arguments = ("models", "convert", tmp_path / "m.pth", target, "--i-trust-this-file", "--json")
    assert json.loads(psssr(*arguments).out) == {
        "schema": "psssr.models.convert/1",
        "path": str(target),
        "tensors": 1,
        "parameters": 4,
    }


def test_a_prompt_is_encoded_into_a_file(psssr, tmp_path, monkeypatch):
    asked = []

    def encode(text, encoder):
        asked.append((text, encoder))
        return torch.ones(512, 8)

    monkeypatch.setattr(prompt, "encode_prompt", encode)
    output = tmp_path / "prompt.safetensors"
    arguments = ("models", "encode-prompt", tmp_path, "-o", output)
    done = psssr(*arguments)
    assert done.code == 0
    assert done.out == f"{output}: 512 tokens of 8 numbers: {prompt.DEFAULT_PROMPT}\n"
    refused = psssr(*arguments, "--text", "Sharp")
    assert (refused.code, "exists" in refused.err) == (2, True)
    done = psssr(*arguments, "--text", "Sharp", "--overwrite", "--json")
    assert json.loads(done.out)["shape"] == [512, 8]
    assert asked == [(prompt.DEFAULT_PROMPT, tmp_path), ("Sharp", tmp_path)]
    assert prompt.load_prompt(output).shape == (512, 8)
    with safe_open(output, "pt") as file:
        assert file.metadata()["prompt"] == "Sharp"
