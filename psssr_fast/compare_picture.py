"""The picture of a comparison: whole frames, magnified crops, temporal profiles, with labels."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from psssr_fast.compare import Comparison, Crop, Pixels, Side
from psssr_fast.errors import OutputError, UsageError
from psssr_fast.files import whole_file

WIDTH = 1920
MARGIN, GAP, PAIR_GAP = 40, 32, 5
COLUMN = (WIDTH - 2 * MARGIN - GAP) // 2
TILE = (WIDTH - 2 * MARGIN - 2 * GAP - 3 * PAIR_GAP) // 6  # three pairs beside each other
FRAME_HEIGHT = 620  # at most, of a whole frame
PROFILE_HEIGHT = 240  # about, of a temporal profile
PROFILE_ZOOM = 2  # of its pixels, horizontally

BACKGROUND, BRIGHT, DIM = (24, 25, 28), (236, 237, 240), (150, 153, 160)
ACCENTS = ((255, 180, 84), (89, 194, 255), (170, 217, 76), (242, 151, 225))
ROW_COLOR, SHADOW = (255, 255, 255), (0, 0, 0)


def draw_comparison(comparison: Comparison) -> Pixels:
    """Draw a comparison as one picture, uint8 ``[height, 1920, 3]``.

    Left is before, right is after. From the top: the whole frames with the crops marked, the crops
    magnified by repeating pixels, and one row of pixels over time, which shows flicker as texture
    and steady detail as vertical lines.
    """
    sheet = _Sheet(Image.new("RGB", (WIDTH, 16384), BACKGROUND), MARGIN)
    _draw_titles(sheet, comparison)
    _draw_frames(sheet, comparison)
    _draw_crops(sheet, comparison)
    _draw_profiles(sheet, comparison)
    _draw_footer(sheet, comparison)
    return np.asarray(sheet.image.crop((0, 0, WIDTH, sheet.y + MARGIN - GAP)))


def save_picture(path: str | Path, picture: Pixels, overwrite: bool = False) -> None:
    """Write a picture as PNG; it appears under its name only when it is complete.

    Raises:
        UsageError: the name does not end in ``.png``.
        OutputError: it exists already, or cannot be written.
    """
    path = Path(path)
    check_picture_path(path, overwrite)
    try:
        with whole_file(path, overwrite) as file:
            Image.fromarray(picture).save(file, format="PNG")
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_picture_path(path: Path, overwrite: bool) -> None:
    """Find out before any work whether :func:`save_picture` would refuse the name.

    Raises:
        UsageError, OutputError: as :func:`save_picture`.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: the picture is written as PNG; end its name with .png")
    if os.path.exists(path) and not overwrite:
        raise _exists(path)
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path}: there is no folder {path.parent}. Make it first.")


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path}: exists already. Pass --overwrite or choose another name.")


@dataclass
class _Sheet:
    """A long sheet that is filled from the top; ``y`` is where the next thing goes."""

    image: Image.Image
    y: int

    def text(
        self, x: int, text: str, size: int, color: tuple[int, int, int] = DIM, width: int = WIDTH
    ) -> None:
        """Write one line at the height reached, cut to ``width`` pixels."""
        font = ImageFont.load_default(size)
        while font.getlength(text) > width and len(text) > 2:
            text = text[:-2].rstrip() + "…"
        ImageDraw.Draw(self.image).text((x, self.y), text, font=font, fill=color)

    def heading(self, title: str, note: str) -> None:
        """Begin a section."""
        self.text(MARGIN, title, 24, BRIGHT)
        offset = round(ImageFont.load_default(24).getlength(title)) + 16
        self.y += 5
        self.text(MARGIN + offset, note, 18, width=WIDTH - 2 * MARGIN - offset)
        self.y += 35


def _columns() -> tuple[int, int]:
    return MARGIN, MARGIN + COLUMN + GAP


def _draw_titles(sheet: _Sheet, comparison: Comparison) -> None:
    for x, side in zip(_columns(), (comparison.before, comparison.after), strict=True):
        top = sheet.y
        sheet.text(x, side.name, 34, BRIGHT, COLUMN)
        sheet.y += 46
        sheet.text(x, _describe(side), 18, width=COLUMN)
        sheet.y = top
    sheet.y += 82


def _describe(side: Side) -> str:
    height, width = side.frame.shape[:2]
    size = f"{side.path.name} · {side.width}x{side.height}"
    return f"{size}, enlarged to {width}x{height} (bicubic)" if side.enlarged else size


def _draw_frames(sheet: _Sheet, comparison: Comparison) -> None:
    height, width = comparison.before.frame.shape[:2]
    scale = min(COLUMN / width, FRAME_HEIGHT / height)
    if scale > 1:
        scale = math.floor(scale)
    shown = round(width * scale), round(height * scale)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for x, side in zip(_columns(), (comparison.before, comparison.after), strict=True):
        frame = Image.fromarray(side.frame).resize(shown, how)
        _mark(frame, comparison, scale)
        sheet.image.paste(frame, (x + (COLUMN - shown[0]) // 2, sheet.y))
    sheet.y += shown[1] + GAP


def _mark(frame: Image.Image, comparison: Comparison, scale: float) -> None:
    """Outline the crops, and the part of the row that the temporal profile shows."""
    draw = ImageDraw.Draw(frame)
    x, width = _profile_span(comparison)
    y = round((comparison.row + 0.5) * scale)
    draw.line((x * scale, y, (x + width) * scale, y), fill=SHADOW, width=4)
    draw.line((x * scale, y, (x + width) * scale, y), fill=ROW_COLOR, width=2)
    for number, crop in enumerate(comparison.crops):
        left, top = round(crop.x * scale), round(crop.y * scale)
        right, bottom = round((crop.x + crop.width) * scale), round((crop.y + crop.height) * scale)
        color = ACCENTS[number % len(ACCENTS)]
        draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=SHADOW, width=7)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=3)


def _draw_crops(sheet: _Sheet, comparison: Comparison) -> None:
    note = (
        f"of frame {comparison.frame}; left and right as above; pixels are repeated, not smoothed"
    )
    sheet.heading("Crops", note)
    for first in range(0, len(comparison.crops), 3):
        top, lowest = sheet.y, 0
        for place, crop in enumerate(comparison.crops[first : first + 3]):
            x = MARGIN + place * (2 * TILE + PAIR_GAP + GAP)
            color = ACCENTS[(first + place) % len(ACCENTS)]
            lowest = max(lowest, _draw_pair(sheet, comparison, crop, x, color))
            sheet.y = top
        sheet.y = lowest + GAP


def _draw_pair(
    sheet: _Sheet, comparison: Comparison, crop: Crop, x: int, color: tuple[int, int, int]
) -> int:
    """Draw one crop of both sides, framed in its colour; return where it ends."""
    scale = min(TILE / crop.width, TILE / crop.height)
    if scale > 1:
        scale = math.floor(scale)
    size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    bottom = sheet.y + size[1]
    right = x + 2 * size[0] + PAIR_GAP
    ImageDraw.Draw(sheet.image).rectangle((x - 3, sheet.y - 3, right + 2, bottom + 2), fill=color)
    places = (x, x + size[0] + PAIR_GAP)
    for left, side in zip(places, (comparison.before, comparison.after), strict=True):
        tile = Image.fromarray(np.ascontiguousarray(crop.of(side.frame))).resize(size, how)
        sheet.image.paste(tile, (left, sheet.y))
    sheet.y = bottom + 8
    label = f"{crop.width}x{crop.height} at x={crop.x}, y={crop.y}"
    sheet.text(x, f"{label}, {scale:.2g}x", 18, width=2 * TILE + PAIR_GAP)
    return bottom + 8 + 24


def _profile_span(comparison: Comparison) -> tuple[int, int]:
    """First pixel and number of pixels of the part of the row that is shown."""
    width = comparison.before.frame.shape[1]
    shown = min(width, COLUMN // PROFILE_ZOOM)
    return min(max(0, comparison.column - shown // 2), width - shown), shown


def _draw_profiles(sheet: _Sheet, comparison: Comparison) -> None:
    x, width = _profile_span(comparison)
    frames = len(comparison.before.profile)
    repeat = max(1, PROFILE_HEIGHT // frames)
    last = comparison.first_profile_frame + frames - 1
    sheet.heading(
        "Temporal profile",
        f"the white line, row {comparison.row}, x from {x} to {x + width - 1}; one strip a frame, "
        f"from frame {comparison.first_profile_frame} (top) to {last}",
    )
    zoom = max(1, COLUMN // width)
    shown = width * zoom, frames * repeat
    for left, side in zip(_columns(), (comparison.before, comparison.after), strict=True):
        part = np.ascontiguousarray(side.profile[:, x : x + width])
        strip = Image.fromarray(part).resize(shown, Image.Resampling.NEAREST)
        sheet.image.paste(strip, (left + (COLUMN - shown[0]) // 2, sheet.y))
    sheet.y += shown[1] + GAP // 2


def _draw_footer(sheet: _Sheet, comparison: Comparison) -> None:
    if comparison.psnr_luma is None or comparison.psnr_rgb is None:
        sheet.y += GAP // 2
        return
    sheet.text(
        MARGIN,
        f"PSNR between the two over {comparison.frames} frames: "
        f"luma {comparison.psnr_luma:.2f} dB, RGB {comparison.psnr_rgb:.2f} dB",
        18,
        width=WIDTH - 2 * MARGIN,
    )
    sheet.y += 24 + GAP
