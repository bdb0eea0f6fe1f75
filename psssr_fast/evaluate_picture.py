"""The plot of an evaluation: one panel per metric, one line per result, over frames."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from psssr_fast.compare import Pixels
from psssr_fast.evaluate import TRUTH, Evaluation
from psssr_fast.metrics.catalogue import Metric

WIDTH, PANEL, MARGIN, GAP = 1600, 300, 40, 30
PLOT_LEFT, PLOT_TOP, PLOT_BOTTOM = 90, 40, 34
BACKGROUND, BRIGHT, DIM, GRID = (255, 255, 255), (32, 34, 38), (110, 113, 120), (226, 228, 232)
COLORS = (
    (127, 127, 127),
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (148, 103, 189),
    (214, 39, 40),
    (140, 86, 75),
    (23, 190, 207),
)
TICKS = 4  # about
Box = tuple[int, int, int, int]


def draw_evaluation(evaluation: Evaluation) -> Pixels:
    """Draw every metric over the frames, two panels a row, uint8 ``[height, 1600, 3]``."""
    panels = [metric for metric in evaluation.metrics if _lines(evaluation, metric)]
    rows = math.ceil(len(panels) / 2)
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + 40 + rows * (PANEL + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_legend(draw, evaluation)
    width = (WIDTH - 2 * MARGIN - GAP) // 2
    for index, metric in enumerate(panels):
        row, column = divmod(index, 2)
        left, top = MARGIN + column * (width + GAP), MARGIN + 40 + row * (PANEL + GAP)
        _draw_panel(draw, (left, top, left + width, top + PANEL), evaluation, metric)
    return np.asarray(image)


def _color(evaluation: Evaluation, column: str) -> tuple[int, int, int]:
    if column == TRUTH:
        return BRIGHT
    return COLORS[evaluation.columns.index(column) % len(COLORS)]


def _lines(evaluation: Evaluation, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """What can be drawn: columns with a finite value."""
    found = {name: evaluation.values.get((metric.name, name)) for name in evaluation.columns}
    return {
        name: values
        for name, values in found.items()
        if values is not None and np.isfinite(values).any()
    }


def _draw_legend(draw: ImageDraw.ImageDraw, evaluation: Evaluation) -> None:
    font, x = ImageFont.load_default(20), MARGIN
    for column in evaluation.columns:
        draw.line((x, MARGIN + 12, x + 34, MARGIN + 12), _color(evaluation, column), 4)
        draw.text((x + 44, MARGIN), column, BRIGHT, font)
        x += 44 + round(font.getlength(column)) + 36


def _draw_panel(
    draw: ImageDraw.ImageDraw, box: Box, evaluation: Evaluation, metric: Metric
) -> None:
    lines = _lines(evaluation, metric)
    inner = (box[0] + PLOT_LEFT, box[1] + PLOT_TOP, box[2], box[3] - PLOT_BOTTOM)
    better = {True: "higher is better", False: "lower is better", None: "the truth's is best"}
    title = f"{metric.title} ({better[metric.higher]})"
    draw.text((inner[0], box[1] + 4), title, BRIGHT, ImageFont.load_default(20))
    values = np.concatenate(list(lines.values()))
    ticks = nice_ticks(values[np.isfinite(values)])
    small, last = ImageFont.load_default(15), max(1, evaluation.frames - 1)
    for tick in ticks:
        y = _scaled(tick, (ticks[0], ticks[-1]), (inner[3], inner[1]))
        draw.line((inner[0], y, inner[2], y), GRID, 1)
        draw.text((inner[0] - 10, y), f"{tick:.6g}", DIM, small, anchor="rm")
    for frame in {0, last // 2, last}:
        x = _scaled(frame, (0, last), (inner[0], inner[2]))
        draw.text((x, inner[3] + 8), str(frame), DIM, small, anchor="ma")
    for column, series in lines.items():
        points = [
            (
                _scaled(frame, (0, last), (inner[0], inner[2])),
                _scaled(value, (ticks[0], ticks[-1]), (inner[3], inner[1])),
            )
            for frame, value in enumerate(series.tolist())
            if math.isfinite(value)
        ]
        for point in points if len(points) == 1 else ():
            draw.circle(point, 4, _color(evaluation, column))
        for a, b in pairwise(points):
            draw.line((*a, *b), _color(evaluation, column), 3)


def _scaled(value: float, span: tuple[float, float], place: tuple[int, int]) -> float:
    return place[0] + (value - span[0]) / (span[1] - span[0]) * (place[1] - place[0])


def nice_ticks(values: NDArray[np.float64]) -> list[float]:
    """Round numbers, evenly spaced, from below the least value to above the greatest."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]
