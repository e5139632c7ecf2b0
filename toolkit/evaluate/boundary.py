"""How well outlines run along the edge of defects, within a tolerance in pixels.

The boundary F1 of Csurka et al., "What is a good evaluation measure for semantic segmentation?",
BMVC 2013, with counts that are pooled over images. Their tolerance is 0.0075 of the image's
diagonal, which is 11 pixels on 1024 x 1024; a scratch is narrower, so here it is in pixels and
small.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from converters.dataset import BinaryMask, Dataset
from converters.rle import Rle
from toolkit.evaluate.bootstrap import Samples, Weights, divide
from toolkit.evaluate.pixels import Shape, outlines

BoundarySums: TypeAlias = npt.NDArray[np.float64]
"""Shape (images, 1 + categories, 4): boundary pixels of the prediction that lie near the true
boundary, all of the prediction, boundary pixels of the truth that lie near the predicted boundary,
all of the truth. Columns as in ``toolkit.evaluate.pixels.Overlap``."""

TOLERANCE = 2.0
"""Pixels between the centres of boundary pixels that count as near."""


def boundary_sums(
    dataset: Dataset, shapes: Iterable[Shape], tolerance: float = TOLERANCE
) -> BoundarySums:
    """Boundary of the union of all shapes on an image beside that of the union of its instances.

    The boundary of a mask is its pixels with one of another kind to the left, to the right, above
    or below; beyond the image there is no mask.

    Args:
        dataset: ground truth with masks.
        shapes: what was predicted.
        tolerance: in pixels, 0 or more.
    """
    sums = np.zeros((len(dataset.images), 1 + len(dataset.categories), 4))
    for row, column, predicted, true in outlines(dataset, shapes):
        sums[row, column] = _compare(predicted, true, tolerance)
    return sums


def boundary_f1(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Harmonic mean of the shares of both boundaries that lie near the other.

    Args:
        sums: shape (images, 4), one column of ``BoundarySums``.
        weights: shape (W, images).

    Returns:
        shape (W,), 0 to 1; NaN where there is neither a prediction nor a truth.
    """
    near, predicted, near_true, true = (weights.astype(np.float64, copy=False) @ sums).T
    precision, recall = (np.nan_to_num(divide(*p)) for p in ((near, predicted), (near_true, true)))
    f1 = np.nan_to_num(divide(2 * precision * recall, precision + recall))
    return np.where(predicted + true > 0, f1, np.nan)


def _compare(predicted: list[Rle], true: list[Rle], tolerance: float) -> tuple[float, ...]:
    """The four counts of one image and kind of defect."""
    unions = [coco_mask.merge(rles) for rles in (predicted, true) if rles]
    box = _box(coco_mask.merge(unions))
    drawn, there = (_boundary(rles, box) for rles in (predicted, true))
    near, near_true = _near(drawn, there, tolerance), _near(there, drawn, tolerance)
    return near, float(np.count_nonzero(drawn)), near_true, float(np.count_nonzero(there))


def _box(rle: Rle) -> tuple[slice, slice]:
    """Rows and columns that a mask is on."""
    x, y, w, h = (int(value) for value in coco_mask.toBbox(rle))
    return slice(y, y + h), slice(x, x + w)


def _boundary(rles: list[Rle], box: tuple[slice, slice]) -> BinaryMask:
    """Boundary pixels of a union, inside a box that holds all of it."""
    if not rles:
        rows, columns = box
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    mask = np.pad(coco_mask.decode(coco_mask.merge(rles))[box], 1).astype(np.bool_)
    inner = mask[1:-1, 1:-1]
    inside = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return np.asarray(inner & ~inside, dtype=np.bool_)


def _near(boundary: BinaryMask, other: BinaryMask, tolerance: float) -> float:
    """Pixels of a boundary that lie within the tolerance of the other."""
    if not other.any():
        return 0.0
    apart = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(np.count_nonzero(apart[boundary] <= tolerance))
