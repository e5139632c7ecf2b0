"""AP and F1: equal to pycocotools, and the same for weighted as for repeated images."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from converters.dataset import Dataset, Image
from converters.formats.coco import to_coco
from toolkit.evaluate import score
from toolkit.evaluate.accumulate import average_precision, count_at, f1
from toolkit.evaluate.bootstrap import image_weights
from toolkit.evaluate.matching import match
from toolkit.predictions import Result

MakeScene = Callable[..., tuple[Dataset, list[Result]]]


def coco_precision(dataset: Dataset, results: list[Result], kind: str) -> np.ndarray:
    """Precision of pycocotools with its own loading and defaults, (10, 101, categories)."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = to_coco(dataset)
        truth.createIndex()
        found: Any = truth.loadRes(copy.deepcopy(results))
        evaluation = COCOeval(truth, found, "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"][:, :, :, 0, 2])


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize(
    "scene",
    [
        {},
        {"ties": True},  # equal scores rank as in pycocotools
        {"good": 0, "defective": 3, "crowded": 30},
        {"good": 20, "defective": 2},
        {"defective": 1, "crowded": 1},  # two of three classes are not there
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ap_is_that_of_pycocotools(
    make_scene: MakeScene, kind: str, scene: dict[str, Any], seed: int
) -> None:
    dataset, results = make_scene(seed, **scene)
    if not results:
        pytest.skip("pycocotools cannot load an empty list of results")
    expected = coco_precision(dataset, results, kind)
    matches = match(dataset, results, kind)  # type: ignore[arg-type]
    got = average_precision(matches, np.ones((1, len(dataset.images)), np.int16))[0, 0]
    present = expected[0, 0] > -1
    assert np.isnan(got[:, ~present]).all()
    np.testing.assert_allclose(got[:, present], expected.mean(axis=1)[:, present], atol=1e-12)

    metrics = score(dataset, results, resamples=0)
    of_classes = expected[:, :, present]
    assert metrics.figures[f"{kind}.AP"].value == pytest.approx(of_classes.mean(), abs=1e-9)
    assert metrics.figures[f"{kind}.AP50"].value == pytest.approx(of_classes[0].mean(), abs=1e-9)


def test_more_than_100_detections_of_a_class_on_an_image_are_cut_as_in_pycocotools(
    make_scene: MakeScene,
) -> None:
    dataset, results = make_scene(3, categories=("dent",), good=1, defective=2)
    false = [{**results[0], "bbox": [0, 0, 3, 3], "score": 0.99} for _ in range(120)]
    crowded = [*false, *results]
    expected = coco_precision(dataset, crowded, "box").mean()  # type: ignore[arg-type]
    metrics = score(dataset, crowded, resamples=0)  # type: ignore[arg-type]
    assert metrics.figures["box.AP"].value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(5))
def test_weighting_an_image_equals_repeating_it(
    make_scene: MakeScene, kind: str, seed: int
) -> None:
    dataset, results = make_scene(seed)
    draws = np.random.default_rng(seed).integers(0, 4, len(dataset.images)).tolist()
    images: list[Image] = []
    repeated: list[Any] = []
    for image, times in zip(dataset.images, draws, strict=True):
        for copy_number in range(times):
            image_id = image.id * 10 + copy_number
            start = sum(len(other.instances) for other in images)
            instances = tuple(
                replace(instance, id=start + number)
                for number, instance in enumerate(image.instances, start=1)
            )
            images.append(replace(image, id=image_id, instances=instances))
            repeated += [
                {**result, "image_id": image_id}
                for result in results
                if result["image_id"] == image.id
            ]
    copied = dataset.subset(tuple(images))
    expected = coco_precision(copied, repeated, kind)
    matches = match(dataset, results, kind)  # type: ignore[arg-type]
    weights = np.array([[1] * len(draws), draws], np.int16)
    got = average_precision(matches, weights)[0, 1]
    np.testing.assert_allclose(got, expected.mean(axis=1), atol=1e-6)

    counts = count_at(matches, 0.4).sum(axis=1)
    copied_matches = match(copied, repeated, kind)  # type: ignore[arg-type]
    copied_counts = count_at(copied_matches, 0.4).sum(axis=1)
    ones = np.ones((1, len(images)), np.int16)
    assert f1(counts, weights)[1] == pytest.approx(f1(copied_counts, ones)[0])


def test_chunks_of_the_bootstrap_join(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, results = make_scene(0)
    matches = match(dataset, results, "box")
    weights = image_weights(["x"] * len(dataset.images), 50, 0)
    whole = average_precision(matches, weights)
    monkeypatch.setattr("toolkit.evaluate.accumulate._CELLS", 60)
    np.testing.assert_array_equal(average_precision(matches, weights), whole)


def test_f1_counts_each_defect_once_and_false_alarms_on_good_images(
    one_spot: MakeScene,
) -> None:
    dataset, _ = one_spot()
    right = {"category_id": 1, "bbox": [5, 5, 10, 10]}
    results = [
        {**right, "image_id": 1, "score": 0.9},
        {**right, "image_id": 1, "score": 0.8},  # a duplicate is a false alarm
        {**right, "image_id": 2, "score": 0.7},  # so is anything on a good image
        {**right, "image_id": 2, "score": 0.1},  # below the threshold
    ]
    metrics = score(dataset, results, threshold=0.5, resamples=0)  # type: ignore[arg-type]
    assert metrics.figures["box.F1"].value == pytest.approx(2 * 1 / (3 + 1))
    assert metrics.per_class["spot"]["box.F1"].value == metrics.figures["box.F1"].value


def test_f1_asks_for_the_given_iou(one_spot: MakeScene) -> None:
    dataset, _ = one_spot()
    shifted: list[Result] = [
        {"image_id": 1, "category_id": 1, "bbox": [7, 5, 10, 10], "score": 0.9}  # IoU 2/3
    ]
    figures = [
        score(dataset, shifted, threshold=0.5, resamples=0, iou=iou).figures["box.F1"].value
        for iou in (0.3, 0.6, 0.7)
    ]
    assert figures == [1, 1, 0]


def test_no_detections_score_zero(make_scene: MakeScene) -> None:
    dataset, _ = make_scene(0)
    metrics = score(dataset, [], threshold=0.5, resamples=20)
    for name in ("box.AP", "box.AP50", "box.F1"):
        assert metrics.figures[name].value == 0
        assert metrics.figures[name].ci95 == (0, pytest.approx(1 - 0.025 ** (1 / 20)))


def test_false_alarms_of_a_class_without_ground_truth_lower_f1_but_not_ap(
    make_scene: MakeScene,
) -> None:
    dataset, results = make_scene(0)
    with_other = replace(dataset, categories=(*dataset.categories, "stain"))
    stains = [{**result, "category_id": 4, "score": 0.99} for result in results[:5]]
    before = score(with_other, results, threshold=0.5, resamples=0)
    after = score(with_other, [*results, *stains], threshold=0.5, resamples=0)  # type: ignore
    assert after.figures["box.AP"].value == before.figures["box.AP"].value
    assert after.figures["box.F1"].value < before.figures["box.F1"].value
    assert "stain" not in after.per_class
    assert after.absent["per_class.stain"] == "the split has no stain"
