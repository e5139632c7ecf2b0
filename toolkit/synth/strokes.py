"""Defects along a line: scratches, cracks and threads.

A defect is a function `(rng, surface) -> Patch`. To add one, write the function and list it in
`registry.py`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import Points, Surface, Window, mix, shifted
from toolkit.synth.noise import blurred, log_uniform, smooth
from toolkit.synth.patch import Patch, contrasting, find_site

THINNEST = 1.2
"""Pixels: a line of this width covers some pixel by half wherever it lies."""


def scratch(rng: Generator, surface: Surface) -> Patch:
    """One to three nearly straight grooves side by side, lit on one flank, fading in places."""
    unit, site = surface.unit, find_site(rng, surface)
    length, heading = log_uniform(rng, 14, 230) * unit, direction(rng)
    width = max(THINNEST, log_uniform(rng, 0.8, 3.2) * unit)
    paths = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        own = length * rng.uniform(0.6, 1)
        aside = rng.normal(0, 3 * width, 2)
        line = wander(rng, (site.x + aside[0], site.y + aside[1]), heading, own, bend=0.25)
        paths.append((line, swelling(rng, len(line), width)))
    window = Window.around(np.concatenate([line for line, _ in paths]), width + 2, surface.size)
    coverage = site.clip(window, window.stroke(paths))

    below = surface.image[window.area]
    groove = contrasting(rng, below, rng.uniform(0.12, 0.5))
    light_x, light_y = (0.5 * width * part for part in surface.light)
    flank = np.clip(coverage - shifted(coverage, light_x, light_y), 0, 1)
    look = mix(np.broadcast_to(groove, below.shape), np.clip(groove + 0.3, 0, 1), 0.7 * flank)
    chatter = 0.75 + 0.25 * smooth(rng, window.size, (14 * unit, 14 * unit))
    return Patch.covering(surface, window, coverage, look, np.clip(chatter, 0.45, 1))


def crack(rng: Generator, surface: Surface) -> Patch:
    """A dark jagged line that thins out and branches."""
    unit, site = surface.unit, find_site(rng, surface)
    length = log_uniform(rng, 32, 200) * unit
    width = max(THINNEST, log_uniform(rng, 1.0, 3.4) * unit)
    heading = direction(rng)
    straight = rng.choice([0.2, 1.0])
    trunk = wander(
        rng,
        (site.x, site.y),
        heading,
        length,
        bend=0.7 * straight,
        jag=0.5 * straight,
        step=3 * unit,
    )
    paths = [(trunk, tapering(len(trunk), width))]
    for _ in range(rng.integers(0, 5)):
        node = int(rng.integers(1, len(trunk)))
        away = heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
        branch = wander(
            rng,
            (trunk[node, 0], trunk[node, 1]),
            away,
            length * rng.uniform(0.1, 0.4),
            bend=0.5,
            jag=0.5,
            step=3 * unit,
            centred=False,
        )
        paths.append((branch, tapering(len(branch), 0.7 * width)))
    window = Window.around(np.concatenate([line for line, _ in paths]), width + 2, surface.size)
    coverage = site.clip(window, window.stroke(paths))

    below = surface.image[window.area]
    depth = below.mean(axis=(0, 1)) * np.float32(rng.uniform(0.1, 0.35))
    if below.mean() < 0.25:
        depth = contrasting(rng, below, rng.uniform(0.25, 0.5))
    return Patch.covering(
        surface, window, coverage, np.broadcast_to(depth, below.shape), rng.uniform(0.65, 1)
    )


def thread(rng: Generator, surface: Surface) -> Patch:
    """A fibre that lies curled on the surface, round in section, with a faint shadow."""
    unit, site = surface.unit, find_site(rng, surface)
    length = log_uniform(rng, 50, 260) * unit
    width = max(THINNEST, min(log_uniform(rng, 1.4, 4.5) * unit, length / 20))
    line = wander(
        rng, (site.x, site.y), rng.uniform(0, 2 * math.pi), length, bend=rng.uniform(0.8, 3.5)
    )
    widths = np.full(len(line), width)
    window = Window.around(line, 2 * width + 3, surface.size)
    coverage = window.stroke([(line, widths)])

    below = surface.image[window.area]
    dye = contrasting(rng, below, rng.uniform(0.3, 0.7), hue=0.08)
    light = np.array(surface.light)
    core = window.stroke([(line + 0.18 * width * light, 0.45 * widths)])
    look = mix(np.broadcast_to(0.75 * dye, below.shape), np.clip(1.15 * dye + 0.05, 0, 1), core)
    twist = 1 + 0.12 * smooth(rng, window.size, (2 * unit, 2 * unit))
    # The shadow stays within two thread widths, where nobody would call the surface changed.
    shadow = blurred(shifted(coverage, *(-0.5 * width * light)), max(0.5, 0.3 * width))
    shaded = surface.image[window.area] * (1 - 0.3 * shadow[..., None])
    return Patch(window, coverage, mix(shaded, look * twist[..., None], coverage))


def direction(rng: Generator) -> float:
    """Where a line heads, in radians: often along a side of the picture.

    Parts lie straight under the camera, and what scratches or splits them moves along them.
    """
    if rng.random() < 0.4:
        return float(rng.choice([0, 1, 2, 3]) * math.pi / 2 + rng.normal(0, 0.07))
    return rng.uniform(0, 2 * math.pi)


def wander(
    rng: Generator,
    through: tuple[float, float],
    heading: float,
    length: float,
    *,
    bend: float,
    jag: float = 0.0,
    step: float | None = None,
    centred: bool = True,
) -> Points:
    """A random line of `length` pixels (Nx2) whose middle, or start, lies at `through`.

    `bend` is how far the heading drifts over the length and `jag` how far it jumps at each point,
    in radians; `step` is the distance between points in pixels.
    """
    count = int(np.clip(length / (step or max(length / 48, 2.0)), 2, 64))
    time = np.linspace(0, 1, count)
    drift = sum(
        rng.normal(0, bend / wave) * np.sin(math.pi * wave * time + rng.uniform(0, 2 * math.pi))
        for wave in (1, 2, 3)
    )
    angles = heading + drift + rng.normal(0, 1, count) * jag
    moves = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (length / count)
    line = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    return np.asarray(line - line[len(line) // 2 if centred else 0] + np.array(through))


def swelling(rng: Generator, count: int, width: float) -> NDArray[np.float64]:
    """Widths along a scratch: pressure comes and goes, never below `THINNEST`."""
    ends = np.minimum(1, 6 * np.sin(np.linspace(0.03, math.pi - 0.03, count)))
    return np.asarray(np.maximum(width * ends * rng.uniform(0.7, 1.1, count), THINNEST))


def tapering(count: int, width: float) -> NDArray[np.float64]:
    """Widths along a crack, from `width` where it opened to `THINNEST` where it ends."""
    return np.asarray(np.maximum(np.linspace(width, 0.3 * width, count), THINNEST))
