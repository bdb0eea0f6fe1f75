"""What a run shows of itself: a line for each step, a plot of its losses, strips of samples."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from psssr_fast.errors import OutputError
from psssr_fast.files import appended, make_folders, whole_file

LOG = "log.jsonl"
PANEL = (420, 180)  # width and height of the plot of one loss
SMOOTH = 20  # steps that a plotted mean is over
_LINE, _RAW, _GRID, _TEXT = (20, 70, 160), (190, 205, 230), (225, 225, 225), (40, 40, 40)


def append_line(folder: Path, values: dict[str, Any]) -> None:
    """Add a line to the log.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with appended(folder / LOG) as log:
            log.write(f"{json.dumps(values)}\n".encode())
    except OSError as error:
        raise OutputError(f"{folder / LOG}: cannot be written: {error.strerror}") from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines that are whole: a process that was killed may have left half of one."""
    path, lines = folder / LOG, []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if _is_whole(line):
                lines.append(line)
    return lines


def _is_whole(line: Any) -> bool:
    """Whether a line has what every line of a log has."""
    if not isinstance(line, dict):
        return False
    numbers = all(type(line.get(name)) is int for name in ("order", "step"))
    return numbers and isinstance(line.get("stage"), str)


def cut_log(folder: Path, order: int) -> None:
    """Forget what was logged after a step of the whole run: it will be done again."""
    kept = [line for line in read_log(folder) if line["order"] <= order]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    with whole_file(folder / LOG, replace=True) as file:
        file.write(text.encode())


def plot(folder: Path) -> Path | None:
    """Draw every loss and metric of the log over steps into ``plot.png``, a column a stage."""
    lines = read_log(folder)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    series: dict[str, dict[str, list[tuple[int, float]]]] = {stage: {} for stage in stages}
    for line in lines:
        for name, value in {**line["losses"], **line.get("metrics", {})}.items():
            series[line["stage"]].setdefault(name, []).append((line["step"], value))
    rows = max((len(curves) for curves in series.values()), default=0)
    if not rows:
        return None
    width, height = PANEL
    sheet = Image.new("RGB", (width * len(stages), height * rows), "white")
    for column, stage in enumerate(stages):
        for row, (name, curve) in enumerate(sorted(series[stage].items())):
            sheet.paste(_panel(f"{stage}: {name}", curve), (column * width, row * height))
    path = folder / "plot.png"
    _save(sheet, path)
    return path


def _save(picture: Image.Image, path: Path) -> None:
    try:
        with whole_file(path, replace=True) as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None


def _panel(title: str, curve: Sequence[tuple[int, float]]) -> Image.Image:
    image = Image.new("RGB", PANEL, "white")
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 58, 22, PANEL[0] - 10, PANEL[1] - 20
    steps, values = np.array([c[0] for c in curve]), np.array([c[1] for c in curve])
    span = SMOOTH if len(values) > SMOOTH else 1  # metrics come seldom, and are no noise
    mean = np.array([values[max(0, i - span + 1) : i + 1].mean() for i in range(len(values))])
    low, high = float(values.min()), float(values.max())
    reach = high - low or 1.0

    def points(heights: np.ndarray) -> list[tuple[float, float]]:
        x = left + (right - left) * (steps - steps[0]) / max(1, steps[-1] - steps[0])
        y = bottom - (bottom - top) * (heights - low) / reach
        return list(zip(x.tolist(), y.tolist(), strict=True))

    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        pen.line([(left, y), (right, y)], fill=_GRID)
        pen.text((4, y - 6), f"{low + reach * share:.4g}", fill=_TEXT)
    if len(curve) > 1:
        pen.line(points(values), fill=_RAW)
        pen.line(points(mean), fill=_LINE, width=2)
    pen.text((left, 5), title, fill=_TEXT)
    pen.text((left, bottom + 4), f"step {steps[0]} to {steps[-1]}", fill=_TEXT)
    return image


def psnr(picture: Tensor, truth: Tensor) -> float:
    """In dB, of clips in [-1, 1], over all of their pixels."""
    error = (picture.clamp(-1, 1) - truth).double().square().mean() / 4
    return float(-10 * torch.log10(error.clamp(min=1e-12)))


def save_strip(path: Path, columns: dict[str, Tensor]) -> None:
    """Write a picture with one row for each clip (its middle frame) and named columns.

    Args:
        path: of the PNG.
        columns: ``[batch, 3, frames, height, width]`` in [-1, 1] each.
    """
    cells = []
    for clips in columns.values():
        middle = clips[:, :, clips.shape[2] // 2].clamp(-1, 1).float().cpu()
        cells.append(torch.cat(list(middle), dim=1))
    pixels = torch.cat(cells, dim=2).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    picture = Image.fromarray(pixels.contiguous().numpy())
    sheet = Image.new("RGB", (picture.width, picture.height + 14), "white")
    sheet.paste(picture, (0, 14))
    pen, width = ImageDraw.Draw(sheet), picture.width // len(columns)
    for index, name in enumerate(columns):
        pen.text((index * width + 3, 1), name, fill=_TEXT)
    make_folders(path.parent)
    _save(sheet, path)
