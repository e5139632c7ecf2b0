"""Average precision, recall and F1 from matches, for many weightings of the images at once.

A weighting says how often each image counts. Detections are matched once, and only what they add up
to is computed for each weighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toolkit.evaluate.bootstrap import Samples, Weights, divide, ratio
from toolkit.evaluate.matching import IOUS, SIZES, Matches

Counts: TypeAlias = npt.NDArray[np.int64]
"""Shape (images, categories, 3): detections that found a defect, detections, defects."""

_RECALLS = np.linspace(0, 1, 101)
_CELLS = 1 << 22  # of one array of (detections, weightings): 16 MiB
_EPSILON = np.spacing(1)
_WIDE = 32  # weightings from which rows are gone through one by one

_Columns: TypeAlias = npt.NDArray[np.floating]
"""Shape (detections, weightings)."""


def average_precision(
    matches: Sequence[Matches], weights: Weights, *, sizes: Sequence[str] = ("all",)
) -> npt.NDArray[np.float64]:
    """COCO's 101-point interpolated average precision.

    With every weight 1 this is ``COCOeval.accumulate``. A weight of w equals w copies of the image
    (whose equal scores rank side by side): of w detections in a row that find something the last
    has the best precision, and of w that do not, the detection before them had; the envelope of
    the curve has no other corners.

    Row 0 is computed in double precision, the others in single.

    Args:
        matches: one per category.
        weights: shape (W, images).
        sizes: names in ``SIZES``, of the instances that count.

    Returns:
        shape (sizes, W, 10, categories), 0 to 1 at each of ``IOUS``; NaN where a category has no
        such instance among the images that count. Such categories are left out of a mean.
    """
    chosen = [list(SIZES).index(name) for name in sizes]
    result = np.full((len(chosen), len(weights), len(IOUS), len(matches)), np.nan)
    exact = weights[:1].T.astype(np.float64)
    resampled = np.ascontiguousarray(weights[1:].T, dtype=np.float32)
    for category, found in enumerate(matches):
        step = max(1, _CELLS // max(1, found.scores.size))
        parts = [slice(start, start + step) for start in range(0, resampled.shape[1], step)]
        for row, size in enumerate(chosen):
            if not found.instances[size].any():
                continue
            result[row, :1, :, category] = _precision(found, size, exact)
            of_resamples = result[row, 1:, :, category]
            for part in parts:
                of_resamples[part] = _precision(found, size, resampled[:, part])
    return result


def average_recall(
    matches: Sequence[Matches],
    weights: Weights,
    *,
    size: str = "all",
    most: int | None = None,
) -> npt.NDArray[np.float64]:
    """Share of the instances that are found, as the mean over ``IOUS``.

    Args:
        matches: one per category.
        weights: shape (W, images).
        size: a name in ``SIZES``, of the instances that count.
        most: detections that count per image and category, the surest; all that were matched
            where not given.

    Returns:
        shape (W, categories), 0 to 1; NaN where a category has no such instance.
    """
    index = list(SIZES).index(size)
    found_on, there_on = np.empty((2, weights.shape[1], len(matches)))
    for category, found in enumerate(matches):
        hits = found.found[index].sum(axis=0, dtype=np.float64)
        if most is not None:
            hits = np.where(found.rank < most, hits, 0.0)
        images = found.instances[index]
        found_on[:, category] = np.bincount(found.image, weights=hits, minlength=images.size)
        there_on[:, category] = images
    drawn = weights.astype(np.float64, copy=False)
    return divide(drawn @ found_on, len(IOUS) * (drawn @ there_on))


@dataclass(frozen=True)
class _Steps:
    """How many of the recalls that precision is averaged over a number of hits has passed.

    Attributes:
        base: shape (weightings,), where the entries of each begin.
        table: number of recalls up to hits / instances, at ``base + hits``.
    """

    base: npt.NDArray[np.intp]
    table: npt.NDArray[np.floating]

    @classmethod
    def of(cls, instances: npt.NDArray[np.int64], dtype: np.dtype[np.floating]) -> _Steps:
        """For the instances that each weighting counts, shape (weightings,)."""
        totals, column = np.unique(instances, return_inverse=True)
        recalls = [np.arange(total + 1) / max(1, total) for total in totals.tolist()]
        sizes = np.array([recall.size for recall in recalls])
        starts = np.cumsum(sizes) - sizes
        passed = np.searchsorted(_RECALLS, np.concatenate(recalls), side="right")
        return cls(starts[column], passed.astype(dtype))


def _precision(found: Matches, size: int, drawn: _Columns) -> npt.NDArray[np.float64]:
    """Average precision on each column, shape (weightings, 10).

    Precision is wanted only where something is found, at any IoU, so only there is it summed.

    Args:
        found: of a category.
        size: index of the size of the instances that count.
        drawn: how often each image counts, shape (images, weightings).
    """
    instances = np.rint(found.instances[size].astype(drawn.dtype) @ drawn).astype(np.int64)
    steps = _Steps.of(instances, drawn.dtype)
    result = np.zeros((drawn.shape[1], len(IOUS)))
    (places,) = np.nonzero(found.found[size].any(axis=0))
    usual = found.ignored[size, 0]
    hits, detections = drawn[found.image[places]], _until(found, ~usual, places, drawn)
    for index, (found_here, ignored) in enumerate(
        zip(found.found[size], found.ignored[size], strict=True)
    ):
        (here,) = np.nonzero(found_here[places])
        if here.size:
            below = detections[here]
            # What is ignored at another IoU hardly differs: only the difference is added up.
            for combine, changed in ((np.add, usual & ~ignored), (np.subtract, ignored & ~usual)):
                if changed.any():
                    combine(below, _until(found, changed, places[here], drawn), out=below)
            result[:, index] = _area(_running(hits[here]), below, steps)
    result[instances == 0] = np.nan
    return result


def _until(
    found: Matches, counted: npt.NDArray[np.bool_], places: npt.NDArray[np.int64], drawn: _Columns
) -> _Columns:
    """How many of the detections count, up to and with each place, shape (places, weightings)."""
    (rows,) = np.nonzero(counted)
    ends = np.searchsorted(rows, places, side="right")
    drawn = drawn[found.image[rows[: ends.max(initial=0)]]]
    sums = np.zeros((places.size, drawn.shape[1]), drawn.dtype)
    if drawn.shape[1] < _WIDE:
        sums[ends > 0] = _running(drawn)[ends[ends > 0] - 1]
        return sums
    start = 0
    for place, end in enumerate(ends.tolist()):
        if end > start:
            np.add.reduce(drawn[start:end], axis=0, out=sums[place])
        start = end
    return _running(sums)


def _area(hits: _Columns, detections: _Columns, steps: _Steps) -> npt.NDArray[np.float64]:
    """Area under the envelope of precision, from running sums at the detections that hit.

    Both arrays may be overwritten.
    """
    index = hits.astype(np.intp)
    index += steps.base
    # Without "wrap", which nothing here needs, numpy looks at every index once more.
    passed = steps.table.take(index, mode="wrap")
    detections += hits.dtype.type(_EPSILON)
    precision = np.divide(hits, detections, out=hits)
    if precision.shape[1] < _WIDE:
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    else:
        for row in range(len(precision) - 2, -1, -1):
            np.maximum(precision[row], precision[row + 1], out=precision[row])
    newly = detections
    newly[0] = passed[0]
    np.subtract(passed[1:], passed[:-1], out=newly[1:])
    total: npt.NDArray[np.float64] = np.einsum("ij,ij->j", precision, newly)
    return total / _RECALLS.size


def _running(rows: _Columns) -> _Columns:
    """Running sums down the rows, which are overwritten.

    Row by row, where rows are wide, is faster than np.cumsum.
    """
    if rows.shape[1] < _WIDE:
        return np.add.accumulate(rows, axis=0, out=rows)
    for before, row in pairwise(rows):
        np.add(before, row, row)
    return rows


def count_at(matches: Sequence[Matches], thresholds: float | npt.NDArray[np.float64]) -> Counts:
    """Found, detected and present defects per image and category, at score thresholds.

    Args:
        matches: one per category, at least one.
        thresholds: detections count from these scores on; one for all, or of a shape that fits
            (images, categories).
    """
    images = matches[0].instances.shape[1]
    counts = np.zeros((images, len(matches), 3), dtype=np.int64)
    every = np.broadcast_to(thresholds, counts.shape[:2])
    for category, found in enumerate(matches):
        kept = found.scores >= every[found.image, category]
        hits = kept & found.found_at_iou
        counts[:, category, 0] = np.bincount(found.image[hits], minlength=images)
        counts[:, category, 1] = np.bincount(found.image[kept], minlength=images)
        counts[:, category, 2] = found.instances[0]
    return counts


def f1(counts: npt.NDArray[np.int64], weights: Weights) -> Samples:
    """F1 = 2 TP / (detections + defects); NaN where there is neither.

    Args:
        counts: shape (images, 3), as ``Counts`` for one category or summed over them.
        weights: shape (W, images).
    """
    return ratio(2 * counts[:, 0], counts[:, 1] + counts[:, 2], weights)


def precision_at(counts: npt.NDArray[np.int64], weights: Weights) -> Samples:
    """Share of the detections that find a defect; NaN where there is none. Arguments as of f1."""
    return ratio(counts[:, 0], counts[:, 1], weights)


def recall_at(counts: npt.NDArray[np.int64], weights: Weights) -> Samples:
    """Share of the defects that are found; NaN where there is none. Arguments as of f1."""
    return ratio(counts[:, 0], counts[:, 2], weights)
