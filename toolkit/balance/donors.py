"""Defects that can be copied: cut out with their surroundings, turned, and scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from converters.dataset import BinaryMask, Image
from toolkit.balance.objects import Pixels
from toolkit.regions import region_of, within

_SURROUNDINGS = 0.5
"""Width of what is cut out around a defect, as a share of its longer side."""

_WIDTHS = (12, 32)
"""Least and most of that width in pixels: a seam is seen by what is near it."""

_ALIKE = (0.75, 1.33)
"""How much of its area a turned mask may lose or win; thin ones break, and are turned by 90°."""


@dataclass(frozen=True)
class Donor:
    """A defect with its surroundings.

    Attributes:
        image, instance: ids of the picture and of the annotation.
        category: name.
        pixels: shape (h, w) or (h, w, channels), as stored.
        mask: shape (h, w), the defect.
        clean: shape (h, w), surroundings that show the picture and no defect.
        place: column and row of the mask's top left corner, and size of the picture (w, h).
        sides: sides of the picture that the defect touches: left, top, right, bottom.
    """

    image: int
    instance: int
    category: str
    pixels: Pixels
    mask: BinaryMask
    clean: BinaryMask
    place: tuple[int, int, int, int]
    sides: tuple[bool, bool, bool, bool]


@dataclass(frozen=True)
class Turn:
    """How a defect is turned and scaled.

    Attributes:
        flip: left and right change places; top and bottom follow by turning.
        angle: degrees, counter-clockwise.
        scale: of lengths.
    """

    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """By name, with as many digits as matter."""
        return {
            "flip": self.flip,
            "angle": round(self.angle, 3),
            "scale": round(self.scale, 4),
        }


def cut_out(pixels: Pixels, image: Image, index: int) -> Donor:
    """Cut an instance with a mask out of its picture."""
    height, width = pixels.shape[:2]
    instance = image.instances[index]
    x, y, w, h = (int(value) for value in instance.box)
    around = min(max(_WIDTHS[0], round(_SURROUNDINGS * max(w, h))), _WIDTHS[1])
    left, top = max(0, x - around), max(0, y - around)
    right, bottom = min(width, x + w + around), min(height, y + h + around)
    frame = (left, top, right - left, bottom - top)
    taken = np.zeros((bottom - top, right - left), np.bool_)
    for other in image.instances:
        taken |= within(region_of(other), frame)
    return Donor(
        image.id,
        instance.id,
        instance.category,
        pixels[top:bottom, left:right].copy(),
        within(region_of(instance), frame),
        ~taken,
        (x, y, width, height),
        (x == 0, y == 0, x + w == width, y + h == height),
    )


def draw_turn(
    rng: np.random.Generator, donor: Donor, *, rotate: float, scale: float, flip: bool
) -> Turn:
    """Draw how a donor is turned; one that its picture's side cuts off is not rotated.

    Args:
        rng: source of the numbers.
        donor: the defect.
        rotate: most degrees in either direction.
        scale: most that lengths grow or shrink by, at least 1.
        flip: whether it may be flipped.
    """
    flipped = bool(flip and rng.random() < 0.5)
    angle = float(rng.uniform(-rotate, rotate))
    grown = float(np.exp(rng.uniform(-1, 1) * np.log(scale)))
    if any(donor.sides):
        angle = 0.0
    return Turn(flipped, angle, grown)


def turn(donor: Donor, how: Turn) -> tuple[Donor, Turn]:
    """The donor flipped, rotated and scaled, and how that was done in the end.

    A mask too thin for an angle is turned by the nearest multiple of 90° and not scaled.
    """
    if how.flip:
        left, top, right, bottom = donor.sides
        donor = replace(
            donor,
            pixels=donor.pixels[:, ::-1],
            mask=donor.mask[:, ::-1],
            clean=donor.clean[:, ::-1],
            sides=(right, top, left, bottom),
        )
    if how.angle == 0 and how.scale == 1:
        return donor, how
    height, width = donor.mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), how.angle, how.scale)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = (int(np.ceil(width * cos + height * sin)), int(np.ceil(width * sin + height * cos)))
    matrix[:, 2] += (np.array(size) - 1) / 2 - np.array([(width - 1) / 2, (height - 1) / 2])

    planes = np.dstack([donor.mask, donor.clean]).astype(np.uint8) * np.uint8(255)
    planes = np.asarray(cv2.warpAffine(planes, matrix, size, flags=cv2.INTER_LINEAR), np.uint8)
    mask, clean = planes[..., 0] >= 128, planes[..., 1] >= 128
    wanted = donor.mask.sum() * how.scale**2
    if not _ALIKE[0] * wanted <= mask.sum() <= _ALIKE[1] * wanted:
        quarters = round(how.angle / 90) % 4
        pixels, mask, clean = (
            np.rot90(plane, quarters) for plane in (donor.pixels, donor.mask, donor.clean)
        )
        exact = replace(donor, pixels=pixels, mask=mask, clean=clean)
        return exact, Turn(how.flip, 90.0 * quarters, 1.0)
    pixels = cv2.warpAffine(
        np.ascontiguousarray(donor.pixels),
        matrix,
        size,
        flags=cv2.INTER_AREA if how.scale < 1 else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return replace(donor, pixels=pixels, mask=mask, clean=clean), how
