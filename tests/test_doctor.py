"""``psssr doctor`` reports what is there, and what is not with the reason; it never fails."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import av
import pytest
import torch
from cli_fixtures import Psssr

from psssr_fast import doctor
from psssr_fast.attention import BACKENDS
from psssr_fast.errors import ModelError

WITHOUT_OPTIONAL_PACKAGES = """
import sys
optional = ("triton", "flash_attn", "flash_attn_interface", "xformers", "transformers")
for name in (*optional, "psssr_fast._C"):
    sys.modules[name] = None
from psssr_fast.cli import main
sys.exit(main(["doctor", "--json"]))
"""


@pytest.fixture(scope="module")
def found():
    return doctor.examine()


def by_name(items):
    return {item.name: item for item in items}


def test_versions_are_those_of_what_runs(found):
    software = by_name(found.software)
    assert software["torch"].version == torch.__version__
    assert software["PyAV"].version == av.__version__
    assert "libavcodec" in software["FFmpeg"].version
    assert software["python"].version.startswith(".".join(map(str, sys.version_info[:3])))
    for item in found.software:
        assert (item.version is None) != (item.problem is None), item


def test_the_cpu_is_a_device_and_every_gpu_is_listed(found):
    assert found.devices[0].name == "cpu"
    assert found.devices[0].threads == torch.get_num_threads()
    assert len(found.devices) == 1 + torch.cuda.device_count()


def test_every_attention_backend_is_usable_or_says_why_not(found):
    assert [state.problem.split(":")[0] for state in found.attention] == ["wan2.1-1.3b", "nano"]
    for state in found.attention:
        assert [backend.name for backend in state.backends] == [b.name for b in BACKENDS]
        assert by_name(state.backends)["sdpa"].objections == ()
    assert "bfloat16, head_dim=128" in found.attention[0].problem
    if not torch.cuda.is_available():
        flash = by_name(found.attention[0].backends)["flash3"]
        assert "needs a CUDA device, got cpu" in flash.objections


def test_encoders_are_those_of_this_build(found):
    present = {encoder.name for encoder in found.encoders if encoder.present}
    assert {"libx264", "ffv1"} <= present
    assert present <= av.codecs_available
    assert not doctor.has_encoder("no_such_encoder")
    assert not doctor.has_encoder("hevc_cuvid")  # a decoder


def test_the_built_in_model_is_verified(found):
    (nano,) = found.models
    assert (nano.name, nano.problem) == ("nano", None)
    assert nano.parameters > 1_000_000
    assert len(nano.sha256) == 64


def test_a_missing_or_damaged_model_is_a_finding(monkeypatch):
    def fail(source):
        raise ModelError("not in this installation")

    monkeypatch.setattr(doctor, "verify", fail)
    (nano,) = doctor.examine().models
    assert nano.problem == "not in this installation"


def test_a_damaged_embedded_file_is_a_finding(monkeypatch, tmp_path):
    damaged = tmp_path / "nano.safetensors"
    damaged.write_bytes(b"not weights")
    monkeypatch.setitem(doctor.EMBEDDED, "nano", damaged)
    (nano,) = doctor.examine().models
    assert "not a safetensors file" in nano.problem


def test_a_build_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CPU only" in doctor.cuda_state().problem
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no device" in doctor.cuda_state().problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor.cuda_state() == doctor.Software("CUDA", "13.0")


def test_triton_that_is_missing_broken_or_wrong_is_a_finding(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    def broken(x):
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(doctor.metadata, "version", missing)
    assert "not installed" in doctor.triton_state().problem
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "3.7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "3.7.1 is installed, but has no CUDA device" in doctor.triton_state().problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "triton_runs", broken)
    assert "does not run: RuntimeError: no compiler" in doctor.triton_state().problem
    monkeypatch.setattr(doctor, "triton_runs", lambda device: False)
    assert "computes wrong numbers" in doctor.triton_state().problem
    monkeypatch.setattr(doctor, "triton_runs", lambda device: True)
    assert doctor.triton_state() == doctor.Software("triton", "3.7.1, runs")


def test_doctor_works_without_any_optional_package():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPTIONAL_PACKAGES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "psssr.doctor/1"


def test_the_command_prints_all_of_it(capsys):
    psssr = Psssr(capsys)
    done = psssr("doctor")
    assert (done.code, done.err) == (0, "")
    for word in ("torch", "triton", "native extension", "flash3", "sdpa", "libx264", "nano"):
        assert word in done.out
    document = json.loads(psssr("doctor", "--json").out)
    assert document["devices"][0]["name"] == "cpu"
    assert Path(document["cache"]).is_absolute()
