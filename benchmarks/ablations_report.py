"""The page and the plot of ``ablations.py``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from psssr_fast.evaluate import BICUBIC, TRUTH
from psssr_fast.evaluate_picture import nice_ticks

TITLES = {
    "psnr-y": ("PSNR-Y, dB", 3),
    "ssim-y": ("SSIM-Y", 4),
    "lpips-alex": ("LPIPS-Alex", 4),
    "niqe": ("NIQE", 3),
    "ewarp": ("E*warp / truth's", 3),
    "tof": ("tOF, px", 4),
    "drift": ("LF drift, levels", 3),
}
MOST_LOST, MOST_DRIFT = 0.4, 0.5  # dB, 8-bit levels rms: what the update is meant to keep to
PLOTTED = ("psnr-y", "lpips-alex", "niqe", "drift", "ssim-y", "tof")
PANELS = 4  # a row
PANEL, MARGIN = (400, 300), 24
INNER = (74, 44, 14, 46)  # of a panel, left, top, right and bottom of its axes
TEXT, DIM, GRID = (32, 34, 38), (110, 113, 120), (226, 228, 232)
WITH, WITHOUT = (31, 119, 180), (214, 39, 40)

Points = Sequence[tuple[float, float]]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Findings:
    """What was measured.

    Attributes:
        model: its name.
        clips: frames measured, by clip.
        variants: models trained otherwise, by name.
        alphas: strengths measured, without 0 and 1.
        rows: mean of every metric by row; ``step N`` is N steps, ``raw N`` without the update,
            ``loop N`` with one after each, ``lerp A`` and ``literal A`` all steps at another
            strength.
    """

    model: str
    clips: Mapping[str, int]
    variants: tuple[str, ...]
    alphas: tuple[float, ...]
    rows: Mapping[str, Mapping[str, float]]

    @property
    def steps(self) -> int:
        """How many the model has."""
        return sum(name.startswith("step ") for name in self.rows)

    @property
    def metrics(self) -> list[str]:
        """Those that were measured."""
        last = self.rows[f"step {self.steps}"]
        return [name for name in TITLES if name in last]

    def curve(self, metric: str, names: Mapping[float, str]) -> list[tuple[float, float]]:
        """A metric over rows, those that have it."""
        rows = {x: self.rows[name] for x, name in names.items() if name in self.rows}
        return [(x, row[metric]) for x, row in rows.items() if metric in row]

    def over_alpha(self, reading: str) -> dict[float, str]:
        """Rows of a reading by strength; 0 is the base alone, if the reading is ``"lerp"``."""
        zero = {0.0: "step 1"} if reading == "lerp" else {}
        between = {alpha: f"{reading} {alpha}" for alpha in self.alphas}
        return {**zero, **between, 1.0: f"step {self.steps}"}

    def over_steps(self, kind: str) -> dict[float, str]:
        """Rows by number of steps, ``kind`` being ``"step"``, ``"loop"`` or ``"raw"``."""
        return {1: "step 1", **{count: f"{kind} {count}" for count in range(2, self.steps + 1)}}


def document(found: Findings) -> str:
    """The page, in Markdown."""
    full = f"step {found.steps}"
    clips = ", ".join(f"{name} ({frames})" for name, frames in found.clips.items())
    steps = [(f"T = {n}", name) for n, name in found.over_steps("step").items()]
    loop = [(f"T = {n}, iterated", name) for n, name in found.over_steps("loop").items()][1:]
    bare = [(f"T = {n}, without FDU", name) for n, name in found.over_steps("raw").items()][1:]
    lerp = [(f"alpha = {alpha:g}", name) for alpha, name in found.over_alpha("lerp").items()]
    literal = [(f"alpha = {alpha:g}", name) for alpha, name in found.over_alpha("literal").items()]
    ours = [("all of it", full), ("w/o FDU", f"raw {found.steps}")]
    trained = [(f"w/o {name}", f"variant {name}") for name in found.variants]
    quick = [name for name in found.metrics if name in found.rows[literal[0][1]]]
    ends = [("bicubic", BICUBIC), ("the truth's own", TRUTH)]
    parts = (
        f"# Ablations of `{found.model}`",
        "Made by `python benchmarks/ablations.py CLIP... --weights DIR -o docs --overwrite`. x4 "
        f"from bicubic reductions; means of the clips' means. Clips (frames): {clips}. The tables "
        "are numbered as in the paper, whose numbers are of another model on other clips. FDU is "
        "the frequency-domain update; low-frequency drift is against the base step's picture.",
        "![quality over steps and over strength](ablations.png)",
        "## What should hold",
        _claims(found),
        "## Table 3: without one part",
        _table(found, found.metrics, [*ours, *trained, *ends]),
        _about_training(found),
        "## Table 5: number of diffusion steps",
        "One update, with the last step's picture, as the release does; iterated: one after each "
        "step, at alpha 0.6, as the paper does. T = 1 is the base alone.",
        _table(found, found.metrics, [*steps, *loop, *bare]),
        "## Table 7: strength of the update",
        f"All {found.steps} steps; Y' = Y + alpha w (H_draft - H_base), updated once. The last row "
        "is the paper's loop, which updates after every draft step.",
        _table(found, found.metrics, [*lerp, ("alpha = 0.6, iterated", f"loop {found.steps}")]),
        "Equation 14 read literally, Y' = L + alpha (w H_draft + (1 - w) H_base), which below 1 "
        "takes high frequencies away; at 1 both readings are the same. The paper's own Table 7, "
        "continued to alpha = 0, meets its base alone (T = 1 of Table 5), as the first reading "
        "does; so that one is what the profile `paper` runs.",
        _table(found, quick, literal),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _about_training(found: Findings) -> str:
    if found.variants:
        return ""
    return (
        "The paper's other rows leave out a loss. They need models that were trained without it: "
        "`--variant NAME=BUNDLE`."
    )


def _table(found: Findings, metrics: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| | {' | '.join(TITLES[name][0] for name in metrics)} |"]
    lines.append(f"|{'---|' * (len(metrics) + 1)}")
    for title, name in rows:
        cells = (_cell(found, name, metric) for metric in metrics)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Findings, row: str, metric: str) -> str:
    value = found.rows[row].get(metric)
    return "" if value is None else f"{value:.{TITLES[metric][1]}f}"


def _claims(found: Findings) -> str:
    """What the paper shows or the update is meant to do, and whether this model does it."""
    names = ("step 1", f"step {found.steps}", f"raw {found.steps}")
    one, full, bare = (found.rows[name] for name in names)
    lost, lost_bare = (one["psnr-y"] - row["psnr-y"] for row in (full, bare))
    curve = [value for _, value in found.curve("psnr-y", found.over_steps("step"))]
    claims = [
        ("the base alone has the best PSNR-Y", _listed(curve, 3), max(curve) == curve[0]),
        (f"the drafts cost at most {MOST_LOST} dB of it", f"{lost:.3f} dB", lost <= MOST_LOST),
        ("without FDU they cost more", f"{lost_bare:.3f} dB", lost_bare > lost),
        (
            f"low frequencies drift by at most {MOST_DRIFT} levels rms",
            f"{full['drift']:.3f}",
            full["drift"] <= MOST_DRIFT,
        ),
        ("without FDU by more", f"{bare['drift']:.3f}", bare["drift"] > full["drift"]),
    ]
    for kind, way in (("loop", "an update after each"), ("step", "one update")):
        niqe = [value for _, value in found.curve("niqe", found.over_steps(kind))]
        if niqe:
            falling = all(a > b for a, b in pairwise(niqe))
            claims.append((f"every added step lowers NIQE ({way})", _listed(niqe, 3), falling))
    if "lpips-alex" in full:
        two = [one["lpips-alex"], full["lpips-alex"]]
        claims.append(
            ("LPIPS of all steps is at most the base's", _listed(two, 4), two[1] <= two[0])
        )
    rows = (f"| {claim} | {value} | {'yes' if holds else 'no'} |" for claim, value, holds in claims)
    return "\n".join(["| | measured | holds |", "|---|---|---|", *rows])


def _listed(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def plot(found: Findings) -> NDArray[np.uint8]:
    """Quality over steps (first row, with and without update) and over strength (second row)."""
    metrics = [name for name in PLOTTED if name in found.metrics][:PANELS]
    rows = (
        ("diffusion steps", {WITH: found.over_steps("step"), WITHOUT: found.over_steps("raw")}),
        ("alpha", {WITH: found.over_alpha("lerp")}),
    )
    width, height = PANEL
    size = (2 * MARGIN + width * len(metrics), 2 * MARGIN + 30 + height * len(rows))
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(18)
    for x, color, name in ((MARGIN, WITH, "with FDU"), (MARGIN + 170, WITHOUT, "without FDU")):
        pen.line((x, MARGIN + 10, x + 34, MARGIN + 10), color, 4)
        pen.text((x + 44, MARGIN), name, TEXT, font)
    for down, (axis, lines) in enumerate(rows):
        for across, metric in enumerate(metrics):
            left, top = MARGIN + across * width, MARGIN + 30 + down * height
            curves = {color: found.curve(metric, names) for color, names in lines.items()}
            _draw_panel(pen, (left, top, left + width, top + height), metric, axis, curves)
    return np.asarray(image)


def _draw_panel(
    pen: ImageDraw.ImageDraw,
    box: Box,
    metric: str,
    axis: str,
    curves: Mapping[tuple[int, int, int], Points],
) -> None:
    left, top = box[0] + INNER[0], box[1] + INNER[1]
    right, bottom = box[2] - INNER[2], box[3] - INNER[3]
    small = ImageFont.load_default(15)
    pen.text((left, box[1] + 16), TITLES[metric][0], TEXT, ImageFont.load_default(18))
    places = sorted({x for curve in curves.values() for x, _ in curve})
    ticks = nice_ticks(np.array([y for curve in curves.values() for _, y in curve]))

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - places[0]) / ((places[-1] - places[0]) or 1)
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return left + along * (right - left), bottom - up * (bottom - top)

    for tick in ticks:
        y = place(places[0], tick)[1]
        pen.line((left, y, right, y), GRID, 1)
        pen.text((left - 8, y), f"{tick:.6g}", DIM, small, anchor="rm")
    for x in places:
        pen.text((place(x, ticks[0])[0], bottom + 6), f"{x:g}", DIM, small, anchor="ma")
    pen.text(((left + right) / 2, bottom + 24), axis, DIM, small, anchor="ma")
    for color, curve in curves.items():
        points = [place(x, y) for x, y in curve]
        pen.line([value for point in points for value in point], color, 3)
        for point in points:
            pen.circle(point, 4, color)
