"""How well outlines fit, pixel by pixel: sums per image, taken on RLE, from which ratios follow.

No mask is ever held at full size, so the memory does not grow with the pictures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from converters.dataset import Box, Dataset, Image, Instance
from converters.geometry import rle_from_instance, rle_from_region
from converters.rle import Rle
from toolkit.evaluate.bootstrap import Samples, Weights, ratio
from toolkit.predictions import Result

Overlap: TypeAlias = npt.NDArray[np.float64]
"""Shape (images, 1 + categories, 3): pixels of intersection, of the prediction, of the truth.

Column 0 is of defects of any kind, column ``k`` of the category with COCO id ``k``.
"""

Shape: TypeAlias = tuple[int, int, Rle]
"""Image id, category id, mask in the frame of the image."""


def overlap(dataset: Dataset, shapes: Iterable[Shape]) -> Overlap:
    """Overlap of the union of all shapes on an image with the union of its instances.

    Args:
        dataset: ground truth with masks.
        shapes: what was predicted.
    """
    sums = np.zeros((len(dataset.images), 1 + len(dataset.categories), 3))
    for row, column, predicted, true in outlines(dataset, shapes):
        sums[row, column] = _areas(predicted, true)
    return sums


def outlines(
    dataset: Dataset, shapes: Iterable[Shape]
) -> Iterator[tuple[int, int, list[Rle], list[Rle]]]:
    """What was predicted and what is there, image by image.

    Args:
        dataset: ground truth with masks.
        shapes: what was predicted.

    Yields:
        row and column of an ``Overlap`` in which there is anything, the predicted masks, the true
        ones.
    """
    predicted: defaultdict[int, list[tuple[int, Rle]]] = defaultdict(list)
    for image_id, category, rle in shapes:
        predicted[image_id].append((category, rle))
    for row, image in enumerate(dataset.images):
        drawn = predicted[image.id]
        true = [
            (dataset.category_id(instance.category), instance_rle(instance, image))
            for instance in image.instances
        ]
        if drawn or true:
            yield row, 0, [rle for _, rle in drawn], [rle for _, rle in true]
        for category in sorted({category for category, _ in (*drawn, *true)}):
            yield (
                row,
                category,
                [rle for of, rle in drawn if of == category],
                [rle for of, rle in true if of == category],
            )


def iou(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Intersection over union, pooled over the pixels of all images; NaN where both are empty.

    Args:
        sums: shape (images, 3), one column of an ``Overlap``.
        weights: shape (W, images).
    """
    return ratio(sums[:, 0], sums[:, 1] + sums[:, 2] - sums[:, 0], weights)


def dice(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Twice the intersection over the sum of both areas, pooled as in ``iou``."""
    return ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2], weights)


def precision(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Share of the predicted pixels that are defect, pooled as in ``iou``; NaN without any."""
    return ratio(sums[:, 0], sums[:, 1], weights)


def recall(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Share of the defect's pixels that are predicted, pooled as in ``iou``; NaN without any."""
    return ratio(sums[:, 0], sums[:, 2], weights)


def image_iou(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Mean over images of their own intersection over union; arguments as of ``iou``.

    Every image with a defect or a prediction counts the same, however large either is: a false
    alarm on a good image scores 0, and a good image without one does not count. NaN where no image
    counts.
    """
    return _mean_of_images(sums[:, 0], sums[:, 1] + sums[:, 2] - sums[:, 0], weights)


def image_dice(sums: npt.NDArray[np.float64], weights: Weights) -> Samples:
    """Mean over images of their own Dice, as in ``image_iou``."""
    return _mean_of_images(2 * sums[:, 0], sums[:, 1] + sums[:, 2], weights)


def masks(results: Iterable[Result]) -> list[Shape]:
    """The outlines of results."""
    return [
        (result["image_id"], result["category_id"], result["segmentation"]) for result in results
    ]


def filled_boxes(dataset: Dataset, results: Iterable[Result]) -> list[Shape]:
    """The boxes of results as if they were outlines: what a segmenter has to beat."""
    sizes = {image.id: (image.height, image.width) for image in dataset.images}
    shapes = []
    for result in results:
        x, y, w, h = result["bbox"]
        rle = _filled((x, y, w, h), *sizes[result["image_id"]])
        shapes.append((result["image_id"], result["category_id"], rle))
    return shapes


def filled_true_boxes(dataset: Dataset) -> list[Shape]:
    """The boxes of the instances as if they were outlines: what a given box gives for nothing."""
    return [
        (
            image.id,
            dataset.category_id(instance.category),
            _filled(instance.box, image.height, image.width),
        )
        for image in dataset.images
        for instance in image.instances
    ]


InstanceSums: TypeAlias = npt.NDArray[np.float64]
"""Shape (images, 1 + categories, 3): summed IoU of the outlines, of the filled boxes, and how many.

Columns as in ``Overlap``.
"""


def instance_ious(dataset: Dataset, results: Sequence[Result]) -> InstanceSums:
    """IoU of every instance with the result that answers it, and with its own box filled.

    Args:
        dataset: ground truth with masks.
        results: with the ``annotation_id`` that each answers; an instance without one scores 0.
    """
    answers = {result["annotation_id"]: result["segmentation"] for result in results}
    sums = np.zeros((len(dataset.images), 1 + len(dataset.categories), 3))
    for row, image in enumerate(dataset.images):
        for instance in image.instances:
            answer = answers.get(instance.id)
            found = 0.0
            if answer is not None:
                found = float(coco_mask.iou([answer], [instance_rle(instance, image)], [0])[0, 0])
            filled = instance.area / (instance.box[2] * instance.box[3])
            entry = np.array([found, filled, 1.0])
            sums[row, 0] += entry
            sums[row, dataset.category_id(instance.category)] += entry
    return sums


def instance_rle(instance: Instance, image: Image) -> Rle:
    """Mask of an instance in the frame of its image."""
    return rle_from_instance(instance, image.height, image.width)


def _mean_of_images(
    above: npt.NDArray[np.float64], below: npt.NDArray[np.float64], weights: Weights
) -> Samples:
    """Weighted mean of quotients over the images where the divisor is not 0."""
    counts = below > 0
    shares = np.divide(above, below, out=np.zeros_like(above), where=counts)
    return ratio(shares, counts.astype(np.float64), weights)


def _areas(predicted: list[Rle], true: list[Rle]) -> tuple[float, float, float]:
    prediction = coco_mask.merge(predicted) if predicted else None
    truth = coco_mask.merge(true) if true else None
    both = 0.0
    if prediction is not None and truth is not None:
        both = float(coco_mask.area(coco_mask.merge([prediction, truth], intersect=True)))
    return (
        both,
        0.0 if prediction is None else float(coco_mask.area(prediction)),
        0.0 if truth is None else float(coco_mask.area(truth)),
    )


def _filled(box: Box, height: int, width: int) -> Rle:
    """A box with its edges at the nearest pixel edges, cut at the image's border."""
    x, y, w, h = box
    left, right = (min(max(math.floor(edge + 0.5), 0), width) for edge in (x, x + w))
    top, bottom = (min(max(math.floor(edge + 0.5), 0), height) for edge in (y, y + h))
    crop = np.ones((bottom - top, right - left), dtype=np.bool_)
    return rle_from_region(((left, top, right - left, bottom - top), crop), height, width)
