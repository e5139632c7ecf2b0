"""Texture families whose material fills the picture.

A family is a function `(product, rng, size) -> Surface`. What makes a product (colour, scale,
pattern) comes from `product`; what differs between two pictures of that product (pose, grain,
light) comes from `rng`. The same product seen again is the same `product` stream started again.
To add a family, write the function and list it in `registry.py`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from toolkit.synth.canvas import FloatImage, Size, Surface, mix, rgb, tinted, unit_of
from toolkit.synth.noise import (
    blurred,
    fractal,
    log_uniform,
    relief,
    rotated,
    rotation_canvas,
    smooth,
    soft_step,
    white,
)

Colour = FloatImage


def brushed_metal(product: Generator, rng: Generator, size: Size) -> Surface:
    """Steel, aluminium or brass, brushed in one direction."""
    metal = pick(
        product,
        [
            (0.62, 0.63, 0.65),
            (0.45, 0.46, 0.48),
            (0.72, 0.73, 0.74),
            (0.66, 0.55, 0.33),
            (0.60, 0.45, 0.38),
        ],
        0.04,
    )
    angle = product.choice([0.0, math.pi / 2, product.uniform(0, math.pi)])
    length, contrast = log_uniform(product, 40, 160), product.uniform(0.04, 0.10)
    light = light_from(product)

    unit, canvas = unit_of(size), rotation_canvas(size)
    streaks = smooth(rng, canvas, (1.0, length * unit)) + smooth(rng, canvas, (3 * unit, 1e4))
    fine = smooth(rng, canvas, (1.0, length * unit / 6))
    band = smooth(rng, canvas, (1e4, 110 * unit))
    tone = 1 + contrast * (0.8 * streaks + 0.7 * fine) + 0.10 * band
    tilt = angle + rng.normal(0, 0.03)
    return Surface(tinted(rotated(tone, size, tilt), metal), metal * np.float32(0.45), light)


def rolled_steel(product: Generator, rng: Generator, size: Size) -> Surface:
    """Dark rolled or ground steel with scale, lines and uneven sheen."""
    metal = pick(product, [(0.30, 0.30, 0.31), (0.38, 0.37, 0.36), (0.46, 0.46, 0.48)], 0.03)
    upright = product.random() < 0.5
    contrast, cloud = product.uniform(0.05, 0.12), product.uniform(0.03, 0.09)
    light = light_from(product)

    unit = unit_of(size)
    frame = size if upright else (size[1], size[0])
    lines = smooth(rng, frame, (160 * unit, 1.0)) + 0.7 * smooth(rng, frame, (1e4, 5 * unit))
    tone = 1 + contrast * (0.6 * lines + 0.5 * white(rng, frame))
    tone += np.float32(cloud) * fractal(rng, frame, 70 * unit, 4)
    tone += np.float32(0.12) * smooth(rng, frame, (1e4, 120 * unit))
    tone = tone if upright else tone.T
    return Surface(tinted(tone, metal), metal * np.float32(0.4), light)


def cast_grain(product: Generator, rng: Generator, size: Size) -> Surface:
    """Sand-cast or blasted metal: bumps of many sizes under slanting light, a few dark pores."""
    metal = pick(
        product,
        [(0.50, 0.50, 0.50), (0.38, 0.37, 0.36), (0.58, 0.57, 0.54), (0.40, 0.36, 0.33)],
        0.04,
    )
    unit = unit_of(size)
    cell = max(2.5, log_uniform(product, 4, 13) * unit)
    depth, pores = product.uniform(0.10, 0.2), product.uniform(2.6, 3.6)
    light = light_from(product)

    height = fractal(rng, size, cell, 4, 0.6)
    tone = 1 + np.float32(depth * cell / 2.5) * blurred(relief(height, light), 0.6)
    tone += np.float32(0.07) * fractal(rng, size, 60 * unit, 3)
    tone += np.float32(0.05) * white(rng, size)
    tone *= 1 - np.float32(0.5) * soft_step(fractal(rng, size, 1.5 * cell, 2), pores, 0.3)
    return Surface(tinted(tone, metal), metal * np.float32(0.35), light)


def painted(product: Generator, rng: Generator, size: Size) -> Surface:
    """A lacquered or moulded part: strong colour, faint orange peel, a soft reflection."""
    paint = np.asarray(product.uniform(0.08, 0.85, 3), np.float32)
    paint = mixed(paint, float(paint.mean()), product.uniform(0.1, 0.7))
    unit = unit_of(size)
    cell, peel = max(2.5, log_uniform(product, 3, 9) * unit), product.uniform(0.01, 0.05)
    gloss = product.uniform(0.02, 0.12)
    light = light_from(product)

    height = fractal(rng, size, cell, 3)
    tone = 1 + np.float32(peel * cell / 2) * relief(height, light)
    tone += np.float32(0.012) * white(rng, size)
    shine = np.float32(gloss) * blurred_spot(rng, size)
    return Surface(tinted(tone, paint) + rgb(shine), mixed(paint, 0.35, 0.7), light)


def weave(product: Generator, rng: Generator, size: Size) -> Surface:
    """Cloth in plain, twill or satin weave from two yarns, seen straight from above."""
    over, of, step = [(1, 2, 1), (2, 4, 1), (3, 4, 1), (1, 3, 1), (4, 5, 2)][product.integers(5)]
    yarn = pick(
        product,
        [
            (0.75, 0.71, 0.62),
            (0.34, 0.36, 0.40),
            (0.28, 0.34, 0.48),
            (0.60, 0.44, 0.34),
            (0.52, 0.54, 0.50),
            (0.80, 0.80, 0.78),
        ],
        0.05,
    )
    other = mixed(yarn, product.uniform(0.15, 0.85), product.uniform(0.0, 0.45))
    unit = unit_of(size)
    pitch = max(4.0, log_uniform(product, 6, 17) * unit)
    angle = product.choice([0.0, math.pi / 4, product.uniform(-0.3, 0.3)])
    sway = np.float32(product.uniform(0.02, 0.15))
    light = light_from(product)

    u, v = grid(size, pitch, angle + rng.normal(0, 0.02), rng.uniform(0, 60, 2))
    u += sway * smooth(rng, size, (7 * pitch, 7 * pitch))
    v += sway * smooth(rng, size, (7 * pitch, 7 * pitch))
    i, j = np.floor(u), np.floor(v)
    across_u, across_v = u - i - np.float32(0.5), v - j - np.float32(0.5)
    on_top = np.mod(i + step * j, of) < over
    across = np.where(on_top, across_u, across_v)
    along = np.where(on_top, across_v, across_u)
    strand = np.where(on_top, i, j).astype(np.intp) & 127

    tone = (1 - 2.6 * across * across) * (1 - (1.1 / over) * along * along)
    tone *= np.asarray(1 + rng.normal(0, 0.05, 256), np.float32)[strand + 128 * on_top]
    tone *= 1 + np.float32(0.22) * relief(blurred(white(rng, size), max(0.5, pitch / 14)), light)
    tone *= 1 + np.float32(0.04) * smooth(rng, size, (60 * unit, 60 * unit))
    image = np.where(rgb(on_top), tinted(tone, yarn), tinted(tone, other))
    return Surface(image, yarn * np.float32(0.18), light)


def leather(product: Generator, rng: Generator, size: Size) -> Surface:
    """Grained leather: rounded pebbles of uneven size between dark creases."""
    hide = pick(
        product,
        [
            (0.42, 0.27, 0.17),
            (0.22, 0.17, 0.15),
            (0.55, 0.40, 0.27),
            (0.16, 0.16, 0.17),
            (0.44, 0.14, 0.12),
            (0.62, 0.56, 0.48),
        ],
        0.03,
    )
    unit = unit_of(size)
    cell = max(4.0, log_uniform(product, 6, 13) * unit)
    depth = product.uniform(0.35, 0.65)
    light = light_from(product)

    crease = pebbles(rng, size, cell)
    height = np.minimum(crease / np.float32(0.3 * cell), 1)
    height = blurred(np.sqrt(height), max(0.6, 0.06 * cell))
    tone = 0.72 + np.float32(0.3) * height
    tone += np.float32(depth * cell / 9) * relief(height, light)
    tone += np.float32(0.05) * relief(fractal(rng, size, cell / 2, 2), light)
    tone *= 1 + np.float32(0.05) * fractal(rng, size, 50 * unit, 3)
    tone += np.float32(0.02) * white(rng, size)
    return Surface(tinted(tone, hide), mixed(hide, 0.5, 0.5) * np.float32(0.8), light)


def wood(product: Generator, rng: Generator, size: Size) -> Surface:
    """A planed board: bent year rings, dark fibres along them."""
    timber = pick(
        product,
        [(0.68, 0.50, 0.32), (0.78, 0.63, 0.44), (0.50, 0.33, 0.21), (0.60, 0.40, 0.26)],
        0.03,
    )
    upright = product.random() < 0.5
    unit = unit_of(size)
    ring, contrast = log_uniform(product, 10, 34) * unit, product.uniform(0.10, 0.28)
    light = light_from(product)

    frame = size if upright else (size[1], size[0])
    bend = smooth(rng, frame, (140 * unit, 55 * unit)) + 0.25 * smooth(
        rng, frame, (60 * unit, 14 * unit)
    )
    across = np.arange(frame[1], dtype=np.float32)[None, :] / np.float32(ring)
    phase = across + np.float32(0.9) * bend + np.float32(rng.uniform(0, 10))
    late = (phase - np.floor(phase)) ** 3
    fibre = smooth(rng, frame, (34 * unit, 1.0))
    vessel = soft_step(smooth(rng, frame, (12 * unit, 1.2)), 2.0, 0.5)
    tone = 1.06 - contrast * late + np.float32(0.035) * fibre - np.float32(0.13) * vessel
    tone += np.float32(0.03) * fractal(rng, frame, 60 * unit, 2)
    tone = blurred(tone, 0.5)
    tone = tone if upright else tone.T
    # Late wood is redder as well as darker: blue falls faster than red.
    fall = np.array([0.8, 1.1, 1.5], np.float32)
    image = np.clip(tinted(tone - 1, timber * fall) + timber, 0, 1)
    return Surface(image, timber * np.float32(0.45), light)


def speckle(product: Generator, rng: Generator, size: Size) -> Surface:
    """Granite, terrazzo or sheet flooring: grains of several minerals in a ground."""
    ground = pick(
        product,
        [(0.62, 0.60, 0.57), (0.46, 0.47, 0.49), (0.70, 0.64, 0.56), (0.33, 0.34, 0.34)],
        0.05,
    )
    minerals = [
        mixed(ground, float(product.uniform(0.05, 0.95)), product.uniform(0.35, 0.8))
        for _ in range(product.integers(2, 5))
    ]
    unit = unit_of(size)
    cells = [max(1.6, log_uniform(product, 2.5, 9) * unit) for _ in minerals]
    edges = product.uniform(0.8, 1.9, len(minerals))
    warm = np.array([1 + product.uniform(0, 0.2), 1, 1 - product.uniform(0, 0.2)], np.float32)
    light = light_from(product)

    image = np.broadcast_to(ground, (*size, 3)).astype(np.float32)
    for index, (colour, cell, edge) in enumerate(zip(minerals, cells, edges, strict=True)):
        share = soft_step(fractal(rng, size, cell, 2), float(edge), 0.25)
        toned = colour * warm if index % 2 else colour
        image = mix(image, toned, share)
    grain = 1 + np.float32(0.05) * white(rng, size)
    grain += np.float32(0.04) * fractal(rng, size, 70 * unit, 2)
    return Surface(image * rgb(grain), mixed(ground, 0.3, 0.6), light)


def pick(rng: Generator, palette: list[tuple[float, float, float]], spread: float) -> Colour:
    """One colour of `palette`, made lighter or darker by about `spread`, its hue moved a little."""
    chosen = np.asarray(palette[rng.integers(len(palette))])
    moved = chosen + rng.normal(0, spread / 4, 3) + rng.normal(0, spread)
    return np.asarray(np.clip(moved, 0.04, 0.92), np.float32)


def mixed(colour: Colour, other: ArrayLike, share: float) -> Colour:
    """`colour` moved towards `other` (a colour or a grey) by `share`."""
    return np.asarray(colour + share * (np.asarray(other, np.float32) - colour), np.float32)


def light_from(rng: Generator) -> tuple[float, float]:
    """A light direction: mostly from above, as people expect and as ring lamps are aligned."""
    angle = rng.normal(-math.pi / 2, 0.7)
    return math.cos(angle), math.sin(angle)


def grid(
    size: Size, pitch: float, angle: float, origin: ArrayLike
) -> tuple[FloatImage, FloatImage]:
    """Coordinates (two HxW fields) of a lattice of `pitch` pixels, turned and moved."""
    x = np.arange(size[1], dtype=np.float32)[None, :] / np.float32(pitch)
    y = np.arange(size[0], dtype=np.float32)[:, None] / np.float32(pitch)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    start = np.asarray(origin, np.float32)
    return cosine * x + sine * y + start[0], cosine * y - sine * x + start[1]


def pebbles(rng: Generator, size: Size, cell: float) -> FloatImage:
    """Distance in pixels (HxW) to the nearest border between cells about `cell` pixels wide."""
    rows, columns = (math.ceil(length / cell) + 2 for length in size)
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    seeds = ((place + rng.uniform(-0.95, 0.05, (rows, columns, 2))) * cell).astype(int)
    inside = ((seeds >= 0) & (seeds < size)).all(axis=-1)
    unseeded = np.ones(size, np.uint8)
    unseeded[tuple(seeds[inside].T)] = 0
    _, label = cv2.distanceTransformWithLabels(
        unseeded, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    open_space = np.ones(size, np.uint8)
    open_space[:, 1:] &= label[:, 1:] == label[:, :-1]
    open_space[1:, :] &= label[1:, :] == label[:-1, :]
    return np.asarray(cv2.distanceTransform(open_space, cv2.DIST_L2, 5), np.float32)


def blurred_spot(rng: Generator, size: Size) -> FloatImage:
    """A wide soft reflection (HxW, 0 to 1) somewhere in or near the picture."""
    y = np.linspace(0, 1, size[0], dtype=np.float32)[:, None] - np.float32(rng.uniform(-0.2, 1.2))
    x = np.linspace(0, 1, size[1], dtype=np.float32)[None, :] - np.float32(rng.uniform(-0.2, 1.2))
    wide = np.float32(rng.uniform(0.25, 0.6))
    return np.exp(-((x / wide) ** 2) - (y / wide) ** 2)
