"""The rules of the layout that a reader relies on, kept true by test."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "psssr_fast"
OPS = sorted(path.stem for path in (ROOT / "psssr_fast/ops").glob("[a-z]*.py"))
SOURCES = sorted([*ROOT.glob("kernels/**/*.py"), *ROOT.glob("psssr_fast/**/*.py")])
TREES = ("benchmarks", "csrc", "examples", "kernels", "psssr_fast", "scripts", "tests", ".ci")

# A module may import from the rows above its own, and from itself.
LAYERS = (
    ("errors",),
    ("config", "faults", "h273", "files"),
    ("_C", "kernels"),
    ("native",),
    ("ops", "resize", "weights_files"),
    ("arrays", "attention"),
    ("models",),
    ("scenes", "weights_layout", "weights_source", "windows"),
    ("weights_parts",),
    ("checkpoint", "sampling"),
    ("runtime",),
    ("convert", "pipeline", "weights_report"),
    ("engine",),
    ("forecast", "live", "loading", "precision"),
    ("recovery",),
    ("metrics", "video"),
    ("compare",),
    ("compare_picture",),
    ("jobs",),
    ("upscaler",),
    ("benchmark", "doctor", "selftest_lab", "training"),
    ("selftest", "warmup"),
    ("evaluate_sources",),
    ("evaluate",),
    ("evaluate_model", "evaluate_picture"),
    ("commands",),
    ("cli",),
    ("__main__",),
    ("testing",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
DATA = {"weights", "py.typed"}


def text_files() -> Iterator[Path]:
    """Every file of the repository that holds text; build products and caches left out."""
    trees = [path for tree in TREES for path in (ROOT / tree).rglob("*")]
    for path in [*ROOT.iterdir(), *trees]:
        if path.is_file() and "__pycache__" not in path.parts:
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            yield path


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "kernels" else parts[1]


def imported_names(tree: ast.AST, module: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that a module imports anywhere in it; ``module`` is where it lives."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def imported_layers(source: str, module: str) -> set[str]:
    """Layers of psssr_fast that a module imports; ``import psssr_fast`` itself is ``__init__``."""
    names = imported_names(ast.parse(source), tuple(module.split(".")))
    parts = [name.split(".") for name in names]
    inside = {(name[1] if len(name) > 1 else "__init__") for name in parts if name[0] == PACKAGE}
    # Of the package itself only its version may be used from within.
    return {name for name in inside if name not in ("__version__", "__init__")}


def upward_imports(source: str, module: str) -> set[str]:
    """The imports of a module that do not point down."""
    layer = module.split(".")[1]
    found = imported_layers(source, module) - {layer}
    return {name for name in found if name not in LEVEL or LEVEL[name] >= LEVEL[layer]}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts if parts[0] == PACKAGE else [PACKAGE, *parts])


def long_functions(source: str, limit: int) -> list[str]:
    """Functions with more lines than ``limit``; the lines of their docstring do not count."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            lines = node.end_lineno - node.lineno + 1 - docstring
            if lines > limit:
                found.append(f"{node.name}: {lines} lines")
    return found


def test_there_are_ops_and_sources_to_check():
    assert "pixel_format" in OPS
    assert ROOT / "psssr_fast/config.py" in SOURCES


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_kernel_a_test_and_a_benchmark(op):
    kernels = [f"kernels/{op}.py", f"csrc/{op}.cpp", f"csrc/{op}.cu"]
    assert any((ROOT / kernel).exists() for kernel in kernels)
    assert (ROOT / f"tests/test_{op}.py").exists()
    assert (ROOT / f"benchmarks/bench_{op}.py").exists()


def test_every_kernel_belongs_to_an_op():
    files = [*ROOT.glob("kernels/[a-z]*.py"), *ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/*.cu")]
    assert {path.stem for path in files} - {"bindings"} <= set(OPS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    module = module_name(path)
    if module != "psssr_fast.__init__":
        assert upward_imports(path.read_text(), module) == set()


def test_the_package_itself_imports_only_the_upscaler():
    source = (ROOT / "psssr_fast/__init__.py").read_text()
    assert imported_layers(source, "psssr_fast.__init__") == {"upscaler"}


@pytest.mark.parametrize(
    ("module", "source", "upward"),
    [
        ("psssr_fast.ops.add", "from psssr_fast.models.dit import Dit", {"models"}),
        ("psssr_fast.ops.add", "import psssr_fast.models.dit", {"models"}),
        ("psssr_fast.ops.add", "from psssr_fast import upscaler", {"upscaler"}),
        ("psssr_fast.ops.add", "from psssr_fast import Upscaler", {"Upscaler"}),
        ("psssr_fast.ops.add", "from ..models import dit", {"models"}),
        ("psssr_fast.ops.add", "from .. import sampling", {"sampling"}),
        ("psssr_fast.ops.add", "def f():\n    import psssr_fast.cli", {"cli"}),
        ("psssr_fast.ops.add", "importlib.import_module('psssr_fast.models')", {"models"}),
        ("psssr_fast.kernels.add", "from psssr_fast.ops.add import add_ref", {"ops"}),
        ("psssr_fast.config", "from psssr_fast.models.sizes import DitSize", {"models"}),
        ("psssr_fast.metrics.psnr", "from psssr_fast.video import probe", {"video"}),
        ("psssr_fast.cli", "import psssr_fast.nowhere", {"nowhere"}),
        ("psssr_fast.ops.add", "from . import subtract\nfrom .subtract import x", set()),
        ("psssr_fast.ops.add", "from ..kernels.add import add_triton", set()),
        ("psssr_fast.cli", "from psssr_fast import __version__, upscaler", set()),
        ("psssr_fast.models.dit", "from psssr_fast.errors import ModelError", set()),
    ],
)
def test_the_checker_of_imports_sees(module, source, upward):
    assert upward_imports(source, module) == upward


def test_the_package_holds_only_documented_modules():
    entries = (ROOT / "psssr_fast").iterdir()
    names = {path.name.split(".")[0] for path in entries if path.name not in DATA}
    assert names - {"__init__", "__pycache__"} <= set(LEVEL)


def test_only_the_bindings_know_torch_and_python():
    foreign = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|pybind11|Python)\b")
    including = {path.name for path in ROOT.glob("csrc/*") if foreign.search(path.read_text())}
    assert including == {"bindings.cpp"}


def test_files_have_at_most_400_lines():
    written = [path for path in text_files() if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")]
    lengths = {path: path.read_text().count("\n") for path in written}
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}


def test_functions_have_at_most_40_lines_and_in_kernels_80():
    found = {}
    for path in text_files():
        if path.suffix == ".py":
            limit = 80 if path.is_relative_to(ROOT / "kernels") else 40
            if functions := long_functions(path.read_text(), limit):
                found[str(path)] = functions
    assert found == {}


def test_the_checker_of_function_length_sees_a_long_one_and_skips_docstrings():
    statements = "    x = 1\n" * 40
    documented = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 39
    assert long_functions(f"def f():\n{statements}", 40) == ["f: 41 lines"]
    assert long_functions(f"class A:\n    def f():\n{'        x = 1' + chr(10)}", 40) == []
    assert long_functions(documented, 40) == []


def test_nothing_points_outside_the_repository():
    # Spelled in pieces, or this file would find itself.
    outside = re.compile(r"\.\./" + r"shared\b|(?<![\w.$}~-])/" + r"(work|home|root|Users)/\w")
    assert outside.search("see .." + "/shared/facts") and outside.search("cd /" + "home/me/x")
    texts = {path: path.read_text(encoding="utf-8") for path in text_files()}
    assert [str(path) for path, text in texts.items() if outside.search(text)] == []
