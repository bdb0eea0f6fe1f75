"""Everything worth running on a GPU, in one call: ``python benchmarks/gpu_suite.py -o gpu.json``.

Four parts, each in a process of its own with a time limit, at most 8 minutes together:

1. ``tests``: correctness of every kernel on the device, in fp32, fp16 and bf16;
2. ``benchmarks``: every kernel beside its eager reference, as fractions of what the device copies
   and multiplies in the same run;
3. ``sweep``: the convolutions of the VAE and the attention of the transformer, each way there is;
4. ``stages``: the plain pipeline at full size.

The JSON is written anew after each part, so that a run that is cut short keeps what it measured.
``--small`` runs the last two at a size for any machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
OPS = sorted(path.stem for path in (ROOT / "kernels").glob("[a-z]*.py"))
KERNEL_TESTS = [f"tests/test_{op}.py" for op in OPS]


@dataclass(frozen=True)
class Part:
    """A command of the suite; ``{json}`` in it is where it writes its result, if it does."""

    name: str
    command: tuple[str, ...]
    seconds: int
    takes_small: bool = False


PYTEST = ("-m", "pytest", "-q")
PARTS = (
    Part("tests", (*PYTEST, *KERNEL_TESTS, "tests/test_attention.py"), 150),
    Part(
        "benchmarks",
        (*PYTEST, "benchmarks", "--benchmark-only", "--benchmark-json={json}"),
        130,
    ),
    Part("sweep", ("benchmarks/sweep.py", "-o", "{json}"), 75, takes_small=True),
    Part("stages", ("benchmarks/full_size.py", "-o", "{json}"), 110, takes_small=True),
)


def run_part(part: Part, small: bool) -> dict[str, Any]:
    """Run one part; how it ended, the end of what it printed, and the JSON it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [argument.format(json=path) for argument in part.command]
        command += ["--small"] * (small and part.takes_small)
        begin = time.monotonic()
        try:
            run = subprocess.run(
                [sys.executable, *command], cwd=ROOT, capture_output=True, text=True,
                timeout=part.seconds, check=False,
            )  # fmt: skip
            code, printed = run.returncode, run.stdout + run.stderr[-2000:]
        except subprocess.TimeoutExpired as error:
            code, printed = None, (error.stdout or b"").decode(errors="replace")
        return {
            "exit": code,  # null: it ran past its limit
            "seconds": round(time.monotonic() - begin, 1),
            "printed": printed[-6000:],
            "result": _reduced(json.loads(path.read_text())) if path.exists() else None,
        }


def _reduced(result: dict[str, Any]) -> dict[str, Any]:
    """Of pytest-benchmark's JSON, medians and rates only; anything else as it is."""
    if "benchmarks" not in result:
        return result
    return {
        row["name"]: {"ms": round(1e3 * row["stats"]["median"], 4), **row["extra_info"]}
        for row in result["benchmarks"]
    }


def markdown_rows(part: str, result: dict[str, Any]) -> list[str]:
    """Rows for RESULTS.md, one for each measurement of a part."""
    return [
        f"| {part} | {name} | " + ", ".join(f"{key} {value}" for key, value in row.items()) + " |"
        for name, row in result.items()
        if isinstance(row, dict)
    ]


def environment() -> dict[str, str]:
    """What the numbers were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    """Command line of the script; exits 1 if a part failed or ran past its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="last two parts only, reduced")
    parser.add_argument("--parts", default="", help="some of them, with commas between")
    arguments = parser.parse_args()
    chosen = [part for part in PARTS if part.takes_small or not arguments.small]
    if arguments.parts:
        chosen = [part for part in PARTS if part.name in arguments.parts.split(",")]
    result: dict[str, Any] = {"environment": environment()}
    for part in chosen:
        outcome = result[part.name] = run_part(part, arguments.small)
        arguments.output.write_text(json.dumps(result, indent=1))
        print(f"{part.name}: exit {outcome['exit']}, {outcome['seconds']} s", flush=True)
        print("\n".join(markdown_rows(part.name, outcome["result"] or {})), flush=True)
        if outcome["exit"] != 0:
            print(outcome["printed"], flush=True)
    sys.exit(any(result[part.name]["exit"] != 0 for part in chosen))


if __name__ == "__main__":
    main()
