"""Every shipped launch compiles for the GPUs we name, without spills and with what it claims."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_only import SHARED_LIMIT, Case, Cubin

ROOT = Path(__file__).parents[1]
OPS = sorted(path.stem for path in (ROOT / "tests/cubins").glob("[a-z]*.py"))
CASES = [
    (op, case, arch)
    for op in OPS
    for case in importlib.import_module(f"cubins.{op}").CASES
    for arch in case.architectures
]
WIDE_LOAD = r"(LDG|LDGSTS)\.\S*128|UTMALDG"
WIDE_STORE = r"STG\.\S*128|UTMASTG|UBLKCP"


@pytest.fixture(scope="session")
def cubins(request) -> dict[tuple[str, str, int], list[Cubin]]:
    """What the compiler made of the launches that the selected tests are about."""
    selected = {
        item.callspec.params["op"]
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    }
    run = subprocess.run(
        [sys.executable, ROOT / "tests/compile_only.py", *sorted(selected)],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return {
        (op, name, arch): [Cubin(**cubin) for cubin in found]
        for op, name, arch, found in json.loads(run.stdout)
    }


def objections(case: Case, arch: int, cubin: Cubin) -> list[str]:
    """What a cubin lacks of what is claimed of it."""
    wrong = []
    if cubin.local:
        wrong.append(f"{cubin.local} bytes of stack or spilled registers a thread")
    if cubin.registers > case.registers or cubin.registers * cubin.threads > 65536:
        wrong.append(f"{cubin.registers} registers x {cubin.threads} threads")
    if cubin.shared > SHARED_LIMIT[arch]:
        wrong.append(f"{cubin.shared} bytes of shared memory")
    if case.wide and not (cubin.count(WIDE_LOAD) and cubin.count(WIDE_STORE)):
        wrong.append("no 128-bit loads, or no 128-bit stores")
    if case.tensor_cores and arch == 80 and not cubin.count("HMMA"):
        wrong.append("no HMMA")
    if case.tensor_cores and arch == 90 and (cubin.count("HMMA") or not cubin.count("HGMMA")):
        wrong.append("no HGMMA, or HMMA beside it")
    if case.tma and arch == 90 and not cubin.count("UTMALDG"):
        wrong.append("no TMA loads")
    return wrong


@pytest.mark.parametrize(
    ("op", "case", "arch"), CASES, ids=[f"{op}-{case.name}-sm_{arch}" for op, case, arch in CASES]
)
def test_launch_compiles_within_budget(cubins, op, case, arch):
    found = cubins[op, case.name, arch]
    assert len(found) == case.launches
    assert [objections(case, arch, cubin) for cubin in found] == [[]] * case.launches


def test_every_triton_kernel_has_cases():
    kernels = {path.stem for path in (ROOT / "kernels").glob("[a-z]*.py")}
    assert kernels == set(OPS)
