"""Line charts as SVG: axes, ticks, lines and a marked point, small enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.report.curves import Line, Values

WIDTH, HEIGHT = 360, 270
"""Of the drawing, in its own units; about one pixel each on a phone."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 28, 40

STYLES = 8
"""Colours and dashes that the style sheet has for lines."""


@dataclass(frozen=True)
class Axis:
    """One side of a chart.

    Attributes:
        label: what it shows.
        low, high: its ends.
        whole: whether only whole numbers are marked.
        log: whether equal ratios are equally far apart; the low end is above 0.
    """

    label: str
    low: float = 0.0
    high: float = 1.0
    whole: bool = False
    log: bool = False

    def share(self, values: Values) -> Values:
        """Where values lie between the ends, 0 to 1; what is beyond an end lies on it."""
        low, high = self.low, self.high
        held = np.clip(values, low, high)
        if self.log:
            return np.asarray(np.log10(held / low) / math.log10(high / low))
        return np.asarray((held - low) / (high - low))


@dataclass(frozen=True)
class Mark:
    """A place on a chart: a vertical line at x, and a point where there is a y."""

    x: float
    y: float | None
    label: str


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in units of the drawing."""

    at: float
    text: str


@dataclass(frozen=True)
class Path:
    """A line in units of the drawing, and the number of its style from 0."""

    label: str
    d: str
    style: int
    bold: bool
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Everything that the template needs to draw a chart.

    Attributes:
        title: what it shows, a few words.
        says: the same as a sentence, for who cannot see it.
        note: how to read it.
        x, y: axes.
        x_ticks, y_ticks: their labelled places.
        paths: the lines.
        marks: x, y (None for the whole height) in units of the drawing, and what it is.
    """

    title: str
    says: str
    note: str
    x: Axis
    y: Axis
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    paths: Sequence[Path]
    marks: Sequence[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def line_chart(
    title: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    says: str,
    note: str = "",
    marks: Sequence[Mark] = (),
    dots: bool = False,
    styles: Sequence[int] = (),
) -> Chart:
    """Draw lines.

    Args:
        title: what it shows.
        lines: at most a few; more than ``STYLES`` share styles.
        x: axis across; what lies beyond it is drawn at its end.
        y: axis upwards, likewise.
        says: what can be seen, in a sentence.
        note: how to read it.
        marks: places to mark.
        dots: whether every point gets a dot, too.
        styles: number of the style of each line; from 0 up where not given.
    """
    paths = []
    for number, line in enumerate(lines):
        across, up = _across(line.x, x), _up(line.y, y)
        points = _thinned(across, up)
        d = "M" + "L".join(f"{a:g} {b:g}" for a, b in points) if points else ""
        style = (styles[number] if styles else number) % STYLES
        paths.append(Path(line.label, d, style, line.bold, points if dots else ()))
    return Chart(
        title=title,
        says=says,
        note=note,
        x=x,
        y=y,
        x_ticks=[Tick(_round(_across(np.array([v]), x)[0]), text) for v, text in _ticks(x)],
        y_ticks=[Tick(_round(_up(np.array([v]), y)[0]), text) for v, text in _ticks(y)],
        paths=paths,
        marks=[_placed(mark, x, y) for mark in marks if x.low <= mark.x <= x.high],
    )


def axis_over(label: str, lines: Sequence[Line], *, from_zero: bool = True) -> Axis:
    """An axis that holds all values of some lines, with round ends."""
    values = np.concatenate([line.y for line in lines]) if lines else np.zeros(1)
    high = float(values.max(initial=0.0))
    low = 0.0 if from_zero else float(values.min(initial=high))
    step = _step(low, high if high > low else low + 1)
    return Axis(label, math.floor(low / step + 1e-9) * step, max(step, _ceil(high, step)))


def log_axis(label: str, least: float, most: float) -> Axis:
    """An axis over powers of ten that holds two values above 0."""
    low = 10.0 ** math.floor(math.log10(max(least, 1e-6)) + 1e-9)
    return Axis(label, low, max(10 * low, 10.0 ** math.ceil(math.log10(most) - 1e-9)), log=True)


def round_up(value: float) -> float:
    """The least of 0.1, 0.2, 0.4, 0.6, 0.8 and 1 that is not below a value."""
    return next((end for end in (0.1, 0.2, 0.4, 0.6, 0.8) if value <= end), 1.0)


def _ceil(value: float, step: float) -> float:
    return math.ceil(value / step - 1e-9) * step


def _step(low: float, high: float) -> float:
    """A round distance between about five ticks."""
    rough = (high - low) / 5
    power = float(10.0 ** math.floor(math.log10(rough)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.log:
        first, last = (round(math.log10(end)) for end in (axis.low, axis.high))
        return [(10.0**power, f"{10.0**power:g}") for power in range(first, last + 1)]
    step = _step(axis.low, axis.high)
    if axis.whole:
        step = max(1.0, round(step))
    first = math.ceil(axis.low / step - 1e-9)
    count = math.floor(axis.high / step + 1e-9) - first + 1
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [((first + n) * step, f"{(first + n) * step:.{digits}f}") for n in range(count)]


def _across(values: Values, axis: Axis) -> Values:
    return np.asarray(_LEFT + axis.share(values) * (WIDTH - _LEFT - _RIGHT))


def _up(values: Values, axis: Axis) -> Values:
    return np.asarray(HEIGHT - _BOTTOM - axis.share(values) * (HEIGHT - _TOP - _BOTTOM))


def _placed(mark: Mark, x: Axis, y: Axis) -> Mark:
    across = _round(_across(np.array([mark.x]), x)[0])
    up = None if mark.y is None else _round(_up(np.array([mark.y]), y)[0])
    return Mark(across, up, mark.label)


def _round(value: float) -> float:
    return round(float(value), 1)


def _thinned(across: Values, up: Values) -> list[tuple[float, float]]:
    """Points without those that cannot be seen: first, highest, lowest and last of every unit."""
    kept: set[int] = set()
    if across.size:
        units = np.floor(across)
        starts = np.flatnonzero(np.append(True, np.diff(units) != 0))
        for start, end in zip(starts, np.append(starts[1:], units.size), strict=True):
            part = up[start:end]
            kept |= {int(start), int(end) - 1}
            kept |= {int(start + part.argmin()), int(start + part.argmax())}
    points = [(_round(across[index]), _round(up[index])) for index in sorted(kept)]
    return [p for index, p in enumerate(points) if index == 0 or p != points[index - 1]]
