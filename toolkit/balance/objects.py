"""Where the part is on a picture, without learning: what differs from the background at its rim."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from converters.dataset import BinaryMask
from converters.errors import InputError

Pixels = npt.NDArray[Any]
"""A picture as it is stored: uint8 or uint16, shape (height, width), with 3 channels or none."""

_RIM = 0.04
"""Width of the rim that shows the background, as a share of the shorter side."""

_LOOKED_AT = 256
"""Pixels of the longer side at which a part is found."""

_PURE = 0.9
"""Share of the rim that has to look alike before it is taken for background."""

_SHARES = (0.05, 0.95)
"""Least and most of the picture that a part covers; else the surface fills the picture."""

DIRECTED = 0.35
"""Median coherence of pictures from which their texture has a direction: brushed, rolled."""


def coherence(pixels: Pixels) -> float:
    """How much the texture of a picture runs one way: 0 not at all, 1 like parallel lines.

    The coherence of the structure tensor of the whole picture (Bigün & Granlund, "Optimal
    orientation detection of linear symmetry", ICCV 1987), shrunk to 256 pixels; the strongest tenth
    of the gradients counts as no stronger than the rest, so that edges of parts do not decide.
    """
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    shrink = min(1.0, _LOOKED_AT / max(grey.shape))
    small = cv2.resize(
        grey.astype(np.float32), None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA
    )
    across, down = (cv2.Sobel(small, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    strength = np.hypot(across, down)
    weight = np.minimum(1, np.quantile(strength, 0.9) / np.maximum(strength, 1e-6)) ** 2
    xx, yy, xy = (
        float((weight * first * second).mean())
        for first, second in ((across, across), (down, down), (across, down))
    )
    return float(np.hypot(xx - yy, 2 * xy) / max(1e-9, xx + yy))


def find_object(pixels: Pixels) -> BinaryMask:
    """The part on a picture, as a mask of its size; all of it where no background is seen.

    Two kinds of pixels are told apart by Otsu's threshold in the colour channel that separates them
    best. Where nearly all of the rim is of one kind, that is the background, and the part is what
    remains, its holes filled. Large pictures are looked at shrunk to 256 pixels.
    """
    size = pixels.shape[1], pixels.shape[0]
    shrink = _LOOKED_AT / max(size)
    if shrink < 1:
        small = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
        part = _find(np.asarray(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)))
        part = cv2.resize(part.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        return np.asarray(part)
    return _find(pixels)


def _find(pixels: Pixels) -> BinaryMask:
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width = planes.shape[:2]
    whole = np.ones((height, width), np.bool_)
    rim = np.ones((height, width), np.bool_)
    margin = max(1, round(_RIM * min(height, width)))
    rim[margin:-margin, margin:-margin] = False
    best: tuple[float, BinaryMask] | None = None
    for channel in range(min(3, planes.shape[2])):
        plane = cv2.GaussianBlur(_to_bytes(planes[..., channel]), (0, 0), max(1.0, margin / 3))
        level, _ = cv2.threshold(plane, 0, 255, cv2.THRESH_OTSU)
        bright = plane > level
        share = float(bright.mean())
        if not _SHARES[0] <= share <= _SHARES[1]:
            continue
        gap = float(plane[bright].mean()) - float(plane[~bright].mean())
        spread = float(np.hypot(plane[bright].std(), plane[~bright].std())) + 1
        if best is None or gap / spread > best[0]:
            best = gap / spread, bright
    if best is None or best[0] < 2:
        return whole
    on_rim = float(best[1][rim].mean())
    if 1 - _PURE < on_rim < _PURE:
        return whole
    part = ~best[1] if on_rim >= _PURE else best[1]
    outlines, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros((height, width), np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled.astype(np.bool_)


@dataclass(frozen=True)
class Parts:
    """Where the parts of a product are on its pictures.

    Attributes:
        given: folder of masks; None where they are found.
        fills: whether the surface fills most pictures of good parts, so that there is nothing to
            find. A defect is not taken for the part then.
    """

    given: Path | None
    fills: bool

    def on(self, pixels: Pixels, file_name: str) -> BinaryMask:
        """The part on a picture.

        Raises:
            InputError: as of ``read_object``.
        """
        height, width = pixels.shape[:2]
        if self.given is not None:
            return read_object(self.given, file_name, height, width)
        return np.ones((height, width), np.bool_) if self.fills else find_object(pixels)


def read_object(folder: Path, file_name: str, height: int, width: int) -> BinaryMask:
    """The mask of a part that was given: a PNG of the picture's name and size, not 0 on the part.

    Raises:
        InputError: it is missing, no picture, or of another size.
    """
    path = folder / Path(file_name).with_suffix(".png")
    content = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    mask = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if content.size else None
    if mask is None:
        raise InputError(f"{path}: no mask of the part on {file_name}: add it, or leave it to us")
    if mask.shape != (height, width):
        raise InputError(
            f"{path}: is {mask.shape[1]}x{mask.shape[0]}, the picture {width}x{height}: "
            "make it of the picture's size"
        )
    return np.asarray(mask > 0)


def _to_bytes(plane: Pixels) -> npt.NDArray[np.uint8]:
    return (plane >> 8).astype(np.uint8) if plane.dtype == np.uint16 else plane.astype(np.uint8)
