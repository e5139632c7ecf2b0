"""Parts that are out of place, and leads that are bent.

The functions have the form that `strokes.py` describes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator

from toolkit.synth import looks, shapes
from toolkit.synth.canvas import Blob, FloatImage, Points, Surface, Window, mix, rgb
from toolkit.synth.noise import blurred, log_uniform, relief, soft_step
from toolkit.synth.patch import Patch, find_edge, find_site
from toolkit.synth.spots import bottom

MOSTLY_PART = 0.6
"""Share of the picture above which a part is rather a material that fills it."""
THINNEST_LEAD = 2.0
"""Pixels: of a thinner lead too little shows to see that it is bent."""


def displaced(rng: Generator, surface: Surface) -> Patch:
    """The part moved, turned or absent; where there is none, a piece of the texture out of place.

    The mask holds where the part belongs and where it is.
    """
    if surface.part is None or surface.part.mean() > MOSTLY_PART:
        return _misaligned(rng, surface)
    old = _component(rng, surface.part)
    matrix = None if rng.random() < 0.25 else _pose(rng, surface, old)
    beneath = bottom(surface, Window(0, 0, *surface.size))
    # The part alone, times its coverage, so that its edge takes no ground along.
    cast = surface.image - beneath * rgb(1 - old)
    cast = np.maximum(cast, np.float32(0)) * rgb(soft_step(old, 0.02, 0.02))
    layer, new = _warped(cast, matrix, 0), _warped(old, matrix, 0)
    ground = mix(surface.image, beneath, soft_step(old, 0.02, 0.04))
    if surface.shadow is not None:
        shade = _warped(surface.shadow, matrix, 1) / np.maximum(surface.shadow, np.float32(0.1))
        ground *= rgb(np.asarray(shade, np.float32))
    coverage = np.asarray(np.maximum(old, new), np.float32)
    pixels = ground * rgb(1 - new) + layer
    near = cv2.dilate((coverage >= 0.5).astype(np.uint8), np.ones((11, 11), np.uint8))
    x, y, width, height = cv2.boundingRect(near)
    window = Window(y, x, max(height, 1), max(width, 1))
    area = window.area
    kept = np.asarray(near[area], np.float32)
    pixels = mix(surface.image[area], pixels[area], kept)
    return Patch(window, coverage[area] * kept, pixels)


def _warped(field: FloatImage, matrix: FloatImage | None, empty: float) -> FloatImage:
    """`field` moved by `matrix`, `empty` where nothing moved in; all empty where it is None."""
    if matrix is None:
        return np.full_like(field, empty)
    size = (field.shape[1], field.shape[0])
    outside = (empty, empty, empty, empty)
    return np.asarray(cv2.warpAffine(field, matrix, size, borderValue=outside), np.float32)


def _component(rng: Generator, part: FloatImage) -> FloatImage:
    """Coverage (HxW) of one connected piece of `part`, or of all of it."""
    inside = (part > 0.5).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside)
    large = [index for index in range(1, count) if stats[index, cv2.CC_STAT_AREA] >= 12]
    if len(large) < 2:
        return part
    chosen = (labels == large[rng.integers(len(large))]).astype(np.uint8)
    near = cv2.dilate(chosen, np.ones((5, 5), np.uint8))
    return np.asarray(part * near, np.float32)


def _pose(rng: Generator, surface: Surface, part: FloatImage) -> FloatImage:
    """A move of the part (2x3): turned about its middle, a little or by any angle, and shifted."""
    moments = cv2.moments(part)
    mass = max(moments["m00"], 1e-6)
    middle = (moments["m10"] / mass, moments["m01"] / mass)
    angle = rng.choice([0.0, rng.normal(0, 0.25), rng.uniform(-math.pi, math.pi), math.pi / 2])
    matrix = cv2.getRotationMatrix2D(middle, math.degrees(angle), 1.0)
    reach = math.sqrt(mass) * log_uniform(rng, 0.08, 0.7)
    heading = rng.uniform(0, 2 * math.pi)
    step = np.array([math.cos(heading), math.sin(heading)]) * max(reach, 3 * surface.unit)
    return np.asarray(matrix + np.array([[0, 0, step[0]], [0, 0, step[1]]]), np.float32)


def _misaligned(rng: Generator, surface: Surface) -> Patch:
    """A rectangle or a strip of the texture that lies shifted or turned, with a seam."""
    site, unit = find_site(rng, surface), surface.unit
    half = np.maximum(4.0, np.exp(rng.uniform(math.log(8), math.log(75), 2)) * unit)
    if rng.random() < 0.35:
        half[rng.integers(2)] = 2 * max(surface.size)
    turn = rng.choice([0.0, rng.normal(0, 0.1), rng.uniform(0, math.pi)])
    axis = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    corners = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ axis
    corners += (site.x, site.y)
    window = Window.around(corners, 2, surface.size)
    coverage = shapes.clipped(site, (window, window.fill([corners])))

    below = surface.image[window.area]
    angle = rng.choice([0.0, rng.normal(0, 0.2), rng.uniform(0, math.pi)])
    shift = rng.uniform(6, 40) * unit * rng.choice([-1, 1], 2) + (3, 3)
    look = looks.moved(surface, window, angle, shift)
    least = 1.1 * looks.noticeable(below)
    look = looks.shaded(look, looks.tone(rng, below) * least * rng.uniform(0.6, 1.6))
    # One side of a layer that lies on top is lit, the other is in shadow.
    seam = relief(blurred(coverage, max(0.7, unit)), surface.light) * coverage
    look = np.clip(look + rgb(np.float32(-rng.uniform(0, 0.8)) * seam), 0, 1)
    return Patch.covering(surface, window, coverage, look)


def bent(rng: Generator, surface: Surface) -> Patch:
    """A lead bent or cut; where there is none, an edge or a line pushed out of its course."""
    leads = [lead for lead in surface.leads if lead.width >= THINNEST_LEAD]
    if not leads:
        return _pushed(rng, surface)
    lead = leads[rng.integers(len(leads))]
    path = _cut(rng, lead.path) if rng.random() < 0.35 else _bent(rng, lead.path)
    # Wider than the lead, so that nothing of its outline stays; its round end spares the part.
    wide = 1.15 * lead.width + 1.2
    along = lead.path[1] - lead.path[0]
    root = lead.path[0] + min(0.5, 0.5 * wide / max(float(np.hypot(*along)), 1e-6)) * along
    trace = (np.concatenate([root[None], lead.path[1:]]), np.full(len(lead.path), wide))
    lying = (path, np.full(len(path), max(lead.width, 1.2)))
    window = Window.around(np.concatenate([lead.path, path]), lead.width + 3, surface.size)
    old, new = window.stroke([trace]), window.stroke([lying])
    if surface.part is not None:
        old = np.minimum(old, surface.part[window.area])
    pixels = mix(surface.image[window.area], bottom(surface, window), old)
    core = window.stroke([(path - (0.1 * lead.width, 0), np.maximum(0.55 * lying[1], 1.2))])
    colour = np.asarray(lead.colour, np.float32)
    metal = mix(np.broadcast_to(0.6 * colour, pixels.shape), colour, core)
    return Patch(window, np.abs(old - new), mix(pixels, metal, new))


def _bent(rng: Generator, path: Points) -> Points:
    """`path` with its far end turned about one of its joints."""
    joint = int(rng.integers(0, max(1, len(path) - 1)))
    angle = rng.choice([-1, 1]) * rng.uniform(0.25, 1.4)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    far = (path[joint:] - path[joint]) @ turn
    return np.concatenate([path[:joint], path[joint] + far * rng.uniform(0.8, 1.1)])


def _cut(rng: Generator, path: Points) -> Points:
    """What is left of `path` near its root."""
    steps = np.hypot(*np.diff(path, axis=0).T)
    along = np.concatenate([[0], np.cumsum(steps)])
    keep = along[-1] * rng.uniform(0.05, 0.7)
    end = np.array([np.interp(keep, along, path[:, axis]) for axis in (0, 1)])
    return np.concatenate([path[along < keep], end[None]])


def _pushed(rng: Generator, surface: Surface) -> Patch:
    """The picture warped around one place; the mask is where it visibly moved."""
    x, y = _feature(rng, surface)
    radius = max(7.0, log_uniform(rng, 11, 52) * surface.unit)
    blob = Blob.random(rng, (x, y), radius, rough=0.15, stretch=rng.uniform(1, 2.2))
    window = Window.around(blob.points, 3, surface.size)
    rho = np.minimum(blob.rho(window), 1)
    bump = (1 - rho * rho) ** 2
    warped = _dragged(rng, surface, window, bump, radius * rng.uniform(0.42, 0.64))
    light = relief(bump * np.float32(radius), surface.light)
    shine = rng.uniform(0, 0.12) if surface.part is not None else rng.uniform(0.05, 0.3)
    warped = np.clip(warped * rgb(1 + np.float32(shine) * light), 0, 1)

    below = surface.image[window.area]
    change = np.abs(warped - below).max(axis=2) * (rho < 1)
    change = blurred(np.asarray(change, np.float32), max(1.2, 0.2 * radius))
    top = float(change.max()) + 1e-6
    coverage = shapes.softened(soft_step(change, 0.42 * top, 0.2 * top), 1)
    reached = cv2.dilate((coverage >= 0.5).astype(np.float32), np.ones((5, 5), np.uint8))
    weight = np.maximum(blurred(np.asarray(reached, np.float32), 0.7), coverage)
    return Patch(window, coverage, mix(below, warped, weight))


def _feature(rng: Generator, surface: Surface) -> tuple[float, float]:
    """Of some random places, the one with most to see around it: an edge or a line."""
    best, most = (0.0, 0.0), -1.0
    for _ in range(6):
        site = find_edge(rng, surface)
        window = Window.around(np.array([[site.x, site.y]]), 9 * surface.unit, surface.size)
        _, deviation = cv2.meanStdDev(surface.image[window.area])
        if float(deviation.max()) > most:
            best, most = (site.x, site.y), float(deviation.max())
    return best


def _dragged(
    rng: Generator, surface: Surface, window: Window, bump: FloatImage, reach: float
) -> FloatImage:
    """The picture in the window, moved by `reach` pixels where `bump` (HxW) is 1."""
    heading = rng.uniform(0, 2 * math.pi)
    x, y = window.offsets(0.5, 0.5)
    map_x = x - np.float32(reach * math.cos(heading)) * bump
    map_y = y - np.float32(reach * math.sin(heading)) * bump
    moved = cv2.remap(
        surface.image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved, np.float32)
