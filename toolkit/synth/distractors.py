"""Marks that belong on a product or come from its surroundings: unusual, and no defect.

A distractor is a function `(rng, surface) -> Surface`. Its geometry is clean, symmetrical or runs
through the whole picture, as tools, print and lamps leave it. To add one, write the function and
list it in `registry.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import FloatImage, Surface, Window, mix, rgb
from toolkit.synth.noise import log_uniform, soft_step, white
from toolkit.synth.patch import contrasting, find_site

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
)
_BRIGHTEST = np.float32(1.2)
"""Light beyond white that a scene keeps, for a dark exposure to show."""


def drilled_hole(rng: Generator, surface: Surface) -> Surface:
    """One or a row of round drilled holes, with or without a countersink."""
    radius = max(2.0, log_uniform(rng, 4, 26) * surface.unit)
    sink = radius * (rng.uniform(1.3, 2.1) if rng.random() < 0.6 else 1.0)
    bottom, depth = rng.uniform(0.02, 0.5), rng.uniform(0.2, 0.6)
    count = int(rng.choice([1, 1, 1, 2, 3]))
    step, place = rng.uniform(3, 5) * sink, find_site(rng, surface)
    across = rng.random() < 0.5
    image = surface.image.copy()
    for index in range(count):
        at = (place.x + index * step * across, place.y + index * step * (not across))
        window = _window(surface, at, sink + 2)
        dx, dy = window.offsets(*at)
        distance = np.sqrt(dx * dx + dy * dy)
        lit = _towards_light(surface, dx, dy) / (distance + 1)
        below = image[window.area]
        # The far wall of a cone faces the lamp.
        look = below * rgb(1 - np.float32(depth) * lit)
        dark = below * np.float32(bottom) * rgb(1 - np.float32(0.5) * lit)
        look = mix(look, dark, soft_step(-distance, -radius, 1.2))
        look = mix(below, look, soft_step(-distance, -sink, 1.2))
        image[window.area] = np.clip(look, 0, _BRIGHTEST)
    return replace(surface, image=image)


def screw_head(rng: Generator, surface: Surface) -> Surface:
    """A screw head with its drive (slot, cross, hexagon, star), or a plain rivet."""
    radius = max(3.5, log_uniform(rng, 8, 34) * surface.unit)
    place = find_site(rng, surface)
    window = _window(surface, (place.x, place.y), 1.3 * radius + 2)
    dx, dy = window.offsets(place.x, place.y)
    distance = np.sqrt(dx * dx + dy * dy)
    share = np.minimum(distance / np.float32(radius), 1)
    lit = _towards_light(surface, dx, dy) / np.float32(radius)
    dome = rng.choice([0.0, 0.3, 0.6])
    metal = np.float32(rng.uniform(0.2, 0.8)) * np.asarray(1 + rng.normal(0, 0.03, 3), np.float32)
    tone = 1 + np.float32(dome) * lit + np.float32(0.5) * lit * soft_step(share, 0.88, 0.1)
    tone = tone * (1 - np.float32(0.75) * _drive(rng, dx, dy, radius))
    below = surface.image[window.area]
    cast = np.sqrt((dx + 2 * surface.light[0]) ** 2 + (dy + 2 * surface.light[1]) ** 2)
    shadow = soft_step(-np.asarray(cast, np.float32), -radius, 3)
    look = mix(
        below * rgb(1 - np.float32(0.6) * shadow), rgb(tone) * metal, _disc(distance, radius)
    )
    image = surface.image.copy()
    image[window.area] = np.clip(look, 0, _BRIGHTEST)
    return replace(surface, image=image)


def _drive(rng: Generator, dx: FloatImage, dy: FloatImage, radius: float) -> FloatImage:
    """Coverage of the recess in a screw head."""
    turn, kind = rng.uniform(0, math.pi), rng.integers(5)
    along = dx * np.float32(math.cos(turn)) + dy * np.float32(math.sin(turn))
    across = dy * np.float32(math.cos(turn)) - dx * np.float32(math.sin(turn))
    half, reach = rng.uniform(0.09, 0.16) * radius, rng.uniform(0.55, 1.1) * radius
    slot = soft_step(-np.abs(across), -half, 1) * soft_step(-np.abs(along), -reach, 1)
    if kind == 0:
        return slot
    if kind == 1:
        cross = soft_step(-np.abs(along), -half, 1) * soft_step(-np.abs(across), -reach, 1)
        return np.asarray(np.maximum(slot, cross), np.float32)
    if kind == 2:
        root = np.float32(math.sqrt(3) / 2)
        side = np.maximum(np.abs(along), np.abs(along / 2 + root * across))
        return soft_step(-np.maximum(side, np.abs(along / 2 - root * across)), -0.5 * radius, 1)
    if kind == 3:
        angle = np.arctan2(across, along)
        star = np.sqrt(along * along + across * across) - np.float32(0.09 * radius) * np.cos(
            6 * angle
        )
        return soft_step(-np.asarray(star, np.float32), -0.5 * radius, 1)
    return np.zeros(slot.shape, np.float32)


def lettering(rng: Generator, surface: Surface) -> Surface:
    """Printed, engraved or stamped letters and numbers in a straight line."""
    signs = list("ABCDEFGHKLMNPRSTUVXYZ0123456789-/.")
    text = "".join(rng.choice(signs, rng.integers(1, 12)))
    tall = max(5.0, log_uniform(rng, 8, 50) * surface.unit)
    canvas = _written(text, tall, int(rng.integers(len(_FONTS))), rng.uniform(0.06, 0.16))
    coverage = np.rot90(canvas, rng.choice([0, 0, 0, 1, 2, 3]))
    engraved = rng.random() < 0.4
    return _stuck(rng, surface, np.ascontiguousarray(coverage), engraved)


def chalk(rng: Generator, surface: Surface) -> Surface:
    """Numbers, ticks or crosses written on by hand with chalk or a paint pen."""
    text = "".join(rng.choice(list("0123456789XVOK+"), rng.integers(1, 4)))
    tall = max(8.0, log_uniform(rng, 22, 75) * surface.unit)
    coverage = _written(text, tall, 0, rng.uniform(0.06, 0.15))
    # Slanted and swung as a hand does it.
    rows, columns = coverage.shape
    y = np.arange(rows, dtype=np.float32)[:, None]
    x = np.arange(columns, dtype=np.float32)[None, :]
    sway = np.float32(0.06 * tall) * np.sin(
        x / np.float32(0.5 * tall) + np.float32(rng.uniform(0, 6))
    )
    lean = np.float32(rng.normal(0, 0.2)) * (y - rows / 2)
    hand = cv2.remap(coverage, x + lean, y + sway, cv2.INTER_LINEAR)
    broken = soft_step(white(rng, (rows, columns)), rng.uniform(-3, -0.3), 1.5)
    return _stuck(rng, surface, np.asarray(hand * broken, np.float32), False)


def seam(rng: Generator, surface: Surface) -> Surface:
    """A joint, a mould parting line or a weld bead that runs through the whole picture."""
    distance, along = _straight(rng, surface)
    width = max(0.8, log_uniform(rng, 1, 6) * surface.unit)
    strength = np.float32(rng.uniform(0.2, 0.6) * rng.choice([-1, 1]))
    share = distance / np.float32(width)
    if rng.random() < 0.3:
        width = max(3.0, rng.uniform(8, 22) * surface.unit)
        ripple = np.sin((along + distance * distance / (2 * width)) * np.float32(9 / width))
        bead = soft_step(-np.abs(distance), -width, 1.5)
        profile = distance / np.float32(width) + np.float32(0.5) * ripple
        tone = np.asarray(1 + strength * bead * profile, np.float32)
    elif rng.random() < 0.5:
        tone = 1 + np.float32(1.6) * strength * share * np.asarray(np.exp(-share * share))
    else:
        gap = soft_step(-np.abs(share), -1, 1 / width)
        edge = np.exp(-((share - np.float32(1.6)) ** 2))
        tone = 1 - np.float32(abs(strength) + 0.2) * gap + np.float32(0.3) * edge
    return _lit(surface, tone, everywhere=False)


def print_mark(rng: Generator, surface: Surface) -> Surface:
    """A registration mark, bar code, dot matrix code or frame, printed or engraved."""
    unit = surface.unit
    side = max(9, round(log_uniform(rng, 18, 64) * unit))
    kind = rng.integers(4)
    canvas: NDArray[np.uint8] = np.zeros((side, side), np.uint8)
    middle, thick = side // 2, max(1, side // 16)
    if kind == 0:
        cv2.circle(canvas, (middle, middle), round(0.32 * side), 255, thick, cv2.LINE_AA)
        canvas[middle - thick // 2 : middle + (thick + 1) // 2 + 1, :] = 255
        canvas[:, middle - thick // 2 : middle + (thick + 1) // 2 + 1] = 255
    elif kind == 1:
        bars = (rng.random(2 * side) < 0.5).astype(np.uint8) * 255
        canvas = np.repeat(np.repeat(bars, max(1, round(1.5 * unit)))[None, : 2 * side], side, 0)
    elif kind == 2:
        cells = (rng.random((12, 12)) < 0.5).astype(np.uint8) * 255
        cells[:, 0] = cells[-1, :] = 255
        resized = cv2.resize(cells, (side, side), interpolation=cv2.INTER_AREA)
        canvas = np.asarray(resized, np.uint8)
    else:
        cv2.rectangle(canvas, (1, 1), (side - 2, side - 2), 255, thick)
    coverage = canvas.astype(np.float32) / np.float32(255)
    return _stuck(rng, surface, coverage, rng.random() < 0.3)


def step_edge(rng: Generator, surface: Surface) -> Surface:
    """A machined step: beyond a straight edge the surface lies lower and is lit otherwise."""
    distance, _ = _straight(rng, surface)
    level = np.float32(rng.choice([-0.45, -0.25, 0.2, 0.4]) * rng.uniform(0.5, 1.2))
    wide = max(1.0, log_uniform(rng, 1, 6) * surface.unit)
    tone = 1 + level * soft_step(distance, 0, 1.2)
    ridge = np.exp(-((distance / np.float32(wide)) ** 2))
    tone += np.float32(rng.uniform(-0.5, 0.5)) * ridge
    return _lit(surface, tone, everywhere=False)


def highlight(rng: Generator, surface: Surface) -> Surface:
    """The mirrored lamp: one soft ellipse, or a row of them."""
    unit = surface.unit
    place = rng.uniform(0, 1, 2) * (surface.size[1], surface.size[0])
    long, thin = log_uniform(rng, 8, 80) * unit, log_uniform(rng, 4, 20) * unit
    turn, hard = rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)]), rng.choice([1, 1, 3])
    window = _window(surface, (place[0], place[1]), 2.4 * max(long, thin))
    dx, dy = window.offsets(place[0], place[1])
    cosine, sine = math.cos(turn), math.sin(turn)
    u = (dx * np.float32(cosine) + dy * np.float32(sine)) / np.float32(long)
    v = (dy * np.float32(cosine) - dx * np.float32(sine)) / np.float32(thin)
    shine = np.float32(rng.uniform(0.12, 0.6)) * np.exp(-((u * u + v * v) ** int(hard)))
    image = surface.image.copy()
    image[window.area] = np.minimum(image[window.area] + rgb(shine), _BRIGHTEST)
    return replace(surface, image=image)


def cast_shadow(rng: Generator, surface: Surface) -> Surface:
    """The shadow of a straight thing outside the picture: half the picture, a bar or a corner."""
    soft = log_uniform(rng, 2, 50) * surface.unit
    distance, along = _straight(rng, surface)
    shade = soft_step(distance, 0, soft)
    kind = rng.integers(3)
    if kind == 1:
        shade = shade * soft_step(-distance, -rng.uniform(15, 90) * surface.unit, soft)
    elif kind == 2:
        shade = shade * soft_step(along, 0, soft)
    return _lit(surface, 1 - np.float32(rng.uniform(0.2, 0.65)) * shade)


def lamp_band(rng: Generator, surface: Surface) -> Surface:
    """The reflection of a tube lamp: a bright band, soft on both sides."""
    distance, _ = _straight(rng, surface)
    share = distance / np.float32(log_uniform(rng, 6, 50) * surface.unit)
    band = np.exp(-(np.abs(share) ** int(rng.choice([2, 4]))))
    return _lit(surface, 1 + np.float32(rng.uniform(0.15, 0.9)) * band)


def stripe(rng: Generator, surface: Surface) -> Surface:
    """Bright or dark lines, straight as a ruler, through the whole picture."""
    distance, _ = _straight(rng, surface)
    half = max(0.5, log_uniform(rng, 0.6, 14) * surface.unit)
    strength, tone = rng.uniform(0.15, 0.6) * rng.choice([-1, 1]), np.ones_like(distance)
    step = rng.uniform(4, 12) * half
    for index in range(int(rng.choice([1, 1, 2, 4]))):
        line = soft_step(-np.abs(distance - np.float32(index * step)), -half, 1.2)
        tone += np.float32(strength) * line
    return _lit(surface, tone, everywhere=False)


def _straight(rng: Generator, surface: Surface) -> tuple[FloatImage, FloatImage]:
    """Signed distance (HxW, pixels) from a line through the picture, and the way along it.

    Mostly parallel to a side of the picture, as machines and lamps are set up.
    """
    height, width = surface.size
    turn = rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)], p=[0.4, 0.4, 0.2])
    turn += rng.normal(0, 0.01)
    x, y = rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height
    dx, dy = Window(0, 0, height, width).offsets(x, y)
    cosine, sine = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    return dx * cosine + dy * sine, dy * cosine - dx * sine


def _lit(surface: Surface, tone: FloatImage, *, everywhere: bool = True) -> Surface:
    """`surface` under the relative light `tone` (HxW), on its part alone unless `everywhere`."""
    if surface.part is not None and not everywhere:
        tone = 1 + (tone - 1) * surface.part
    image = surface.image * rgb(np.maximum(tone, np.float32(0.05)))
    return replace(surface, image=np.minimum(image, _BRIGHTEST, out=image))


def _written(text: str, tall: float, font: int, weight: float) -> FloatImage:
    """Coverage of `text` about `tall` pixels high."""
    thick, scale = max(1, round(tall * weight)), tall / 22
    (width, height), base = cv2.getTextSize(text, _FONTS[font], scale, thick)
    canvas = np.zeros((height + base + 2 * thick + 2, width + 2 * thick + 2), np.uint8)
    at = (thick, height + thick)
    cv2.putText(canvas, text, at, _FONTS[font], scale, 255, thick, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _stuck(rng: Generator, surface: Surface, coverage: FloatImage, engraved: bool) -> Surface:
    """`surface` with `coverage` printed or engraved at a random place, cut at the picture."""
    height, width = surface.size
    rows, columns = min(coverage.shape[0], height), min(coverage.shape[1], width)
    coverage = coverage[:rows, :columns]
    place = find_site(rng, surface)
    top = int(np.clip(place.y - rows / 2, 0, height - rows))
    left = int(np.clip(place.x - columns / 2, 0, width - columns))
    area = slice(top, top + rows), slice(left, left + columns)
    below = surface.image[area]
    if engraved:
        # Groove and lit edge: the same shape twice, a little apart.
        lit = cv2.warpAffine(
            coverage, np.array([[1, 0, 1], [0, 1, 1]], np.float32), (columns, rows)
        )
        look = below * rgb(
            1 + np.float32(0.35) * lit - np.float32(rng.uniform(0.4, 0.7)) * coverage
        )
    else:
        ink = contrasting(rng, below, rng.uniform(0.15, 0.55), 0.04)
        look = mix(below, ink, coverage * np.float32(rng.uniform(0.6, 1)))
    image = surface.image.copy()
    look = look if surface.part is None else mix(below, look, surface.part[area])
    image[area] = np.clip(look, 0, _BRIGHTEST)
    return replace(surface, image=image)


def _towards_light(surface: Surface, dx: FloatImage, dy: FloatImage) -> FloatImage:
    """How far (HxW, pixels) the offsets `dx` and `dy` lead towards the lamp."""
    return dx * np.float32(surface.light[0]) + dy * np.float32(surface.light[1])


def _window(surface: Surface, at: tuple[float, float], reach: float) -> Window:
    return Window.around(np.array([at]), reach, surface.size)


def _disc(distance: FloatImage, radius: float) -> FloatImage:
    return soft_step(-distance, -radius, 1.2)
