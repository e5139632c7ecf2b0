"""Maps of verdicts laid over their pictures, one by one and all on a sheet."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from converters.dataset import Image
from toolkit.classify.data import letterbox
from toolkit.classify.look.charts import new_figure, write_figure
from toolkit.images import RgbImage
from toolkit.report.panels import TRUTH, Shape, draw_detail

SIDE = 320
"""Longer side of a picture on its strip, in pixels."""

COLUMNS = 4
"""Strips beside one another on a sheet."""

_GAP = 8
"""White pixels between the two pictures of a strip."""

_LYING = 1.5
"""Times that a picture is wider than high from which its map is below it, not beside it."""

_OPACITY = 0.65
"""Of the map where it is strongest."""

_RIGHT, _WRONG = "#202020", "#B04500"
"""Colours of the titles of right and wrong verdicts."""


def file_name(number: int, truth: str, verdict: str, probability: float) -> str:
    """Name of a strip's file: its rank, and what was called what, how surely."""
    plain = [re.sub(r"[^\w-]+", "-", name) for name in (truth, verdict)]
    return f"{number:02d}_{plain[0]}_called_{plain[1]}_{probability:.2f}.png"


def draw_strip(pixels: RgbImage, image: Image, heat: npt.NDArray[np.float32]) -> RgbImage:
    """A picture with its true defects outlined, and the same one with a map over it.

    Args:
        pixels: the picture, of any size.
        image: what is known of it.
        heat: map over the letterboxed picture, shape (side, side), 0 or more.
    """
    height, width = pixels.shape[:2]
    window = (0, 0, width, height)
    shapes = [
        Shape(each.box, None if each.mask is None else each.to_mask(image.height, image.width))
        for each in image.instances
    ]
    outlined = draw_detail(pixels, window, shapes, TRUTH, None, SIDE)
    mapped = overlay(draw_detail(pixels, window, (), TRUTH, None, SIDE), heat)
    if width > _LYING * height:
        gap = np.full((_GAP, outlined.shape[1], 3), 255, np.uint8)
        return np.vstack([outlined, gap, mapped])
    gap = np.full((outlined.shape[0], _GAP, 3), 255, np.uint8)
    return np.hstack([outlined, gap, mapped])


def overlay(pixels: RgbImage, heat: npt.NDArray[np.float32]) -> RgbImage:
    """A map over a picture: the stronger, the brighter and the less transparent.

    Args:
        pixels: the picture.
        heat: map over the letterboxed picture, shape (side, side), 0 or more.
    """
    height, width = pixels.shape[:2]
    shown = letterbox(np.full((height, width, 3), 255, np.uint8), len(heat), (0, 0, 0))[..., 0] > 0
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    part = heat[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    smooth = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    strength = np.asarray(smooth / max(float(part.max()), 1e-12), np.float32)
    colour = cv2.applyColorMap((255 * strength).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = _OPACITY * np.sqrt(strength)
    mixed = pixels * (1 - opacity) + colour[..., ::-1] * opacity
    return np.asarray(mixed.round(), np.uint8)


def write_sheet(
    path: Path, strips: Sequence[RgbImage], titles: Sequence[tuple[str, bool]], caption: str
) -> None:
    """All strips on one sheet, and what they show.

    Args:
        path: of the PNG.
        strips: in order, at least one.
        titles: of each, and whether its verdict is right.
        caption: below the heading.
    """
    rows = -(-len(strips) // COLUMNS)
    lines = textwrap.wrap(caption, 175)
    tallest = max(strip.shape[0] / strip.shape[1] for strip in strips)
    width, above = 13.0, 0.55 + 0.2 * len(lines)
    each = min(width / COLUMNS * tallest, 3.0) + 0.35
    height = above + rows * each
    figure = new_figure(width, height)
    figure.text(0.01, 1 - 0.3 / height, "Where verdicts come from", fontsize=14, weight="bold")
    figure.text(0.01, 1 - 0.4 / height, "\n".join(lines), fontsize=9.5, va="top")
    for number, (strip, (title, right)) in enumerate(zip(strips, titles, strict=True)):
        row, column = divmod(number, COLUMNS)
        bottom = 1 - (above + (row + 1) * each) / height
        place = ((column + 0.03) / COLUMNS, bottom, 0.94 / COLUMNS, (each - 0.35) / height)
        axes = figure.add_axes(place)
        axes.imshow(strip)
        axes.set_anchor("N")
        axes.axis("off")
        axes.set_title(title, fontsize=9, color=_RIGHT if right else _WRONG, pad=3)
    write_figure(path, figure)
