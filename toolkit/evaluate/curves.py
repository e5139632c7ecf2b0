"""Figures of pixel scores from counts in bins: AUROC, average precision, AUPRO.

Two sets of bins serve two ends. Fine ones, with the counts of all images together, give the figure
itself; coarse ones, with the counts of each image, give it on every resample, moved by what the
coarse bins change on the images as they are. So memory grows by a few kilobytes per image, and a
thousand resamples take about a second.

Where the maps have at most ``LEVELS`` distinct scores, each is a fine bin of its own, and the
figures are exact. Otherwise the bins begin at quantiles of the scores and hold a few pixels in a
hundred thousand each, which changes a figure by about 1e-5, and by less than 1e-4 on the most
awkward scores that the tests know. Coarse bins begin at ``COARSE`` of these quantiles; with at most
that many distinct scores, resamples are exact, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toolkit.evaluate.bootstrap import Samples, Weights, divide

Scores: TypeAlias = npt.NDArray[np.floating]
"""Scores of pixels, shape (n,)."""

Counts: TypeAlias = npt.NDArray[np.float64]
"""Shape (..., bins): how much lies in each bin, from the lowest scores up."""

LEVELS = 1 << 16
"""Distinct scores that each get a bin of their own: all those of a 16-bit picture."""

COARSE = 1024
"""Most bins that are counted for each image."""

_PHASE = (5**0.5 - 1) / 2  # golden section: multiples of it are spread evenly over 0 to 1
_ROWS = 256  # weightings that are measured together: their curves take a few megabytes


@dataclass(frozen=True)
class Bins:
    """Ranges of scores: bin ``b`` is from ``edges[b]`` on and below ``edges[b + 1]``.

    Attributes:
        edges: shape (F,), ascending; no score is below the first.
        coarse: shape (C,), ascending from 0: index of the fine bin that each coarse one begins at.
    """

    edges: npt.NDArray[np.float64]
    coarse: npt.NDArray[np.int64]

    def count(self, ordered: Scores) -> Counts:
        """How many of the ascending scores lie in each fine bin."""
        if ordered.size < self.edges.size:
            bins = np.searchsorted(self.edges, ordered, side="right") - 1
            return np.bincount(bins, minlength=self.edges.size).astype(np.float64)
        inner = np.searchsorted(ordered, self.edges[1:])
        return np.diff(inner, prepend=0, append=ordered.size).astype(np.float64)

    def coarsen(self, counts: Counts) -> Counts:
        """Counts in fine bins as counts in coarse ones."""
        return np.add.reduceat(counts, self.coarse)


class Binning:
    """Finds the bins in one pass over all maps, holding a few hundred thousand numbers.

    Every image adds quantiles of its own scores, shifted a little from image to image, so that
    together they are as dense as if all pixels had been sorted. Those of good pixels are densest
    at the top, where few of them decide about precision and about small false-positive rates.
    """

    def __init__(self, images: int, defective: int) -> None:
        """Expect so many images, and so many of them with a defect."""
        self._per_image = max(1, LEVELS // 4 // max(1, images))
        self._per_defective = max(1, LEVELS // 4 // max(1, defective))
        self._seen = 0
        self._quantiles: list[Scores] = []
        self._levels: Scores | None = np.empty(0)

    def add(self, good: Scores, bad: Scores) -> None:
        """Look at the scores of an image.

        Args:
            good: of pixels without a defect, ascending.
            bad: of pixels with one, ascending.
        """
        phase = self._seen * _PHASE % 1
        self._seen += 1
        even = (np.arange(self._per_image) + phase) / self._per_image
        dense = (np.arange(2 * self._per_image) + phase) / (2 * self._per_image)
        of_bad = (np.arange(self._per_defective) + phase) / self._per_defective
        for scores, index in (
            (good, even * good.size),
            (good, good.size - good.size**dense),
            (bad, of_bad * bad.size),
        ):
            if scores.size:
                self._quantiles.append(scores[index.astype(np.int64)])
        self._add_levels(good, bad)

    def bins(self) -> Bins:
        """The bins for all scores that were seen."""
        quantiles = np.sort(np.concatenate(self._quantiles).astype(np.float64))
        if self._levels is None:
            edges = np.unique(_some(quantiles, LEVELS))
            edges[0] = -np.inf  # what lies below the lowest quantile
        else:
            edges = self._levels.astype(np.float64)
        if edges.size <= COARSE:
            return Bins(edges, np.arange(edges.size))
        starts = np.searchsorted(edges, _some(quantiles, COARSE - 1), side="right") - 1
        return Bins(edges, np.unique(np.append(0, starts)))

    def _add_levels(self, good: Scores, bad: Scores) -> None:
        if self._levels is None:
            return
        parts = [self._levels]
        for scores in (good, bad):
            parts.append(scores[np.append(True, scores[1:] != scores[:-1])[: scores.size]])
            if parts[-1].size > LEVELS:
                self._levels = None
                return
        levels = np.unique(np.concatenate(parts))
        self._levels = levels if levels.size <= LEVELS else None


@dataclass(frozen=True)
class Regions:
    """How the regions of one kind of defect are covered by scores.

    A region counts 1, however large it is: each of its pixels is a share of it.

    Attributes:
        images: shape (n,), index of the images with such regions.
        number: shape (n,), how many they have.
        coarse: shape (n, C), summed shares of regions in each coarse bin.
        fine: shape (F,), the same in fine bins, of all images together.
    """

    images: npt.NDArray[np.int64]
    number: npt.NDArray[np.float64]
    coarse: Counts
    fine: Counts


@dataclass(frozen=True)
class Histograms:
    """Pixels of a split by score.

    Attributes:
        good, bad: shape (images, C), pixels of each image without and with a defect.
        fine_good, fine_bad: shape (F,), the same in fine bins, of all images together.
        regions: those of any kind, then those of each category.
    """

    good: npt.NDArray[np.int32]
    bad: npt.NDArray[np.int32]
    fine_good: Counts
    fine_bad: Counts
    regions: Sequence[Regions]


def auroc(histograms: Histograms, weights: Weights) -> Samples:
    """Chance that a pixel of a defect scores above a good one, ties counted half.

    Args:
        histograms: of the images.
        weights: shape (W, images).

    Returns:
        shape (W,), 0 to 1; NaN where there are no defects or no good pixels.
    """
    return _measure(_area_under_roc, *_both_kinds(histograms), weights)


def average_precision(histograms: Histograms, weights: Weights) -> Samples:
    """Precision at every score that occurs, averaged by the recall that it adds.

    As ``sklearn.metrics.average_precision_score``; arguments and result as of ``auroc``, with NaN
    where there are no defects.
    """
    return _measure(_average_precision, *_both_kinds(histograms), weights)


def aupro(
    histograms: Histograms, weights: Weights, limit: float = 0.3, category: int = 0
) -> Samples:
    """Mean share of each region that is covered, averaged over false-positive rates to a limit.

    The per-region overlap of Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021,
    section 5.2: regions are 8-connected, the rate is of the good pixels of all images, and the
    area below the curve, whose corners are joined by straight lines, is divided by the limit.

    Args:
        histograms: of the images.
        weights: shape (W, images).
        limit: highest false-positive rate, above 0 and at most 1.
        category: COCO id of the regions' category; 0 for all regions.

    Returns:
        shape (W,), 0 to 1; NaN where there are no such regions or no good pixels.
    """
    regions = histograms.regions[category]

    def area(good: Counts, covered: Counts) -> Samples:
        return _area_to_limit(_rates(good), _rates(covered), limit)

    def draw(drawn: Counts) -> tuple[Counts, Counts]:
        return drawn @ histograms.good, drawn[:, regions.images] @ regions.coarse

    return _measure(area, (histograms.fine_good, regions.fine), draw, weights)


def _some(ordered: Counts, most: int) -> Counts:
    """At most so many of the values, spread evenly over them, the first included."""
    if ordered.size <= most:
        return ordered
    return ordered[np.arange(most) * ordered.size // most]


_Pair: TypeAlias = tuple[Counts, Counts]


def _both_kinds(histograms: Histograms) -> tuple[_Pair, Callable[[Counts], _Pair]]:
    """Good and bad pixels in fine bins, and in coarse ones from weights."""

    def draw(drawn: Counts) -> _Pair:
        return drawn @ histograms.good, drawn @ histograms.bad

    return (histograms.fine_good, histograms.fine_bad), draw


def _measure(
    measure: Callable[[Counts, Counts], Samples],
    fine: _Pair,
    draw: Callable[[Counts], _Pair],
    weights: Weights,
) -> Samples:
    """The figure on every row of the weights, the first from fine bins and the others from coarse.

    Args:
        measure: from two kinds of counts, shape (rows, bins), to the figure, shape (rows,).
        fine: counts with every weight 1, shape (F,).
        draw: from weights, shape (rows, images), to counts, shape (rows, C).
        weights: shape (W, images), the first row all ones.
    """
    samples = np.empty(len(weights))
    for start in range(0, len(weights), _ROWS):
        drawn = weights[start : start + _ROWS].astype(np.float64)
        samples[start : start + _ROWS] = measure(*draw(drawn))
    exact = measure(fine[0][None], fine[1][None])[0]
    samples[1:] = np.clip(samples[1:] + (exact - samples[0]), 0, 1)
    samples[0] = exact
    return samples


def _from_top(counts: Counts) -> Counts:
    """How much lies above each bin's lower edge, from the highest bin down."""
    return np.cumsum(counts[:, ::-1], axis=1)


def _rates(counts: Counts) -> Counts:
    """The same as a share of all, and 0 before it: corners of a curve, shape (rows, 1 + bins)."""
    above = _from_top(counts)
    shares = divide(above, np.broadcast_to(above[:, -1:], above.shape))
    return np.concatenate([np.zeros((len(shares), 1)), shares], axis=1)


def _area_under_roc(good: Counts, bad: Counts) -> Samples:
    below = np.cumsum(good, axis=1) - good / 2
    return divide((bad * below).sum(axis=1), bad.sum(axis=1) * good.sum(axis=1))


def _average_precision(good: Counts, bad: Counts) -> Samples:
    hits, alarms = _from_top(bad), _from_top(good)
    precision = divide(hits, hits + alarms)
    # Above the highest score there is neither, and no recall that a precision would be weighed by.
    weighed = np.where(hits + alarms > 0, precision * bad[:, ::-1], 0)
    return divide(weighed.sum(axis=1), bad.sum(axis=1))


def _area_to_limit(x: Counts, y: Counts, limit: float) -> Samples:
    """Mean height of curves between 0 and a limit of x, joined by straight lines."""
    step, width = np.diff(x, axis=1), np.diff(np.minimum(x, limit), axis=1)
    part = np.divide(width, step, out=np.zeros_like(width), where=step > 0)
    heights = y[:, :-1] + np.diff(y, axis=1) * part / 2
    return np.asarray((width * heights).sum(axis=1) / limit, dtype=np.float64)
