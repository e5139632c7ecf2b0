"""What blemishes look like: the surface in a window (HxWx3), changed all over.

A look is a function `(rng, surface, window, amount) -> HxWx3`; `amount` is about how much a colour
channel changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from toolkit.synth.canvas import FloatImage, Surface, Window, rgb
from toolkit.synth.noise import blurred, fractal, log_uniform, relief, smooth, white
from toolkit.synth.patch import FAINTEST

Look: TypeAlias = Callable[[Generator, Surface, Window, float], FloatImage]


def toned(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """Darker or lighter, often with a touch of colour; the texture stays."""
    below = surface.image[window.area]
    hue = rng.normal(0, 0.3, 3) if rng.random() < 0.4 else np.zeros(3)
    return shaded(below, tone(rng, below) * amount * (1 + hue))


def veiled(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """Matt: contrast is lost and one tone lies over it."""
    below = surface.image[window.area]
    mean = np.array(cv2.mean(below)[:3])
    keep = rng.uniform(0.2, 0.7)
    aim = mean + tone(rng, below) * amount
    return _affine(below, keep, (1 - keep) * mean + (aim - mean))


def glossy(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """Wet or polished: more contrast, and a sheen that rises to one side."""
    below = surface.image[window.area]
    angle = rng.uniform(0, 2 * math.pi)
    y = np.linspace(-1, 1, window.height, dtype=np.float32)[:, None] * np.float32(math.sin(angle))
    x = np.linspace(-1, 1, window.width, dtype=np.float32)[None, :] * np.float32(math.cos(angle))
    sheen = np.float32(0.6 * amount) * (x + y) + np.float32(amount * tone(rng, below))
    mean = np.array(cv2.mean(below)[:3])
    gain = rng.uniform(1, 1.5)
    return _cut(_affine(below, gain, (1 - gain) * mean) + rgb(sheen))


def smoothed(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """Worn or smeared: the fine texture is gone."""
    below = surface.image[window.area]
    sigma = max(1.0, rng.uniform(1.5, 6) * surface.unit)
    soft = blurred(below, sigma)
    return shaded(soft, tone(rng, below) * amount * rng.uniform(0.3, 1))


def rough(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """Pitted or corroded: grain of its own on the texture."""
    below = surface.image[window.area]
    cell = max(1.5, log_uniform(rng, 2, 12) * surface.unit)
    grain = fractal(rng, window.size, cell, 3, 0.7)
    if rng.random() < 0.5:
        grain = np.float32(0.6) * grain + np.float32(0.6 * cell) * relief(grain, surface.light)
    change = np.float32(0.7 * amount) * (
        grain + np.float32(tone(rng, below) * rng.uniform(0.5, 1.3))
    )
    return _cut(below + rgb(change))


def foreign(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """Another material: its own colour, mottled, grained or lined, nothing of the texture left."""
    below = surface.image[window.area]
    mean = np.array(cv2.mean(below)[:3]) + rng.normal(0, 0.25 * amount, 3)
    base = mean + tone(rng, below) * amount
    cells = log_uniform(rng, 3, 60) * surface.unit * np.exp(rng.normal(0, 0.6, 2))
    mottle = smooth(rng, window.size, (float(cells[0]), float(cells[1])))
    mottle += np.float32(0.5) * white(rng, window.size)
    change = np.float32(log_uniform(rng, 0.1, 0.6) * amount) * mottle
    return _affine(rgb(change), 1.0, base)


def transplanted(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """The texture of another place, turned and a little darker or lighter."""
    angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, 2 * math.pi)])
    other = moved(surface, window, angle, rng.uniform(-0.5, 0.5, 2) * surface.size[::-1])
    return shaded(other, tone(rng, other) * amount * rng.uniform(0.2, 1))


def ghost(rng: Generator, surface: Surface, window: Window, amount: float) -> FloatImage:
    """The faintest change of brightness, uneven in itself."""
    below = surface.image[window.area]
    cell = 60 * surface.unit
    cloud = 1 + np.float32(0.3) * smooth(rng, window.size, (cell, cell))
    least = 1.25 * noticeable(below)
    change = rgb(np.float32(tone(rng, below) * least) * cloud)
    return _cut(below + change)


LOOKS: Sequence[Look] = (
    toned,
    veiled,
    glossy,
    smoothed,
    rough,
    foreign,
    transplanted,
    ghost,
)


def any_look(
    rng: Generator,
    surface: Surface,
    window: Window,
    amount: float,
    looks: Sequence[Look] = LOOKS,
) -> FloatImage:
    """One of `looks` at random."""
    return looks[int(rng.integers(len(looks)))](rng, surface, window, amount)


def noticeable(below: FloatImage) -> float:
    """The change of a colour channel that people notice on `below` (HxWx3)."""
    _, deviation = cv2.meanStdDev(below)
    return max(FAINTEST, 0.65 * float(deviation[1, 0]))


def contrast(rng: Generator, below: FloatImage, low: float = 1.2, high: float = 8.0) -> float:
    """A change between `low` and `high` times what people notice, and no more than colours have."""
    return min(log_uniform(rng, low, high) * noticeable(below), 0.6)


def tone(rng: Generator, below: FloatImage) -> int:
    """1 for lighter, -1 for darker: dark surfaces get lighter, light ones darker, others both."""
    grey = sum(cv2.mean(below)[:3]) / 3
    return 1 if rng.random() < np.clip(1.4 - 2 * grey, 0, 1) else -1


def shaded(below: FloatImage, change: ArrayLike) -> FloatImage:
    """`below` made lighter or darker by `change` (one value, or one per channel) on average.

    What gets darker loses contrast as under a shadow; what gets lighter keeps it.
    """
    change = np.broadcast_to(np.asarray(change, np.float64), 3)
    mean = np.maximum(np.array(cv2.mean(below)[:3]), 0.05)
    gain = np.where(change < 0, np.maximum(1 + change / mean, 0.05), 1.0)
    return _affine(below, gain, np.where(change < 0, 0, change))


def moved(surface: Surface, window: Window, angle: float, shift: ArrayLike) -> FloatImage:
    """The picture under a window that is turned by `angle` and moved by `shift` (x, y in pixels).

    Mirrored at the picture's edges.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    dx, dy = np.asarray(shift, np.float64)
    middle = (window.width / 2, window.height / 2)
    x = window.left + middle[0] + dx - cosine * middle[0] + sine * middle[1]
    y = window.top + middle[1] + dy - sine * middle[0] - cosine * middle[1]
    matrix = np.array([[cosine, -sine, x], [sine, cosine, y]])
    taken = cv2.warpAffine(
        surface.image,
        matrix,
        (window.width, window.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(taken, np.float32)


def _affine(below: FloatImage, gain: ArrayLike, lift: ArrayLike) -> FloatImage:
    """`below * gain + lift` per channel, cut to [0, 1]."""
    matrix = np.zeros((3, 4))
    matrix[:, :3] = np.diag(np.broadcast_to(np.asarray(gain, np.float64), 3))
    matrix[:, 3] = lift
    return _cut(np.asarray(cv2.transform(below, matrix), np.float32))


def _cut(image: FloatImage) -> FloatImage:
    return np.asarray(np.clip(image, 0, 1), np.float32)
