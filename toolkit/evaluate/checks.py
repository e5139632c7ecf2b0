"""What can be scored: results that cannot are refused, in one line that says which and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from numbers import Integral, Real
from operator import itemgetter
from typing import Any

import numpy as np

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from converters.rle import are_filled
from toolkit.predictions import Boxes, ImageProbabilities, PredictionCard, Result, boxes_of


def check_results(dataset: Dataset, results: Sequence[Result], where: str) -> None:
    """Check results against the ground truth that they are for.

    Duplicate detections are allowed: they count as false alarms. So are boxes that reach beyond the
    picture, but not those that lie outside of it.

    Args:
        dataset: ground truth of the split.
        results: what was predicted on it.
        where: the file, for the message.

    Raises:
        InputError: a result names an image or a category that is not there, its score is no number
            from 0 to 1, its box no finite ``[x, y, width, height]`` on the picture, its mask no
            compressed RLE of the image's size; or some results have masks and others have not.
    """
    sizes = {image.id: (image.height, image.width) for image in dataset.images}
    if _are_plain(results, sizes, len(dataset.categories)):
        return
    masks = bool(results) and "segmentation" in results[0]
    for number, result in enumerate(results):
        problem = _problem(result, sizes, len(dataset.categories))
        if problem is None and ("segmentation" in result) != masks:
            problem = "some results have a segmentation and others have not: predict again"
        if problem is not None:
            raise InputError(f"{where}: result {number}: {problem}")


def check_answers(dataset: Dataset, results: Sequence[Result], where: str) -> None:
    """Check that results to given boxes say which annotation each of them answers.

    Raises:
        InputError: an ``annotation_id`` is missing, is not on that image, or is answered twice.
    """
    images = {instance.id: image.id for image in dataset.images for instance in image.instances}
    answered: set[int] = set()
    for number, result in enumerate(results):
        annotation = result.get("annotation_id")
        if not isinstance(annotation, Integral):
            problem = "lacks the annotation_id that its given box belongs to"
        elif images.get(annotation) != result["image_id"]:
            problem = f"annotation_id {annotation} is not on image {result['image_id']}"
        elif annotation in answered:
            problem = f"annotation_id {annotation} was answered before"
        else:
            answered.add(annotation)
            continue
        raise InputError(f"{where}: result {number}: {problem}: predict again")


def check_probabilities(dataset: Dataset, probabilities: ImageProbabilities, where: str) -> None:
    """Check image-level probabilities against the ground truth that they are for.

    Raises:
        InputError: their classes are not "good" and then the dataset's categories, or their images
            are not those of the split.
    """
    classes = (GOOD, *dataset.categories)
    if probabilities.classes != classes:
        raise InputError(
            f"{where}: has the classes {', '.join(probabilities.classes)}, the dataset "
            f"{', '.join(classes)}: predict on this dataset"
        )
    check_images(dataset, probabilities.file_names, where)


def check_images(dataset: Dataset, file_names: Sequence[str], where: str) -> None:
    """Check that a file speaks of the images of the split.

    Raises:
        InputError: one is missing, or is not in the split.
    """
    predicted, there = set(file_names), {image.file_name for image in dataset.images}
    remedy = "predict on this dataset, split and fold"
    if predicted - there:
        raise InputError(f"{where}: {min(predicted - there)} is not in the split: {remedy}")
    if there - predicted:
        missing = sorted(there - predicted)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{where}: lacks a row for {missing[0]}{more}: {remedy}")


def count_duplicates(results: Sequence[Result]) -> int:
    """Results that say again what another said: same image, category, box and score."""
    times = Counter(result["score"] for result in results)
    said = [
        (result["image_id"], result["category_id"], tuple(result["bbox"]), result["score"])
        for result in results
        if times[result["score"]] > 1
    ]
    return len(said) - len(set(said))


def are_boxes_given(results: Sequence[Result], card: PredictionCard | None) -> bool:
    """Whether the right boxes were given: the card says so, or a result says which it answers."""
    on_card = card is not None and card.boxes == "ground truth"
    return on_card or any("annotation_id" in result for result in results)


def boxes_from(card: PredictionCard | None) -> Boxes:
    """Where boxes that were found come from: what the card says, else a detector."""
    return card.boxes if card is not None and card.boxes in ("points", "everything") else "detector"


def why_no_masks(
    dataset: Dataset, results: Sequence[Result], card: PredictionCard | None = None
) -> str | None:
    """Why outlines cannot be scored; None where they can.

    Args:
        dataset: ground truth of the split.
        results: checked results.
        card: says whether masks were predicted where there is not one result.
    """
    predicted = "segmentation" in results[0] if results else card is not None and card.masks
    if not predicted:
        return "the predictions have no masks"
    instances = [instance for image in dataset.images for instance in image.instances]
    without = sum(instance.mask is None for instance in instances)
    if without:
        return f"{without} of {len(instances)} instances of the ground truth have no mask"
    return None


def _problem(result: Result, sizes: dict[int, tuple[int, int]], categories: int) -> str | None:
    image, category = result["image_id"], result["category_id"]
    score, box = result["score"], result["bbox"]
    if not isinstance(image, Integral) or image not in sizes:
        return f"image_id {image!r} is not in the split: predict on this dataset, split and fold"
    if not isinstance(category, Integral) or not 1 <= category <= categories:
        return f"category_id {category!r} is not 1 to {categories}: use the dataset's ids"
    if not _is_finite(score) or not 0 <= score <= 1:
        return f"score {score!r} is not a number from 0 to 1: scale or correct it"
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r} is not four finite numbers: write [x, y, width, height]"
    if box[2] < 0 or box[3] < 0:
        return f"bbox {box!r} has a negative size: write [x, y, width, height]"
    height, width = sizes[image]
    if not (-box[2] <= box[0] <= width and -box[3] <= box[1] <= height):
        return (
            f"bbox {box!r} lies outside of its picture of {width} x {height} pixels: "
            "write [x, y, width, height] in pixels of the picture"
        )
    if "segmentation" in result:
        return _mask_problem(result["segmentation"], sizes[image])
    return None


def _mask_problem(rle: Any, size: tuple[int, int]) -> str | None:
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str):
        return "segmentation is not compressed RLE: encode the mask with pycocotools"
    if rle.get("size") not in (list(size), size):
        return (
            f"segmentation has size {rle.get('size')}, the image {list(size)} "
            "(height, width): predict at the image's size"
        )
    # Runs that do not fill the image make pycocotools read past them, or never return.
    if not _fill([rle], [size]):
        return "segmentation's counts do not fill the image: write the predictions again"
    return None


def _are_plain(
    results: Sequence[Result], sizes: dict[int, tuple[int, int]], categories: int
) -> bool:
    """Whether nothing is wrong with any result, found out all at once; if not, each is asked."""
    for name, types in (("image_id", {int}), ("category_id", {int}), ("score", {int, float})):
        if not set(map(type, map(itemgetter(name), results))) <= types:
            return False
    images = [result["image_id"] for result in results]
    kinds = np.array([result["category_id"] for result in results], np.int64)
    scores = np.array([result["score"] for result in results], np.float64)
    boxes = [result["bbox"] for result in results]
    if not set(images) <= sizes.keys() or not set(map(type, boxes)) <= {list, tuple}:
        return False
    if not set(map(len, boxes)) <= {4}:
        return False
    if not set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        return False
    corners = boxes_of(results)
    in_range = (kinds >= 1) & (kinds <= categories) & (scores >= 0) & (scores <= 1)
    if not in_range.all() or not np.isfinite(corners).all() or (corners[:, 2:] < 0).any():
        return False
    frame = np.array([sizes[image][::-1] for image in images], np.float64).reshape(-1, 2)
    if (corners[:, :2] < -corners[:, 2:]).any() or (corners[:, :2] > frame).any():
        return False
    masks = [result["segmentation"] for result in results if "segmentation" in result]
    return not masks or (
        len(masks) == len(results) and _fill(masks, [sizes[image] for image in images])
    )


def _fill(rles: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether all of these are compressed RLE of these sizes, with runs that fill them."""
    if set(map(type, rles)) != {dict}:
        return False
    counts = [rle.get("counts") for rle in rles]
    if set(map(type, counts)) != {str}:
        return False
    given = [rle.get("size") for rle in rles]
    if not set(map(type, given)) <= {list, tuple} or list(map(tuple, given)) != list(sizes):
        return False
    return are_filled(counts, np.array(sizes, np.int64).prod(axis=1))


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
