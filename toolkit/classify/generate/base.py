"""What all generators have in common, and how many samples of which class they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from converters.errors import InputError
from toolkit.classify.data import Labels
from toolkit.console import note

Values = npt.NDArray[Any]
"""Samples: uint8 pictures, shape (n, side, side, 3), RGB; or float32 features, shape (n, d)."""


@dataclass(frozen=True)
class Grown:
    """Samples that a generator made.

    Attributes:
        values: as those that it was fitted on.
        labels: of each, shape (n,).
        parents: for each, the rows of train that it was made from, at least one.
    """

    values: Values
    labels: Labels
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def none(cls, like: Values) -> Grown:
        """No samples, of the same shape as others."""
        return cls(like[:0], np.empty(0, np.int64), ())

    @classmethod
    def together(cls, parts: Sequence[Grown]) -> Grown:
        """All samples of several, at least one, in order."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.labels for part in parts]),
            tuple(parents for part in parts for parents in part.parents),
        )


class Generator(Protocol):
    """Makes samples of a class like those that it was fitted on.

    Attributes:
        least: samples of a class that it needs, at least, to make more of it.
    """

    least: int

    def fit(
        self, values: Values, labels: Labels, classes: Sequence[str], device: torch.device
    ) -> None:
        """Learn from train.

        Args:
            values: of train, all classes.
            labels: index into the classes of each.
            classes: "good", then the categories.
            device: to compute on.
        """

    def sample(self, label: int, count: int) -> Grown:
        """Make ``count`` samples of a class, the same ones at every call; fewer where it cannot."""


def wanted(labels: Labels, classes: int, share: float) -> list[int]:
    """How many samples each class lacks to have a share of what the most frequent one has.

    Classes without any sample get none.
    """
    counts = np.bincount(labels, minlength=classes)
    target = round(share * counts.max())
    return [max(0, target - int(count)) if count else 0 for count in counts]


def classes_to_grow(
    generator: Generator, labels: Labels, classes: Sequence[str], share: float
) -> tuple[dict[int, int], list[int]]:
    """How many samples a generator shall make of which classes, and which have too few for it.

    Raises:
        InputError: no class that lacks samples has enough for this generator.
    """
    lacking = wanted(labels, len(classes), share)
    counts = np.bincount(labels, minlength=len(classes))
    rare = [label for label, count in enumerate(lacking) if count]
    short = [label for label in rare if counts[label] < generator.least]
    if short and len(short) == len(rare):
        raise InputError(
            f"generate: no rare class has the {generator.least} train pictures that it needs: "
            "leave generate out"
        )
    return {label: lacking[label] for label in rare if label not in short}, short


def grow(
    generator: Generator,
    values: Values,
    labels: Labels,
    classes: Sequence[str],
    share: float,
    device: torch.device,
) -> Grown:
    """Fit a generator on train and make what rare classes lack; says what it cannot make.

    Raises:
        InputError: no class that lacks samples has enough for this generator.
    """
    able, short = classes_to_grow(generator, labels, classes, share)
    for label in short:
        note(
            f"{classes[label]}: has {np.count_nonzero(labels == label)} train pictures, and the "
            f"generator needs {generator.least}: none are made"
        )
    if not able:
        return Grown.none(values)
    generator.fit(values, labels, classes, device)
    parts = []
    for label, count in able.items():
        made = generator.sample(label, count)
        if len(made.labels) < count:
            note(f"{classes[label]}: {len(made.labels)} of {count} samples were made")
        parts.append(made)
    return Grown.together(parts)
