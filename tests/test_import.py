"""Importing defines names and does nothing else."""

import subprocess
import sys

import pytest

import psssr_fast

NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} at import")

sys.addaudithook(refuse)
"""

EVERY_MODULE = """
import importlib, pkgutil
import psssr_fast

names = [module.name for module in pkgutil.walk_packages(psssr_fast.__path__, "psssr_fast.")]
names = [n for n in names if not n.startswith("psssr_fast.kernels.") and "__main__" not in n]
for name in names:
    importlib.import_module(name)

import torch
assert not torch.cuda.is_initialized()
print(len(names))
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_the_package_loads_neither_torch_nor_numpy():
    done = python(
        "import sys, psssr_fast\n"
        "print([m for m in ('torch', 'numpy', 'av', 'rich', 'typer') if m in sys.modules])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_importing_the_package_takes_less_than_300_milliseconds_of_a_processor():
    code = "import time; t = time.process_time(); import psssr_fast; print(time.process_time() - t)"
    assert min(float(python(code).stdout) for _ in range(3)) < 0.3


def test_no_module_opens_a_socket_or_a_driver_at_import():
    done = python(NO_NETWORK + EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_the_guard_against_sockets_sees_one():
    done = python(NO_NETWORK + "import socket; socket.socket()")
    assert "socket.__new__ at import" in done.stderr


def test_the_upscaler_is_loaded_when_it_is_first_touched():
    done = python(
        "import sys, psssr_fast\n"
        "assert 'Upscaler' in psssr_fast.__all__\n"
        "assert 'psssr_fast.upscaler' not in sys.modules\n"
        "print(psssr_fast.Upscaler.__module__, 'torch' in sys.modules)"
    )
    assert done.stdout.split() == ["psssr_fast.upscaler", "True"], done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'psssr_fast' has no attribute 'nothing'"):
        _ = psssr_fast.nothing
