"""Ink in the wrong place or form: blots, smears and spoilt marks.

The functions have the form that `strokes.py` describes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator

from toolkit.synth import shapes
from toolkit.synth.canvas import Blob, FloatImage, Surface, Window, mix
from toolkit.synth.noise import log_uniform, smooth, soft_step
from toolkit.synth.patch import Border, Patch, Site, contrasting, find_site
from toolkit.synth.shapes import Shape


def print_error(rng: Generator, surface: Surface) -> Patch:
    """Ink where it does not belong or as it should not be: a blot, a smear, a spoilt mark."""
    site = find_site(rng, surface)
    draw = (_ink_blot, _ink_smear, _spoilt_mark)[rng.integers(3)]
    window, ink = draw(rng, surface, site)
    coverage = soft_step(ink, 0.3, 0.4)
    ink = np.minimum(ink, coverage)
    below = surface.image[window.area]
    colour = contrasting(rng, below, rng.uniform(0.25, 0.7), hue=rng.choice([0.02, 0.2]))
    opacity = np.float32(rng.uniform(0.7, 1)) + np.float32(0.1) * smooth(
        rng, window.size, (9 * surface.unit, 9 * surface.unit)
    )
    tone = below.mean(axis=(0, 1))
    look = np.clip(colour + np.float32(0.3) * (below - tone), 0, 1)
    pixels = mix(below, look, ink * np.minimum(opacity, 1))
    return Patch(window, coverage, pixels)


def _ink_blot(rng: Generator, surface: Surface, site: Site) -> Shape:
    """A blot with splashes around it."""
    radius = max(2.5, log_uniform(rng, 3, 34) * surface.unit)
    places = rng.normal(0, 1.3 * radius, (int(rng.integers(0, 9)), 2))
    sizes = np.maximum(1.3, radius * np.exp(rng.uniform(-3, -1, len(places))))
    outlines = [Blob.random(rng, (site.x, site.y), radius, rough=0.3, jagged=0.02).points]
    outlines += [
        Blob.random(rng, (site.x + dx, site.y + dy), size, count=16).points
        for (dx, dy), size in zip(places, sizes, strict=True)
    ]
    window = Window.around(np.concatenate(outlines), 2, surface.size)
    return window, window.fill(outlines)


def _ink_smear(rng: Generator, surface: Surface, site: Site) -> Shape:
    """Ink dragged along a line: full where it starts, in stripes where it ends."""
    length = max(9.0, log_uniform(rng, 18, 150) * surface.unit)
    width = max(3.0, length * rng.uniform(0.08, 0.4))
    heading = shapes.made_axis(rng) + rng.choice([0.0, math.pi])
    border = Border(site, heading)
    window, coverage = shapes.tongue(rng, surface, border, length=length, width=width, ragged=0.12)
    x, y = window.offsets(site.x, site.y)
    along = (math.cos(heading) * x + math.sin(heading) * y) * np.float32(1 / length)
    across = math.cos(heading) * y - math.sin(heading) * x
    hairs = smooth(rng, (1, 256), (1, 256 * 2.5 * surface.unit / (2 * width)))[0]
    index = np.clip((across / width + 1) * 128, 0, 255).astype(np.intp)
    head = soft_step(np.asarray(along, np.float32), -0.06, 0.08)
    stripes = soft_step(np.asarray(1.2 + 0.4 * hairs[index] - 1.2 * along, np.float32), 0.4, 0.7)
    return window, np.asarray(coverage * head * stripes, np.float32)


def _spoilt_mark(rng: Generator, surface: Surface, site: Site) -> Shape:
    """Letters that are doubled, dragged, or lack a strip."""
    height = max(7.0, log_uniform(rng, 10, 48) * surface.unit)
    letters = rng.choice(list("ABCDEFHKLMNPRSTX0123456789"), int(rng.integers(2, 7)))
    scale = height / 22
    thick = max(1, round(scale * rng.uniform(2, 4)))
    text = "".join(letters)
    (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    pad = 4 + round(0.4 * height)
    corner = np.array([[site.x - wide / 2, site.y - tall / 2], [site.x, site.y]])
    corner[1] = corner[0] + (wide, tall)
    window = Window.around(corner, pad, surface.size)
    origin = (round(corner[0, 0] - window.left), round(corner[1, 1] - window.top))
    canvas = np.zeros(window.size, np.uint8)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    ink = canvas.astype(np.float32) * np.float32(1 / 255)
    return window, shapes.clipped(site, (window, _spoilt(rng, ink, height, thick)))


def _spoilt(rng: Generator, ink: FloatImage, height: float, thick: int) -> FloatImage:
    """`ink` (HxW) of letters after one thing went wrong."""
    fault = rng.integers(3)
    if fault == 0:
        dx, dy = rng.uniform(0.12, 0.3, 2) * height * rng.choice([-1, 1], 2)
        move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        twin = cv2.warpAffine(ink, move, (ink.shape[1], ink.shape[0]))
        return _over(ink, np.float32(rng.uniform(0.6, 1)) * np.asarray(twin, np.float32))
    if fault == 1:
        drag = np.ones((1, max(3, round(0.5 * height))), np.float32)
        dragged = cv2.filter2D(ink, cv2.CV_32F, drag / drag.size, borderType=cv2.BORDER_CONSTANT)
        return _over(ink, np.minimum(np.float32(2.2) * np.asarray(dragged, np.float32), 1))
    gap = smooth(rng, ink.shape, (max(3.0, 0.5 * height), max(3.0, 0.9 * height)))
    swollen = np.asarray(cv2.dilate(ink, np.ones((1 + thick // 2,) * 2, np.uint8)), np.float32)
    return swollen * soft_step(gap, 0.3, 0.4)


def _over(ink: FloatImage, more: FloatImage) -> FloatImage:
    return np.asarray(np.maximum(ink, more), np.float32)
