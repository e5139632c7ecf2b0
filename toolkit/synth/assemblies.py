"""Made things: meshes, stamped parts and screws, with what is normal on them.

The functions have the form that `surfaces.py` describes.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import (
    FloatImage,
    Points,
    Size,
    Surface,
    Window,
    mix,
    shifted,
    tinted,
    unit_of,
)
from toolkit.synth.noise import blurred, fractal, log_uniform, relief, smooth, soft_step, white
from toolkit.synth.plates import any_colour, exposed
from toolkit.synth.surfaces import Colour, grid, light_from, mixed


def mesh(product: Generator, rng: Generator, size: Size) -> Surface:
    """A screen of crossed wires or a punched sheet: its holes are normal."""
    metal = any_colour(product, 0.15, 0.8)
    behind = any_colour(product, 0.02, 0.9)
    behind = mixed(behind, float(metal.mean() < 0.4), 0.45)
    unit = unit_of(size)
    pitch = max(5.0, log_uniform(product, 9, 60) * unit)
    angle = product.choice([0.0, math.pi / 4, product.uniform(0, math.pi)])
    punched, hexagonal = product.random() < 0.5, product.random() < 0.5
    open_share, corner = product.uniform(0.28, 0.42), product.choice([2.0, 2.0, 6.0])
    bent, grain = product.uniform(0, 0.04), product.uniform(0.01, 0.06)
    light = light_from(product)

    u, v = grid(size, pitch, angle + rng.normal(0, 0.015), rng.uniform(0, 60, 2))
    u += np.float32(bent) * smooth(rng, size, (5 * pitch, 5 * pitch))
    v += np.float32(bent) * smooth(rng, size, (5 * pitch, 5 * pitch))
    tone = 1 + np.float32(grain) * (white(rng, size) + smooth(rng, size, (50 * unit, 50 * unit)))
    if punched:
        coverage = _punched(u, v, pitch, open_share, corner, hexagonal)
        tone += np.float32(0.5) * relief(blurred(coverage, 0.8), light)
    else:
        coverage, crown = _wires(u, v, pitch, 0.5 - open_share)
        tone *= crown
    shade = shifted(blurred(coverage, 0.06 * pitch + 0.5), -0.1 * pitch * light[0], 0.1 * pitch)
    dim = 1 + np.float32(0.06) * smooth(rng, size, (30 * unit, 30 * unit))
    ground = tinted(dim * (1 - np.float32(0.4) * shade), behind)
    image = mix(ground, tinted(tone, metal), coverage)
    return Surface(exposed(image), exposed(ground), light)


def _punched(
    u: FloatImage, v: FloatImage, pitch: float, radius: float, corner: float, hexagonal: bool
) -> FloatImage:
    """Coverage of a sheet with one hole of `radius` (share of the pitch) in each cell."""
    row = np.floor(v)
    if hexagonal:
        u = np.asarray(u + row / 2 - np.floor(row / 2), np.float32)
    x, y = np.abs(u - np.floor(u) - np.float32(0.5)), np.abs(v - row - np.float32(0.5))
    if corner == 2:
        distance = np.sqrt(x * x + y * y)
    else:
        # Square holes with round corners.
        inner = np.float32(0.75 * radius)
        x, y = np.maximum(x - inner, 0), np.maximum(y - inner, 0)
        distance = np.sqrt(x * x + y * y) + inner
    return soft_step(np.asarray(distance, np.float32), radius, 1.2 / pitch)


def _wires(
    u: FloatImage, v: FloatImage, pitch: float, half: float
) -> tuple[FloatImage, FloatImage]:
    """Coverage of wires of `half` width (share of the pitch), woven, and the light on them."""
    i, j = np.floor(u), np.floor(v)
    x, y = np.abs(u - i - np.float32(0.5)), np.abs(v - j - np.float32(0.5))
    first = soft_step(-x, -half, 1.2 / pitch)
    second = soft_step(-y, -half, 1.2 / pitch)
    half_sum = (i + j) / 2
    over = half_sum == np.floor(half_sum)
    # The upper wire of a crossing hides the lower one; elsewhere the nearer one shows.
    upper = np.where(over, first > 0, second <= 0)
    across = np.minimum(np.where(upper, x, y) / np.float32(half), 1)
    crown = np.float32(0.45) + np.float32(0.75) * np.sqrt(1 - np.float32(0.98) * across * across)
    return np.maximum(first, second), np.asarray(crown, np.float32)


def stamped_part(product: Generator, rng: Generator, size: Size) -> Surface:
    """A flat part of random outline with holes, steps and a bevel, on a ground with its shadow."""
    metal, belt = any_colour(product, 0.2, 0.85), any_colour(product, 0.03, 0.6)
    if abs(float(metal.mean() - belt.mean())) < 0.15:
        belt = belt * np.float32(0.4)
    unit = unit_of(size)
    outline = _part_outline(product) * product.uniform(80, 122)
    holes = _part_holes(product) * product.uniform(70, 100)
    step = outline * product.uniform(0.45, 0.85) if product.random() < 0.5 else None
    bevel, edge = product.uniform(1.5, 9), product.uniform(0.15, 0.7)
    texture, cell = log_uniform(product, 0.01, 0.08), log_uniform(product, 1.5, 12)
    rough = product.uniform(0.02, 0.14)
    spin = math.pi if product.random() < 0.4 else 0.06
    light = light_from(product)

    pose = _pose(rng, size, rng.normal(0, 6, 2), rng.uniform(-spin, spin))
    coverage = _filled(size, [pose(outline)])
    if len(holes):
        coverage *= 1 - _filled(size, [pose(hole) for hole in holes])
    height = _bevelled(coverage, max(1.0, bevel * unit))
    if step is not None:
        height += np.float32(0.6) * blurred(_filled(size, [pose(step)]), max(0.6, unit))
    tone = 1 + np.float32(1.6 * edge * max(1.0, bevel * unit) / 2) * relief(height, light)
    tone += np.float32(texture) * (fractal(rng, size, max(1.0, cell * unit), 2) + white(rng, size))
    ground, shade = _ground(rng, size, belt, rough, coverage, light)
    image = mix(ground, tinted(np.maximum(tone, np.float32(0.05)), metal), coverage)
    return Surface(exposed(image), exposed(ground), light, part=coverage, shadow=shade)


def _filled(size: Size, polygons: list[Points]) -> FloatImage:
    """Coverage (HxW) of the union of `polygons`, drawn in no larger a window than they need."""
    window = Window.around(np.concatenate(polygons), 2, size)
    coverage = np.zeros(size, np.float32)
    coverage[window.area] = window.fill(polygons)
    return coverage


def _bevelled(coverage: FloatImage, bevel: float) -> FloatImage:
    """Height of a part (0 to 1) that rises over `bevel` pixels from its outline."""
    inside = cv2.distanceTransform((coverage >= 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    return blurred(np.minimum(np.asarray(inside, np.float32) / np.float32(bevel), 1), 0.7)


def _ground(
    rng: Generator,
    size: Size,
    colour: Colour,
    rough: float,
    coverage: FloatImage,
    light: tuple[float, float],
) -> tuple[FloatImage, FloatImage]:
    """What a part lies on, and the share of light that the part's shadow leaves on it (HxW)."""
    unit = unit_of(size)
    reach = log_uniform(rng, 2, 8) * unit
    tone = 1 + np.float32(rough) * fractal(rng, size, max(2.0, 7 * unit), 2, 0.7)
    cast = blurred(shifted(coverage, -reach * light[0], -reach * light[1]), max(0.5, 0.6 * reach))
    shade = 1 - np.float32(0.55) * cast
    return tinted(tone * shade, colour), shade


def _pose(rng: Generator, size: Size, move: NDArray[np.float64], turn: float) -> _Pose:
    """Where a part lies: its middle near the picture's, moved by `move` design units."""
    middle = np.array([size[1], size[0]]) / 2 + move * unit_of(size)
    return _Pose(middle, turn, unit_of(size) * rng.uniform(0.95, 1.05))


class _Pose:
    """From points in design units about a part's middle to pixels."""

    def __init__(self, middle: NDArray[np.float64], turn: float, scale: float) -> None:
        cosine, sine = math.cos(turn) * scale, math.sin(turn) * scale
        self.matrix = np.array([[cosine, sine], [-sine, cosine]])
        self.middle = middle

    def __call__(self, points: Points) -> Points:
        return np.asarray(points @ self.matrix + self.middle)


def _part_outline(product: Generator) -> Points:
    """An outline within the unit circle: ellipse, rounded box, gear, polygon, capsule, bracket."""
    angles = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    aspect, kind = product.uniform(0.35, 1.0), product.integers(6)
    if kind == 0:
        return np.asarray(ring * np.array([1, aspect if product.random() < 0.4 else 1]))
    if kind == 1:
        power = log_uniform(product, 3, 14)
        radius = (np.abs(ring[:, 0]) ** power + np.abs(ring[:, 1]) ** power) ** (-1 / power)
        return np.asarray(ring * radius[:, None] * np.array([0.9, 0.9 * aspect]))
    if kind == 2:
        teeth, depth = product.integers(5, 20), product.uniform(0.04, 0.14)
        bite = np.tanh(product.uniform(1, 6) * np.sin(teeth * angles))
        return np.asarray(ring * (1 - depth + depth * bite)[:, None])
    if kind == 3:
        polygon = ring[:: 120 // int(product.choice([3, 4, 5, 6, 8]))]
        return np.asarray(polygon * np.array([1, product.uniform(0.6, 1)]))
    if kind == 4:
        return np.asarray(
            ring * 0.45 * aspect + np.sign(ring[:, :1]) * np.array([1 - 0.45 * aspect, 0])
        )
    arm, leg = product.uniform(-0.5, 0.2, 2)
    corners = [[-0.8, -0.8], [0.8, -0.8], [0.8, arm], [leg, arm], [leg, 0.8], [-0.8, 0.8]]
    return np.asarray(np.array(corners) * np.array([1, product.uniform(0.7, 1)]))


def _part_holes(product: Generator) -> Points:
    """Outlines of holes, KxNx2 within the unit circle: none, one in the middle, or a circle."""
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    holes = [ring * product.uniform(0.12, 0.5)] if product.random() < 0.5 else []
    if product.random() < 0.4:
        count, radius = int(product.integers(2, 8)), product.uniform(0.04, 0.1)
        middles = ring[:: 48 // count][:count] * product.uniform(0.5, 0.62)
        holes += [ring * radius + middle for middle in middles]
    return np.array(holes).reshape(-1, 48, 2)


def screw(product: Generator, rng: Generator, size: Size) -> Surface:
    """A screw, bolt, pin or bottle-like turned part from its side, on a plain ground."""
    metal, belt = any_colour(product, 0.25, 0.85, grey=0.7), any_colour(product, 0.03, 0.8)
    if abs(float(metal.mean() - belt.mean())) < 0.15:
        belt = belt * np.float32(0.4)
    unit = unit_of(size)
    profile, thread = _turned_profile(product)
    angle = product.choice([0.0, math.pi / 2, product.uniform(0, math.pi)])
    pitch, depth = log_uniform(product, 5, 18), product.uniform(0.03, 0.14)
    crown, rough = _crown(product), product.uniform(0.01, 0.06)
    light = light_from(product)

    steps = profile.size
    scale = unit * rng.uniform(0.95, 1.05)
    turn = angle + rng.normal(0, 0.04)
    x, y = np.array([size[1], size[0]]) / 2 - 0.5 + rng.normal(0, 5 * unit, 2)
    cosine, sine = math.cos(turn), math.sin(turn)
    along, across = grid(
        size, scale, turn, ((-cosine * x - sine * y) / scale, (sine * x - cosine * y) / scale)
    )
    place = np.asarray(np.clip(along + np.float32(steps / 2), 0, steps - 1), np.intp)
    radius, threaded = profile[place], thread[place]
    phase = along / np.float32(pitch) + np.float32(0.5) * across / (radius + 1)
    flank = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1
    radius = radius * (1 + np.float32(depth) * threaded * (flank - 1))
    coverage = soft_step((radius - np.abs(across)) * np.float32(scale), 0, 1.2)
    share = np.clip(across / (radius + np.float32(1e-3)), -1, 1)
    tone = crown[np.asarray((share + 1) * np.float32((crown.size - 1) / 2), np.intp)]
    tone = tone * (1 + np.float32(0.4) * threaded * flank)
    tone += np.float32(0.5) * relief(np.minimum(radius, np.float32(90)), (cosine, sine))
    tone += np.float32(rough) * white(rng, size)
    ground, shade = _ground(rng, size, belt, rough, coverage, light)
    image = mix(ground, tinted(np.maximum(tone, np.float32(0.03)), metal), coverage)
    return Surface(exposed(image), exposed(ground), light, part=coverage, shadow=shade)


def _turned_profile(product: Generator) -> tuple[FloatImage, FloatImage]:
    """Radius at each design unit along the axis (256 values), and where there is thread."""
    at = np.arange(256, dtype=np.float32)
    shank = product.uniform(12, 34)
    start, end = product.uniform(8, 40), product.uniform(216, 248)
    head = start + product.uniform(12, 60)
    wide = shank * product.choice([product.uniform(1.4, 2.2), product.uniform(0.45, 0.9), 1.0])
    shoulder = log_uniform(product, 1, 40)
    radius = shank + (wide - shank) * soft_step(-at[None], -head - shoulder / 2, shoulder)[0]
    tip = product.choice([1.0, 4.0, product.uniform(15, 60)])
    radius = radius * np.clip((end - at) / np.float32(tip), 0, 1)
    radius = radius * np.sqrt(np.clip((at - start) / np.float32(product.uniform(1, 16)), 0, 1))
    # A point too fine to cover a pixel would be neither part nor ground.
    radius = radius * (radius > 3)
    first = product.uniform(head + shoulder, 200)
    thread = soft_step(at[None], first, 4)[0] * (product.random() < 0.75)
    return np.asarray(radius, np.float32), np.asarray(thread, np.float32)


def _crown(product: Generator) -> FloatImage:
    """Light across a cylinder (256 values): dark flanks, one or two bright lines."""
    across = np.linspace(-1, 1, 256)
    tone = product.uniform(0.15, 0.5) + 0.6 * np.sqrt(1 - 0.99 * across**2)
    for _ in range(product.integers(1, 3)):
        line = (across - product.uniform(-0.7, 0.7)) / log_uniform(product, 0.04, 0.3)
        tone += product.uniform(-0.3, 0.6) * np.exp(-(line**2))
    return np.asarray(np.clip(tone, 0.05, 1.6), np.float32)
