"""Families that show a part on a ground: the part has an outline, and the ground lies beneath it.

The functions have the form that `surfaces.py` describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import (
    FloatImage,
    Lead,
    Size,
    Surface,
    Window,
    mix,
    rgb,
    shifted,
    tinted,
    unit_of,
)
from toolkit.synth.noise import blurred, fractal, smooth, soft_step, white
from toolkit.synth.surfaces import Colour, light_from, mixed, pick

_BITS = 4


def board(product: Generator, rng: Generator, size: Size) -> Surface:
    """A printed circuit board with one component on it: a transistor or a flat chip."""
    laminate = pick(
        product,
        [
            (0.12, 0.34, 0.20),
            (0.11, 0.20, 0.38),
            (0.66, 0.43, 0.33),
            (0.55, 0.50, 0.34),
            (0.16, 0.16, 0.17),
        ],
        0.03,
    )
    layout = BoardLayout.random(product, laminate)
    draw = (_chip, _transistor)[product.integers(2)]
    unit = unit_of(size)
    component = draw(product, max(1.5, 2 * unit))
    light = light_from(product)

    turn = rng.normal(0, 0.05)
    middle = np.array([size[1], size[0]]) / 2 + rng.normal(0, 5 * unit, 2)
    ground = layout.draw(rng, size, middle)
    cast, coverage = _placed(component, size, middle, turn)
    leads = _placed_leads(component, size, middle, turn)
    shadow = blurred(shifted(coverage, -4 * unit * light[0], -4 * unit * light[1]), 2.5 * unit)
    shade = 1 - np.float32(0.5) * shadow
    ground *= rgb(shade)
    sheen = 1 + np.float32(0.10) * smooth(rng, size, (90 * unit, 40 * unit))
    sheen += np.float32(0.04) * white(rng, size)
    image = ground * rgb(1 - coverage) + cast * rgb(sheen)
    return Surface(
        image, ground, light, part=coverage, ground_is_product=True, leads=leads, shadow=shade
    )


def turned_disc(product: Generator, rng: Generator, size: Size) -> Surface:
    """A washer or flange turned on a lathe, lying on a dark belt."""
    metal = pick(product, [(0.66, 0.67, 0.69), (0.52, 0.53, 0.55), (0.70, 0.58, 0.36)], 0.04)
    belt = pick(product, [(0.10, 0.11, 0.12), (0.16, 0.18, 0.22), (0.22, 0.21, 0.19)], 0.02)
    unit = unit_of(size)
    outer = product.uniform(86, 112) * unit
    inner = outer * product.uniform(0.16, 0.5)
    step, groove = outer * product.uniform(0.6, 0.9), product.uniform(0.03, 0.09)
    light = light_from(product)
    profile = smooth(product, (1, 256), (1, 256 / outer * 5 * unit))

    whole = Window(0, 0, *size)
    jitter = rng.normal(0, 4 * unit, 2)
    dx, dy = whole.offsets(size[1] / 2 + jitter[0], size[0] / 2 + jitter[1])
    radius = np.asarray(np.hypot(dx, dy), np.float32)
    coverage = soft_step(outer - radius, 0, 1) * soft_step(radius, inner, 1)

    tone = 0.9 + np.float32(groove) * _along_radius(profile, radius * np.float32(255 / outer))
    tool = white(rng, (1, 2 * sum(size)))
    tone += np.float32(0.8 * groove) * _along_radius(tool, 2 * radius)
    bow = rng.uniform(0, math.pi)
    toward = (dx * np.float32(math.cos(bow)) + dy * np.float32(math.sin(bow))) / (radius + 1)
    tone += np.float32(0.28) * (toward * toward * toward * toward - np.float32(0.3))
    lit = (dx * np.float32(light[0]) + dy * np.float32(light[1])) / (radius + 1)
    for edge, sign in ((outer, 1), (step, -1), (inner, -1)):
        band = np.clip(1 - np.abs(radius - np.float32(edge)) / np.float32(2.5 * unit + 0.5), 0, 1)
        tone += np.float32(0.4 * sign) * band * lit
    tone += np.float32(0.02) * white(rng, size)

    ground = tinted(1 + np.float32(0.10) * fractal(rng, size, 9 * unit, 4, 0.7), belt)
    shadow = blurred(shifted(coverage, -3 * unit * light[0], -3 * unit * light[1]), 3 * unit)
    shade = 1 - np.float32(0.55) * shadow
    ground *= rgb(shade)
    image = mix(ground, tinted(tone, metal), coverage)
    return Surface(image, ground, light, part=coverage, shadow=shade)


def _along_radius(marks: FloatImage, position: FloatImage) -> FloatImage:
    """Values of `marks` (1xN) at `position` (HxW, in steps of `marks`), interpolated."""
    index = np.minimum(position.astype(np.intp), marks.shape[1] - 2)
    share = np.minimum(position - index, 1)
    return np.asarray(marks[0][index] * (1 - share) + marks[0][index + 1] * share, np.float32)


@dataclass(frozen=True)
class BoardLayout:
    """How the bare board of a product looks; lengths in design units."""

    laminate: Colour
    copper: Colour
    pitch: float
    strips: bool
    hole: float
    pads: float
    traces: NDArray[np.float64]
    """Nx3: start row and column on the lattice of holes, and a direction in steps of 45 degrees."""

    @classmethod
    def random(cls, product: Generator, laminate: Colour) -> BoardLayout:
        """A layout on `laminate`: strips of copper, or pads and traces."""
        pitch = product.uniform(24, 40)
        traces = np.column_stack([product.integers(-6, 7, (14, 2)), product.integers(0, 8, 14)])
        return cls(
            laminate,
            mixed(laminate, np.array([0.80, 0.66, 0.38]), product.uniform(0.35, 0.75)),
            pitch,
            bool(product.random() < 0.4),
            pitch * product.uniform(0.14, 0.22),
            pitch * product.uniform(0.26, 0.34),
            traces.astype(np.float64),
        )

    def draw(self, rng: Generator, size: Size, middle: NDArray[np.float64]) -> FloatImage:
        """The bare board, HxWx3, with a hole of the lattice at `middle` (x, y in pixels)."""
        unit = unit_of(size)
        canvas = np.empty((*size, 3), np.uint8)
        canvas[:] = _bytes(self.laminate)
        step = self.pitch * unit
        rows = np.arange(-math.ceil(middle[1] / step), math.ceil((size[0] - middle[1]) / step) + 1)
        columns = np.arange(
            -math.ceil(middle[0] / step), math.ceil((size[1] - middle[0]) / step) + 1
        )
        copper, dark = _bytes(self.copper), _bytes(self.laminate * np.float32(0.25))
        if self.strips:
            for column in columns:
                x = middle[0] + (column + 0.5) * step
                _line(canvas, (x, -step), (x, size[0] + step), dark, 0.09 * step)
        else:
            for row, column, heading in self.traces:
                self._trace(canvas, middle + step * np.array([column, row]), heading, step)
        for row in rows:
            for column in columns:
                at = (middle[0] + column * step, middle[1] + row * step)
                if not self.strips:
                    _disc(canvas, at, self.pads * unit, copper)
                _disc(canvas, at, self.hole * unit, dark)
        tone = 1 + np.float32(0.06) * fractal(rng, size, 40 * unit, 4)
        tone += np.float32(0.035) * white(rng, size)
        return canvas.astype(np.float32) * rgb(tone / np.float32(255))

    def _trace(
        self, canvas: NDArray[np.uint8], start: NDArray[np.float64], heading: float, step: float
    ) -> None:
        angle = heading * math.pi / 4
        bend = start + 2 * step * np.array([math.cos(angle), math.sin(angle)])
        end = bend + 3 * step * np.array([round(math.cos(angle)), 0.0])
        colour = _bytes(mixed(self.laminate, self.copper, 0.35))
        _line(canvas, (start[0], start[1]), (bend[0], bend[1]), colour, 0.16 * step)
        _line(canvas, (bend[0], bend[1]), (end[0], end[1]), colour, 0.16 * step)


@dataclass(frozen=True)
class Component:
    """A part drawn in its own frame."""

    image: NDArray[np.uint8]
    """HxWx4: RGB times coverage, and coverage."""
    scale: float
    """Pixels per design unit."""
    leads: tuple[Lead, ...] = ()
    """In design units."""


def _chip(product: Generator, scale: float) -> Component:
    """A flat package with leads on two sides and a printed label."""
    width, height = product.uniform(84, 120), product.uniform(62, 92)
    leads = int(product.integers(4, 8))
    body = pick(product, [(0.10, 0.10, 0.11), (0.16, 0.16, 0.17), (0.22, 0.20, 0.18)], 0.015)
    label = "".join(product.choice(list("ABCDEFHKLMNPRSTX0123456789"), 6))
    picture = _Drawing(190, 190, scale)
    for index in range(leads):
        x = 95 + (index - (leads - 1) / 2) * (width - 12) / leads
        lead = 0.42 * width / leads
        for side in (-1, 1):
            reach = 95 + side * (height / 2 + 15)
            picture.box(x, (95 + reach) / 2, lead, abs(reach - 95), (0.74, 0.74, 0.75))
            picture.box(x, reach - side * 3, lead, 6, (0.52, 0.52, 0.54))
            picture.lead([(x, 95 + side * height / 2), (x, reach)], lead, (0.74, 0.74, 0.75))
    picture.box(95, 95, width, height, tuple(body * np.float32(0.72)))
    picture.box(95, 94, width - 4, height - 5, tuple(body))
    picture.box(95, 95 - height / 2 + 2, width - 5, 1.6, tuple(mixed(body, 0.7, 0.25)))
    picture.disc(95 - width / 2 + 12, 95 + height / 2 - 13, 4.5, tuple(body * np.float32(0.55)))
    grey = tuple(mixed(body, 0.75, 0.65))
    picture.text(label, 95 - 0.38 * width, 93, grey, 0.135 * width)
    picture.text(label[::-1][:4], 95 - 0.38 * width, 93 + 0.2 * width, grey, 0.11 * width)
    return picture.component()


def _transistor(product: Generator, scale: float) -> Component:
    """A moulded half-round case seen from its flat side, three bent leads below."""
    width, height = product.uniform(70, 92), product.uniform(62, 84)
    body = pick(product, [(0.09, 0.09, 0.11), (0.15, 0.14, 0.14)], 0.015)
    spread = product.uniform(0.28, 0.42) * width
    tin = (0.70, 0.70, 0.72)
    picture = _Drawing(190, 200, scale)
    top = 40.0
    for side in (-1, 0, 1):
        x = 95 + side * 0.24 * width
        foot = 95 + side * spread
        path = [
            (x, top + height - 4),
            (x, top + height + 12),
            (foot, top + height + 30),
            (foot, top + height + 46),
        ]
        picture.path(path, 6.5, (0.42, 0.42, 0.44))
        picture.path([(at - 1.0, y) for at, y in path], 3.6, tin)
        picture.lead([(x, top + height), *path[1:]], 6.5, tin)
    picture.box(95, top + height / 2, width, height, tuple(body * np.float32(0.7)))
    picture.box(95, top + height / 2 - 1, width - 5, height - 6, tuple(body))
    shine = product.uniform(-0.35, 0.35) * width
    picture.box(95 + shine, top + height / 2 - 1, 7, height - 8, tuple(mixed(body, 0.6, 0.22)))
    picture.box(95, top + 3, width - 6, 2, tuple(mixed(body, 0.7, 0.3)))
    mark = top + 0.4 * height
    picture.disc(95, mark, 0.13 * width, tuple(body * np.float32(0.72)))
    picture.disc(95, mark, 0.115 * width, tuple(mixed(body, 0.5, 0.06)))
    return picture.component()


def _placed(
    part: Component, size: Size, middle: NDArray[np.float64], turn: float
) -> tuple[FloatImage, FloatImage]:
    """`part` in the picture, its centre at `middle`: RGB times coverage, and coverage."""
    scale = unit_of(size) / part.scale
    rows, columns = part.image.shape[:2]
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    x, y = middle - 0.5
    matrix = np.array(
        [
            [cosine, -sine, x - cosine * columns / 2 + sine * rows / 2],
            [sine, cosine, y - sine * columns / 2 - cosine * rows / 2],
        ]
    )
    # Shrinking needs a filter first, or thin leads alias.
    source = cv2.GaussianBlur(part.image, (0, 0), 0.4 / scale)
    cast = cv2.warpAffine(source, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    layers = np.asarray(cast, np.float32) / np.float32(255)
    return np.ascontiguousarray(layers[..., :3]), np.ascontiguousarray(layers[..., 3])


def _placed_leads(
    part: Component, size: Size, middle: NDArray[np.float64], turn: float
) -> tuple[Lead, ...]:
    """The leads of `part` in the picture, as `_placed` puts them."""
    unit = unit_of(size)
    turned = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    centre = np.array([part.image.shape[1], part.image.shape[0]]) / (2 * part.scale)
    return tuple(
        Lead(middle + unit * (lead.path - centre) @ turned, unit * lead.width, lead.colour)
        for lead in part.leads
    )


class _Drawing:
    """Shapes in design units, drawn over one another on a transparent picture."""

    def __init__(self, width: float, height: float, scale: float) -> None:
        self.scale = scale
        self.canvas = np.zeros((int(height * scale), int(width * scale), 3), np.uint8)
        self.coverage = np.zeros(self.canvas.shape[:2], np.uint8)
        self.leads: list[Lead] = []

    def box(
        self, x: float, y: float, width: float, height: float, colour: tuple[float, ...]
    ) -> None:
        low = (round((x - width / 2) * self.scale), round((y - height / 2) * self.scale))
        high = (round((x + width / 2) * self.scale), round((y + height / 2) * self.scale))
        cv2.rectangle(self.canvas, low, high, _bytes(colour), cv2.FILLED)
        cv2.rectangle(self.coverage, low, high, 255, cv2.FILLED)

    def disc(self, x: float, y: float, radius: float, colour: tuple[float, ...]) -> None:
        _disc(self.canvas, (x * self.scale, y * self.scale), radius * self.scale, _bytes(colour))

    def path(
        self, points: list[tuple[float, float]], width: float, colour: tuple[float, ...]
    ) -> None:
        line = np.rint(np.array(points) * self.scale).astype(np.int32)
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.canvas, [line], False, _bytes(colour), thickness, cv2.LINE_AA)
        cv2.polylines(self.coverage, [line], False, 255, thickness, cv2.LINE_AA)

    def lead(
        self, points: list[tuple[float, float]], width: float, colour: tuple[float, float, float]
    ) -> None:
        """Notes a lead that is drawn already, so that it can be bent later."""
        self.leads.append(Lead(np.array(points), width, colour))

    def text(self, text: str, x: float, y: float, colour: tuple[float, ...], height: float) -> None:
        scale = height * self.scale / 22
        at = (round(x * self.scale), round(y * self.scale))
        cv2.putText(
            self.canvas,
            text,
            at,
            cv2.FONT_HERSHEY_SIMPLEX,
            scale,
            _bytes(colour),
            max(1, round(2 * scale)),
            cv2.LINE_AA,
        )

    def component(self) -> Component:
        layers = [
            cv2.multiply(layer, self.coverage, scale=1 / 255) for layer in cv2.split(self.canvas)
        ]
        image = np.asarray(cv2.merge([*layers, self.coverage]), np.uint8)
        return Component(image, self.scale, tuple(self.leads))


def _bytes(colour: Colour | tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(255 * float(np.clip(value, 0, 1))) for value in colour)


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    return round((point[0] - 0.5) * (1 << _BITS)), round((point[1] - 0.5) * (1 << _BITS))


def _disc(
    canvas: NDArray[np.uint8], at: tuple[float, float], radius: float, colour: tuple[int, ...]
) -> None:
    size = max(1, round(radius * (1 << _BITS)))
    cv2.circle(canvas, _fixed(at), size, colour, cv2.FILLED, cv2.LINE_AA, _BITS)


def _line(
    canvas: NDArray[np.uint8],
    start: tuple[float, float],
    end: tuple[float, float],
    colour: tuple[int, ...],
    width: float,
) -> None:
    thickness = max(1, round(width))
    cv2.line(canvas, _fixed(start), _fixed(end), colour, thickness, cv2.LINE_AA, _BITS)
