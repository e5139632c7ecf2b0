"""95 % intervals: the bias-corrected percentile bootstrap over images.

A resample is held as the number of times that it draws each image, and every figure is computed
from such weights: drawing an image twice is the same as counting all that is on it twice. Row 0 of
the weights counts every image once, so its result is the figure itself and the other rows give the
interval; one function per figure serves both.

What is drawn is a photograph with all its pictures: six exposures of one tile say little more than
one, and to draw them singly would make the intervals too narrow. Photographs are resampled within
their image-level labels, so that every resample has about as many good pictures and as many of each
defect as the split, which fixed these counts. A label with one photograph does not vary; what it
adds to the uncertainty is not in the interval, and neither is the choice of thresholds on val.

The percentiles are corrected for bias (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 14, without acceleration): the envelope of the precision curve makes AP too high on few
images, and again on the repeated images of a resample, so that plain percentiles lie too high
twice. The correction halves this and changes other figures little; on a few tens of defect images
the interval of AP remains an optimistic one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toolkit.evaluate.metrics import Figure

Weights: TypeAlias = npt.NDArray[np.int16]
"""Shape (1 + resamples, images): how often each image counts; row 0 is all ones."""

Samples: TypeAlias = npt.NDArray[np.float64]
"""Shape (1 + resamples,): a figure on every row of the weights; NaN where it is undefined."""

METHOD = "bias-corrected percentile bootstrap over photographs, within image labels, 95 %"
"""One line on the interval, for whoever reads the figures."""

_NORMAL = NormalDist()
_TAIL = _NORMAL.inv_cdf(0.975)


def image_weights(
    labels: Sequence[str], resamples: int, seed: int, photographs: Sequence[int] | None = None
) -> Weights:
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
        if members.size:
            chances = np.full(members.size, 1 / members.size)
            weights[1:, members] = rng.multinomial(members.size, chances, size=resamples)
    return weights[:, drawn]


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
    drawn = weights.astype(np.float64)
    return divide(drawn @ above, drawn @ below)


def to_figure(samples: Samples, *, n: int, instances: int | None = None) -> Figure:
    """A figure and its interval.

    Args:
        samples: the figure on every row of the weights; row 0 must be defined. Resamples in which
            it is not (a class that happens to be on none of the images) do not count.
        n: images behind it; fewer than two give no interval.
        instances: ground-truth instances behind it.
    """
    resampled = samples[1:][np.isfinite(samples[1:])]
    value = float(samples[0])
    interval = _interval(value, resampled) if n > 1 and resampled.size else None
    return Figure(value, interval, n, instances)


def _interval(value: float, resampled: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Percentiles of the resamples, moved by how far their median lies from the value."""
    below = np.count_nonzero(resampled < value - 1e-12)
    above = np.count_nonzero(resampled > value + 1e-12)
    share = (1 + (below - above) / resampled.size) / 2  # of resamples below; ties count half
    least = 0.5 / resampled.size
    bias = _NORMAL.inv_cdf(min(max(share, least), 1 - least))
    ends = [_NORMAL.cdf(2 * bias + tail) for tail in (-_TAIL, _TAIL)]
    low, high = np.quantile(resampled, ends)
    return float(low), float(high)
