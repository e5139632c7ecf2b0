"""One new picture: a host with defects of other pictures on it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np

from converters.dataset import BinaryMask, Image, Instance, Pasted
from converters.errors import InputError
from converters.files import write_bytes
from toolkit.balance.blend import BLENDS, Blend, blend, match_host
from toolkit.balance.donors import Donor, Turn, draw_turn, turn
from toolkit.balance.objects import Parts, Pixels
from toolkit.balance.place import Ground, Placement, find_place
from toolkit.regions import Region, region_of, tight_region, without

Blending: TypeAlias = Literal["hard", "feather", "poisson", "mixed"]
"""A way of blending, or a new one for every paste."""

_SMALLEST = 0.5  # how far a donor is shrunk to fit its host


@dataclass(frozen=True)
class Rules:
    """How defects are pasted.

    Attributes:
        blend: how seams are hidden.
        scale: most that lengths grow or shrink by.
        flip: whether defects are flipped.
        photometric: whether brightness and contrast of a defect vary.
        match: whether it takes on brightness, contrast and grain of its host.
        max_overlap: most of the smaller of two defects that they may share.
        seed: of everything random.
    """

    blend: Blending
    scale: float
    flip: bool
    photometric: bool
    match: bool
    max_overlap: float
    seed: int


@dataclass(frozen=True)
class Task:
    """A new picture to make.

    Attributes:
        number: among the new pictures, from 0; with the seed it decides all that is random.
        host: the picture to paste onto.
        donors: what is pasted.
        place: where it goes.
        rotate: most degrees that it is rotated by, in either direction.
        parts: where the part is on the host.
        target: file to write.
    """

    number: int
    host: Image
    donors: tuple[Donor, ...]
    place: Placement
    rotate: float
    parts: Parts
    target: Path


@dataclass(frozen=True)
class Composed:
    """A new picture that was written.

    Attributes:
        instances: all that are on it, without numbers; those of the host first.
        pasted: how many of the donors found a place.
        lost: instances of the host of which nothing is left to be seen.
    """

    instances: tuple[Instance, ...]
    pasted: int
    lost: int


@dataclass
class Canvas:
    """A picture that is being pasted onto."""

    pixels: Pixels
    image: Image
    parts: Parts

    def __post_init__(self) -> None:
        """Start with the host's own defects."""
        self.instances = list(self.image.instances)
        self.regions: list[Region | None] = [region_of(i) for i in self.instances]
        self.taken: BinaryMask = np.zeros(self.pixels.shape[:2], np.bool_)
        for region in self.regions:
            self._take(region)

    @cached_property
    def part(self) -> BinaryMask:
        """Where the part is."""
        return self.parts.on(self.pixels, self.image.file_name)

    def add(self, category: str, region: Region, pasted: Pasted) -> None:
        """Put a defect on top: what it covers of older ones is no longer there."""
        for index, older in enumerate(self.regions):
            left = older and without(older, region)
            if left is older:
                continue
            self.regions[index] = left
            if left is not None and older is not None and left[1].sum() < older[1].sum():
                self.instances[index] = _cut(self.instances[index], left)
        self.instances.append(_cut(Instance(category, (0, 0, 0, 0), None, 0, pasted), region))
        self.regions.append(region)
        self._take(region)

    def _take(self, region: Region | None) -> None:
        if region is not None:
            (x, y, w, h), mask = region
            self.taken[y : y + h, x : x + w] |= mask

    def finish(self) -> tuple[Instance, ...]:
        """What is on the picture: tight boxes and masks of all that can still be seen."""
        pairs = zip(self.instances, self.regions, strict=True)
        return tuple(instance for instance, region in pairs if region is not None)


def compose(task: Task, rules: Rules) -> Composed:
    """Make a new picture and write it, as PNG.

    The same task and rules give the same bytes.

    Raises:
        InputError: the host cannot be read, or not be blended as asked for.
    """
    canvas = Canvas(read_pixels(task.host.path), task.host, task.parts)
    done = 0
    for order, donor in enumerate(task.donors):
        seed = (rules.seed, task.number, order)
        rng = np.random.default_rng(seed)
        done += _paste(canvas, donor, task, rules, rng, seed)
    if done:
        _, png = cv2.imencode(".png", canvas.pixels)
        write_bytes(task.target, png.tobytes())
    instances = canvas.finish()
    lost = len(task.host.instances) + done - len(instances)
    return Composed(instances, done, lost)


def read_pixels(path: Path) -> Pixels:
    """A picture as it is stored: grey or BGR, of 8 or 16 bits.

    Raises:
        InputError: it is missing, no picture, or of another kind.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if pixels is None:
        raise InputError(f"{path}: is not a readable picture: replace or remove it")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: has {pixels.dtype} pixels: store it with 8 or 16 bits")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3]
    return np.ascontiguousarray(pixels)


def _paste(
    canvas: Canvas,
    donor: Donor,
    task: Task,
    rules: Rules,
    rng: np.random.Generator,
    seed: tuple[int, ...],
) -> bool:
    """Paste one defect; False where there is no room for it."""
    place = task.place
    how = Turn()
    if place != "same-place":
        how = draw_turn(rng, donor, rotate=task.rotate, scale=rules.scale, flip=rules.flip)
    turned, how = _fit(donor, how, canvas.pixels.shape[:2])
    on_part = place in ("foreground", "near-edge")
    ground = Ground(canvas.part if on_part else None, canvas.taken)
    corner = find_place(rng, turned, ground, place, rules.max_overlap)
    if corner is None:
        return False
    patch = _like(turned.pixels, canvas.pixels, donor)
    if rules.match:
        under, usable = _under(canvas.pixels, canvas.taken, corner, turned.mask.shape)
        patch = match_host(patch, turned.clean, under, usable, rng)
    if rules.photometric:
        patch = _light().vary(patch, int(rng.integers(1 << 31)))
    chosen = _choose(rules.blend, canvas.pixels, canvas.image, rng)
    blend(canvas.pixels, patch, turned.mask, corner, chosen)
    region = tight_region(turned.mask, *corner)
    assert region is not None, "a turned mask keeps most of its area"
    transform = {
        **how.to_json(),
        "place": place,
        "offset": [corner[0], corner[1]],
        "blend": chosen,
        "match": rules.match,
        "photometric": rules.photometric,
    }
    canvas.add(donor.category, region, Pasted(donor.instance, donor.image, seed, transform))
    return True


def _fit(donor: Donor, how: Turn, room: tuple[int, ...]) -> tuple[Donor, Turn]:
    """Turn a donor, smaller where it would not fit its host otherwise."""
    turned, done = turn(donor, how)
    _, _, width, height = cv2.boundingRect(turned.mask.view(np.uint8))
    least = min(room[0] / (height + 2), room[1] / (width + 2))
    if least >= 1 or how.scale * least < _SMALLEST:
        return turned, done
    return turn(donor, replace(how, scale=how.scale * float(least)))


def _choose(how: Blending, pixels: Pixels, image: Image, rng: np.random.Generator) -> Blend:
    deep = pixels.dtype == np.uint16
    if how == "poisson" and deep:
        raise InputError(f"{image.path}: has 16 bits, and poisson blends 8: choose --blend feather")
    if how != "mixed":
        return how
    ways = [way for way in BLENDS if way != "poisson" or not deep]
    return ways[int(rng.integers(len(ways)))]


class _Light(threading.local):
    """Brightness and contrast a little different, as albumentations varies them.

    What albumentations draws depends on its last seed: every thread has its own.
    """

    def __init__(self) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for news when imported
        import albumentations as A

        self._change = A.Compose(
            [A.RandomBrightnessContrast(brightness_limit=0.03, contrast_limit=0.12, p=1.0)]
        )

    def vary(self, patch: Pixels, seed: int) -> Pixels:
        """The patch in other light; the same seed gives the same."""
        self._change.set_random_seed(seed)
        patch = np.ascontiguousarray(patch)
        if patch.dtype == np.uint8:
            varied: Pixels = self._change(image=patch)["image"].reshape(patch.shape)
            return varied
        most = float(np.iinfo(patch.dtype).max)
        changed = self._change(image=patch.astype(np.float32) / most)["image"].reshape(patch.shape)
        varied = np.rint(np.clip(changed, 0, 1) * most).astype(patch.dtype)
        return varied


@cache
def _light() -> _Light:
    return _Light()


def _like(pixels: Pixels, host: Pixels, donor: Donor) -> Pixels:
    """The donor's pixels with the host's channels and depth."""
    if pixels.dtype != host.dtype:
        raise InputError(
            f"annotation {donor.instance}: its picture has {8 * pixels.dtype.itemsize} bits, "
            f"another {8 * host.dtype.itemsize}: store the pictures of a dataset alike"
        )
    if pixels.ndim < host.ndim:
        return np.repeat(pixels[..., None], host.shape[2], axis=2)
    if pixels.ndim > host.ndim:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_BGR2GRAY))
    return pixels


def _under(
    pixels: Pixels, taken: BinaryMask, corner: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Pixels, BinaryMask]:
    """What a patch will cover, and where that lies on the picture and shows no defect."""
    left, top = corner
    height, width = shape
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(pixels.shape[1], left + width), min(pixels.shape[0], top + height)
    under = np.zeros((height, width, *pixels.shape[2:]), pixels.dtype)
    usable = np.zeros((height, width), np.bool_)
    there = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    under[there] = pixels[y0:y1, x0:x1]
    usable[there] = ~taken[y0:y1, x0:x1]
    return under, usable


def _cut(instance: Instance, region: Region) -> Instance:
    (x, y, w, h), mask = region
    return replace(instance, box=(float(x), float(y), float(w), float(h)), mask=mask)
