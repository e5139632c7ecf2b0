"""One picture with its defects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.camera import photograph
from toolkit.synth.canvas import Mask, Size, Surface
from toolkit.synth.patch import Patch
from toolkit.synth.registry import DEFECTS, SURFACES

SMALLEST_SIDE = 32
"""Pixels: on smaller pictures lines and spots would fill the surface."""
FAINTEST_VISIBILITY = 0.35
"""The least of `Patch.visibility` that a faded defect keeps: a meter finds it, people may not."""
_ATTEMPTS = 12
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Instance:
    """One defect and its exact mask."""

    kind: str
    mask: Mask
    """HxW, never empty: the pixels that the defect covers by half or more."""


@dataclass(frozen=True)
class Sample:
    """A photograph of a surface and what is wrong with it."""

    image: NDArray[np.uint8]
    """HxWx3, RGB."""
    surface: str
    instances: tuple[Instance, ...]
    """In the order in which they were made; a later one may hide part of an earlier one."""

    @property
    def masks(self) -> dict[str, Mask]:
        """HxW mask of each kind that occurs: the union of its instances."""
        union: dict[str, Mask] = {}
        for instance in self.instances:
            known = union.get(instance.kind)
            union[instance.kind] = instance.mask if known is None else known | instance.mask
        return union


def sample(
    seed: int | Generator,
    *,
    size: Size = (256, 256),
    surface: str | None = None,
    defects: Sequence[str] = (),
) -> Sample:
    """A picture of a random product with one instance of each kind in `defects`, repeats included.

    `size` is (height, width) in pixels and `surface` a name in `SURFACES`, chosen at random where
    None. No defects make a good picture. The same seed gives the same picture, byte for byte; a
    generator is read and moves on.

    Raises ValueError for a name that is not known and for a side below 32 pixels.
    """
    rng = np.random.default_rng(seed)
    family = choose_surface(rng) if surface is None else surface
    return shoot(int(rng.integers(2**63)), rng, size=size, surface=family, defects=defects)


def shoot(
    product: int, rng: Generator, *, size: Size, surface: str, defects: Iterable[str]
) -> Sample:
    """One of many pictures of the product that `product` numbers; otherwise like `sample`."""
    check_size(size)
    make = lookup(SURFACES, surface, "surface")
    scene = make(stream(product, "surface"), rng, size)
    instances = []
    for kind in defects:
        scene, mask = damage(rng, scene, kind)
        instances.append(Instance(kind, mask))
    image = photograph(stream(product, "camera"), rng, scene.image)
    return Sample(image, surface, tuple(instances))


def damage(
    rng: Generator, surface: Surface, kind: str, *, strength: float = 1.0
) -> tuple[Surface, Mask]:
    """`surface` with one more defect on it, and the defect's mask (HxW, never empty).

    A pixel is in the mask where the defect covers half of it or more. A draw that nobody could see
    (stain on a surface of its own colour, a dent out of the picture) is drawn again.

    `strength` (above 0, at most 1) fades the defect and leaves its mask; it fades no further than
    `FAINTEST_VISIBILITY`.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}: must be above 0 and at most 1")
    draw = lookup(DEFECTS, kind, "defect")
    best, found = None, -1.0
    for _ in range(_ATTEMPTS):
        patch = draw(rng, surface)
        visibility = patch.visibility(surface)
        if visibility > found:
            best, found = patch, visibility
        if visibility >= 1:
            break
    if best is None or found <= 0:
        raise RuntimeError(f"{kind} left no mark on the surface in {_ATTEMPTS} attempts")
    strength = min(1.0, max(strength, FAINTEST_VISIBILITY / found))
    return _applied(surface, best if strength == 1 else best.faded(surface, strength))


def _applied(surface: Surface, patch: Patch) -> tuple[Surface, Mask]:
    image = surface.image.copy()
    image[patch.window.area] = patch.pixels
    mask = np.zeros(surface.size, bool)
    mask[patch.window.area] = patch.mask
    return replace(surface, image=image), mask


def choose_surface(rng: Generator) -> str:
    """The name of a random family."""
    return list(SURFACES)[rng.integers(len(SURFACES))]


def stream(*key: int | str) -> Generator:
    """A generator that depends on `key` alone: other draws and other keys do not move it."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def lookup(registry: Mapping[str, _Entry], name: str, what: str) -> _Entry:
    """The entry `name`; ValueError with the known names where there is none."""
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}: choose from {', '.join(registry)}")
    return registry[name]


def check_size(size: Size) -> None:
    """ValueError unless both sides are at least `SMALLEST_SIDE`."""
    if min(size) < SMALLEST_SIDE:
        raise ValueError(f"size {size[0]}x{size[1]}: both sides must be {SMALLEST_SIDE} px or more")
