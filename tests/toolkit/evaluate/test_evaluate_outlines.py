"""Pixels: IoU and Dice against plain masks, and the baselines of filled boxes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from converters.dataset import Dataset
from converters.geometry import mask_from_segmentation, rle_from_mask
from toolkit.evaluate import score
from toolkit.predictions import PredictionCard, Result

Scene = tuple[Dataset, list[Result]]
MakeScene = Callable[..., Scene]

GIVEN = PredictionCard(boxes="ground truth", masks=True)


def plain_masks(scene: Scene, threshold: float, category: int | None) -> tuple[np.ndarray, ...]:
    """Predicted and true unions of all images as boolean arrays (images, height, width)."""
    dataset, results = scene
    predicted, true = [], []
    for image in dataset.images:
        shape = image.height, image.width
        union, truth = np.zeros(shape, bool), np.zeros(shape, bool)
        for result in results:
            there = result["image_id"] == image.id and result["score"] >= threshold
            if there and category in (None, result["category_id"]):
                union |= mask_from_segmentation(result["segmentation"], *shape)
        for instance in image.instances:
            if category in (None, dataset.category_id(instance.category)):
                truth |= instance.to_mask(*shape)
        predicted.append(union)
        true.append(truth)
    return np.stack(predicted), np.stack(true)


@pytest.mark.parametrize("seed", [0, 1])
def test_iou_and_dice_pool_the_pixels_of_all_images(make_scene: MakeScene, seed: int) -> None:
    scene = make_scene(seed)
    metrics = score(*scene, threshold=0.4, resamples=0)
    for category in (None, 1, 2, 3):
        predicted, true = plain_masks(scene, 0.4, category)
        both, either = (predicted & true).sum(), (predicted | true).sum()
        figures = metrics.figures
        if category is not None:
            figures = metrics.per_class[scene[0].categories[category - 1]]
        assert figures["mask.IoU"].value == pytest.approx(both / either, abs=1e-12)
        dice = 2 * both / (predicted.sum() + true.sum())
        assert figures["mask.Dice"].value == pytest.approx(dice, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_pixels_are_pooled_for_precision_and_recall_and_images_averaged(
    make_scene: MakeScene, seed: int
) -> None:
    scene = make_scene(seed)
    metrics = score(*scene, threshold=0.4, resamples=0)
    for category in (None, 1, 2, 3):
        predicted, true = plain_masks(scene, 0.4, category)
        figures = metrics.figures
        if category is not None:
            figures = metrics.per_class[scene[0].categories[category - 1]]
        both = (predicted & true).sum(axis=(1, 2))
        drawn, there = predicted.sum(axis=(1, 2)), true.sum(axis=(1, 2))
        counts = drawn + there > 0  # a good image without a false alarm does not
        assert 0 < counts.sum() < len(counts)
        expected = {
            "mask.pixel_precision": both.sum() / drawn.sum(),
            "mask.pixel_recall": both.sum() / there.sum(),
            "mask.image_IoU": np.mean((both / np.maximum(drawn + there - both, 1))[counts]),
            "mask.image_Dice": np.mean((2 * both / np.maximum(drawn + there, 1))[counts]),
        }
        for name, value in expected.items():
            assert figures[name].value == pytest.approx(value, abs=1e-12), name


def test_without_a_prediction_precision_is_absent_and_overlap_is_0(one_spot: MakeScene) -> None:
    dataset, _ = one_spot()
    card = PredictionCard(boxes="detector", masks=True)
    metrics = score(dataset, [], card=card, threshold=0.5, resamples=10)
    for name in ("IoU", "Dice", "image_IoU", "image_Dice", "boundary_F1", "pixel_recall"):
        assert metrics.figures[f"mask.{name}"].value == 0
    assert metrics.absent["mask.pixel_precision"] == "there is no predicted mask to score"
    assert "mask.pixel_precision" not in metrics.figures
    assert "mask.pixel_precision" not in metrics.per_class["spot"]


def test_a_false_alarm_costs_its_image_and_hardly_the_pool(one_spot: MakeScene) -> None:
    dataset, _ = one_spot()
    right, alarm = dataset.images[0].instances[0].to_mask(20, 20), np.zeros((20, 20), np.bool_)
    alarm[0, 0] = True
    results: list[Result] = [
        {
            "image_id": image.id,
            "category_id": 1,
            "bbox": [0, 0, 20, 20],
            "score": 0.9,
            "segmentation": rle_from_mask(mask),
        }
        for image, mask in zip(dataset.images, (right, alarm), strict=True)
    ]
    figures = score(dataset, results, threshold=0.5, resamples=0).figures
    assert figures["mask.IoU"].value == pytest.approx(100 / 101)
    assert figures["mask.image_IoU"].value == figures["mask.image_Dice"].value == 0.5
    assert figures["mask.pixel_precision"].value == pytest.approx(100 / 101)
    assert figures["mask.pixel_recall"].value == 1


def test_filled_boxes_stand_beside_masks(one_spot: MakeScene) -> None:
    dataset, _ = one_spot()
    mask = np.zeros((20, 20), dtype=np.bool_)
    mask[5:15, 5:10] = True
    results: list[Result] = [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [4.6, 5.2, 20, 10],  # edges at the nearest pixels, cut at the border
            "score": 0.9,
            "segmentation": rle_from_mask(mask),
        }
    ]
    figures = score(dataset, results, threshold=0.5, resamples=0).figures
    assert figures["mask.IoU"].value == pytest.approx(50 / 100)
    assert figures["baseline.filled_box_IoU"].value == pytest.approx(100 / 150)


def answers(dataset: Dataset, seed: int, *, leave_out: int = 0) -> list[Result]:
    """Results to given boxes: about half of each instance's pixels."""
    rng = np.random.default_rng(seed)
    results: list[Result] = []
    for image in dataset.images:
        for instance in image.instances:
            mask = instance.to_mask(image.height, image.width)
            mask &= rng.random(mask.shape) < 0.5
            results.append(
                {
                    "image_id": image.id,
                    "category_id": dataset.category_id(instance.category),
                    "bbox": list(instance.box),
                    "score": 0.01,  # of no importance where boxes are given
                    "segmentation": rle_from_mask(mask),
                    "annotation_id": instance.id,
                }
            )
    return results[leave_out:]


def test_given_boxes_are_scored_by_outline_alone(make_scene: MakeScene) -> None:
    dataset, _ = make_scene(0)
    results = answers(dataset, 0, leave_out=1)
    metrics = score(dataset, results, card=GIVEN, resamples=50)
    by_id = {result["annotation_id"]: result["segmentation"] for result in results}
    ious, boxes = [], []
    for image in dataset.images:
        for instance in image.instances:
            truth = instance.to_mask(image.height, image.width)
            boxes.append(truth.sum() / (instance.box[2] * instance.box[3]))
            if instance.id not in by_id:  # an instance without an answer counts 0
                ious.append(0.0)
                continue
            mask = mask_from_segmentation(by_id[instance.id], image.height, image.width)
            ious.append((mask & truth).sum() / (mask | truth).sum())
    figure = metrics.figures["mask.instance_IoU"]
    assert figure.value == pytest.approx(np.mean(ious))
    assert (figure.n, figure.instances) == (14, len(ious))
    baseline = metrics.figures["baseline.filled_box_instance_IoU"]
    assert baseline.value == pytest.approx(np.mean(boxes))
    assert baseline.ci95 is not None
    assert {"mask.IoU", "mask.Dice"} < set(metrics.figures)
    covered = boxed = 0
    for image in dataset.images:
        truth, filled = np.zeros((2, image.height, image.width), bool)
        for instance in image.instances:
            x, y, w, h = (int(value) for value in instance.box)
            filled[y : y + h, x : x + w] = True
            truth |= instance.to_mask(image.height, image.width)
        covered += int(truth.sum())
        boxed += int(filled.sum())
    assert metrics.figures["baseline.filled_box_IoU"].value == pytest.approx(covered / boxed)
    assert metrics.protocol.boxes == "ground truth"
    for name in ("box.AP", "box.F1", "mask.AP", "mask.F1", "image.accuracy", "image.AUROC"):
        assert name not in metrics.figures
        assert metrics.absent[name] == "boxes were given, so finding them was not measured"
    assert metrics.thresholds == {}


def test_results_that_say_which_box_they_answer_never_pass_for_a_detectors(
    make_scene: MakeScene,
) -> None:
    dataset, _ = make_scene(0)
    metrics = score(dataset, answers(dataset, 0), resamples=0)
    assert metrics.protocol.boxes == "ground truth"
    assert "box.AP" not in metrics.figures
