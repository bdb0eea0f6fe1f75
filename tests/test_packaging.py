"""What users install: a wheel, an editable checkout, and the compiled extension."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from psssr_fast import __version__
from psssr_fast.native import native_available, native_problem

ROOT = Path(__file__).parents[1]
PACKED = ("pyproject.toml", "setup.py", "MANIFEST.in", "constraints.txt", "README.md", "LICENSE")
TREES = ("psssr_fast", "kernels", "csrc", "tests", "benchmarks")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")


def run(
    *command: object, cwd: Path, succeeds: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command without the PYTHONPATH that the tests may have been given."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )
    if succeeds:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the source, so that no build leaves anything in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "golden", "data")
    for tree in TREES:
        shutil.copytree(ROOT / tree, copy / tree, ignore=unwanted)
    for name in PACKED:
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, *PIP, "wheel", *OFFLINE, "-w", folder, source)
    run(*command, cwd=folder, PSSSR_FAST_BUILD_EXT="0")
    (path,) = folder.iterdir()
    return path


def test_a_build_without_the_extension_is_pure_python(wheel):
    assert wheel.name == f"psssr_fast-{__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_package_its_kernels_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    weights = {
        f"psssr_fast/weights/{path.name}" for path in (ROOT / "psssr_fast/weights").iterdir()
    }
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "psssr_fast").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert modules | weights | {"psssr_fast/kernels/__init__.py", "psssr_fast/py.typed"} <= names


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"psssr_fast", f"psssr_fast-{__version__}.dist-info"}


def test_the_wheel_names_its_license_and_its_command(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"psssr_fast-{__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "psssr = psssr_fast.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_there_are_at_most_ten_direct_dependencies(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(f"psssr_fast-{__version__}.dist-info/METADATA").decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert 1 <= len([line for line in required if "extra ==" not in line]) <= 10


def test_an_installed_wheel_is_imported_from_where_it_was_installed(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, *PIP, "install", "--no-deps", "--no-index", "--target", target, wheel,
        cwd=elsewhere)  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import psssr_fast; from psssr_fast import kernels\n"
        "print(psssr_fast.__version__, psssr_fast.__file__, kernels.__file__, sep='\\n')"
    )
    done = run(sys.executable, "-c", code, cwd=elsewhere)
    assert done.stdout.splitlines() == [
        __version__,
        str(target / "psssr_fast/__init__.py"),
        str(target / "psssr_fast/kernels/__init__.py"),
    ]


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory) -> Path:
    """The interpreter of a fresh environment with an editable install of the copied source."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # Lends pip, setuptools and torch. The .pth files inside it, among them that of the editable
    # install that runs these tests, are not read, so psssr_fast itself is not lent.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin/python"
    lent = run(python, "-c", "import psssr_fast", cwd=environment, succeeds=False)
    assert "No module named 'psssr_fast'" in lent.stderr
    run(python, *PIP, "install", *OFFLINE, "--ignore-installed", "-e", source, cwd=environment,
        PSSSR_FAST_BUILD_EXT="0")  # fmt: skip
    return python


def test_an_editable_install_mounts_the_kernels(editable, source, tmp_path):
    code = "import psssr_fast.kernels as kernels; print(kernels.__file__)"
    done = run(editable, "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == str(source / "kernels/__init__.py")


def test_the_kernels_refuse_to_be_imported_from_the_checkout(editable, source):
    done = run(editable, "-c", "import kernels", cwd=source, succeeds=False)
    assert done.returncode == 1
    assert "kernels/ was imported as 'kernels'" in done.stderr
    assert "import it as 'psssr_fast.kernels'" in done.stderr


def test_an_editable_install_has_the_command(editable):
    assert (editable.parent / "psssr").exists()


def test_the_extension_is_built_where_a_compiler_is():
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")
    if any(map(shutil.which, compilers)):
        assert native_problem() is None
    else:
        assert "PSSSR_FAST_BUILD_EXT=1 pip install" in native_problem()


def test_every_compiled_function_is_bound_and_typed():
    stub = ast.parse((ROOT / "psssr_fast/_C.pyi").read_text())
    typed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    bound = set(re.findall(r'm\.def\("(\w+)"', (ROOT / "csrc/bindings.cpp").read_text()))
    assert typed == bound
    if native_available():
        extension = import_module("psssr_fast._C")
        assert {name for name in dir(extension) if not name.startswith("_")} == bound


UNPACK = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from psssr_fast.native import native_problem
from psssr_fast.ops.pixel_format import unpack_frames
assert unpack_frames(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)).tolist() == [[[[1.0]]] * 3]
print(native_problem())
"""


def test_without_the_extension_ops_run_and_the_reason_is_known(editable, source, tmp_path):
    done = run(editable, "-c", UNPACK, source, cwd=tmp_path)
    assert done.stdout.startswith("psssr_fast._C was not built; to build it, in the source: ")
    assert done.stderr == ""


def test_an_extension_that_does_not_load_is_reported_and_ops_run(editable, source, tmp_path):
    shutil.copytree(source / "psssr_fast", tmp_path / "psssr_fast")
    (tmp_path / f"psssr_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"damaged")
    done = run(editable, "-c", UNPACK, tmp_path, cwd=tmp_path)
    assert done.stdout.startswith("psssr_fast._C does not load (")
    assert "RuntimeWarning: the PyTorch references run, because psssr_fast._C" in done.stderr


def setup_py(source: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Let setup.py decide what it would build, in an environment without a compiler."""
    hidden = {"PATH": str(tmp_path), "CXX": "no-such-compiler"}
    command = (sys.executable, "setup.py", "--version")
    return run(*command, cwd=source, succeeds=False, **hidden, **environment)


def test_without_a_compiler_the_build_says_so_and_goes_on(source, tmp_path):
    done = setup_py(source, tmp_path, PSSSR_FAST_BUILD_EXT="auto")
    assert done.returncode == 0 and __version__ in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("psssr_fast: ")]
    assert "without the native extension: no C++ compiler" in line


def test_insisting_on_the_extension_without_a_compiler_fails_with_the_remedy(source, tmp_path):
    done = setup_py(source, tmp_path, PSSSR_FAST_BUILD_EXT="1")
    assert done.returncode == 1
    assert "PSSSR_FAST_BUILD_EXT=1, but no C++ compiler: $CXX or one of g++" in done.stderr


def test_an_unknown_wish_for_the_extension_is_refused(source, tmp_path):
    done = setup_py(source, tmp_path, PSSSR_FAST_BUILD_EXT="yes")
    assert done.returncode == 1
    assert "PSSSR_FAST_BUILD_EXT must be auto, 1 or 0; got 'yes'" in done.stderr


def test_every_installed_package_that_is_constrained_has_its_pinned_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name in ("torch", "numpy", "av", "typer", "safetensors", "huggingface_hub", "pytest"):
        assert version(name).split("+")[0] == pins[name]
