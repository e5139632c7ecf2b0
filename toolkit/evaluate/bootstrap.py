"""95 % intervals: a bootstrap over images.

A resample is held as the number of times that it draws each image, and every figure is computed
from such weights: drawing an image twice is the same as counting all that is on it twice. Row 0 of
the weights counts every image once, so its result is the figure itself and the other rows give the
interval; one function per figure serves both.

What is drawn is a photograph with all its pictures: six exposures of one tile say little more than
one, and to draw them singly would make the intervals too narrow. Photographs are resampled within
their image-level labels, so that every resample has about as many good pictures and as many of each
defect as the split, which fixed these counts. A label with one photograph does not vary; what it
adds to the uncertainty is not in the interval, and neither is the choice of thresholds on val.

Three corrections make intervals on few images hold what they promise (`benchmarks/coverage.py`):

- Within a label, a resample of n photographs is drawn from n - 1 of them, one left out at random
  (bootknife; Hesterberg, Unbiasing the Bootstrap, 2004): plain resamples vary too little by a
  factor of sqrt(n / (n - 1)).
- The percentiles are moved down by twice the bias of the resamples, their mean minus the figure.
  The envelope of the precision curve makes AP too high on few images, and again on the repeated
  images of a resample, so that plain percentiles lie too high twice.
- They are moved apart as Student's quantile is from the normal one (Hesterberg, What Teachers
  Should Know About the Bootstrap, The American Statistician 2015), with the degrees of freedom of
  the scarcer side: good pictures, or defective ones.

Where no resample differs from a figure that is as high or as low as it can be, the interval is what
so many photographs without an exception say (Clopper & Pearson, Biometrika 1934).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from converters.dataset import GOOD
from toolkit.evaluate.metrics import Figure

Weights: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.float64]
"""Shape (1 + resamples, images): how often each image counts; row 0 is all ones."""

Samples: TypeAlias = npt.NDArray[np.float64]
"""Shape (1 + resamples,): a figure on every row of the weights; NaN where it is undefined."""

METHOD = (
    "bootstrap (bootknife, bias-shifted, t-widened) over photographs, within image labels, 95 %"
)
"""One line on the interval, for whoever reads the figures."""

_TAIL = 0.025
_WIDTH = NormalDist().inv_cdf(1 - _TAIL)


@dataclass(frozen=True)
class Basis:
    """What a figure rests on.

    Attributes:
        photographs: that it is taken over.
        freedom: degrees of freedom of the scarcer side, good or defective: photographs minus
            labels.
        top: its value where all photographs are as bad, or as good, as can be.
        bounded: whether it can go no higher; a count per photograph can.
    """

    photographs: int
    freedom: int
    top: float = 1.0
    bounded: bool = True

    @classmethod
    def of(cls, labels: Sequence[str], photographs: Sequence[int]) -> Basis:
        """The basis of a figure over some images.

        Args:
            labels: image-level label of each.
            photographs: number of the photograph that each shows.
        """
        label_of = dict(zip(photographs, labels, strict=True))
        counts = Counter(label_of.values())
        good = counts.pop(GOOD, 0)
        sides = [good - 1] if good else []
        if counts:
            sides.append(counts.total() - len(counts))
        return cls(len(label_of), max(1, min(sides, default=1)))


def image_weights(
    labels: Sequence[str], resamples: int, seed: int, photographs: Sequence[int] | None = None
) -> npt.NDArray[np.int16]:
    """Weights of the images in the split itself and in its resamples.

    Args:
        labels: image-level label of each image.
        resamples: how many; 0 for none.
        seed: the same seed gives the same resamples.
        photographs: number of the photograph that each image shows; each its own where not given.

    Returns:
        shape (1 + resamples, len(labels)).
    """
    rng = np.random.default_rng(seed)
    shown = np.arange(len(labels)) if photographs is None else np.asarray(photographs)
    _, first, drawn = np.unique(shown, return_index=True, return_inverse=True)
    strata = np.asarray(labels)[first]
    weights = np.ones((1 + resamples, len(first)), dtype=np.int16)
    for label in sorted(set(labels)):
        (members,) = np.nonzero(strata == label)
        if members.size > 1:
            weights[1:, members] = bootknife(rng, members.size, resamples)
    return weights[:, drawn]


def bootknife(rng: np.random.Generator, size: int, resamples: int) -> npt.NDArray[np.int64]:
    """How often each of ``size`` things, at least two, is drawn; one of them never.

    Returns:
        shape (resamples, size).
    """
    drawn = rng.multinomial(size, np.full(size - 1, 1 / (size - 1)), size=resamples)
    left_out = rng.integers(size, size=(resamples, 1))
    others = np.arange(size - 1)
    counts = np.zeros((resamples, size), dtype=np.int64)
    np.put_along_axis(counts, others + (others >= left_out), drawn, axis=1)
    return counts


def divide(
    above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Quotient, and NaN where the divisor is 0: a figure without anything to count is undefined."""
    result = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=result, where=below > 0)
    return result


def ratio(
    above: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    below: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    weights: Weights,
) -> Samples:
    """Ratio of two sums over images, on every row of the weights; NaN where the second is 0.

    Args:
        above: what each image adds to the first sum, shape (images,).
        below: what it adds to the second.
        weights: shape (W, images).
    """
    drawn = weights.astype(np.float64, copy=False)
    return divide(drawn @ above, drawn @ below)


def to_figure(
    samples: Samples, *, n: int, instances: int | None = None, basis: Basis | None = None
) -> Figure:
    """A figure and its interval.

    Args:
        samples: the figure on every row of the weights; row 0 must be defined. Resamples in which
            it is not (a class that happens to be on none of the images) do not count.
        n: images behind it; fewer than two give no interval.
        instances: ground-truth instances behind it.
        basis: what it rests on; where not given, ``n`` images, each a photograph of its own.
    """
    resampled = samples[1:][np.isfinite(samples[1:])]
    value = float(samples[0])
    basis = basis or Basis(n, max(1, n - 1))
    interval = _interval(value, resampled, basis) if n > 1 and resampled.size else None
    return Figure(value, interval, n, instances)


def difference(first: Samples, second: Samples, *, like: Figure, basis: Basis) -> Figure:
    """Second minus first, with the interval of the difference; it has no bounds.

    Args:
        first: one figure on every row of the weights.
        second: the same of another run, on the same weights.
        like: the figure, whose images and instances are behind the difference.
        basis: what both rest on.
    """
    samples = second - first
    resampled = samples[1:][np.isfinite(samples[1:])]
    value = float(samples[0])
    interval = None
    if like.n > 1 and resampled.size:
        interval = _moved_percentiles(value, resampled, basis.freedom)
    return Figure(value, interval, like.n, like.instances)


def _interval(
    value: float, resampled: npt.NDArray[np.float64], basis: Basis
) -> tuple[float, float]:
    if np.ptp(resampled) == 0 and value in ((0, basis.top) if basis.bounded else (0,)):
        reach = basis.top * (1 - _TAIL ** (1 / basis.photographs))
        return (0.0, reach) if value == 0 else (basis.top - reach, basis.top)
    low, high = _moved_percentiles(value, resampled, basis.freedom)
    return max(0.0, low), min(high, max(basis.top, value)) if basis.bounded else high


def _moved_percentiles(
    value: float, resampled: npt.NDArray[np.float64], freedom: int
) -> tuple[float, float]:
    """Percentiles of the resamples, moved and widened; they take in the value itself."""
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL]) - 2 * (resampled.mean() - value)
    wider = (high - low) / 2 * (_student(freedom) / _WIDTH - 1)
    return min(float(low - wider), value), max(float(high + wider), value)


def _student(freedom: int) -> float:
    """Student's quantile at 0.975, to 1 %.

    Closed for one and two degrees of freedom, else by Hill's expansion about the normal one
    (Abramowitz & Stegun 26.7.5).
    """
    if freedom == 1:
        return math.tan(math.pi * (0.5 - _TAIL))
    if freedom == 2:
        inside = 1 - 2 * _TAIL
        return inside * math.sqrt(2 / (1 - inside**2))
    z = _WIDTH
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
