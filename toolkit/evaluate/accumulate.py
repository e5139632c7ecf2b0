"""Average precision and F1 from matches, for many weightings of the images at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toolkit.evaluate.bootstrap import Samples, Weights, ratio
from toolkit.evaluate.matching import IOUS, Matches

Counts: TypeAlias = npt.NDArray[np.int64]
"""Shape (images, categories, 3): detections that found a defect, detections, defects."""

_RECALLS = np.linspace(0, 1, 101)
_CELLS = 1 << 20  # of one array of (weightings, detections): 8 MiB


def average_precision(matches: Sequence[Matches], weights: Weights) -> npt.NDArray[np.float64]:
    """COCO's 101-point interpolated average precision.

    With every weight 1 this is ``COCOeval.accumulate``. A weight of w equals w copies of the image
    (whose equal scores rank side by side): of w detections in a row that find something the last
    has the best precision, and of w that do not, the detection before them had; the envelope of
    the curve has no other corners.

    Args:
        matches: one per category.
        weights: shape (W, images).

    Returns:
        shape (W, 10, categories), 0 to 1 at each of ``IOUS``; NaN where a category has no ground
        truth among the images that count. Such categories are left out of a mean over categories.
    """
    result = np.full((len(weights), len(IOUS), len(matches)), np.nan)
    for category, found in enumerate(matches):
        if not found.instances.any():
            continue
        step = max(1, _CELLS // max(1, found.scores.size))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            result[rows, :, category] = _category_precision(found, weights[rows])
    return result


def _category_precision(matches: Matches, weights: Weights) -> npt.NDArray[np.float64]:
    instances = (weights @ matches.instances).astype(np.float64)
    detections = np.cumsum(weights[:, matches.image], axis=1, dtype=np.float64)
    result = np.empty((len(weights), len(IOUS)))
    for index, found in enumerate(matches.found):
        # Recall rises, and precision peaks, only at detections that find something.
        (columns,) = np.nonzero(found)
        hits = np.cumsum(weights[:, matches.image[columns]], axis=1, dtype=np.float64)
        precision = hits / (detections[:, columns] + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(instances, 1)[:, None]
        passed = np.searchsorted(_RECALLS, recall, side="right")
        steps = np.diff(passed, axis=1, prepend=0)
        result[:, index] = (envelope * steps).sum(axis=1) / _RECALLS.size
    result[instances == 0] = np.nan
    return result


def count_at(matches: Sequence[Matches], threshold: float) -> Counts:
    """Found, detected and present defects per image and category, at a score threshold.

    Args:
        matches: one per category, at least one.
        threshold: detections count from this score on.
    """
    images = matches[0].instances.size
    counts = np.zeros((images, len(matches), 3), dtype=np.int64)
    for category, found in enumerate(matches):
        kept = found.scores >= threshold
        hits = kept & found.found_at_iou
        counts[:, category, 0] = np.bincount(found.image[hits], minlength=images)
        counts[:, category, 1] = np.bincount(found.image[kept], minlength=images)
        counts[:, category, 2] = found.instances
    return counts


def f1(counts: npt.NDArray[np.int64], weights: Weights) -> Samples:
    """F1 = 2 TP / (detections + defects); NaN where there is neither.

    Args:
        counts: shape (images, 3), as ``Counts`` for one category or summed over them.
        weights: shape (W, images).
    """
    return ratio(2 * counts[:, 0], counts[:, 1] + counts[:, 2], weights)
