"""What surfaces and defects are made of: images, windows, shapes and their fractional coverage.

Coordinates are pixel edges: a picture W wide spans x from 0 to W, and the centre of its first pixel
lies at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

FloatImage: TypeAlias = NDArray[np.float32]
"""HxW or HxWx3 float32; colours are RGB in [0, 1]."""
Mask: TypeAlias = NDArray[np.bool_]
Points: TypeAlias = NDArray[np.float64]
"""Nx2 positions (x, y) in pixel-edge coordinates."""
Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

SUPERSAMPLING = 4
"""Shapes are drawn this many times finer than the picture, per axis, and averaged down."""
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Lead:
    """A wire or pin of a part."""

    path: Points
    """Nx2, from where it leaves the part to its free end."""
    width: float
    """Pixels."""
    colour: tuple[float, float, float]
    """RGB in [0, 1]."""


@dataclass(frozen=True)
class Surface:
    """A flawless product before the camera sees it, and what a defect needs to know about it."""

    image: FloatImage
    """HxWx3."""
    beneath: FloatImage
    """HxWx3, or one RGB colour: what shows where material is gone."""
    light: tuple[float, float]
    """Unit vector (x, y) in the picture, pointing to where the light comes from."""
    part: FloatImage | None = None
    """HxW coverage of the part in [0, 1]; None where the material fills the picture."""
    ground_is_product: bool = False
    """Whether the ground around the part belongs to the product and can be damaged too."""
    leads: tuple[Lead, ...] = ()
    """Wires and pins of the part that can be bent."""
    shadow: FloatImage | None = None
    """HxW: the share of light that the part's shadow leaves on `beneath`; None without one."""

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def unit(self) -> float:
        """Pixels per design unit."""
        return unit_of(self.size)


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels inside a picture."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, points: Points, margin: float, size: Size) -> Window:
        """The smallest window that holds `points` and `margin` pixels more, cut at the picture.

        It never has less than one pixel, even where all the points lie outside the picture.
        """
        low = np.floor(points.min(axis=0) - margin)
        high = np.ceil(points.max(axis=0) + margin)
        left = int(np.clip(low[0], 0, size[1] - 1))
        top = int(np.clip(low[1], 0, size[0] - 1))
        right = int(np.clip(high[0], left + 1, size[1]))
        bottom = int(np.clip(high[1], top + 1, size[0]))
        return cls(top, left, bottom - top, right - left)

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def area(self) -> tuple[slice, slice]:
        """The rows and columns of a picture that the window shows."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def offsets(self, x: float, y: float) -> tuple[FloatImage, FloatImage]:
        """How far each pixel centre lies from (x, y): a row of dx and a column of dy."""
        dx = np.arange(self.width, dtype=np.float32) + np.float32(self.left + 0.5 - x)
        dy = np.arange(self.height, dtype=np.float32) + np.float32(self.top + 0.5 - y)
        return dx[None, :], dy[:, None]

    def fill(self, polygons: Sequence[Points]) -> FloatImage:
        """Coverage (HxW in [0, 1]) of the union of `polygons`.

        OpenCV paints the pixels of the outline whole: edges lie up to 1/8 pixel too far outside.
        """
        canvas = self._canvas()
        for polygon in polygons:
            cv2.fillPoly(canvas, [self._fixed(polygon)], 255, cv2.LINE_8, _SUBPIXEL_BITS)
        return self._average(canvas)

    def stroke(self, paths: Sequence[tuple[Points, NDArray[np.float64]]]) -> FloatImage:
        """Coverage (HxW in [0, 1]) of the union of `paths`, each points and a width at each."""
        canvas = self._canvas()
        for points, widths in paths:
            ends = [(int(x), int(y)) for x, y in self._fixed(points)]
            # OpenCV paints the pixels of the outline too, which makes lines one wider.
            thick = np.maximum(np.rint(widths * SUPERSAMPLING) - 1, 1).astype(int).tolist()
            for start, end, thickness in zip(ends[:-1], ends[1:], thick[:-1], strict=True):
                cv2.line(canvas, start, end, 255, thickness, cv2.LINE_8, _SUBPIXEL_BITS)
        return self._average(canvas)

    def _canvas(self) -> NDArray[np.uint8]:
        return np.zeros((self.height * SUPERSAMPLING, self.width * SUPERSAMPLING), np.uint8)

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        # OpenCV puts whole numbers at pixel centres, hence the half.
        fine = (points - (self.left, self.top)) * SUPERSAMPLING - 0.5
        return np.rint(fine * (1 << _SUBPIXEL_BITS)).astype(np.int32)

    def _average(self, canvas: NDArray[np.uint8]) -> FloatImage:
        mean = cv2.resize(canvas, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.asarray(mean, np.float32) / np.float32(255)


@dataclass(frozen=True)
class Blob:
    """A closed outline that every ray from its centre crosses once."""

    x: float
    y: float
    angles: NDArray[np.float64]
    """Radians, rising from -pi to pi."""
    radii: NDArray[np.float64]
    """Pixels, one per angle."""

    @classmethod
    def random(
        cls,
        rng: Generator,
        centre: tuple[float, float],
        radius: float,
        *,
        rough: float = 0.15,
        jagged: float = 0.0,
        stretch: float = 1.0,
        count: int = 64,
    ) -> Blob:
        """An ellipse of mean `radius` (pixels) and aspect `stretch`, turned at random.

        `rough` bends it in long waves and `jagged` breaks it at every point; both are relative to
        the radius.
        """
        angles = np.linspace(-math.pi, math.pi, count, endpoint=False)
        turned = angles - rng.uniform(0, math.pi)
        root = math.sqrt(stretch)
        radii = radius / np.hypot(np.cos(turned) / root, np.sin(turned) * root)
        waves = np.arange(2, 7)
        size = rng.normal(0, rough, waves.size) / waves
        phase = rng.uniform(0, 2 * math.pi, waves.size)
        bend = (size * np.cos(angles[:, None] * waves + phase)).sum(axis=1)
        broken = rng.normal(0, 1, count) * jagged
        return cls(*centre, angles, radii * np.clip(1 + bend + broken, 0.4, 1.8))

    @property
    def points(self) -> Points:
        """The outline, Nx2."""
        ring = np.stack([np.cos(self.angles), np.sin(self.angles)], axis=1)
        return np.asarray(np.array([self.x, self.y]) + self.radii[:, None] * ring)

    def rho(self, window: Window) -> FloatImage:
        """Distance from the centre as a share of the outline's (HxW): 0 at the centre, 1 on it."""
        dx, dy = window.offsets(self.x, self.y)
        outline = np.interp(np.arctan2(dy, dx), self.angles, self.radii, period=2 * math.pi)
        return np.asarray(np.hypot(dx, dy) / outline, np.float32)


def unit_of(size: Size) -> float:
    """Pixels per design unit: lengths in this package are given for a picture of 256 x 256."""
    return min(size) / 256


def shifted(field: FloatImage, dx: float, dy: float) -> FloatImage:
    """`field` moved by (dx, dy) pixels, zero where nothing moved in."""
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return np.asarray(cv2.warpAffine(field, move, (field.shape[1], field.shape[0])), np.float32)


def rgb(field: FloatImage) -> FloatImage:
    """A field (HxW) as a grey picture (HxWx3)."""
    # NumPy broadcasts over a last axis of three ten times slower than OpenCV copies it.
    return np.asarray(cv2.cvtColor(np.asarray(field, np.float32), cv2.COLOR_GRAY2RGB), np.float32)


def tinted(tone: NDArray[np.floating], colour: ArrayLike) -> FloatImage:
    """A `tone` (HxW, 1 is the plain colour) in `colour` (RGB): HxWx3."""
    weights = np.asarray(colour, np.float32).reshape(3, 1)
    return np.asarray(cv2.transform(np.asarray(tone, np.float32), weights), np.float32)


def mix(below: FloatImage, above: ArrayLike, weight: FloatImage) -> FloatImage:
    """`below` (HxWx3) covered by `above` (HxWx3 or one colour) to the share `weight` (HxW)."""
    return below + rgb(weight) * (np.asarray(above, np.float32) - below)
