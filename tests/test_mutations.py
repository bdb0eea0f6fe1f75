"""Break each Triton kernel in a small way: its own check must notice.

A test module of an op has ``check()``, which compares the kernel with the reference, and
``MUTATIONS``: pairs of a text in ``kernels/<op>.py`` and what to put in its place, such as a
dropped mask, term or eps.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = sorted(path.stem for path in (ROOT / "kernels").glob("[a-z]*.py"))


def mutations() -> list:
    """One parameter set a mutation."""
    found = []
    for op in OPS:
        pairs = importlib.import_module(f"test_{op}").MUTATIONS
        found += [pytest.param(op, *pair, id=f"{op}: {pair[0]} -> {pair[1]}") for pair in pairs]
    return found


def install(monkeypatch, op: str, path: Path) -> None:
    """Make ``psssr_fast.kernels.<op>`` the module written at ``path`` until the test ends."""
    name = f"psssr_fast.kernels.{op}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(importlib.import_module("psssr_fast.kernels"), op, module, raising=False)


@pytest.mark.parametrize(("op", "original", "broken"), mutations())
def test_a_broken_kernel_is_noticed(op, original, broken, monkeypatch, tmp_path, device):
    source = (ROOT / f"kernels/{op}.py").read_text()
    assert original in source, "this mutation changes nothing"
    path = tmp_path / f"{op}.py"
    path.write_text(source.replace(original, broken))
    install(monkeypatch, op, path)
    with pytest.raises(AssertionError):
        importlib.import_module(f"test_{op}").check(device=device)


@pytest.mark.parametrize("op", OPS)
def test_the_unbroken_kernel_passes_the_same_check(op, device):
    importlib.import_module(f"test_{op}").check(device=device)


@pytest.mark.parametrize("op", OPS)
def test_there_are_mutations(op):
    assert len(importlib.import_module(f"test_{op}").MUTATIONS) >= 2
