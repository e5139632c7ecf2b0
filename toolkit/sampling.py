"""Which training items an epoch shows, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from converters.dataset import Dataset

Sampling: TypeAlias = Literal["uniform", "repeat-factor"]
"""All pictures alike, or those of rare classes more often."""


def picture_factors(train: Dataset, sampling: Sampling) -> list[float]:
    """How often an epoch shows each picture, on average; at least once.

    "repeat-factor" is LVIS' rule: see ``repeat_factors``.
    """
    return repeat_factors(train) if sampling == "repeat-factor" else [1.0] * len(train.images)


def class_factors(labels: npt.NDArray[np.int64]) -> list[float]:
    """Factors that show all classes alike, in epochs as long as those that show pictures alike.

    That is n / (classes * pictures of the class): below 1 for a frequent class, of which an epoch
    leaves out some pictures, others in each epoch.

    Args:
        labels: of the items, shape (n,).

    Returns:
        one factor per item; they add up to n.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return [float(factor) for factor in len(labels) / (len(counts) * counts[inverse])]


def repeat_factors(dataset: Dataset, threshold: float | None = None) -> list[float]:
    """How often each picture should be seen, by LVIS' rule.

    A class on a share f of the pictures has the factor max(1, sqrt(t / f)), a picture that of its
    rarest class (Gupta et al., "LVIS", CVPR 2019, section 4.2). Good pictures have 1.

    Args:
        dataset: train.
        threshold: t, above 0 and at most 1; the share of the most frequent class where not given
            (LVIS itself, with a thousand classes, takes 0.001).
    """
    counts = dataset.count_images()
    shares = {
        name: counts[name] / len(dataset.images) for name in dataset.categories if counts[name]
    }
    most = max(shares.values(), default=1.0) if threshold is None else threshold
    factor = {name: max(1.0, math.sqrt(most / share)) for name, share in shares.items()}
    return [
        max((factor[instance.category] for instance in image.instances), default=1.0)
        for image in dataset.images
    ]


def epoch_length(factors: Sequence[float]) -> int:
    """Items in an epoch."""
    return round(sum(factors))


def draw_epoch(factors: Sequence[float], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of the items that an epoch shows, in random order.

    The length is always that of ``epoch_length``; factors are scaled to add up to it. An item of
    factor f comes floor(f) or floor(f) + 1 times, f times on average over the epochs: systematic
    sampling (Madow, "On the theory of systematic sampling, II", Ann. Math. Statist. 20, 1949),
    which keeps epochs of one length where drawing each item for itself, as LVIS does, would not.

    Args:
        factors: how often each item comes on average.
        rng: of this epoch.
    """
    counts = np.asarray(factors, np.float64)
    if np.any(counts != np.floor(counts)):
        counts = counts * (epoch_length(factors) / counts.sum())
        order = rng.permutation(len(counts))  # neighbours must not exclude one another
        marks = np.floor(np.concatenate([[0.0], np.cumsum(counts[order])]) + rng.random())
        counts[order] = np.diff(marks)
        counts[order[-1]] += epoch_length(factors) - counts.sum()
    return rng.permutation(np.repeat(np.arange(len(counts)), counts.astype(np.int64)))
