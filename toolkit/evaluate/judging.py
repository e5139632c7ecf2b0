"""Figures of whole images that were judged: probabilities of a classifier, or one score each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.dataset import Dataset
from toolkit.evaluate import verdicts
from toolkit.evaluate.checks import check_images, check_probabilities
from toolkit.evaluate.image_level import (
    CALIBRATION,
    VERDICT,
    add_calibration,
    add_ranking,
    add_verdicts,
)
from toolkit.evaluate.metrics import Metrics
from toolkit.evaluate.names import BOX, MASK_FOUND, MASK_PIXELS
from toolkit.evaluate.rules import Rules, check_not_empty, join, open_sheet
from toolkit.evaluate.sheet import Sheet
from toolkit.predictions import ImageProbabilities, ImageSuspicion


def score_probabilities(
    dataset: Dataset,
    probabilities: ImageProbabilities,
    *,
    source: str = "probabilities",
    **rules: Any,
) -> Metrics:
    """Score image-level probabilities against the ground truth of their split.

    The verdict on an image is its most probable class, so no threshold is chosen.

    Args:
        dataset: ground truth of one split.
        probabilities: of its images, in any order.
        source: name of the probabilities, for error messages.
        rules: fields of ``Rules``; of these the bootstrap's and the split's name count.

    Raises:
        InputError: the split is empty, or its classes or images are not those of the
            probabilities.
    """
    return score_judged([(dataset, probabilities, source)], Rules(**rules)).metrics()


def score_judged(parts: Sequence[tuple[Dataset, ImageProbabilities, str]], rules: Rules) -> Sheet:
    """Score the probabilities of several folds as if they were one split.

    Args:
        parts: ground truth, probabilities and their name for error messages.
        rules: as of ``score_probabilities``.

    Raises:
        InputError: as there, or an image is in two parts.
    """
    rows = []
    for dataset, probabilities, source in parts:
        check_not_empty(dataset, rules.split)
        check_probabilities(dataset, probabilities, source)
        row = {name: index for index, name in enumerate(probabilities.file_names)}
        rows.append(probabilities.values[[row[image.file_name] for image in dataset.images]])
    values = np.concatenate(rows)
    dataset = join(tuple(dataset for dataset, _, _ in parts))
    sheet = open_sheet(dataset, rules, "none", len(parts))
    sheet.leave_out(
        (*BOX, *MASK_FOUND, *MASK_PIXELS),
        "whole images were judged, so there are no boxes and no masks to score",
    )
    truth = verdicts.true_labels(dataset)
    given = values.argmax(axis=1)
    add_verdicts(sheet, truth, given)
    add_ranking(sheet, truth, 1 - values[:, 0])
    add_calibration(sheet, values.max(axis=1), given == truth)
    return sheet


def score_suspicion(parts: Sequence[tuple[Dataset, ImageSuspicion, str]], rules: Rules) -> Sheet:
    """Score how suspicious the images of several folds are, as if they were one split.

    Args:
        parts: ground truth, scores and their name for error messages; scores of different parts
            are compared with one another, so they should be on one scale.
        rules: of these the bootstrap's and the split's name count.

    Raises:
        InputError: a split is empty, its images are not those of the scores, or an image is in two
            parts.
    """
    scores = []
    for dataset, suspicion, source in parts:
        check_not_empty(dataset, rules.split)
        check_images(dataset, suspicion.file_names, source)
        of_name = dict(zip(suspicion.file_names, suspicion.values.tolist(), strict=True))
        scores += [of_name[image.file_name] for image in dataset.images]
    dataset = join(tuple(dataset for dataset, _, _ in parts))
    sheet = open_sheet(dataset, rules, "none", len(parts))
    sheet.leave_out(
        (*BOX, *MASK_FOUND, *MASK_PIXELS),
        "whole images were judged, so there are no boxes and no masks to score",
    )
    sheet.leave_out(
        (*VERDICT, CALIBRATION),
        "one score per image says neither which defect it is nor how likely: give probabilities",
    )
    add_ranking(sheet, verdicts.true_labels(dataset), np.array(scores))
    return sheet
