"""Probabilities of whole images: scikit-learn's figures, and what cannot be scored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn import metrics as sklearn
from torchmetrics.classification import MulticlassCalibrationError

from converters.dataset import Dataset, Image
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import EvaluateConfig
from toolkit.evaluate import evaluate, print_metrics, score, score_probabilities
from toolkit.predictions import (
    ImageProbabilities,
    PredictionCard,
    Result,
    write_predictions,
    write_probabilities,
)

MakeScene = Callable[..., tuple[Dataset, list[Result]]]

JUDGED = PredictionCard(boxes="none", masks=False, classifier="resnet18")


def guess(dataset: Dataset, seed: int = 0, skill: float = 1.0) -> ImageProbabilities:
    """Probabilities that lean to the truth, of images in another order than the dataset's."""
    rng = np.random.default_rng(seed)
    classes = ("good", *dataset.categories)
    truth = [classes.index(label) for label in dataset.image_labels()]
    logits = rng.normal(0, 1, (len(truth), len(classes)))
    logits[np.arange(len(truth)), truth] += skill
    odds = np.exp(logits)
    order = rng.permutation(len(truth))
    names = tuple(dataset.images[index].file_name for index in order)
    return ImageProbabilities(classes, names, (odds / odds.sum(axis=1, keepdims=True))[order])


def verdicts(dataset: Dataset, found: ImageProbabilities) -> tuple[list[str], list[float]]:
    rows = dict(zip(found.file_names, found.values, strict=True))
    given = [found.classes[int(rows[image.file_name].argmax())] for image in dataset.images]
    return given, [1 - float(rows[image.file_name][0]) for image in dataset.images]


def calibration_error(dataset: Dataset, found: ImageProbabilities) -> float:
    rows = dict(zip(found.file_names, found.values, strict=True))
    values = torch.tensor(np.stack([rows[image.file_name] for image in dataset.images]))
    truth = torch.tensor([found.classes.index(label) for label in dataset.image_labels()])
    error = MulticlassCalibrationError(num_classes=len(found.classes), n_bins=15, norm="l1")
    return float(error(values, truth))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_are_those_of_scikit_learn(make_scene: MakeScene, seed: int) -> None:
    dataset, _ = make_scene(seed, good=20, defective=30)
    found = guess(dataset, seed)
    given, suspicion = verdicts(dataset, found)
    truth = dataset.image_labels()
    defective = [label != "good" for label in truth]
    metrics = score_probabilities(dataset, found, resamples=0)
    expected = {
        "image.accuracy": sklearn.accuracy_score(truth, given),
        "image.balanced_accuracy": sklearn.balanced_accuracy_score(truth, given),
        "image.macro_F1": sklearn.f1_score(truth, given, average="macro"),
        "image.AUROC": sklearn.roc_auc_score(defective, suspicion),
        "image.AP": sklearn.average_precision_score(defective, suspicion),
        "image.false_alarms_per_100_good": 100
        * np.mean([verdict != "good" for verdict, label in zip(given, truth, strict=True)][:20]),
        "image.ECE": calibration_error(dataset, found),
        "baseline.always_good_accuracy": 0.4,
    }
    figures = {name: figure.value for name, figure in metrics.figures.items()}
    assert figures == pytest.approx(expected, abs=1e-6)
    labels = list(found.classes)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        truth, given, labels=labels
    )
    for index, label in enumerate(labels):
        of_label = metrics.per_class[label]
        assert of_label["image.precision"].value == pytest.approx(precision[index])
        assert of_label["image.recall"].value == pytest.approx(recall[index])
        assert of_label["image.F1"].value == pytest.approx(f1[index])
        assert of_label["image.F1"].n == support[index]
    matrix = sklearn.confusion_matrix(truth, given, labels=labels)
    assert [list(metrics.confusion[label].values()) for label in labels] == matrix.tolist()


def test_the_verdict_is_the_most_probable_class_and_not_a_threshold() -> None:
    """Good at 0.4 beside two defects at 0.3 is good, though a defect of some kind is likelier."""
    images = (Image("a", Path("a"), 9, 9, (), id=1), Image("b", Path("b"), 9, 9, (), id=2))
    dataset = Dataset("d", ("dent", "hole"), images)
    values = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]])
    found = ImageProbabilities(("good", "dent", "hole"), ("a", "b"), values)
    metrics = score_probabilities(dataset, found, resamples=0)
    assert metrics.confusion["good"] == {"good": 1, "dent": 1, "hole": 0}
    assert metrics.thresholds == {}


def test_sure_probabilities_and_sure_detections_score_alike(make_scene: MakeScene) -> None:
    """Both ways to a verdict share the figures, their intervals and the baseline."""
    dataset, _ = make_scene(3, crowded=1)
    labels = dataset.image_labels()
    labels[7], labels[9] = "good", "hole"
    classes = ("good", *dataset.categories)
    values = np.array([[float(label == name) for name in classes] for label in labels])
    names = tuple(image.file_name for image in dataset.images)
    results: list[Result] = [
        {
            "image_id": image.id,
            "category_id": classes.index(label),
            "bbox": [0, 0, 9, 9],
            "score": 1.0,
        }
        for image, label in zip(dataset.images, labels, strict=True)
        if label != "good"
    ]
    judged = score_probabilities(dataset, ImageProbabilities(classes, names, values), seed=4)
    detected = score(dataset, results, threshold=0.5, seed=4)
    assert len(judged.figures) == 8
    for name, figure in judged.figures.items():
        if name != "image.ECE":  # of any class, or of any defect
            assert figure == detected.figures[name]
    assert judged.confusion == detected.confusion


def test_figures_of_boxes_and_masks_are_absent_with_the_reason(make_scene: MakeScene) -> None:
    dataset, _ = make_scene(0)
    metrics = score_probabilities(dataset, guess(dataset), resamples=20)
    assert {"box.AP", "box.F1", "mask.AP50", "mask.IoU", "mask.Dice"} <= set(metrics.absent)
    assert metrics.absent["box.AP"].startswith("whole images were judged")
    assert (metrics.protocol.boxes, metrics.protocol.iou) == ("none", None)
    text = io.StringIO()
    print_metrics(metrics, Console(file=text, width=80))
    assert "instances; whole images" in " ".join(text.getvalue().split())


def test_the_terminal_lists_mistakes_the_most_frequent_first(make_scene: MakeScene) -> None:
    dataset, _ = make_scene(0, good=5, defective=3)
    classes = ("good", *dataset.categories)
    hole = np.tile([0.1, 0.1, 0.7, 0.1], (8, 1))
    names = tuple(image.file_name for image in dataset.images)
    text = io.StringIO()
    metrics = score_probabilities(dataset, ImageProbabilities(classes, names, hole), resamples=0)
    print_metrics(metrics, Console(file=text, width=80))
    assert "mistaken: 5 good for hole" in text.getvalue()


def change(found: ImageProbabilities, case: str) -> ImageProbabilities:
    if case == "classes":
        return replace(found, classes=("good", "hole", "dent", "scratch"))
    if case == "unknown":
        return replace(found, file_names=("x.png", *found.file_names[1:]))
    return replace(found, file_names=found.file_names[:-2], values=found.values[:-2])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("classes", "has the classes good, hole, dent, scratch, the dataset good, dent, hole, "),
        ("unknown", "x.png is not in the split: predict on this dataset, split and fold"),
        ("missing", r"lacks a row for \d+.png and 1 more: predict on this dataset"),
    ],
)
def test_probabilities_of_something_else_are_refused(
    make_scene: MakeScene, case: str, message: str
) -> None:
    dataset, _ = make_scene(0)
    with pytest.raises(InputError, match=message) as caught:
        score_probabilities(dataset, change(guess(dataset), case), source="RUN/test_images.csv")
    assert str(caught.value).startswith("RUN/test_images.csv: ")
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_refused() -> None:
    found = ImageProbabilities(("good", "dent"), (), np.empty((0, 2)))
    with pytest.raises(InputError, match="test: has no images to score"):
        score_probabilities(Dataset("empty", ("dent",)), found)


@pytest.fixture
def data(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset()


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    folder = DatasetFolder.open(data)
    found = {split: guess(folder.read(split), skill=30) for split in ("val", "test")}
    write_probabilities(tmp_path / "run/predictions", found, JUDGED)
    return tmp_path / "run"


def test_a_run_of_a_classifier_is_scored_and_written(data: Path, run: Path) -> None:
    metrics = evaluate(EvaluateConfig(data=data, predictions=run, resamples=50))
    written = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert written == metrics.to_json()
    assert written["image.accuracy"] == {
        "value": 1,
        "ci95": [pytest.approx(0.025 ** (1 / 8)), 1],
        "n": 8,
    }
    assert written["confusion"]["spot"] == {"good": 0, "scratch": 0, "spot": 3}
    assert written["protocol"]["dataset"] == "dataset"


def test_one_file_of_probabilities_is_scored(data: Path, run: Path) -> None:
    file = run / "predictions/val_images.csv"
    metrics = evaluate(EvaluateConfig(data=data, predictions=file, split="val", resamples=0))
    assert metrics.figures["image.accuracy"].value == 1
    assert (run / "predictions/metrics_val.json").is_file()


def test_what_evaluate_refuses_leaves_nothing(data: Path, run: Path) -> None:
    with pytest.raises(InputError, match="the most probable class is the verdict: leave --thr"):
        evaluate(EvaluateConfig(data=data, predictions=run, threshold=0.5))
    with pytest.raises(InputError, match=r"train_images\.csv: no such predictions: `toolkit fin"):
        evaluate(EvaluateConfig(data=data, predictions=run, split="train"))
    (run / "predictions/test_images.csv").write_text("file_name,good\n")
    with pytest.raises(InputError, match=r"test_images\.csv: its header is"):
        evaluate(EvaluateConfig(data=data, predictions=run))
    assert not list(run.glob("*.json"))


def test_a_run_with_detections_and_probabilities_has_to_be_told_apart(
    data: Path, run: Path
) -> None:
    card = PredictionCard(boxes="detector", masks=False)
    write_predictions(run / "predictions", {"test": []}, card)
    with pytest.raises(InputError, match="holds detections and image-level probabilities: give"):
        evaluate(EvaluateConfig(data=data, predictions=run))
    file = run / "predictions/test_images.csv"
    assert evaluate(EvaluateConfig(data=data, predictions=file)).protocol.boxes == "none"


def test_one_score_per_image_gives_ranking_figures_alone(
    make_scene: MakeScene, data: Path, tmp_path: Path
) -> None:
    dataset = DatasetFolder.open(data).read("test")
    rng = np.random.default_rng(0)
    scores = {image.file_name: rng.normal(2.0 * (not image.is_good)) for image in dataset.images}
    file = tmp_path / "scores.csv"
    rows = [f"{name},{value!r}" for name, value in scores.items()]
    file.write_text("\n".join(["file_name,score", *rows]) + "\n", encoding="utf-8")
    metrics = evaluate(EvaluateConfig(data=data, predictions=file, resamples=50))
    defective = [not image.is_good for image in dataset.images]
    values = [scores[image.file_name] for image in dataset.images]
    assert metrics.figures["image.AUROC"].value == sklearn.roc_auc_score(defective, values)
    assert metrics.figures["image.AP"].value == pytest.approx(
        sklearn.average_precision_score(defective, values)
    )
    assert set(metrics.figures) == {"image.AUROC", "image.AP"}
    assert "give probabilities" in metrics.absent["image.macro_F1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.png,nan"], "a.png: score is 'nan', not a finite number"),
        (["a.png,high"], "a.png: score is 'high', not a finite number"),
        (["a.png,1,2"], "a.png: has 3 columns, the header 2"),
        (["a.png,1", "a.png,2"], "a.png comes 2 times"),
        (["a.png,1"], "a.png is not in the split"),
    ],
)
def test_scores_that_cannot_be_read_are_refused(
    data: Path, tmp_path: Path, rows: list[str], message: str
) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("\n".join(["file_name,score", *rows]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        evaluate(EvaluateConfig(data=data, predictions=file))
