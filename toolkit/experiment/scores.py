"""What is measured on a run as soon as it is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.dataset import GOOD, Dataset
from converters.folder import DatasetFolder
from toolkit.config import EvaluateConfig
from toolkit.evaluate import evaluate
from toolkit.predictions import ImageProbabilities, images_file, read_probabilities

_LEAST = 1e-12
"""Probability that a class of probability 0 counts as in the loss."""


def score_run(
    run: Path, data: Path, fold: int | None, resamples: int
) -> dict[str, dict[str, float]]:
    """Score a run on every split that it predicted; ``metrics*.json`` is written in its folder.

    Args:
        run: the run folder.
        data: the dataset folder.
        fold: of it.
        resamples: of the bootstrap.

    Returns:
        of a classifier, ``accuracy`` and ``loss`` by split.

    Raises:
        InputError: as of ``evaluate``.
    """
    folder = DatasetFolder.open(data, fold)
    scores = {}
    for split in folder.splits():
        judged = run / "predictions" / images_file(split)
        if not judged.is_file() and not (run / "predictions" / f"{split}.json").is_file():
            continue
        evaluate(
            EvaluateConfig(
                data=data, predictions=(run,), fold=fold, split=split, resamples=resamples
            )
        )
        if judged.is_file():
            scores[split] = accuracy_and_loss(folder.read(split), read_probabilities(judged))
    return scores


def accuracy_and_loss(dataset: Dataset, given: ImageProbabilities) -> dict[str, float]:
    """Share of right verdicts, and mean of -log of the probability of the true class.

    Args:
        dataset: ground truth of a split.
        given: probabilities of its images.
    """
    classes = (GOOD, *dataset.categories)
    of_name = dict(zip(given.file_names, given.values, strict=True))
    truth = [classes.index(label) for label in dataset.image_labels()]
    values = np.array([of_name[image.file_name] for image in dataset.images])
    right = values.argmax(axis=1) == truth
    true = values[np.arange(len(truth)), truth]
    losses = -np.log(np.maximum(true, _LEAST))
    return {"accuracy": float(right.mean()), "loss": float(losses.mean())}
