"""What no source may do, and that nothing is fetched unless a model from elsewhere is asked for."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import HANGS_AFTER, write_video

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("psssr_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
# Called by these names, wherever they come from.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "system", "popen", "spawnl", "spawnv", "Unpickler",
    "mktemp", "unsafe_load", "getoutput", "getstatusoutput",
}  # fmt: skip
# Modules that run code from data; the converter names the error of torch's restricted unpickler.
PICKLERS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
ALLOWED = {("convert.py", "pickle")}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            found.append((name, node))
    return found


def offences(source: str, name: str) -> list[str]:
    """What a source does that it may not."""
    tree = ast.parse(source)
    found = []
    for called, node in calls(tree):
        # torch.compile, re.compile and model.eval() are methods; the built-ins are bare names.
        bare = isinstance(node.func, ast.Name)
        if called in FORBIDDEN and (bare or called not in ("compile", "eval", "exec")):
            found.append(called)
        given = {word.arg: word.value for word in node.keywords}
        if "shell" in given and not _is(given["shell"], False):
            found.append("shell")
        if called in ("load", "loads") and "torch" in ast.unparse(node.func):
            found += [] if _is(given.get("weights_only"), True) else ["torch.load"]
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            if module.split(".")[0] in PICKLERS and (name, module) not in ALLOWED:
                found.append(module)
    return found


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_text_or_a_shell_or_unpickles(path):
    assert offences(path.read_text(encoding="utf-8"), path.name) == []


def test_the_converter_only_names_the_error_of_pickle():
    tree = ast.parse((ROOT / "psssr_fast/convert.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    }
    assert used == {"UnpicklingError"}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "exec(x)", "os.system(x)", "os.popen(x)", "import pickle", "__import__(x)",
        "from joblib import load", "subprocess.run(x, shell=True)", "run(x, shell=y)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "pickle.Unpickler(x)",
        "code = compile(x, 'f', 'exec')", "marshal.loads(x)\nimport marshal",
    ],
)  # fmt: skip
def test_the_checker_sees(source):
    assert offences(source, "any.py")


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile(x)", "torch.load(x, weights_only=True)", "json.load(x)",
     "subprocess.run(x, shell=False)"],
)  # fmt: skip
def test_the_checker_lets_pass(source):
    assert offences(source, "any.py") == []


WATCHED = """
import sys

def watch(event, arguments):
    if event == "socket.connect" or (event == "socket.__new__" and arguments[1] != 1):  # AF_UNIX
        sys.stderr.write(f"CALLED HOME: {event}\\n")

sys.addaudithook(watch)
"""
UPSCALE = ["upscale", "clip.mp4", "-s", "1", "--progress", "none"]


def without_network(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where there is no network, and say which sockets it made anyway."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this system gives no network namespace")
    command = [unshare, "-rn", sys.executable, "-c", WATCHED + code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANGS_AFTER)


@pytest.mark.parametrize(
    "code",
    [
        "import psssr_fast; psssr_fast.Upscaler",
        "from psssr_fast.cli import main; main(['--help'])",
        "from psssr_fast.cli import main; sys.exit(main(['doctor']))",
        f"from psssr_fast.cli import main; sys.exit(main({UPSCALE}))",
    ],
    ids=["import", "help", "doctor", "upscale"],
)
def test_nothing_calls_home(tmp_path, code):
    write_video(tmp_path / "clip.mp4", 1, (32, 16))
    done = without_network(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CALLED HOME" not in done.stderr


def test_a_call_home_would_be_seen(tmp_path):
    done = without_network("import socket; socket.socket()", tmp_path)
    assert "CALLED HOME: socket.__new__" in done.stderr
