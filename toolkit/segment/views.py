"""What the encoder is shown of an image: all of it, or a window, possibly mirrored and turned.

SAM's own way is one view of the whole image for all of its boxes. Two things ask for windows: a
small model outlines a small defect far better when it fills the input, and a few hundred pictures
are few for an encoder that learns, so it is shown their defects in other places, sizes and
orientations. Metal has no upright direction: all eight orientations are as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from converters.dataset import Box
from converters.geometry import Region
from toolkit.images import RgbImage

SMALLEST_ZOOM_WINDOW = 24
"""Least side, in pixels of the image, of a window around a box: less has no context."""

ZOOM_JITTER = 1.25
"""In training, zoomed windows are up to this factor wider or narrower."""

SMALLEST_WINDOW = 0.35
"""Least share of the image's height and width that a random window shows."""

WHOLE_IMAGE = 0.3
"""Share of the random windows that show the whole image, as prediction does."""

P = TypeVar("P", bound=np.generic)


@dataclass(frozen=True)
class View:
    """A window, then mirrored left to right, flipped upside down, and transposed.

    Attributes:
        x, y, width, height: the window in pixels of the image, inside it.
        mirrored, flipped, transposed: applied in this order.
    """

    x: int
    y: int
    width: int
    height: int
    mirrored: bool = False
    flipped: bool = False
    transposed: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is seen."""
        return (self.width, self.height) if self.transposed else (self.height, self.width)

    def image(self, image: RgbImage) -> RgbImage:
        """What is seen of an image."""
        return self._turn(image[self.y : self.y + self.height, self.x : self.x + self.width])

    def box(self, box: Box) -> Box:
        """Where the part of a box that lies in the window is seen."""
        x, y, w, h = box
        left, right = (min(max(edge - self.x, 0), self.width) for edge in (x, x + w))
        top, bottom = (min(max(edge - self.y, 0), self.height) for edge in (y, y + h))
        if self.mirrored:
            left, right = self.width - right, self.width - left
        if self.flipped:
            top, bottom = self.height - bottom, self.height - top
        if self.transposed:
            return top, left, bottom - top, right - left
        return left, top, right - left, bottom - top

    def region(self, region: Region) -> Region:
        """Where the part of a region that lies in the window is seen; its box may be loose."""
        (x, y, w, h), crop = region
        left, top = max(int(x), self.x), max(int(y), self.y)
        right = max(left, min(int(x + w), self.x + self.width))
        bottom = max(top, min(int(y + h), self.y + self.height))
        seen = crop[top - int(y) : bottom - int(y), left - int(x) : right - int(x)]
        return self.box((left, top, right - left, bottom - top)), self._turn(seen)

    def _turn(self, pixels: npt.NDArray[P]) -> npt.NDArray[P]:
        if self.mirrored:
            pixels = pixels[:, ::-1]
        if self.flipped:
            pixels = pixels[::-1]
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels)


def views_of(
    boxes: Sequence[Box], height: int, width: int, zoom: float | None
) -> tuple[list[View], list[int]]:
    """What must be encoded of an image to outline what is in its boxes.

    Args:
        boxes: ``(x, y, width, height)`` in pixels of the image.
        height: of the image.
        width: of the image.
        zoom: side of the window around each box, in longer sides of the box; None for one view of
            the whole image.

    Returns:
        the views, and for each box the index of its view.
    """
    if zoom is None:
        return [View(0, 0, width, height)], [0] * len(boxes)
    return [zoomed_view(box, height, width, zoom) for box in boxes], list(range(len(boxes)))


def zoomed_view(box: Box, height: int, width: int, zoom: float) -> View:
    """The square window around a box, cut off at the border of the image."""
    x, y, w, h = box
    side = max(SMALLEST_ZOOM_WINDOW, zoom * max(w, h))
    left, right = _cut(x + w / 2, side, width)
    top, bottom = _cut(y + h / 2, side, height)
    return View(left, top, right - left, bottom - top)


def random_zoomed_view(
    box: Box, height: int, width: int, zoom: float, rng: np.random.Generator
) -> View:
    """As ``zoomed_view``, a little nearer or farther, in any of the eight orientations."""
    factor = float(np.exp(rng.uniform(-np.log(ZOOM_JITTER), np.log(ZOOM_JITTER))))
    view = zoomed_view(box, height, width, zoom * factor)
    return View(view.x, view.y, view.width, view.height, *_orientation(rng))


def random_view(height: int, width: int, boxes: Sequence[Box], rng: np.random.Generator) -> View:
    """A window that shows all of the boxes, in any of the eight orientations.

    Args:
        height: of the image.
        width: of the image.
        boxes: what must be seen, ``(x, y, width, height)`` in pixels; at least one.
        rng: source of randomness.
    """
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    left, top = np.floor(corners[:, :2].min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(corners[:, 2:].max(axis=0)).astype(int).tolist()
    whole = rng.random() < WHOLE_IMAGE
    share = 1.0 if whole else float(np.exp(rng.uniform(np.log(SMALLEST_WINDOW), 0)))
    x, seen_width = _place(width, left, right, share, rng)
    y, seen_height = _place(height, top, bottom, share, rng)
    return View(x, y, seen_width, seen_height, *_orientation(rng))


def _cut(centre: float, side: float, size: int) -> tuple[int, int]:
    """Whole pixels from ``centre - side / 2`` to ``centre + side / 2`` that lie in 0 to size."""
    start, end = int(np.floor(centre - side / 2)), int(np.ceil(centre + side / 2))
    return min(max(start, 0), size - 1), max(1, min(end, size))


def _place(
    size: int, low: int, high: int, share: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Start and length of a window in 0 to ``size`` that holds ``low`` to ``high``."""
    length = min(size, max(round(share * size), high - low))
    start = int(rng.integers(max(0, high - length), min(low, size - length) + 1))
    return start, length


def _orientation(rng: np.random.Generator) -> tuple[bool, bool, bool]:
    mirrored, flipped, transposed = (rng.random(3) < 0.5).tolist()
    return mirrored, flipped, transposed
