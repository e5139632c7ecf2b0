"""Random fields that textures are built from, made on small grids and enlarged."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import FloatImage, Size


@cache
def _quantiles() -> NDArray[np.float32]:
    """65536 values of equal probability under the normal distribution."""
    levels = (np.arange(4096) + 0.5) / 4096
    known = [NormalDist().inv_cdf(level) for level in levels]
    every = np.interp((np.arange(65536) + 0.5) / 65536, levels, known)
    return np.asarray(every / every.std(), np.float32)


def white(rng: Generator, size: Size) -> FloatImage:
    """HxW of independent normal values, mean 0 and deviation 1, none beyond 4."""
    # Two random bytes look up a quantile: three times as fast as the generator's own normals.
    index = np.frombuffer(rng.bytes(2 * size[0] * size[1]), np.dtype("<u2"))
    return _quantiles()[index].reshape(size)


def smooth(rng: Generator, size: Size, cell: tuple[float, float]) -> FloatImage:
    """HxW field that varies over about `cell` (height, width) pixels, mean 0, deviation near 1."""
    rows, columns = (
        max(3, math.ceil(length / max(step, 1.0)) + 1)
        for length, step in zip(size, cell, strict=True)
    )
    grid = white(rng, (rows, columns))
    large = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    # Interpolation averages neighbours; the factor gives back the deviation that this takes.
    return np.asarray(large, np.float32) * np.float32(1.25)


def fractal(
    rng: Generator, size: Size, cell: float, octaves: int = 3, persistence: float = 0.5
) -> FloatImage:
    """HxW sum of smooth fields, each half as coarse and `persistence` as strong as the last.

    Starts at `cell` pixels and stops where cells would be smaller than a pixel; mean 0, deviation
    near 1.
    """
    total = smooth(rng, size, (cell, cell))
    weight, power = 1.0, 1.0
    for _ in range(octaves - 1):
        cell /= 2
        if cell < 1:
            break
        weight *= persistence
        power += weight**2
        total += np.float32(weight) * smooth(rng, size, (cell, cell))
    return total / np.float32(math.sqrt(power))


def relief(height: FloatImage, light: tuple[float, float]) -> FloatImage:
    """Light that a height field (HxW) gains: its rise away from `light` per pixel."""
    x, y = light
    kernel = np.array([[0, -y, 0], [-x, 0, x], [0, y, 0]], np.float32) / -2
    shaded = cv2.filter2D(height, cv2.CV_32F, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(shaded, np.float32)


def rotated(field: FloatImage, size: Size, angle: float) -> FloatImage:
    """The middle of `field`, turned by `angle` radians; see `rotation_canvas` for its size."""
    rows, columns = field.shape[:2]
    turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), math.degrees(angle), 1.0)
    turn[:, 2] += (size[1] - columns) / 2, (size[0] - rows) / 2
    return np.asarray(cv2.warpAffine(field, turn, (size[1], size[0])), np.float32)


def rotation_canvas(size: Size) -> Size:
    """The square from which `rotated` can cut `size` at any angle."""
    side = math.ceil(math.hypot(*size)) + 2
    return side, side


def blurred(field: FloatImage, sigma: float) -> FloatImage:
    """`field` under a Gaussian of `sigma` pixels."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)


def soft_step(field: FloatImage, edge: float, width: float) -> FloatImage:
    """0 below `edge`, 1 above it, and a straight ramp of `width` between."""
    ramp = (field - np.float32(edge)) / np.float32(width) + np.float32(0.5)
    return np.asarray(np.clip(ramp, 0, 1), np.float32)


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A value between `low` and `high`, each octave as likely as any other."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
