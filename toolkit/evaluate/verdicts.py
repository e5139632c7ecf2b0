"""The verdict on a whole picture, good or which defect, and how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from converters.dataset import GOOD, Dataset
from toolkit.evaluate.bootstrap import Samples, Weights, divide
from toolkit.predictions import Result

Confusion: TypeAlias = npt.NDArray[np.float64]
"""Shape (..., labels, labels): weight of images by true label (rows) and verdict (columns)."""


Labels: TypeAlias = npt.NDArray[np.int64]
"""Shape (images,): index of each image's label, 0 for "good"."""


@dataclass(frozen=True)
class ImageScores:
    """What detections say about whole pictures.

    Attributes:
        labels: "good", then the categories.
        truth: shape (images,), index of the true label.
        suspect: shape (images,), index of the category of the surest detection (of equally sure
            ones the first category); 0 where there is none.
        score: shape (images,), that detection's score; 0 where there is none.
    """

    labels: tuple[str, ...]
    truth: Labels
    suspect: Labels
    score: npt.NDArray[np.float64]

    def verdicts(self, threshold: float) -> Labels:
        """Index of each image's verdict: the suspect from the threshold on, good below it."""
        return np.where(self.score >= threshold, self.suspect, 0)


def true_labels(dataset: Dataset) -> Labels:
    """Index of each image's true label: 0 for "good", else its category's COCO id."""
    labels = (GOOD, *dataset.categories)
    return np.array([labels.index(label) for label in dataset.image_labels()], dtype=np.int64)


def score_images(dataset: Dataset, results: Sequence[Result]) -> ImageScores:
    """Reduce detections to the highest score of each category on each image."""
    position = {image.id: index for index, image in enumerate(dataset.images)}
    highest = np.full((len(dataset.images), 1 + len(dataset.categories)), -1.0)
    highest[:, 0] = -0.5  # below any detection, above none
    for result in results:
        cell = position[result["image_id"]], result["category_id"]
        highest[cell] = max(highest[cell], result["score"])
    score = np.maximum(highest.max(axis=1), 0.0)
    suspect = np.argmax(highest, axis=1).astype(np.int64)
    return ImageScores((GOOD, *dataset.categories), true_labels(dataset), suspect, score)


def confusion(truth: Labels, given: Labels, labels: int, weights: Weights) -> Confusion:
    """Confusion matrix on every row of the weights.

    Args:
        truth: true label of each image.
        given: its verdict.
        labels: how many there are.
        weights: shape (W, images).

    Returns:
        shape (W, labels, labels).
    """
    cells = np.zeros((truth.size, labels * labels))
    cells[np.arange(truth.size), truth * labels + given] = 1
    return (weights @ cells).reshape(len(weights), labels, labels)


def confusion_by_threshold(images: ImageScores, thresholds: npt.NDArray[np.float64]) -> Confusion:
    """Confusion matrix at every threshold, shape (thresholds, labels, labels)."""
    size = len(images.labels)
    matrices = np.empty((thresholds.size, size, size))
    for index, threshold in enumerate(thresholds):
        cells = images.truth * size + images.verdicts(float(threshold))
        matrices[index] = np.bincount(cells, minlength=size * size).reshape(size, size)
    return matrices


def accuracy(matrices: Confusion) -> Samples:
    """Share of images with the right verdict, shape (...)."""
    return divide(np.trace(matrices, axis1=-2, axis2=-1), matrices.sum(axis=(-2, -1)))


def recall(matrices: Confusion) -> npt.NDArray[np.float64]:
    """Share of a label's images with the right verdict, shape (..., labels); NaN if it has none."""
    return divide(_diagonal(matrices), matrices.sum(axis=-1))


def precision(matrices: Confusion) -> npt.NDArray[np.float64]:
    """Share of each verdict that is right, shape (..., labels); NaN where it was never given."""
    return divide(_diagonal(matrices), matrices.sum(axis=-2))


def f1(matrices: Confusion) -> npt.NDArray[np.float64]:
    """F1 of each label, shape (..., labels); NaN where it is neither truth nor verdict."""
    return divide(2 * _diagonal(matrices), matrices.sum(axis=-1) + matrices.sum(axis=-2))


def balanced_accuracy(matrices: Confusion) -> Samples:
    """Mean recall over labels that are there (``sklearn.metrics.balanced_accuracy_score``)."""
    return _mean_of_defined(recall(matrices))


def macro_f1(matrices: Confusion) -> Samples:
    """Mean F1 over labels that are truth or verdict of any image (``f1_score``, macro)."""
    return _mean_of_defined(f1(matrices))


def auroc(truth: Labels, scores: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Chance that a defect image scores above a good one, ties counted half, on every row.

    NaN where one of the two kinds is missing (``sklearn.metrics.roc_auc_score``).

    Args:
        truth: true label of each image.
        scores: the higher, the more suspicious; shape (images,).
        weights: shape (W, images).
    """
    order = np.argsort(scores)
    _, levels = np.unique(scores[order], return_index=True)
    defective = truth[order] > 0
    drawn = weights[:, order].astype(np.float64)
    bad = np.add.reduceat(drawn * defective, levels, axis=1)
    good = np.add.reduceat(drawn * ~defective, levels, axis=1)
    below = np.cumsum(good, axis=1) - good
    won = (bad * (below + good / 2)).sum(axis=1)
    return divide(won, bad.sum(axis=1) * good.sum(axis=1))


def _diagonal(matrices: Confusion) -> npt.NDArray[np.float64]:
    return np.diagonal(matrices, axis1=-2, axis2=-1)


def _mean_of_defined(values: npt.NDArray[np.float64]) -> Samples:
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1).astype(float))
