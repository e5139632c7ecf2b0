"""Operating points: for a recall, for a cost, per class; and what they cost in false alarms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from converters.dataset import Dataset
from toolkit.evaluate import Goal, score
from toolkit.predictions import Result

Scene = tuple[Dataset, list[Result]]
MakeScene = Callable[..., Scene]


def at(scene: Scene, threshold: float) -> tuple[int, int]:
    """Defects found and false alarms at a threshold."""
    figures = score(*scene, threshold=threshold, resamples=0).figures
    defects = sum(scene[0].count_instances().values())
    found = round(figures["box.recall"].value * defects)
    kept = sum(result["score"] >= threshold for result in scene[1])
    return found, kept - found


@pytest.mark.parametrize("floor", [0.2, 0.3, 0.4])
def test_a_recall_floor_is_kept_on_val_with_as_few_detections_as_possible(
    make_scene: MakeScene, floor: float
) -> None:
    val = make_scene(7, defective=30)
    metrics = score(*make_scene(1), val=val, goal=Goal("recall", recall=floor), resamples=0)
    chosen = metrics.thresholds["box"].value
    defects = sum(val[0].count_instances().values())
    assert at(val, chosen)[0] >= floor * defects
    higher = min(result["score"] for result in val[1] if result["score"] > chosen) + 1e-9
    assert at(val, higher)[0] < floor * defects
    assert metrics.protocol.goal == f"a recall of at least {floor:.1%}"


def test_a_recall_out_of_reach_is_refused_with_the_remedy(make_scene: MakeScene) -> None:
    goal = Goal("recall", recall=1.0)
    metrics = score(*make_scene(1), val=make_scene(7), goal=goal, resamples=0)
    assert "box" not in metrics.thresholds
    assert "predict with a lower --confidence" in metrics.absent["box.F1"]


@pytest.mark.parametrize("costs", [(1.0, 1.0), (10.0, 1.0), (1.0, 10.0)])
def test_the_least_cost_on_val(make_scene: MakeScene, costs: tuple[float, float]) -> None:
    val = make_scene(7, defective=30)
    goal = Goal("cost", miss_cost=costs[0], alarm_cost=costs[1])
    chosen = score(*make_scene(1), val=val, goal=goal, resamples=0).thresholds["box"].value
    defects = sum(val[0].count_instances().values())

    def cost(threshold: float) -> float:
        found, alarms = at(val, threshold)
        return costs[0] * (defects - found) + costs[1] * alarms

    assert cost(chosen) == min(cost(result["score"]) for result in val[1])


def test_dear_misses_lower_the_threshold(make_scene: MakeScene) -> None:
    val = make_scene(7, defective=30)
    thresholds = [
        score(*make_scene(1), val=val, goal=Goal("cost", miss_cost=dear), resamples=0)
        .thresholds["box"]
        .value
        for dear in (0.1, 1.0, 100.0)
    ]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]


def test_each_class_has_a_threshold_of_its_own(make_scene: MakeScene) -> None:
    dataset, results = make_scene(7, good=10, defective=40)
    shifted: list[Result] = [
        {**result, "score": result["score"] / (1 if result["category_id"] == 1 else 4)}
        for result in results
    ]
    val = dataset, shifted
    one, many = (
        score(*val, val=val, goal=Goal(per_class=per_class), resamples=0)
        for per_class in (False, True)
    )
    for name in ("box", "image"):
        assert not one.thresholds[name].by_class
        by_class = many.thresholds[name].by_class
        assert set(by_class) == set(dataset.categories)
        assert by_class["dent"] > by_class["hole"]
    for name in dataset.categories:
        assert many.per_class[name]["box.F1"].value >= one.per_class[name]["box.F1"].value
    assert many.figures["box.F1"].value > one.figures["box.F1"].value


def test_false_alarms_are_counted_on_good_images_alone(make_scene: MakeScene) -> None:
    dataset, results = make_scene(0, good=8, defective=12)
    good = {image.id for image in dataset.images if image.is_good}
    metrics = score(dataset, results, threshold=0.2, resamples=100)
    kept = [result for result in results if result["score"] >= 0.2]
    alarms = [result["image_id"] for result in kept if result["image_id"] in good]
    figure = metrics.figures["box.false_alarms_per_100_good"]
    assert alarms and figure.value == pytest.approx(100 * len(alarms) / 8)
    assert figure.n == 8 and figure.ci95 is not None and figure.ci95[0] < figure.ci95[1]
    image = metrics.figures["image.false_alarms_per_100_good"]
    assert image.value == pytest.approx(100 * len(set(alarms)) / 8)


def test_verdicts_for_a_recall_call_enough_images_defective(make_scene: MakeScene) -> None:
    val = make_scene(7, good=20, defective=40)
    goal = Goal("recall", recall=0.8)
    metrics = score(*val, val=val, goal=goal, resamples=0)
    confusion = np.array([list(row.values()) for row in metrics.confusion.values()])
    called = confusion[1:, 1:].sum() / confusion[1:].sum()
    assert called >= 0.8
