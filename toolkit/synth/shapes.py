"""Where blemishes lie: shapes as a window of the picture and the coverage (HxW) in it."""

from __future__ import annotations

import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from toolkit.synth.canvas import FloatImage, Points, Surface, Window
from toolkit.synth.noise import fractal, log_uniform, smooth, soft_step
from toolkit.synth.patch import Border, Site

Shape: TypeAlias = tuple[Window, FloatImage]
Place: TypeAlias = tuple[float, float]

_NEAR = np.ones((7, 7), np.uint8)


def island(
    rng: Generator,
    surface: Surface,
    at: Place,
    radius: float,
    *,
    ragged: float = 0.1,
    lobes: int = 1,
    stretch: float = 1.0,
    heading: float = 0.0,
    soft: float = 1.0,
) -> Shape:
    """A blot of `lobes` ellipses of mean `radius` (pixels) that overlap along `heading`.

    `ragged` is how far its outline strays, as a share of the radius; bits may come loose.
    """
    root, axis = math.sqrt(stretch), (math.cos(heading), math.sin(heading))
    steps = np.concatenate([[0.0], rng.uniform(-1.6, 1.6, lobes - 1)]) * radius * root
    aside = np.concatenate([[0.0], rng.uniform(-0.8, 0.8, lobes - 1)]) * radius / root
    shares = np.concatenate([[1.0], rng.uniform(0.4, 1, lobes - 1)])
    centres = np.stack([at[0] + steps * axis[0], at[1] + steps * axis[1]], axis=1)
    centres += np.stack([-aside * axis[1], aside * axis[0]], axis=1)
    margin = radius * (root + 2 * ragged) + soft + 3
    window = Window.around(centres, margin, surface.size)
    field = np.full(window.size, -np.inf, np.float32)
    for (x, y), share in zip(centres, shares, strict=True):
        along, across = _turned(window, (x, y), heading)
        rho = cv2.magnitude(along * np.float32(1 / root), across * np.float32(root))
        field = np.maximum(field, np.float32(radius * share) - rho)
    stray = fractal(rng, window.size, max(3.0, 0.7 * radius), 4, 0.64)
    field += np.float32(ragged * radius) * np.clip(stray, -2, 2)
    return window, bordered(field, soft)


def streaks(
    rng: Generator,
    surface: Surface,
    at: Place,
    heading: float,
    *,
    length: float,
    width: float,
    count: int,
    ragged: float = 0.2,
    soft: float = 1.0,
) -> Shape:
    """`count` lens-shaped fragments (pixels long and wide) side by side along `heading`."""
    axis = np.array([math.cos(heading), math.sin(heading)])
    normal = np.array([-axis[1], axis[0]])
    outlines = []
    for index in range(count):
        step, aside = rng.normal(0, [0.45 * length, 1.6 * width]) if index else (0.0, 0.0)
        share = rng.uniform(0.25, 1) if index else 1.0
        middle = np.array(at) + step * axis + aside * normal
        lens = _lens(rng, length * share, width * rng.uniform(0.5, 1) ** (index > 0), ragged)
        outlines.append(middle + lens[:, :1] * axis + lens[:, 1:] * normal)
    window = Window.around(np.concatenate(outlines), soft + 2, surface.size)
    return window, softened(window.fill(outlines), soft)


def _lens(rng: Generator, length: float, width: float, ragged: float) -> Points:
    """The outline of one fragment (Nx2: along, across), around its middle."""
    count = int(np.clip(length / 3, 8, 40))
    time = np.linspace(-1, 1, count)
    # Near 0 it is a stripe with blunt ends, near 1 a lens.
    bulge = (1 - time * time) ** log_uniform(rng, 0.12, 1.2)
    waves = smooth(rng, (2, count), (1.0, rng.uniform(1.5, 8)))
    sides = np.maximum(bulge * (1 + ragged * waves), 0.1) * width / 2
    # Thinner than this, a fragment would have gaps in its mask.
    sides = np.maximum(sides, 0.65)
    sway = rng.normal(0, 0.25 * width) * np.sin(math.pi * (time + rng.uniform(-1, 1)))
    upper = np.stack([time * length / 2, sway - sides[0]], axis=1)
    lower = np.stack([time * length / 2, sway + sides[1]], axis=1)
    return np.concatenate([upper, lower[::-1]])


def divided(
    rng: Generator,
    surface: Surface,
    allowed: FloatImage | None,
    share: float,
    *,
    ragged: float,
    soft: float = 1.0,
    band: bool = False,
) -> Shape:
    """One side of a line that wanders across the picture, or a `band` along it.

    It takes about `share` of the picture, or of what is `allowed`.
    """
    whole = Window(0, 0, *surface.size)
    heading = float(rng.integers(4) * math.pi / 2 + rng.normal(0, 0.12))
    if rng.random() < 0.15:
        heading = rng.uniform(0, 2 * math.pi)
    unit = surface.unit
    field, _ = _turned(whole, (whole.width / 2, whole.height / 2), heading)
    cell = rng.uniform(50, 160) * unit
    field += np.float32(rng.uniform(1, 14) * unit) * smooth(rng, whole.size, (cell, cell))
    if ragged > 0:
        field += np.float32(ragged * unit) * fractal(rng, whole.size, 20 * unit, 3, 0.65)
    seen = field[::4, ::4]
    if allowed is not None:
        inside = seen[allowed[::4, ::4] > 0.5]
        seen = inside if inside.size else seen
    if not band:
        return whole, bordered(field - np.float32(np.quantile(seen, 1 - share)), soft)
    start = rng.uniform(0, 1 - share)
    low, high = np.quantile(seen, [start, start + share]).astype(np.float32)
    return whole, bordered(np.minimum(field - low, high - field), soft)


def tongue(
    rng: Generator,
    surface: Surface,
    border: Border,
    *,
    length: float,
    width: float,
    ragged: float = 0.05,
    soft: float = 1.0,
) -> Shape:
    """An area that grows `length` pixels inwards from a border, `width` wide at its foot."""
    axis = np.array([math.cos(border.heading), math.sin(border.heading)])
    foot = np.array([border.site.x, border.site.y])
    ends = np.stack([foot - 0.3 * length * axis, foot + length * axis])
    margin = (0.75 + 2 * ragged) * width + soft + 3
    window = Window.around(ends, margin, surface.size)
    along, across = _turned(window, (foot[0], foot[1]), border.heading)
    time = along * np.float32(1 / length)
    bulge = np.float32(rng.uniform(-0.25, 0.3))
    power = rng.uniform(1.4, 4)
    taper = 1 - np.clip(time, 0, 1) ** np.float32(power)
    half = np.float32(width / 2) * (taper + bulge * np.sin(np.clip(time, 0, 1) * np.float32(3.14)))
    beyond = np.maximum(time - 1, 0) * np.float32(length)
    sway = np.float32(rng.normal(0, 0.2) * width) * np.clip(time, 0, 1) ** 2
    field = np.minimum(half, np.float32(0.8 * width)) - np.abs(across - sway) - beyond
    stray = fractal(rng, window.size, max(3.0, 0.5 * width), 5, 0.6)
    field += np.float32(ragged * width) * np.clip(stray, -2, 2)
    return window, bordered(field, soft)


def eaten(
    rng: Generator,
    surface: Surface,
    border: Border,
    *,
    depth: float,
    reach: float,
    soft: float = 1.0,
) -> Shape:
    """A strip along a border, up to about `depth` pixels deep and `reach` to either side."""
    site = border.site
    window = Window.around(np.array([[site.x, site.y]]), reach + 2, surface.size)
    dx, dy = window.offsets(site.x, site.y)
    nearness = 1 - (dx * dx + dy * dy) * np.float32(1 / reach**2)
    jagged = fractal(rng, window.size, max(3.0, 1.2 * depth), 4, 0.55)
    local = np.float32(depth) * (np.float32(0.7) + np.float32(0.45) * jagged) * nearness
    local = np.where(nearness > 0, local, np.float32(-depth))
    return window, bordered(local - from_border(surface, window, site.allowed), soft)


def from_border(surface: Surface, window: Window, allowed: FloatImage | None) -> FloatImage:
    """Distance in pixels (HxW) of the window's pixels from where the material ends."""
    if allowed is not None:
        inside = (allowed[window.area] > 0.5).astype(np.uint8)
        return np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, 3), np.float32)
    x, y = window.offsets(0, 0)
    height, width = surface.size
    near_x = np.minimum(x, np.float32(width) - x)
    near_y = np.minimum(y, np.float32(height) - y)
    return np.asarray(np.minimum(near_x, near_y), np.float32)


def made_axis(rng: Generator) -> float:
    """A direction (radians) along the rows or the columns, as things are made; rarely another."""
    if rng.random() < 0.2:
        return rng.uniform(0, math.pi)
    return float(rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.04))


def bordered(field: FloatImage, soft: float = 1.0) -> FloatImage:
    """Coverage where `field` (pixels, positive inside) says so, its border `soft` pixels wide."""
    return softened(soft_step(field, 0, 1.5), soft)


def clipped(site: Site, shape: Shape, soft: float = 1.0) -> FloatImage:
    """Coverage of `shape` cut where the damaged material ends."""
    window, coverage = shape
    if site.allowed is None:
        return coverage
    coverage = site.clip(window, coverage)
    # Where the cut took the mask away, its soft border is to go too.
    reach = 2 * max(3, math.ceil(soft / 2)) + 1
    inside = (coverage >= np.float32(0.5)).astype(np.uint8)
    return np.asarray(coverage * cv2.dilate(inside, np.ones((reach, reach), np.uint8)), np.float32)


def softened(coverage: FloatImage, soft: float) -> FloatImage:
    """`coverage` with a ramp of `soft` pixels for a border; its mask stays."""
    inside = (coverage >= np.float32(0.5)).astype(np.uint8)
    if soft < 2:
        # Where a field is nearly flat its ramp is wide; nothing is to change far from the mask.
        return np.asarray(coverage * cv2.dilate(inside, _NEAR), np.float32)
    depth = np.asarray(cv2.distanceTransform(inside, cv2.DIST_L2, 3), np.float32)
    height = np.asarray(cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3), np.float32)
    return soft_step(depth - height, 0, soft)


def _turned(window: Window, origin: ArrayLike, heading: float) -> tuple[FloatImage, FloatImage]:
    """How far each pixel (HxW) lies from `origin` along `heading` and across it."""
    x, y = np.asarray(origin, np.float64)
    dx, dy = window.offsets(float(x), float(y))
    cosine, sine = np.float32(math.cos(heading)), np.float32(math.sin(heading))
    return cosine * dx + sine * dy, cosine * dy - sine * dx
