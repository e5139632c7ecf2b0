"""Defects of an area: holes, dents, missing pieces, stains, glue and loose dirt.

The functions have the form that `strokes.py` describes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from toolkit.synth.canvas import Blob, FloatImage, Surface, Window, mix, shifted
from toolkit.synth.noise import blurred, fractal, log_uniform, relief, soft_step
from toolkit.synth.patch import Patch, contrasting, find_edge, find_site

SMALLEST = 1.5
"""Pixels: the least radius of a spot."""


def hole(rng: Generator, surface: Surface) -> Patch:
    """A pit or puncture: dark inside, its far wall lit."""
    site = find_site(rng, surface)
    radius = max(SMALLEST, log_uniform(rng, 2.5, 26) * surface.unit)
    blob = Blob.random(
        rng,
        (site.x, site.y),
        radius,
        rough=rng.uniform(0.05, 0.35),
        jagged=rng.uniform(0, 0.03),
        stretch=rng.uniform(1, 1.9),
    )
    window = Window.around(blob.points, 2, surface.size)
    coverage = site.clip(window, window.fill([blob.points]))

    below = surface.image[window.area]
    depth = rng.uniform(0.15, 0.4) * radius
    deep = bottom(surface, window) * rng.uniform(0.25, 0.6)
    rise = soft_step(blob.rho(window), 0.8, 0.5)
    look = mix(deep, 0.5 * deep + 0.25 * below, rise)
    shade = coverage * (1 - shifted(coverage, *(-depth * part for part in surface.light)))
    wall = coverage * (1 - shifted(coverage, *(depth * part for part in surface.light)))
    look = mix(look * (1 - 0.5 * wall[..., None]), np.clip(below * 1.1 + 0.08, 0, 1), 0.75 * shade)
    return Patch.covering(surface, window, coverage, look)


def dent(rng: Generator, surface: Surface) -> Patch:
    """A hollow or a bump pressed into the material: its texture stays, its light changes."""
    site = find_site(rng, surface)
    radius = max(2.5, log_uniform(rng, 6, 44) * surface.unit)
    blob = Blob.random(rng, (site.x, site.y), radius, rough=0.12, stretch=rng.uniform(1, 2.6))
    window = Window.around(blob.points, 2, surface.size)
    coverage = site.clip(window, window.fill([blob.points]))

    below = surface.image[window.area]
    dx, dy = window.offsets(blob.x, blob.y)
    # Kept off 1, so that pixels that the rim cuts change too.
    rho = np.minimum(blob.rho(window), 0.95)
    lit = (dx * surface.light[0] + dy * surface.light[1]) / (np.hypot(dx, dy) + 1e-6)
    slope = rho * (1 - rho * rho) ** rng.uniform(0.15, 0.8)
    # Hollow: the wall away from the light faces it; a bump is the other way round.
    sign = -1 if rng.random() < 0.75 else 1
    change = np.asarray(sign * lit * slope / slope.max(), np.float32)
    strength = rng.uniform(0.3, 0.7) * (10 / (10 + radius / surface.unit)) ** 0.3
    look = below * (1 + strength * change[..., None])
    shine = soft_step(change, 0.75, 0.4) * rng.uniform(0, 0.3)
    look = np.clip(look + (0.14 * strength * change + shine)[..., None], 0, 1)
    return Patch.covering(surface, window, coverage, look)


def missing_piece(rng: Generator, surface: Surface) -> Patch:
    """Material broken away, at the part's outline where there is one: what lies beneath shows."""
    site = find_edge(rng, surface)
    radius = max(3.0, log_uniform(rng, 8, 38) * surface.unit)
    blob = Blob.random(
        rng,
        (site.x, site.y),
        radius,
        rough=0.3,
        jagged=rng.uniform(0.03, 0.09),
        stretch=rng.uniform(1, 2.2),
        count=int(rng.integers(11, 28)),
    )
    window = Window.around(blob.points, 2, surface.size)
    coverage = site.clip(window, window.fill([blob.points]))

    below = surface.image[window.area]
    rough = fractal(rng, window.size, 11 * surface.unit, 4, 0.5)
    deep = bottom(surface, window)
    if surface.part is None:
        torn = 0.9 + 0.14 * rough + 0.35 * relief(rough, surface.light)
        deep = (0.5 * deep + 0.3 * below.mean(axis=(0, 1))) * torn[..., None]
    # The broken edge is a narrow slanted face: it shows fresh, coarse material.
    face = coverage * soft_step(blob.rho(window) + 0.05 * rough, 1 - rng.uniform(0.08, 0.25), 0.06)
    facing = 1 + 0.3 * relief(blurred(coverage, 1.5), surface.light) + 0.12 * rough
    fresh = np.clip((0.45 * below.mean(axis=(0, 1)) + 0.1) * facing[..., None], 0, 1)
    return Patch.covering(surface, window, coverage, mix(deep, fresh, face))


def stain(rng: Generator, surface: Surface) -> Patch:
    """A dried liquid, oil or rust: the texture shows through, the rim is darker."""
    site = find_site(rng, surface)
    unit = surface.unit
    radius = max(2.5, log_uniform(rng, 5, 55) * unit)
    blob = Blob.random(rng, (site.x, site.y), radius, rough=0.35, stretch=rng.uniform(1, 2.2))
    drops = [
        Blob.random(rng, (site.x + dx, site.y + dy), max(SMALLEST, radius * share))
        for (dx, dy), share in zip(
            rng.normal(0, 1.1 * radius, (rng.integers(0, 4), 2)),
            rng.uniform(0.06, 0.25, 3),
            strict=False,
        )
    ]
    outlines = [each.points for each in (blob, *drops)]
    window = Window.around(np.concatenate(outlines), 2, surface.size)
    coverage = site.clip(window, window.fill(outlines))

    below = surface.image[window.area]
    liquid = np.asarray(LIQUIDS[rng.integers(len(LIQUIDS))], np.float32)
    dry = below.mean() < 0.2 or rng.random() < 0.15
    soaked = below + 0.45 * (0.8 - below) if dry else below * liquid
    rim = soft_step(np.minimum(blob.rho(window), 1), 0.93, 0.16) * rng.uniform(0, 0.35)
    mottled = 0.12 * fractal(rng, window.size, 0.5 * radius + 1, 3)
    opacity = np.clip(rng.uniform(0.35, 0.85) + rim + mottled, 0.2, 1)
    return Patch.covering(surface, window, coverage, soaked, opacity)


def glue(rng: Generator, surface: Surface) -> Patch:
    """A clear or milky drop on the surface: a dark rim, a bright reflection, texture beneath."""
    site = find_site(rng, surface)
    radius = max(3.0, log_uniform(rng, 5, 34) * surface.unit)
    blob = Blob.random(rng, (site.x, site.y), radius, rough=0.25, stretch=rng.uniform(1, 2.4))
    window = Window.around(blob.points, 2, surface.size)
    coverage = window.fill([blob.points])

    below = surface.image[window.area]
    rho = blob.rho(window)
    dx, dy = window.offsets(blob.x, blob.y)
    lit = (dx * surface.light[0] + dy * surface.light[1]) / radius
    body = np.array([0.86, 0.82, 0.70], np.float32) * rng.uniform(0.75, 1.1)
    look = blurred(below, max(0.6, 0.06 * radius))
    look += np.float32(rng.uniform(0.08, 0.5)) * (np.clip(body, 0, 1) - look)
    look *= (1 - 0.35 * soft_step(rho, 0.88, 0.25) - 0.16 * lit)[..., None]
    along = (dx * surface.light[1] - dy * surface.light[0]) / radius
    spot = np.exp(-(((lit - 0.42) / 0.13) ** 2) - (along / rng.uniform(0.12, 0.4)) ** 2)
    look = mix(np.clip(look, 0, 1), 0.98, np.asarray(0.85 * spot, np.float32))
    return Patch.covering(surface, window, coverage, look)


def contamination(rng: Generator, surface: Surface) -> Patch:
    """Loose particles in a cluster: swarf, dust or crumbs."""
    site = find_site(rng, surface)
    unit = surface.unit
    spread = log_uniform(rng, 4, 32) * unit
    grain = log_uniform(rng, 0.8, 3.2) * unit
    count = int(rng.integers(4, 40))
    spread = max(spread, 1.1 * grain * math.sqrt(count))
    places = rng.normal(0, 1, (count, 2)) * spread * rng.uniform(0.4, 1, 2)
    outlines = [
        Blob.random(
            rng,
            (site.x + dx, site.y + dy),
            max(1.3, grain * math.exp(rng.normal(0, 0.4))),
            rough=0.3,
            stretch=rng.uniform(1, 2),
            count=12,
        ).points
        for dx, dy in places
    ]
    window = Window.around(np.concatenate(outlines), 2, surface.size)
    coverage = window.fill(outlines)

    below = surface.image[window.area]
    matter = contrasting(rng, below, rng.uniform(0.25, 0.55), hue=0.04)
    shading = 1 + 0.9 * relief(blurred(coverage, 0.7), surface.light)
    shading += 0.15 * fractal(rng, window.size, 5 * unit, 2)
    return Patch.covering(surface, window, coverage, np.clip(matter * shading[..., None], 0, 1))


LIQUIDS = [
    (0.45, 0.32, 0.20),
    (0.30, 0.28, 0.26),
    (0.62, 0.42, 0.22),
    (0.55, 0.55, 0.58),
    (0.42, 0.46, 0.60),
    (0.68, 0.60, 0.42),
]
"""How much of red, green and blue a stain lets through: coffee, oil, rust, water, ink, resin."""


def bottom(surface: Surface, window: Window) -> FloatImage:
    """What lies beneath the surface, HxWx3 of the window."""
    if surface.beneath.ndim == 1:
        return np.broadcast_to(surface.beneath, (*window.size, 3))
    return surface.beneath[window.area]
