"""What is left to do when a classifier has learnt: calibrate, describe, predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from converters.dataset import Dataset
from toolkit.classify.calibrate import fit_temperature
from toolkit.classify.classifier import Classifier
from toolkit.classify.data import Pictures
from toolkit.classify.scores import OF_THE_UNKNOWN, probabilities, suspicion
from toolkit.classify.weights import Description, load_best
from toolkit.config import FinetuneClassifierConfig
from toolkit.predictions import (
    ImageProbabilities,
    ImageSuspicion,
    PredictionCard,
    write_probabilities,
    write_suspicion,
)
from toolkit.runs import RunFolder

SCORES = "scores"
"""Folder of scores of the unknown, in ``predictions/``, each kind in one of its name."""


def finish(
    config: FinetuneClassifierConfig,
    run: RunFolder,
    description: Description,
    datasets: Mapping[str, Dataset],
    pictures: Mapping[str, Pictures],
    device: torch.device,
) -> None:
    """Calibrate the best checkpoint on val, and classify val and test with it.

    Args:
        config: of the run.
        run: with its best checkpoint.
        description: of the model.
        datasets: the splits, train as it was labelled.
        pictures: those of the splits.
        device: to compute on.
    """
    network = load_best(run, description).to(device, memory_format=torch.channels_last)
    classifier = Classifier(network, description)
    logits = {
        split: classifier.logits(pictures[split].pixels) for split in datasets if split != "train"
    }
    if config.calibrate:
        temperature = fit_temperature(logits["val"], pictures["val"].labels)
        description = replace(description, temperature=temperature)
    run.write_model(description.to_json())
    _predict(run, description, datasets, logits)
    if config.pictures:
        from toolkit.classify.look import draw, made_pictures

        classifier = Classifier(network, description)
        draw(run, classifier, datasets, pictures, made_pictures(run), seed=config.seed)


def _predict(
    run: RunFolder,
    description: Description,
    datasets: Mapping[str, Dataset],
    logits: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """Write probabilities, and scores of the unknown."""
    names = {split: tuple(image.file_name for image in datasets[split].images) for split in logits}
    temperature = description.temperature
    what = f"{description.architecture} {description.image_size}"
    card = PredictionCard(boxes="none", masks=False, classifier=what)
    found = {
        split: ImageProbabilities(description.classes, names[split], probabilities(of, temperature))
        for split, of in logits.items()
    }
    write_probabilities(run.predictions, found, card)
    for kind in OF_THE_UNKNOWN:
        scores = {
            split: ImageSuspicion(names[split], suspicion(of, temperature, kind))
            for split, of in logits.items()
        }
        write_suspicion(run.predictions / SCORES / kind, scores, card)
