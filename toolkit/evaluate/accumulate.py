"""Average precision, recall and F1 from matches, for many weightings of the images at once.

A weighting says how often each image counts. Detections are matched once, and only what they add up
to is computed for each weighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toolkit.evaluate.bootstrap import Samples, Weights, divide, ratio
from toolkit.evaluate.matching import IOUS, SIZES, Matches

Counts: TypeAlias = npt.NDArray[np.int64]
"""Shape (images, categories, 3): detections that found a defect, detections, defects."""

_RECALLS = np.linspace(0, 1, 101)
_CELLS = 1 << 20  # of one array of (detections, weightings): what a processor keeps at hand
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
        for row, size in enumerate(chosen):
            if not found.instances[size].any():
                continue
            result[row, :1, :, category] = _precision(found, size, exact)
            for start in range(0, resampled.shape[1], step):
                columns = slice(start, start + step)
                part = np.ascontiguousarray(resampled[:, columns])
                into = slice(1 + start, 1 + start + part.shape[1])
                result[row, into, :, category] = _precision(found, size, part)
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
    drawn = weights.astype(np.float64, copy=False)
    result = np.full((len(weights), len(matches)), np.nan)
    for category, found in enumerate(matches):
        hits = found.found[index].sum(axis=0, dtype=np.float64)
        if most is not None:
            hits = np.where(found.rank < most, hits, 0.0)
        images = found.instances[index]
        of_images = np.bincount(found.image, weights=hits, minlength=images.size)
        result[:, category] = divide(drawn @ of_images, len(IOUS) * (drawn @ images))
    return result


@dataclass(frozen=True)
class _Steps:
    """How many of the recalls that precision is averaged over a number of hits has passed.

    Attributes:
        base: shape (weightings,), where the entries of each begin.
        table: number of recalls up to hits / instances, at ``base + hits``.
    """

    base: npt.NDArray[np.int32]
    table: npt.NDArray[np.int32]

    @classmethod
    def of(cls, instances: npt.NDArray[np.int64]) -> _Steps:
        """For the instances that each weighting counts, shape (weightings,)."""
        totals, column = np.unique(instances, return_inverse=True)
        recalls = [np.arange(total + 1) / max(1, total) for total in totals.tolist()]
        sizes = np.array([recall.size for recall in recalls])
        starts = np.cumsum(sizes) - sizes
        passed = np.searchsorted(_RECALLS, np.concatenate(recalls), side="right")
        return cls(starts[column].astype(np.int32), passed.astype(np.int32))


def _precision(found: Matches, size: int, drawn: _Columns) -> npt.NDArray[np.float64]:
    """Average precision on each column, shape (weightings, 10).

    Args:
        found: of a category.
        size: index of the size of the instances that count.
        drawn: how often each image counts, shape (images, weightings).
    """
    instances = np.rint(found.instances[size].astype(drawn.dtype) @ drawn).astype(np.int64)
    steps = _Steps.of(instances)
    usual = found.ignored[size, 0]
    (counted,) = np.nonzero(~usual)
    before = _running(drawn[found.image[counted]])
    result = np.empty((drawn.shape[1], len(IOUS)))
    for index, (found_here, ignored) in enumerate(
        zip(found.found[size], found.ignored[size], strict=True)
    ):
        (hits,) = np.nonzero(found_here)
        detections = _until(before, counted, hits)
        # What is ignored at another IoU hardly differs: only the difference is added up.
        for sign, changed in ((1, usual & ~ignored), (-1, ignored & ~usual)):
            if changed.any():
                (rows,) = np.nonzero(changed)
                sums = _running(drawn[found.image[rows]])
                detections = detections + sign * _until(sums, rows, hits)
        result[:, index] = _area(_running(drawn[found.image[hits]]), detections, steps)
    result[instances == 0] = np.nan
    return result


def _until(sums: _Columns, rows: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> _Columns:
    """Running sums over some rows, up to and with each place."""
    last = np.searchsorted(rows, places, side="right") - 1
    taken = sums[np.maximum(last, 0)] if len(sums) else np.zeros((len(places), sums.shape[1]))
    if (last < 0).any():
        taken[last < 0] = 0
    return taken


def _area(hits: _Columns, detections: _Columns, steps: _Steps) -> npt.NDArray[np.float64]:
    """Area under the envelope of precision, from running sums at the detections that hit."""
    if not len(hits):
        return np.zeros(hits.shape[1])
    passed = steps.table[steps.base + hits.astype(np.int32)]
    precision = hits / (detections + hits.dtype.type(_EPSILON))
    if precision.shape[1] < _WIDE:
        precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    else:
        for row in range(len(precision) - 2, -1, -1):
            np.maximum(precision[row], precision[row + 1], out=precision[row])
    precision[1:] *= np.diff(passed, axis=0)
    precision[0] *= passed[0]
    total: npt.NDArray[np.float64] = precision.sum(axis=0, dtype=np.float64)
    return total / _RECALLS.size


def _running(rows: _Columns) -> _Columns:
    """Running sums down the rows, which may be overwritten.

    Row by row, where rows are wide, is faster than np.cumsum.
    """
    if rows.shape[1] < _WIDE:
        return np.add.accumulate(rows, axis=0, out=rows)
    for row in range(1, len(rows)):
        np.add(rows[row], rows[row - 1], out=rows[row])
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
