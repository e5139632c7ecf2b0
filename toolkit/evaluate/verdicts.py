"""The verdict on a whole picture, good or which defect, from its surest detection."""

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
    truth: npt.NDArray[np.int64]
    suspect: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]

    def verdicts(self, threshold: float) -> npt.NDArray[np.int64]:
        """Index of each image's verdict: the suspect from the threshold on, good below it."""
        return np.where(self.score >= threshold, self.suspect, 0)


def true_labels(dataset: Dataset) -> list[str]:
    """Image-level label of each image: "good", or its category.

    An image with several categories is of the one that covers most pixels (instance areas added
    up; of equal ones the first category).
    """
    labels = []
    for image in dataset.images:
        area = dict.fromkeys(dataset.categories, 0.0)
        for instance in image.instances:
            area[instance.category] += instance.area
        labels.append(GOOD if image.is_good else max(area, key=area.__getitem__))
    return labels


def score_images(dataset: Dataset, results: Sequence[Result]) -> ImageScores:
    """Reduce detections to the highest score of each category on each image."""
    position = {image.id: index for index, image in enumerate(dataset.images)}
    highest = np.full((len(dataset.images), 1 + len(dataset.categories)), -1.0)
    highest[:, 0] = -0.5  # below any detection, above none
    for result in results:
        cell = position[result["image_id"]], result["category_id"]
        highest[cell] = max(highest[cell], result["score"])
    labels = (GOOD, *dataset.categories)
    truth = np.array([labels.index(label) for label in true_labels(dataset)], dtype=np.int64)
    score = np.maximum(highest.max(axis=1), 0.0)
    return ImageScores(labels, truth, np.argmax(highest, axis=1).astype(np.int64), score)


def confusion(images: ImageScores, threshold: float, weights: Weights) -> Confusion:
    """Confusion matrix on every row of the weights.

    Returns:
        shape (W, labels, labels).
    """
    size = len(images.labels)
    cells = np.zeros((images.truth.size, size * size))
    cells[np.arange(images.truth.size), images.truth * size + images.verdicts(threshold)] = 1
    return (weights @ cells).reshape(len(weights), size, size)


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


def auroc(images: ImageScores, weights: Weights) -> Samples:
    """Chance that a defect image scores above a good one, ties counted half, on every row.

    NaN where one of the two kinds is missing (``sklearn.metrics.roc_auc_score``).
    """
    order = np.argsort(images.score)
    _, levels = np.unique(images.score[order], return_index=True)
    defective = images.truth[order] > 0
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
