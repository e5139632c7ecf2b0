"""From files to metrics.json and the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from converters.dataset import Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder
from converters.geometry import rle_from_region
from toolkit.config import EvaluateConfig
from toolkit.evaluate import evaluate, print_metrics, score
from toolkit.predictions import PredictionCard, Result, write_predictions

MakeScene = Callable[..., tuple[Dataset, list[Result]]]

DETECTOR = PredictionCard(boxes="detector", masks=True)


def perfect(data: Path, split: str, *, masks: bool = True) -> list[Result]:
    dataset = DatasetFolder.open(data).read(split)
    results: list[Result] = []
    for image in dataset.images:
        for instance in image.instances:
            result: Result = {
                "image_id": image.id,
                "category_id": dataset.category_id(instance.category),
                "bbox": list(instance.box),
                "score": 0.8,
            }
            if masks and instance.crop is not None:
                region = (instance.box, instance.crop)
                result["segmentation"] = rle_from_region(region, image.height, image.width)
            results.append(result)
    return results


@pytest.fixture
def data(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset()


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    results = {split: perfect(data, split) for split in ("val", "test")}
    write_predictions(tmp_path / "run" / "predictions", results, DETECTOR)
    return tmp_path / "run"


def test_a_perfect_run_scores_one_everywhere_and_is_written(data: Path, run: Path) -> None:
    metrics = evaluate(EvaluateConfig(data=data, predictions=run, resamples=50))
    written = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert written == metrics.to_json()
    for name in (
        *("box.AP", "box.AP50", "box.F1"),
        *("mask.AP", "mask.AP50", "mask.IoU", "mask.Dice", "mask.F1"),
        *("image.accuracy", "image.balanced_accuracy", "image.macro_F1", "image.AUROC"),
    ):
        assert written[name]["value"] == pytest.approx(1), name
        low, high = written[name]["ci95"]
        assert high == 1 and low == pytest.approx(0.025 ** (1 / 8)), name  # eight are few
        assert written[name]["n"] == 8
    assert written["baseline.always_good_accuracy"]["value"] == 2 / 8
    assert written["baseline.filled_box_IoU"]["value"] < 0.9
    assert written["per_class"]["spot"]["box.AP"]["n"] == 3
    assert written["per_class"]["good"]["image.recall"]["n"] == 2
    assert written["absent"] == {}
    assert written["thresholds"]["box"] == {"value": pytest.approx(0.4), "chosen_on": "val"}
    assert written["protocol"]["dataset"] == "dataset"
    assert written["protocol"]["labels"] == {"good": 2, "scratch": 3, "spot": 3}
    assert not list(run.glob(".*"))  # nothing half-written is left


def test_one_file_is_scored_with_val_beside_it(data: Path, run: Path) -> None:
    file = run / "predictions" / "test.json"
    metrics = evaluate(EvaluateConfig(data=data, predictions=file, resamples=0))
    assert metrics.thresholds["box"].chosen_on == "val"
    assert (run / "predictions" / "metrics.json").is_file()


def test_a_file_of_another_name_takes_nothing_from_its_neighbours(data: Path, run: Path) -> None:
    file = run / "predictions" / "mine.json"
    file.write_text((run / "predictions" / "test.json").read_text(), encoding="utf-8")
    out = run / "out.json"
    metrics = evaluate(EvaluateConfig(data=data, predictions=file, resamples=0, out=out))
    assert metrics.thresholds == {}
    assert "pass --threshold" in metrics.absent["box.F1"]
    assert out.is_file()


def test_missing_predictions_are_one_line_and_nothing_is_written(data: Path, run: Path) -> None:
    (run / "predictions" / "test.json").unlink()
    with pytest.raises(InputError, match=r"test\.json: no such predictions: run `toolkit predict`"):
        evaluate(EvaluateConfig(data=data, predictions=run))
    assert not (run / "metrics.json").exists()


def test_boxes_without_masks_leave_the_mask_figures_out(data: Path, tmp_path: Path) -> None:
    results = {split: perfect(data, split, masks=False) for split in ("val", "test")}
    card = PredictionCard(boxes="detector", masks=False)
    write_predictions(tmp_path / "boxes" / "predictions", results, card)
    metrics = evaluate(EvaluateConfig(data=data, predictions=tmp_path / "boxes", resamples=0))
    assert metrics.figures["box.AP"].value == pytest.approx(1)
    for name in ("mask.AP", "mask.AP50", "mask.IoU", "mask.Dice", "mask.F1"):
        assert name not in metrics.figures
        assert metrics.absent[name] == "the predictions have no masks"


def test_a_segmenter_that_finds_nothing_scores_zero_not_absent(data: Path, tmp_path: Path) -> None:
    write_predictions(tmp_path / "none" / "predictions", {"val": [], "test": []}, DETECTOR)
    metrics = evaluate(EvaluateConfig(data=data, predictions=tmp_path / "none", resamples=0))
    assert metrics.figures["mask.AP"].value == 0
    assert metrics.figures["image.AUROC"].value == 0.5
    assert metrics.thresholds["image"].value == 0.5


def test_ground_truth_without_masks_leaves_the_mask_figures_out(data: Path, run: Path) -> None:
    content = json.loads((data / "test.json").read_text(encoding="utf-8"))
    del content["annotations"][0]["segmentation"]
    (data / "test.json").write_text(json.dumps(content), encoding="utf-8")
    metrics = evaluate(EvaluateConfig(data=data, predictions=run, resamples=0))
    assert metrics.absent["mask.AP"] == "1 of 6 instances of the ground truth have no mask"
    assert "box.AP" in metrics.figures


@pytest.mark.parametrize(
    ("scene", "which"), [({"good": 0}, "good images"), ({"defective": 0}, "defects")]
)
def test_auroc_needs_both_kinds_of_images(
    make_scene: MakeScene, scene: dict[str, int], which: str
) -> None:
    metrics = score(*make_scene(0, **scene), threshold=0.5, resamples=10)
    assert "image.AUROC" not in metrics.figures
    assert f"the split has no {which}" in metrics.absent["image.AUROC"]
    assert "image.accuracy" in metrics.figures
    assert ("box.AP" in metrics.figures) == (which == "good images")


def test_a_verdict_never_given_has_no_precision(make_scene: MakeScene) -> None:
    metrics = score(make_scene(0)[0], [], threshold=0.5, resamples=0)
    assert "image.precision" not in metrics.per_class["dent"]
    reason = metrics.absent["per_class.dent.image.precision"]
    assert reason == "no image was given the verdict dent"
    assert metrics.per_class["dent"]["image.recall"].value == 0


def test_the_terminal_shows_figures_intervals_counts_and_reasons(make_scene: MakeScene) -> None:
    names = ("bent [lead]", "hole", "scratch")  # brackets are no markup
    dataset, results = make_scene(0, categories=names)
    text = io.StringIO()
    metrics = score(dataset, results, val=make_scene(2, good=0, categories=names), resamples=50)
    print_metrics(metrics, Console(file=text, width=80))
    shown = text.getvalue()
    figure = metrics.figures["box.AP"]
    low, high = figure.ci95 or (0, 0)
    assert f"{figure.value:.3f} [{low:.3f}, {high:.3f}]  n=20" in shown
    assert "bent [lead]" in shown
    assert "threshold box: " in shown
    assert "(chosen on val)" in shown
    assert "absent image.accuracy" in shown
    assert "val has no good images" in " ".join(shown.split())
    assert "…" not in shown  # nothing is cut off
    assert max(map(len, shown.splitlines())) <= 80
