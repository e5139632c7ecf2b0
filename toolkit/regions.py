"""Masks as tight boxes and what is in them: a defect is small, and its picture is not."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np

from converters.dataset import BinaryMask, Instance

Frame: TypeAlias = tuple[int, int, int, int]
"""Column and row of the top left corner, width and height, in pixels; may lie off the picture."""

Region: TypeAlias = tuple[Frame, BinaryMask]
"""A frame and the mask in it, of its size."""


def region_of(instance: Instance) -> Region:
    """Where an instance is; all of its box where it has no mask."""
    x, y, w, h = (int(value) for value in instance.box)
    crop = instance.crop
    return (x, y, w, h), np.ones((h, w), np.bool_) if crop is None else crop


def tight_region(mask: BinaryMask, left: int = 0, top: int = 0) -> Region | None:
    """The tight frame of a mask whose top left pixel lies at (left, top); None if it is empty."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    if not w:
        return None
    return (left + x, top + y, w, h), mask[y : y + h, x : x + w]


def within(region: Region, frame: Frame) -> BinaryMask:
    """The part of a region in a frame, as a mask of the frame's size."""
    inside = np.zeros((frame[3], frame[2]), np.bool_)
    shared = _shared(region[0], frame)
    if shared is not None:
        inside[_slices(shared, frame)] = region[1][_slices(shared, region[0])]
    return inside


def without(region: Region, other: Region) -> Region | None:
    """What another region on top leaves of a region; None where nothing is left."""
    shared = _shared(region[0], other[0])
    if shared is None:
        return region
    left = region[1].copy()
    left[_slices(shared, region[0])] &= ~other[1][_slices(shared, other[0])]
    return tight_region(left, *region[0][:2])


def _shared(first: Frame, second: Frame) -> Frame | None:
    x, y = max(first[0], second[0]), max(first[1], second[1])
    right = min(first[0] + first[2], second[0] + second[2])
    bottom = min(first[1] + first[3], second[1] + second[3])
    return (x, y, right - x, bottom - y) if x < right and y < bottom else None


def _slices(part: Frame, frame: Frame) -> tuple[slice, slice]:
    """Where a part of a frame is in an array of the frame's size."""
    x, y = part[0] - frame[0], part[1] - frame[1]
    return np.s_[y : y + part[3], x : x + part[2]]
