"""Thresholds: chosen on val alone, at the middle of the widest best range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from converters.dataset import Dataset
from toolkit.evaluate import Metrics, score
from toolkit.evaluate.thresholds import widest_best
from toolkit.predictions import Result

Scene = tuple[Dataset, list[Result]]
MakeScene = Callable[..., Scene]

AT_A_THRESHOLD = {
    "box.F1",
    "mask.F1",
    "mask.IoU",
    "mask.Dice",
    "image.accuracy",
    "image.balanced_accuracy",
    "image.macro_F1",
}


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ((0.2, 0.4), 0.3),  # one range between neighbours
        ((0.2, 0.9), 0.55),  # neighbouring ranges join
        ((0.9, 1.0), 0.95),  # above all scores, where none is 1
        ((0.0, 0.2), 0.1),
    ],
)
def test_the_middle_of_the_best_range(best: tuple[float, float], expected: float) -> None:
    scores = np.array([0.2, 0.4, 0.9])

    def objective(thresholds: np.ndarray) -> np.ndarray:
        return ((thresholds > best[0]) & (thresholds <= best[1])).astype(float)

    threshold, value = widest_best(scores, objective)
    assert threshold == pytest.approx(expected)
    assert value == 1


def test_of_two_best_ranges_the_wider_and_of_equally_wide_the_higher() -> None:
    def of_low_and_high(thresholds: np.ndarray) -> np.ndarray:
        return ((thresholds <= 0.25) | (thresholds > 0.5)).astype(float)

    assert widest_best(np.array([0.25, 0.5]), of_low_and_high)[0] == pytest.approx(0.75)
    outer = widest_best(np.array([0.25, 0.75]), lambda t: (t != 0.75) * 1.0)
    assert outer[0] == pytest.approx(0.875)
    assert widest_best(np.array([0.5]), lambda t: np.ones(t.size))[0] == 0.5


def test_neighbouring_floats_still_have_a_threshold_that_parts_them() -> None:
    low = 0.7
    high = float(np.nextafter(low, 1))
    threshold, _ = widest_best(np.array([low, high]), lambda t: (t == high) * 1.0)
    assert low < threshold <= high


def test_the_chosen_threshold_has_the_best_f1_on_val(make_scene: MakeScene) -> None:
    val = make_scene(7, good=3, defective=7)
    metrics = score(*make_scene(1), val=val, resamples=0)
    for kind in ("box", "mask"):
        chosen = metrics.thresholds[kind]
        assert chosen.chosen_on == "val"

        def on_val(threshold: float, name: str = f"{kind}.F1") -> float:
            return score(*val, threshold=threshold, resamples=0).figures[name].value

        scores = sorted({result["score"] for result in val[1]})
        best = max(on_val(threshold) for threshold in scores)
        assert on_val(chosen.value) == pytest.approx(best)
        assert best > on_val(scores[0])  # the choice was one


def test_the_verdict_threshold_has_the_best_macro_f1_on_val(make_scene: MakeScene) -> None:
    val = make_scene(7, good=3, defective=7)
    chosen = score(*make_scene(1), val=val, resamples=0).thresholds["image"].value
    on_val = {
        threshold: score(*val, threshold=threshold, resamples=0).figures["image.macro_F1"].value
        for threshold in (chosen, *(result["score"] for result in val[1]))
    }
    assert on_val[chosen] == pytest.approx(max(on_val.values()))


def test_thresholds_do_not_look_at_the_split_that_is_scored(make_scene: MakeScene) -> None:
    val = make_scene(7)
    first = score(*make_scene(1), val=val, resamples=0)
    second = score(*make_scene(2, defective=30), val=val, resamples=0)
    assert first.thresholds == second.thresholds
    assert first.figures["box.F1"].value != second.figures["box.F1"].value


def test_a_given_threshold_is_used_for_everything(make_scene: MakeScene) -> None:
    metrics = score(*make_scene(1), val=make_scene(7), threshold=0.25, resamples=0)
    assert {(t.value, t.chosen_on) for t in metrics.thresholds.values()} == {(0.25, "given")}
    assert set(metrics.thresholds) == {"box", "mask", "image"}


def assert_absent(metrics: Metrics, names: set[str], reason: str) -> None:
    assert not names & set(metrics.figures)
    for name in names:
        assert reason in metrics.absent[name], name


def test_without_predictions_on_val_there_are_no_figures_at_a_threshold(
    make_scene: MakeScene,
) -> None:
    metrics = score(*make_scene(1), resamples=0)
    assert_absent(metrics, AT_A_THRESHOLD, "predict on val too, or pass --threshold")
    assert {"box.AP", "mask.AP", "image.AUROC"} <= set(metrics.figures)


def test_without_defects_on_val_the_threshold_does_not_collapse(make_scene: MakeScene) -> None:
    val = make_scene(7, defective=0)
    assert_absent(score(*make_scene(1), val=val, resamples=0), AT_A_THRESHOLD, "val has no defects")


def test_without_good_images_on_val_there_are_no_verdicts_on_good_ones(
    make_scene: MakeScene,
) -> None:
    val = make_scene(7, good=0)
    metrics = score(*make_scene(1), val=val, resamples=0)
    verdicts = {"image.accuracy", "image.balanced_accuracy", "image.macro_F1"}
    assert_absent(metrics, verdicts, "val has no good images")
    assert "box.F1" in metrics.figures
    assert "image.accuracy" in score(*make_scene(1, good=0), val=val, resamples=0).figures


def test_a_val_on_which_nothing_is_found_chooses_nothing(make_scene: MakeScene) -> None:
    dataset, results = make_scene(7)
    elsewhere: list[Result] = [{**result, "bbox": [60, 60, 2, 2]} for result in results]
    metrics = score(*make_scene(1), val=(dataset, elsewhere), resamples=0)
    assert_absent(metrics, {"box.F1"}, "no detection on val finds a defect")
    assert "mask.F1" in metrics.figures  # its outlines are where they were


def test_masks_missing_on_val_leave_out_mask_figures_alone(make_scene: MakeScene) -> None:
    dataset, results = make_scene(7)
    boxes: list[Result] = [
        {key: value for key, value in result.items() if key != "segmentation"}  # type: ignore
        for result in results
    ]
    metrics = score(*make_scene(1), val=(dataset, boxes), resamples=0)
    assert_absent(metrics, {"mask.F1", "mask.IoU"}, "on val, the predictions have no masks")
    assert {"box.F1", "mask.AP"} <= set(metrics.figures)


def test_a_val_whose_ground_truth_has_no_masks_leaves_out_mask_figures_alone(
    make_scene: MakeScene,
) -> None:
    dataset, results = make_scene(7)
    images = tuple(
        replace(image, instances=tuple(replace(i, mask=None) for i in image.instances))
        for image in dataset.images
    )
    for found in (results, []):
        metrics = score(*make_scene(1), val=(dataset.subset(images), found), resamples=0)
        assert_absent(metrics, {"mask.F1", "mask.IoU"}, "of the ground truth have no mask")
        assert "mask.AP" in metrics.figures


def test_figures_chosen_on_the_split_that_is_scored_say_so(make_scene: MakeScene) -> None:
    scene = make_scene(1)
    metrics = score(*scene, val=scene, split="val", resamples=0)
    assert "optimistic" in metrics.thresholds["box"].chosen_on


def test_the_threshold_follows_the_scores_of_val(make_scene: MakeScene) -> None:
    dataset, results = make_scene(7)
    halved: list[Result] = [{**result, "score": result["score"] / 2} for result in results]
    full = score(*make_scene(1), val=(dataset, results), resamples=0).thresholds["box"].value
    half = score(*make_scene(1), val=(dataset, halved), resamples=0).thresholds["box"].value
    assert half == pytest.approx(full / 2, rel=0.05)
