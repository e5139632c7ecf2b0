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
        highest: shape (images, categories), score of the surest detection of each category; -1
            where there is none.
    """

    labels: tuple[str, ...]
    truth: Labels
    highest: npt.NDArray[np.float64]

    @property
    def score(self) -> npt.NDArray[np.float64]:
        """Shape (images,), the surest detection's score; 0 where there is none."""
        score: npt.NDArray[np.float64] = self.highest.max(axis=1, initial=0.0)
        return score

    def verdicts(self, thresholds: float | npt.NDArray[np.float64]) -> Labels:
        """Index of each image's verdict: the category of the surest detection that counts, or good.

        Args:
            thresholds: from which a detection counts; one for all, or of a shape that fits
                (images, categories).
        """
        counted = np.where(self.highest >= np.maximum(thresholds, 0), self.highest, -1.0)
        surest = counted.argmax(axis=1)  # of equally sure ones the first category
        return np.where(counted.max(axis=1) >= 0, 1 + surest, 0).astype(np.int64)


def true_labels(dataset: Dataset) -> Labels:
    """Index of each image's true label: 0 for "good", else its category's COCO id."""
    labels = (GOOD, *dataset.categories)
    return np.array([labels.index(label) for label in dataset.image_labels()], dtype=np.int64)


def score_images(dataset: Dataset, results: Sequence[Result]) -> ImageScores:
    """Reduce detections to the highest score of each category on each image."""
    position = {image.id: index for index, image in enumerate(dataset.images)}
    highest = np.full((len(dataset.images), len(dataset.categories)), -1.0)
    rows = [position[result["image_id"]] for result in results]
    columns = [result["category_id"] - 1 for result in results]
    np.maximum.at(highest, (rows, columns), [result["score"] for result in results])
    return ImageScores((GOOD, *dataset.categories), true_labels(dataset), highest)


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
    score, suspect = images.score, images.verdicts(0.0)
    matrices = np.empty((thresholds.size, size, size))
    for index, threshold in enumerate(thresholds):
        cells = images.truth * size + np.where(score >= threshold, suspect, 0)
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


def average_precision(truth: Labels, scores: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Mean precision over the defect images, each at its own score, on every row.

    Not interpolated, ties taken together (``sklearn.metrics.average_precision_score``); NaN where
    there is no defect image. Arguments as of ``auroc``.
    """
    order = np.argsort(-scores)
    _, levels = np.unique(-scores[order], return_index=True)
    drawn = weights[:, order].astype(np.float64)
    bad = np.add.reduceat(drawn * (truth[order] > 0), levels, axis=1)
    found = np.cumsum(bad, axis=1)
    kept = np.cumsum(np.add.reduceat(drawn, levels, axis=1), axis=1)
    precision = np.divide(found, kept, out=np.zeros_like(found), where=kept > 0)
    return divide((bad * precision).sum(axis=1), bad.sum(axis=1))


def expected_calibration_error(
    confidence: npt.NDArray[np.float64],
    right: npt.NDArray[np.bool_],
    weights: Weights,
    bins: int = 15,
) -> Samples:
    """How far confidence is from how often it is right, averaged over images, on every row.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3, with bins of equal
    width (``torchmetrics.classification.BinaryCalibrationError``, norm "l1").

    Args:
        confidence: 0 to 1, shape (images,).
        right: whether what it was about is so, shape (images,).
        weights: shape (W, images).
        bins: how many; confidence 1 is one of its own.
    """
    edges = np.linspace(0, 1, bins + 1)
    member = np.searchsorted(edges, confidence, side="right") - 1
    gaps = np.zeros((confidence.size, bins + 1))
    gaps[np.arange(confidence.size), member] = confidence - right
    drawn = weights.astype(np.float64, copy=False)
    return divide(np.abs(drawn @ gaps).sum(axis=1), drawn.sum(axis=1))


def _diagonal(matrices: Confusion) -> npt.NDArray[np.float64]:
    return np.diagonal(matrices, axis1=-2, axis2=-1)


def _mean_of_defined(values: npt.NDArray[np.float64]) -> Samples:
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1).astype(float))
