"""One defect in its place, and what every kind of defect needs: a place and a colour."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from toolkit.synth.canvas import FloatImage, Mask, Surface, Window, mix

FAINTEST = 0.04
"""Change of a colour channel (0 to 1) below which people miss a defect even on a plain surface."""
MARGIN = 0.04
"""Share of a picture's side that the middle of a defect keeps from its edge."""


@dataclass(frozen=True)
class Patch:
    """A defect as it looks in its place."""

    window: Window
    coverage: FloatImage
    """HxW of the window: the share of each pixel that the defect covers."""
    pixels: FloatImage
    """HxWx3 of the window: the surface with the defect on it."""

    @classmethod
    def covering(
        cls,
        surface: Surface,
        window: Window,
        coverage: FloatImage,
        look: FloatImage,
        opacity: FloatImage | float = 1.0,
    ) -> Patch:
        """The surface covered by `look` (HxWx3); `opacity` (0 to 1) fades it, not its mask."""
        weight = np.asarray(coverage * opacity, np.float32)
        return cls(window, coverage, mix(surface.image[window.area], look, weight))

    def faded(self, surface: Surface, strength: float) -> Patch:
        """The same defect with only `strength` (0 to 1) of its change of the pixels."""
        below = surface.image[self.window.area]
        pixels = below + np.float32(strength) * (self.pixels - below)
        return replace(self, pixels=np.asarray(pixels, np.float32))

    @property
    def mask(self) -> Mask:
        """HxW of the window: pixels that the defect covers by half or more."""
        return self.coverage >= np.float32(0.5)

    def visibility(self, surface: Surface) -> float:
        """How well people can find the defect: 1 is just visible, 0 is no change or no mask.

        The mean change of a colour channel over the mask, as a multiple of what people notice
        there: `FAINTEST`, or two thirds of the deviation of the texture.
        """
        mask = self.mask
        if np.count_nonzero(mask) < 4:
            return 0.0
        below = surface.image[self.window.area]
        change = np.abs(self.pixels - below)[mask].mean()
        return float(change / max(FAINTEST, 0.65 * below[..., 1].std()))


@dataclass(frozen=True)
class Site:
    """Where a defect happens: a point, and how much of each pixel it may touch there."""

    x: float
    y: float
    allowed: FloatImage | None
    """HxW in [0, 1]; None where the whole picture is of one piece."""

    def clip(self, window: Window, coverage: FloatImage) -> FloatImage:
        """`coverage` cut where the damaged material ends."""
        if self.allowed is None:
            return coverage
        return np.minimum(coverage, self.allowed[window.area])


def find_site(rng: Generator, surface: Surface) -> Site:
    """A random place on the product: on its part, or on its ground where that can be damaged."""
    height, width = surface.size
    allowed = surface.part
    if allowed is not None and surface.ground_is_product and rng.random() < 0.3:
        allowed = 1 - allowed
    for _ in range(64):
        x = rng.uniform(MARGIN, 1 - MARGIN) * width
        y = rng.uniform(MARGIN, 1 - MARGIN) * height
        if allowed is None or allowed[int(y), int(x)] > 0.9:
            break
    return Site(x, y, allowed)


def find_edge(rng: Generator, surface: Surface) -> Site:
    """A random place on the outline of the part, or anywhere on a surface that has none."""
    if surface.part is None:
        return find_site(rng, surface)
    inside = surface.part > 0.5
    edge = inside.copy()
    edge[1:-1, 1:-1] &= ~(
        inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    )
    rows, columns = np.nonzero(edge)
    if not len(rows):
        return find_site(rng, surface)
    index = int(rng.integers(len(rows)))
    return Site(columns[index] + 0.5, rows[index] + 0.5, surface.part)


@dataclass(frozen=True)
class Border:
    """A place where the material ends, and the direction (radians) into it."""

    site: Site
    heading: float


def find_border(rng: Generator, surface: Surface) -> Border:
    """A random place on the outline of the part, or on the edge of a picture that has none."""
    if surface.part is not None:
        site = find_edge(rng, surface)
        return Border(site, _inwards(rng, surface.part, site, 9 * surface.unit))
    height, width = surface.size
    along = rng.uniform(0, 2 * (height + width))
    if along < 2 * width:
        x, y, heading = along % width, height * (along // width), math.pi / 2
    else:
        along -= 2 * width
        x, y, heading = width * (along // height), along % height, 0.0
    inward = heading if min(x, y) == 0 else heading + math.pi
    return Border(Site(x, y, None), inward + rng.normal(0, 0.25))


def _inwards(rng: Generator, part: FloatImage, site: Site, reach: float) -> float:
    """The direction from `site` to where most of the part near it lies."""
    window = Window.around(np.array([[site.x, site.y]]), max(reach, 3), part.shape)
    near = part[window.area]
    dx, dy = window.offsets(site.x, site.y)
    x, y = float((dx * near).mean()), float((dy * near).mean())
    if math.hypot(x, y) < 1e-3:
        return rng.uniform(0, 2 * math.pi)
    return math.atan2(y, x) + rng.normal(0, 0.25)


def contrasting(rng: Generator, below: FloatImage, amount: float, hue: float = 0.03) -> FloatImage:
    """A colour that differs from the mean of `below` (HxWx3) by about `amount`.

    Lighter on dark surfaces, darker on light ones, either between; `hue` is the deviation of each
    channel.
    """
    mean = below.reshape(-1, 3).mean(axis=0)
    grey = float(mean.mean())
    lighter = rng.random() < np.clip(1.5 - 2 * grey, 0, 1)
    moved = mean + (amount if lighter else -amount) + rng.normal(0, hue, 3)
    return np.asarray(np.clip(moved, 0.02, 0.97), np.float32)
