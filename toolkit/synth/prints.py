"""Print as a surface: labels, packages and panels on which text, rules and emblems are normal.

The functions have the form that `surfaces.py` describes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import Size, Surface, rgb, unit_of
from toolkit.synth.noise import fractal, log_uniform, white
from toolkit.synth.plates import any_colour, exposed
from toolkit.synth.surfaces import Colour, light_from, mixed

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_TRIPLEX,
)
_LETTERS = list("ABCDEFGHKLMNPRSTUVXYZabcdeghknorstu0123456789-./ ")


def printed(product: Generator, rng: Generator, size: Size) -> Surface:
    """A label, package or panel with lines of text, rules, bars and simple emblems."""
    paper = any_colour(product, 0.1, 0.92)
    texture, grain = log_uniform(product, 0.005, 0.05), log_uniform(product, 0.004, 0.03)
    light = light_from(product)

    unit = unit_of(size)
    canvas: NDArray[np.uint8] = np.empty((*size, 3), np.uint8)
    canvas[:] = _bytes(paper)
    for _ in range(product.integers(0, 3)):
        _panel(product, canvas, mixed(paper, any_colour(product, 0.05, 0.95), 0.6))
    for _ in range(product.integers(1, 5)):
        _print(product, canvas, _ink(product, paper))
    turn, move = rng.normal(0, 0.02), rng.normal(0, 4 * unit, 2)
    pose = cv2.getRotationMatrix2D((size[1] / 2, size[0] / 2), math.degrees(turn), 1.0)
    pose = pose + np.column_stack([np.zeros((2, 2)), move])
    drawn = cv2.warpAffine(canvas, pose, (size[1], size[0]), borderMode=cv2.BORDER_REPLICATE)
    tone = 1 + np.float32(texture) * fractal(rng, size, max(1.0, 5 * unit), 2)
    tone += np.float32(grain) * white(rng, size)
    image = np.asarray(drawn, np.float32) * rgb(tone / np.float32(255))
    return Surface(exposed(image), mixed(paper, 0.4, 0.5), light)


def _ink(product: Generator, paper: Colour) -> Colour:
    """A colour that can be read on `paper`."""
    ink = any_colour(product, 0.02, 0.3) if paper.mean() > 0.4 else any_colour(product, 0.6, 0.95)
    return mixed(ink, paper, product.uniform(0, 0.5))


def _panel(product: Generator, canvas: NDArray[np.uint8], colour: Colour) -> None:
    """A field of another colour: a bar through the picture or a box in it."""
    height, width = canvas.shape[:2]
    low, high = np.sort(product.uniform(-0.1, 1.1, (2, 2)), axis=0)
    if product.random() < 0.5:
        low[0], high[0] = -0.1, 1.1
    ends = [(round(x * width), round(y * height)) for x, y in (low, high)]
    cv2.rectangle(canvas, ends[0], ends[1], _bytes(colour), cv2.FILLED)


def _print(product: Generator, canvas: NDArray[np.uint8], ink: Colour) -> None:
    """One printed element: a block of text, rules, bars or an emblem."""
    height, width = canvas.shape[:2]
    unit = min(height, width) / 256
    colour, kind = _bytes(ink), product.random()
    x, y = product.uniform(-0.05, 0.7) * width, product.uniform(0.02, 0.9) * height
    if kind < 0.5:
        _text(product, canvas, (x, y), colour)
    elif kind < 0.7:
        step, thick = (
            log_uniform(product, 5, 40) * unit,
            max(1, round(product.uniform(1, 5) * unit)),
        )
        reach = product.uniform(0.2, 1.1) * width
        for row in range(product.integers(1, 6)):
            at = round(y + row * step)
            cv2.line(canvas, (round(x), at), (round(x + reach), at), colour, thick)
    elif kind < 0.82:
        at = x
        for bar in log_uniform(product, 1.5, 4) * unit * product.choice([1, 1, 2, 3], 40):
            low, high = (round(at), round(y)), (round(at + bar / 2), round(y + 40 * unit))
            cv2.rectangle(canvas, low, high, colour, cv2.FILLED)
            at += bar + max(1.0, 1.5 * unit)
    else:
        sides, radius = int(product.choice([3, 4, 6, 24])), log_uniform(product, 10, 50) * unit
        angles = np.arange(sides) * (2 * math.pi / sides) + product.uniform(0, math.pi)
        ring = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
        points = [np.rint(ring * 16).astype(np.int32)]
        if product.random() < 0.5:
            cv2.fillPoly(canvas, points, colour, cv2.LINE_AA, 4)
        else:
            thick = max(1, round(product.uniform(2, 8) * unit))
            cv2.polylines(canvas, points, True, colour, thick, cv2.LINE_AA, 4)


def _text(
    product: Generator, canvas: NDArray[np.uint8], at: tuple[float, float], colour: tuple[int, ...]
) -> None:
    """Lines of random text that start at `at`."""
    unit = min(canvas.shape[:2]) / 256
    tall = log_uniform(product, 7, 44) * unit
    font = _FONTS[product.integers(len(_FONTS))]
    thick = max(1, round(tall * product.uniform(0.06, 0.16)))
    # Small print is many lines, a title is one.
    count = int(product.integers(1, 3 + int(min(6, 80 * unit / max(tall, 1)))))
    for line in range(count):
        text = "".join(product.choice(_LETTERS, product.integers(3, 22)))
        place = (round(at[0]), round(at[1] + 1.5 * line * tall))
        cv2.putText(canvas, text, place, font, max(tall, 4) / 22, colour, thick, cv2.LINE_AA)


def _bytes(colour: Colour) -> tuple[int, ...]:
    return tuple(round(255 * float(np.clip(value, 0, 1))) for value in colour)
