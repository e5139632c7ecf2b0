"""Boundary F1 against distances between all pairs of pixels, and shapes of which it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from converters.dataset import Dataset, Image
from converters.geometry import mask_from_segmentation, rle_from_mask
from toolkit.evaluate import score
from toolkit.evaluate.boundary import boundary_f1, boundary_sums
from toolkit.evaluate.pixels import Shape, masks
from toolkit.predictions import PredictionCard, Result

Scene = tuple[Dataset, list[Result]]
MakeScene = Callable[..., Scene]


def boundary(mask: np.ndarray) -> np.ndarray:
    """Row and column of the pixels with one outside the mask beside them, shape (n, 2)."""
    points = []
    for y, x in np.argwhere(mask):
        beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [
            0 <= v < mask.shape[0] and 0 <= u < mask.shape[1] and mask[v, u] for v, u in beside
        ]
        if not all(inside):
            points.append((y, x))
    return np.array(points, float).reshape(-1, 2)


def plain_sums(predicted: np.ndarray, true: np.ndarray, tolerance: float) -> list[float]:
    drawn, there = boundary(predicted), boundary(true)
    apart = np.hypot(*(drawn[:, None] - there[None]).transpose(2, 0, 1))
    near = [
        (apart <= tolerance + 1e-9).any(axis=axis).sum() if apart.size else 0 for axis in (1, 0)
    ]
    return [near[0], len(drawn), near[1], len(there)]


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5**0.5, 6.5])
def test_sums_are_those_of_all_pairs_of_boundary_pixels(
    make_scene: MakeScene, tolerance: float
) -> None:
    dataset, results = make_scene(0, good=2, defective=5)
    sums = boundary_sums(dataset, masks(results), tolerance)
    for row, image in enumerate(dataset.images):
        for column, name in enumerate((None, *dataset.categories)):
            predicted, true = np.zeros((2, 64, 64), bool)
            for result in results:
                if result["image_id"] == image.id and column in (0, result["category_id"]):
                    predicted |= mask_from_segmentation(result["segmentation"], 64, 64)
            for instance in image.instances:
                if name in (None, instance.category):
                    true |= instance.to_mask(64, 64)
            np.testing.assert_array_equal(
                sums[row, column], plain_sums(predicted, true, tolerance), f"{row} {column}"
            )
    precision, recall = sums[:, 0, :2].sum(axis=0), sums[:, 0, 2:].sum(axis=0)
    p, r = precision[0] / precision[1], recall[0] / recall[1]
    value = boundary_f1(sums[:, 0], np.ones((1, len(sums)), np.int16))[0]
    assert value == pytest.approx(2 * p * r / (p + r), abs=1e-12)


def square(dataset: Dataset, left: int, top: int, right: int, bottom: int) -> list[Shape]:
    mask = np.zeros((20, 20), np.bool_)
    mask[top:bottom, left:right] = True
    return [(dataset.images[0].id, 1, rle_from_mask(mask))]


@pytest.mark.parametrize(
    ("box", "tolerance", "expected"),
    [
        ((5, 5, 15, 15), 0, 1.0),  # the spot itself
        ((4, 4, 16, 16), 0, 0.0),  # one pixel too large all around
        ((4, 4, 16, 16), 1, 40 / 44),  # the corners are a diagonal away; recall 1, precision 40/44
        ((4, 4, 16, 16), 2, 1.0),
        ((0, 0, 2, 2), 2, 0.0),
    ],
)
def test_a_square_around_a_square(
    one_spot: MakeScene, box: tuple[int, int, int, int], tolerance: float, expected: float
) -> None:
    dataset, _ = one_spot()
    sums = boundary_sums(dataset, square(dataset, *box), tolerance)
    found = boundary_f1(sums[:, 0], np.ones((1, 2), np.int16))[0]
    if box == (4, 4, 16, 16) and tolerance == 1:
        expected = 2 * expected / (1 + expected)
    assert found == pytest.approx(expected)


def test_nothing_predicted_is_0_and_nothing_at_all_is_undefined(one_spot: MakeScene) -> None:
    dataset, _ = one_spot()
    sums = boundary_sums(dataset, [])
    weights = np.array([[1, 1], [0, 2], [3, 0]], np.int16)
    np.testing.assert_array_equal(boundary_f1(sums[:, 0], weights), [0, np.nan, 0])
    alarm = [(dataset.images[1].id, *square(dataset, 1, 1, 9, 9)[0][1:])]
    np.testing.assert_array_equal(
        boundary_f1(boundary_sums(dataset, alarm)[:, 0], weights), [0, 0, 0]
    )


def test_a_weight_is_so_many_copies_of_the_image(make_scene: MakeScene) -> None:
    dataset, results = make_scene(0)
    copies = np.random.default_rng(1).integers(0, 3, len(dataset.images))
    drawn = [image for image, n in zip(dataset.images, copies, strict=True) for _ in range(n)]
    repeated: list[Image] = []
    shapes = []
    for number, image in enumerate(drawn, start=1):
        repeated.append(replace(image, id=number))
        own = [result for result in results if result["image_id"] == image.id]
        shapes += [(number, category, rle) for _, category, rle in masks(own)]
    sums = boundary_sums(dataset, masks(results))
    weights = np.stack([np.ones_like(copies), copies]).astype(np.int16)
    copied = boundary_sums(dataset.subset(tuple(repeated)), shapes)
    for column in range(1 + len(dataset.categories)):
        once, weighed = boundary_f1(sums[:, column], weights)
        ones = np.ones((1, len(drawn)), np.int16)
        assert weighed == pytest.approx(boundary_f1(copied[:, column], ones)[0], abs=1e-12)
        assert weighed != once


def test_the_figure_is_entered_with_its_tolerance(make_scene: MakeScene) -> None:
    scene = make_scene(0)
    strict, loose = (
        score(*scene, threshold=0.4, resamples=0, boundary_tolerance=pixels) for pixels in (0, 4)
    )
    first, second = (metrics.figures["mask.boundary_F1"].value for metrics in (strict, loose))
    assert first < second
    assert (strict.protocol.boundary_tolerance, loose.protocol.boundary_tolerance) == (0, 4)
    kept = [result for result in scene[1] if result["score"] >= 0.4]
    sums = boundary_sums(scene[0], masks(kept), 4)
    one = np.ones((1, len(sums)), np.int16)
    assert second == boundary_f1(sums[:, 0], one)[0]
    hole = loose.per_class["hole"]["mask.boundary_F1"]
    assert hole.value == boundary_f1(sums[:, 1 + scene[0].categories.index("hole")], one)[0]


def test_outlines_in_given_boxes_have_a_boundary_too(one_spot: MakeScene) -> None:
    dataset, _ = one_spot()
    result: Result = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [5, 5, 10, 10],
        "score": 1.0,
        "segmentation": square(dataset, 5, 5, 15, 14)[0][2],
        "annotation_id": 1,
    }
    card = PredictionCard(boxes="ground truth", masks=True)
    figures = score(dataset, [result], card=card, resamples=0, boundary_tolerance=1).figures
    assert figures["mask.boundary_F1"].value == 1
    figures = score(dataset, [result], card=card, resamples=0, boundary_tolerance=0).figures
    # 34 pixels drawn, 36 there; all but the shifted lower side fall together.
    assert figures["mask.boundary_F1"].value == pytest.approx(2 * 26 / (34 + 36))
