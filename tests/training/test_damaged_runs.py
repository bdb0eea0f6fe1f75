"""Files of a run and manifests that are damaged, or stand where something else is to be."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from psssr_fast.errors import InputError, ModelError, OutputError
from psssr_fast.training import report
from psssr_fast.training.manifest import load_manifest, make_manifest, write_manifest
from psssr_fast.training.state import FORMAT, differences, load_state

LINE = {"order": 1, "step": 1, "stage": "base", "losses": {"pixel": 1.0}}


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        {"path": 5}, {"path": "x" * 300}, {"path": None}, {"licence": 5}, {"sha256": None},
        {"frames": "3"}, {"frames": -3}, {"frames": 10**30}, {"frames": 0}, {"frames": True},
        {"held_out": 99}, {"cuts": "abc"}, {"cuts": 5}, {"cuts": [[1]]}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_with_impossible_values_is_bad_input(folder, change):
    manifest = folder / "manifest.json"
    write_manifest(make_manifest(folder), manifest)
    assert len(load_manifest(folder, manifest, allow_unlicensed=True).sources) == 1
    content = json.loads(manifest.read_text())
    content["sources"][0].update(change)
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError) as refusal:
        load_manifest(folder, manifest, allow_unlicensed=True)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b"\xff", b"[]", b'{"schema": "psssr.manifest/1", "sources": null}',
        b'{"schema": "psssr.manifest/1", "sources": [5]}',
    ],
    ids=lambda content: str(content[:40]),
)  # fmt: skip
def test_a_manifest_that_is_none_is_bad_input(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError):
        load_manifest(folder, allow_unlicensed=True)


def test_a_manifest_that_is_named_must_be_there(folder):
    """Without it, frames that it holds out would be trained on."""
    with pytest.raises(InputError, match=r"nope\.json: no such manifest"):
        load_manifest(folder, folder / "nope.json", allow_unlicensed=True)
    with pytest.raises(InputError, match="no such manifest"):
        load_manifest(folder, folder, allow_unlicensed=True)


def test_lines_of_a_log_that_make_no_sense_are_left_out(tmp_path):
    lines = [b"5", b"[1]", b'{"a": 1}', b"\xff\xfe", b"[" * 50_000, b'{"order": "1"}', b""]
    content = json.dumps(LINE).encode()
    (tmp_path / report.LOG).write_bytes(b"\n".join([*lines, content, b'{"half']))
    assert report.read_log(tmp_path) == [LINE]
    report.cut_log(tmp_path, 1)
    report.append_line(tmp_path, {**LINE, "order": 2, "step": 2})
    assert [line["order"] for line in report.read_log(tmp_path)] == [1, 2]
    assert report.plot(tmp_path) == tmp_path / "plot.png"


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_files_of_a_run_are_never_written_through_links_and_never_waited_for(tmp_path, kind):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("precious")
    report.append_line(run, LINE)
    (run / "old.jsonl").write_bytes((run / report.LOG).read_bytes())
    for name in (report.LOG, "plot.png"):
        path = run / name
        path.unlink(missing_ok=True)
        match kind:
            case "link":
                path.symlink_to(victim)
            case "FIFO":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
    with pytest.raises(OutputError):
        report.append_line(run, LINE)
    if kind == "link":  # replaced, and not what it names
        (run / report.LOG).unlink()
        (run / "old.jsonl").rename(run / report.LOG)
        assert report.plot(run) == run / "plot.png"
        assert not (run / "plot.png").is_symlink()
    assert victim.read_text() == "precious"


def test_a_state_that_names_no_place_is_told(tmp_path):
    path = tmp_path / "state_000000001.safetensors"
    for metadata in ({}, {"stage": "base", "step": "abc"}, {"step": "1"}):
        save_file({"x": torch.zeros(1)}, path, {"format": FORMAT, **metadata})
        with pytest.raises(ModelError, match="says no place in a run"):
            load_state(tmp_path)
    assert differences("{}", "not json") == ["not JSON"]
