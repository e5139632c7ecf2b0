"""How large pictures must reach the network so that their small defects are still seen."""

from __future__ import annotations

import math

import numpy as np

from converters.dataset import Dataset, Image
from toolkit.detect.data import STRIDE

ENOUGH = 8.0
"""Pixels that a defect should keep: one place of the finest feature map."""

_SPECKS = 0.05
_LIMITS = (64, 1280)
_ENLARGED = 2.0  # pictures gain nothing from more: what is not in them does not appear


def small_defect(train: Dataset, tile: int | None = None) -> float:
    """Side of a small defect, as a share of the longer side of what the network sees at once.

    Nineteen defects in twenty are no smaller: specks of a pixel or two, which masks often have,
    would ask for pictures of any size. The side is that of a square of the area of the box.

    Args:
        train: with at least one defect.
        tile: side of the windows that pictures are cut into; None for whole pictures.
    """
    sides = [
        math.sqrt(instance.box[2] * instance.box[3]) / _longer_side(image, tile)
        for image in train.images
        for instance in image.instances
    ]
    return float(np.quantile(sides, _SPECKS, method="lower"))


def suggest_image_size(train: Dataset, tile: int | None = None) -> int:
    """The least multiple of 32 at which a small defect keeps 8 pixels.

    At most 1280, and at most twice the longest side of the pictures or tiles; at least 64.
    """
    most = _ENLARGED * max(_longer_side(image, tile) for image in train.images)
    wanted = min(ENOUGH / max(1e-6, small_defect(train, tile)), most)
    size = STRIDE * math.ceil(wanted / STRIDE - 1e-9)
    return min(max(_LIMITS[0], size), _LIMITS[1])


def _longer_side(image: Image, tile: int | None) -> int:
    side = max(image.width, image.height)
    return side if tile is None else min(side, tile)
