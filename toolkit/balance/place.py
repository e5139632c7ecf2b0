"""Where a defect goes on a host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np

from converters.dataset import BinaryMask
from toolkit.balance.donors import Donor

Placement: TypeAlias = Literal["anywhere", "foreground", "near-edge", "same-place"]
"""Wherever it fits; two thirds on the part; at the part's edge; or where it was on its picture."""

_ON_PART = 2 / 3
_TRIES = 60
_JITTER = 0.01  # of the picture, for parts that lie where they always do
_EDGE = 0.03  # width of the band that counts as edge, as a share of the shorter side


@dataclass(frozen=True)
class Ground:
    """What a host offers.

    Attributes:
        part: shape (height, width), where the part is; only asked for where the rule needs it.
        taken: shape (height, width), where defects are.
    """

    part: BinaryMask | None
    taken: BinaryMask


def find_place(
    rng: np.random.Generator, donor: Donor, ground: Ground, how: Placement, max_overlap: float
) -> tuple[int, int] | None:
    """Where the top left corner of the donor's pixels goes, as column and row; None if nowhere.

    A donor that its picture's side cuts off goes to the same side of the host.

    Args:
        rng: source of the places that are tried.
        donor: the defect, turned.
        ground: the host.
        how: the rule.
        max_overlap: most of the smaller of two defects that they may share.
    """
    height, width = ground.taken.shape
    left, top, w, h = cv2.boundingRect(donor.mask.view(np.uint8))
    if w > width or h > height:
        return None
    mask = donor.mask[top : top + h, left : left + w]
    area = np.count_nonzero(mask)
    part = ground.part if how in ("foreground", "near-edge") else None
    band = _edge(part) if part is not None and how == "near-edge" else None
    for _ in range(_TRIES):
        x, y = _corner(rng, donor, (w, h), (width, height), how)
        window = np.s_[y : y + h, x : x + w]
        if part is not None and np.count_nonzero(part[window] & mask) < _ON_PART * area:
            continue
        if band is not None and not (band[window] & mask).any():
            continue
        shared = np.count_nonzero(ground.taken[window] & mask)
        if shared and shared > max_overlap * min(area, np.count_nonzero(ground.taken)):
            continue
        return x - left, y - top
    return None


def _corner(
    rng: np.random.Generator,
    donor: Donor,
    size: tuple[int, int],
    room: tuple[int, int],
    how: Placement,
) -> tuple[int, int]:
    """Column and row of the mask's corner to try."""
    corner = []
    for axis in (0, 1):
        most = room[axis] - size[axis]
        at_start, at_end = donor.sides[axis], donor.sides[axis + 2]
        if how == "same-place":
            shift = _JITTER * room[axis] * rng.uniform(-1, 1)
            share = donor.place[axis] / max(1, donor.place[axis + 2] - size[axis])
            value = round(min(1.0, share) * most + shift)
        else:
            value = int(rng.integers(0, most + 1))
        if at_start or at_end:
            value = 0 if at_start else most
        corner.append(min(max(0, value), most))
    return corner[0], corner[1]


def _edge(part: BinaryMask) -> BinaryMask:
    """A band along the outline of the part, or along the picture's sides where it fills it."""
    reach = max(3, round(_EDGE * min(part.shape)))
    if part.all():
        band = np.ones(part.shape, np.bool_)
        band[reach:-reach, reach:-reach] = False
        return band
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    plane = part.astype(np.uint8)
    return np.asarray((cv2.dilate(plane, kernel) > 0) & (cv2.erode(plane, kernel) == 0))
