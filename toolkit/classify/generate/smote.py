"""SMOTE: samples between neighbours of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from toolkit.classify.data import Labels
from toolkit.classify.generate.base import Grown, Values

NEIGHBOURS = 5
"""Nearest neighbours that a sample is drawn towards one of; all where a class has fewer."""


class Smote:
    """Samples at random points of the segments between a row and its nearest of the same class.

    Chawla et al., SMOTE, JAIR 16, 2002, as imbalanced-learn has it; a sample's parents are the two
    ends of its segment. A ``Generator`` of features.
    """

    least = 2

    def __init__(self, seed: int) -> None:
        """Not yet fitted; everything random derives from the seed."""
        self._seed = seed

    def fit(
        self, values: Values, labels: Labels, classes: Sequence[str], device: torch.device
    ) -> None:
        """Keep the features; there is nothing to learn. See ``Generator.fit``."""
        self._values, self._labels = values, labels

    def sample(self, label: int, count: int) -> Grown:
        """Make ``count`` samples of a class that has two rows at least."""
        rows = np.flatnonzero(self._labels == label)
        sampler = _keeping_parents()(
            sampling_strategy={label: len(rows) + count},
            k_neighbors=min(NEIGHBOURS, len(rows) - 1),
            random_state=int(np.random.default_rng([self._seed, label]).integers(2**31)),
        )
        values, labels = sampler.fit_resample(self._values, self._labels)
        parents = rows[sampler.parents_]
        return Grown(
            values[len(self._values) :],
            labels[len(self._values) :],
            tuple((int(row), int(neighbour)) for row, neighbour in parents),
        )


def _keeping_parents() -> Any:
    """imbalanced-learn's SMOTE, which also says between which rows of the class a sample lies."""
    from imblearn.over_sampling import SMOTE

    class KeepingParents(SMOTE):  # type: ignore[misc]
        def _generate_samples(
            self,
            X: npt.NDArray[Any],
            nn_data: npt.NDArray[Any],
            nn_num: npt.NDArray[np.int64],
            rows: npt.NDArray[np.int64],
            cols: npt.NDArray[np.int64],
            *others: Any,
            **named: Any,
        ) -> Any:
            self.parents_ = np.stack([rows, nn_num[rows, cols]], axis=1)
            return super()._generate_samples(X, nn_data, nn_num, rows, cols, *others, **named)

    return KeepingParents
