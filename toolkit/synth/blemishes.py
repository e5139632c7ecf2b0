"""Blemishes: a shape of `shapes.py` with a look of `looks.py`.

The functions have the form that `strokes.py` describes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator

from toolkit.synth import looks, shapes
from toolkit.synth.canvas import Blob, FloatImage, Points, Surface, Window, mix, rgb
from toolkit.synth.looks import any_look, contrast
from toolkit.synth.noise import blurred, fractal, log_uniform, relief, smooth, soft_step
from toolkit.synth.patch import Border, Patch, Site, contrasting, find_border, find_site
from toolkit.synth.shapes import Shape
from toolkit.synth.spots import bottom

LEAST_RADIUS = 1.5
"""Pixels."""


def spot(rng: Generator, surface: Surface) -> Patch:
    """A small blob, dark or light, sharp or blurred."""
    site = find_site(rng, surface)
    radius = max(LEAST_RADIUS, log_uniform(rng, 1.2, 11) * surface.unit)
    blob = Blob.random(
        rng,
        (site.x, site.y),
        radius,
        rough=rng.uniform(0.05, 0.4),
        jagged=rng.choice([0.0, 0.12]),
        stretch=log_uniform(rng, 1, 2.5),
        count=24,
    )
    soft = _softness(rng, surface, radius)
    window = Window.around(blob.points, soft + 3, surface.size)
    coverage = shapes.softened(window.fill([blob.points]), soft)
    coverage = shapes.clipped(site, (window, coverage), soft)
    amount = contrast(rng, surface.image[window.area], 1.6, 16)
    look = any_look(rng, surface, window, amount, (looks.toned, looks.toned, looks.foreign))
    return Patch.covering(surface, window, coverage, look)


def patch(rng: Generator, surface: Surface) -> Patch:
    """An island, a band or an area that enters from an edge, of another tone or texture."""
    from_edge = rng.random() < 0.25
    site = find_border(rng, surface).site if from_edge else find_site(rng, surface)
    radius = max(3.0, log_uniform(rng, 8, 80) * surface.unit)
    soft = _softness(rng, surface, radius)
    draw = _band if rng.random() < 0.2 else _blot
    shape = draw(rng, surface, site, radius, soft)
    window, coverage = shape[0], shapes.clipped(site, shape, soft)
    amount = contrast(rng, surface.image[window.area], 1.3, 8)
    look = any_look(rng, surface, window, amount)
    return Patch.covering(surface, window, coverage, look, _mottled(rng, surface, window))


def _blot(rng: Generator, surface: Surface, site: Site, radius: float, soft: float) -> Shape:
    return shapes.island(
        rng,
        surface,
        (site.x, site.y),
        radius,
        ragged=rng.choice([0.0, 0.08, rng.uniform(0.1, 0.4)]),
        lobes=int(rng.choice([1, 1, 2, 3, 5])),
        stretch=log_uniform(rng, 1, 5),
        heading=shapes.made_axis(rng),
        soft=soft,
    )


def _band(rng: Generator, surface: Surface, site: Site, radius: float, soft: float) -> Shape:
    share = min(0.5, 2 * radius / max(surface.size))
    ragged, band = rng.uniform(2, 10), rng.random() < 0.7
    return shapes.divided(rng, surface, site.allowed, share, ragged=ragged, soft=soft, band=band)


def streak(rng: Generator, surface: Surface) -> Patch:
    """Long inclusions or rolling marks along one axis, in one or several fragments."""
    site = find_site(rng, surface)
    width = max(2.0, log_uniform(rng, 1.5, 24) * surface.unit)
    length = width * log_uniform(rng, 4, 30)
    soft = _softness(rng, surface, width / 2)
    shape = shapes.streaks(
        rng,
        surface,
        (site.x, site.y),
        shapes.made_axis(rng),
        length=min(length, 2.0 * max(surface.size)),
        width=width,
        count=int(rng.choice([1, 1, 2, 3, 4, 6])),
        ragged=rng.uniform(0.05, 0.35),
        soft=soft,
    )
    window, coverage = shape[0], shapes.clipped(site, shape, soft)
    amount = contrast(rng, surface.image[window.area], 1.4, 12)
    look = any_look(rng, surface, window, amount, _LINEAR)
    return Patch.covering(surface, window, coverage, look, _mottled(rng, surface, window))


_LINEAR = (looks.toned, looks.toned, looks.foreign, looks.rough, looks.veiled)


def uneven(rng: Generator, surface: Surface) -> Patch:
    """One side of a wandering line, or a band, differs a little in brightness or texture."""
    site = find_site(rng, surface)
    soft = max(1.0, rng.choice([1.0, 3.0, 14.0]) * surface.unit)
    shape = shapes.divided(
        rng,
        surface,
        site.allowed,
        log_uniform(rng, 0.05, 0.5),
        ragged=rng.choice([0.0, rng.uniform(0.5, 5)]),
        soft=soft,
        band=rng.random() < 0.2,
    )
    window, coverage = shape[0], shapes.clipped(site, shape, soft)
    amount = contrast(rng, surface.image[window.area], 1.3, 3)
    look = any_look(rng, surface, window, amount, _UNEVEN)
    return Patch.covering(surface, window, coverage, look)


_UNEVEN = (
    looks.ghost,
    looks.toned,
    looks.toned,
    looks.smoothed,
    looks.rough,
    looks.ghost,
    looks.glossy,
    looks.transplanted,
)


def fray(rng: Generator, surface: Surface) -> Patch:
    """A matt tongue or lens that grows from an edge, or an edge that is worn away."""
    border, unit, soft = find_border(rng, surface), surface.unit, 1.0
    if rng.random() < 0.3:
        reach = max(8.0, log_uniform(rng, 20, 120) * unit)
        depth = max(2.5, reach * rng.uniform(0.08, 0.35))
        shape = shapes.eaten(rng, surface, border, depth=depth, reach=reach)
    else:
        length = max(5.0, log_uniform(rng, 14, 210) * unit)
        width = max(4.0, length * log_uniform(rng, 0.35, 1.5))
        ragged = rng.choice([0.02, 0.08, rng.uniform(0.1, 0.3)])
        soft = _softness(rng, surface, width / 4)
        shape = shapes.tongue(
            rng, surface, border, length=length, width=width, ragged=ragged, soft=soft
        )
    window, coverage = shape[0], shapes.clipped(border.site, shape, soft)
    amount = contrast(rng, surface.image[window.area], 1.3, 8)
    look = any_look(rng, surface, window, amount, _FRAYED)
    return Patch.covering(surface, window, coverage, look, _mottled(rng, surface, window))


_FRAYED = (
    looks.veiled,
    looks.veiled,
    looks.toned,
    looks.foreign,
    looks.smoothed,
    looks.rough,
)


def abrasion(rng: Generator, surface: Surface) -> Patch:
    """An area rubbed by something rough: many fine scratches; the mask is all of the area."""
    site = find_site(rng, surface)
    radius = max(4.0, log_uniform(rng, 9, 70) * surface.unit)
    heading = rng.uniform(0, math.pi)
    starts, ends = _grazes(rng, radius, heading, log_uniform(rng, 1, 3))
    if rng.random() < 0.35:
        more = _grazes(rng, radius, heading + rng.uniform(0.4, 1.6), 1.3)
        starts, ends = np.concatenate([starts, more[0]]), np.concatenate([ends, more[1]])
    points = np.concatenate([starts, ends]) + np.array([site.x, site.y])
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    window = Window.around(hull, 3, surface.size)
    coverage = shapes.clipped(site, (window, window.fill([hull])))

    below = surface.image[window.area]
    lines = _hairlines(window, points)
    amount = contrast(rng, below, 2, 12)
    haze = blurred(lines, 3 * surface.unit + 1)
    look = looks.shaded(below, rng.uniform(0.2, 0.6) * looks.tone(rng, below) * amount)
    look = mix(below, look, np.minimum(np.float32(0.35) + haze, 1))
    groove = contrasting(rng, below, amount)
    look = mix(look, groove, lines * np.float32(rng.uniform(0.4, 0.9)))
    return Patch.covering(surface, window, coverage, look)


def _grazes(rng: Generator, radius: float, heading: float, stretch: float) -> tuple[Points, Points]:
    """Starts and ends of nearly parallel scratches that fill an ellipse around the origin."""
    count = int(np.clip(rng.uniform(0.5, 1.6) * radius, 10, 120))
    half, width = radius * math.sqrt(stretch), radius / math.sqrt(stretch)
    across = rng.uniform(-1, 1, count)
    chord = np.sqrt(1 - across * across)
    low = rng.uniform(-1, 0.1, count) * chord * half
    high = low + rng.uniform(0.25, 1, count) * (chord * half - low)
    angles = heading + rng.normal(0, rng.choice([0.01, 0.08]), count)
    axis = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    normal = np.array([-math.sin(heading), math.cos(heading)])
    middle = (across * width)[:, None] * normal
    return middle + low[:, None] * axis, middle + high[:, None] * axis


def _hairlines(window: Window, points: Points) -> FloatImage:
    """Coverage (HxW) of hairlines from each of the first half of `points` to its twin."""
    canvas = np.zeros(window.size, np.uint8)
    fixed = np.rint((points - (window.left + 0.5, window.top + 0.5)) * 16).astype(np.int32)
    pairs = fixed.reshape(2, -1, 2).transpose(1, 0, 2)
    cv2.polylines(canvas, list(np.ascontiguousarray(pairs)), False, 255, 1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) * np.float32(1 / 255)


def broken_edge(rng: Generator, surface: Surface) -> Patch:
    """A nick or chip out of the part's outline, or of the picture's edge; its fracture shows."""
    border, unit = find_border(rng, surface), surface.unit
    if rng.random() < 0.3:
        reach = max(5.0, log_uniform(rng, 8, 90) * unit)
        depth = max(2.5, reach * rng.uniform(0.15, 0.5))
        shape = shapes.eaten(rng, surface, border, depth=depth, reach=reach)
    else:
        shape = _chip(rng, surface, border)
    window, coverage = shape[0], shapes.clipped(border.site, shape)

    below = surface.image[window.area]
    mean = below.mean(axis=(0, 1))
    rough = fractal(rng, window.size, 12 * unit, 4, 0.6)
    facets = 1 + 0.3 * relief(blurred(rough, 0.7), surface.light) + 0.07 * rough
    deep = bottom(surface, window)
    if surface.part is None or rng.random() < 0.4:
        deep = np.broadcast_to(contrasting(rng, below, rng.uniform(0.15, 0.5)), below.shape)
        deep = deep * rgb(np.asarray(facets, np.float32))
    rim = coverage * (1 - soft_step(blurred(coverage, max(0.8, 2 * unit)), 0.85, 0.3))
    fresh = np.clip((mean + looks.tone(rng, below) * 0.2) * facets[..., None], 0, 1)
    look = mix(np.clip(deep, 0, 1), fresh, rim * np.float32(rng.uniform(0, 1)))
    return Patch.covering(surface, window, coverage, look)


def _chip(rng: Generator, surface: Surface, border: Border) -> Shape:
    """A few flat facets around a place on the border."""
    radius = max(3.0, log_uniform(rng, 4, 60) * surface.unit)
    blob = Blob.random(
        rng,
        (border.site.x, border.site.y),
        radius,
        rough=0.3,
        jagged=rng.uniform(0.03, 0.2),
        stretch=rng.uniform(1, 2.5),
        count=int(rng.integers(7, 24)),
    )
    window = Window.around(blob.points, 2, surface.size)
    return window, window.fill([blob.points])


def _softness(rng: Generator, surface: Surface, radius: float) -> float:
    """Width in pixels of a border: mostly sharp, and never wide against `radius` (pixels)."""
    if rng.random() < 0.5:
        return 1.0
    widest = min(14 * surface.unit, 0.9 * radius)
    return log_uniform(rng, 1, widest) if widest > 1 else 1.0


def _mottled(rng: Generator, surface: Surface, window: Window) -> FloatImage | float:
    """Opacity: even, or thinner in places."""
    if rng.random() < 0.6:
        return 1.0
    cell = log_uniform(rng, 8, 50) * surface.unit
    thin = np.float32(0.85) + np.float32(0.2) * smooth(rng, window.size, (cell, cell))
    return np.asarray(np.clip(thin, 0.4, 1), np.float32)
