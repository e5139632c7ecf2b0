"""What is left to do when a classifier has learnt: calibrate, describe, predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from converters.dataset import Dataset
from toolkit.classify.calibrate import fit_temperature
from toolkit.classify.classifier import Classifier
from toolkit.classify.data import Pictures
from toolkit.classify.weights import Description
from toolkit.config import FinetuneClassifierConfig
from toolkit.predictions import ImageProbabilities, PredictionCard, write_probabilities
from toolkit.runs import RunFolder


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
    run.write_model(description.to_json())
    classifier = Classifier.load(run.root, str(device))
    if config.calibrate:
        val = pictures["val"]
        temperature = fit_temperature(classifier.logits(val.pixels), val.labels)
        run.write_model(replace(description, temperature=temperature).to_json())
        classifier = Classifier.load(run.root, str(device))
    probabilities = {
        split: ImageProbabilities(
            classifier.classes,
            tuple(image.file_name for image in dataset.images),
            classifier.classify_squares(pictures[split].pixels),
        )
        for split, dataset in datasets.items()
        if split != "train"
    }
    card = PredictionCard(
        boxes="none", masks=False, classifier=f"{classifier.architecture} {classifier.image_size}"
    )
    write_probabilities(run.predictions, probabilities, card)
    if config.pictures:
        from toolkit.classify.look import draw, made_pictures

        draw(run, classifier, datasets, pictures, made_pictures(run), seed=config.seed)
