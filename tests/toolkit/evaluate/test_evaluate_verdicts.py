"""Image-level figures: scikit-learn's definitions, weighted or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn

from converters.dataset import Dataset, Image, Instance
from toolkit.evaluate import score, verdicts
from toolkit.predictions import Result

MakeScene = Callable[..., tuple[Dataset, list[Result]]]


def plain_verdicts(
    dataset: Dataset, results: list[Result], threshold: float
) -> tuple[list[str], list[float]]:
    given, highest = [], []
    for image in dataset.images:
        found = [result for result in results if result["image_id"] == image.id]
        best = max(found, key=lambda result: result["score"], default=None)
        highest.append(0.0 if best is None else best["score"])
        sure = best is not None and best["score"] >= threshold
        given.append(dataset.categories[best["category_id"] - 1] if best and sure else "good")
    return given, highest


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_are_those_of_scikit_learn(
    make_scene: MakeScene, seed: int, threshold: float
) -> None:
    dataset, results = make_scene(seed, good=20, defective=30, crowded=1)
    truth = [image.labels[0] for image in dataset.images]
    given, highest = plain_verdicts(dataset, results, threshold)
    figures = score(dataset, results, threshold=threshold, resamples=0).figures
    expected = {
        "image.accuracy": sklearn.accuracy_score(truth, given),
        "image.balanced_accuracy": sklearn.balanced_accuracy_score(truth, given),
        "image.macro_F1": sklearn.f1_score(truth, given, average="macro"),
        "image.AUROC": sklearn.roc_auc_score([label != "good" for label in truth], highest),
    }
    assert {name: figures[name].value for name in expected} == pytest.approx(expected)


def test_per_class_figures_are_those_of_scikit_learn(make_scene: MakeScene) -> None:
    dataset, results = make_scene(4, good=20, defective=30, crowded=1)
    truth = [image.labels[0] for image in dataset.images]
    given, _ = plain_verdicts(dataset, results, 0.5)
    labels = ["good", *dataset.categories]
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        truth, given, labels=labels
    )
    metrics = score(dataset, results, threshold=0.5, resamples=0)
    for index, label in enumerate(labels):
        figures = metrics.per_class[label]
        assert figures["image.precision"].value == pytest.approx(precision[index])
        assert figures["image.recall"].value == pytest.approx(recall[index])
        assert figures["image.F1"].value == pytest.approx(f1[index])
        assert figures["image.F1"].n == support[index]


def test_weighting_an_image_equals_repeating_it(make_scene: MakeScene) -> None:
    dataset, results = make_scene(1, good=10, defective=20, ties=True)
    images = verdicts.score_images(dataset, results)
    draws = np.random.default_rng(0).integers(0, 4, len(dataset.images))
    repeated = replace(
        images,
        truth=np.repeat(images.truth, draws),
        highest=np.repeat(images.highest, draws, axis=0),
    )
    weights = draws[None].astype(np.int16)
    ones = np.ones((1, draws.sum()), np.int16)
    for measure in (verdicts.accuracy, verdicts.balanced_accuracy, verdicts.macro_f1):
        once, copied = (
            verdicts.confusion(scores.truth, scores.verdicts(0.5), len(images.labels), rows)
            for scores, rows in ((images, weights), (repeated, ones))
        )
        assert measure(once) == pytest.approx(measure(copied))
    expected = sklearn.roc_auc_score(repeated.truth > 0, repeated.score)
    assert verdicts.auroc(images.truth, images.score, weights)[0] == pytest.approx(expected)
    expected = sklearn.average_precision_score(repeated.truth > 0, repeated.score)
    precision = verdicts.average_precision(images.truth, images.score, weights)
    assert precision[0] == pytest.approx(expected)
    once, copied = (
        verdicts.expected_calibration_error(scores.score, scores.truth > 0, rows)
        for scores, rows in ((images, weights), (repeated, ones))
    )
    assert once == pytest.approx(copied)


def test_an_image_is_of_the_category_that_covers_most(tmp_path: Path) -> None:
    def instance(category: str, side: int) -> Instance:
        return Instance(category, (0, 0, side, side), np.ones((side, side), np.bool_), side)

    together = (instance("dent", 5), instance("hole", 6), instance("dent", 4))  # 41 > 36 pixels
    images = (
        Image("a", tmp_path, 9, 9, together, id=1),
        Image("b", tmp_path, 9, 9, together[:2], id=2),
        Image("c", tmp_path, 9, 9, (), id=3),
    )
    dataset = Dataset("d", ("dent", "hole"), images)
    assert dataset.image_labels() == ["dent", "hole", "good"]
    assert verdicts.true_labels(dataset).tolist() == [1, 2, 0]


def test_always_saying_good_stands_beside_accuracy(make_scene: MakeScene) -> None:
    dataset, _ = make_scene(0, good=87, defective=13)
    figures = score(dataset, [], threshold=0.5, resamples=0).figures
    assert figures["image.accuracy"].value == pytest.approx(0.87)
    assert figures["baseline.always_good_accuracy"].value == pytest.approx(0.87)
    assert figures["image.balanced_accuracy"].value < 0.5
