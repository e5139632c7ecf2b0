"""What can be scored: results that cannot are refused, in one line that says which and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from toolkit.predictions import ImageProbabilities, PredictionCard, Result


def check_results(dataset: Dataset, results: Sequence[Result], where: str) -> None:
    """Check results against the ground truth that they are for.

    Duplicate detections are allowed: they count as false alarms.

    Args:
        dataset: ground truth of the split.
        results: what was predicted on it.
        where: the file, for the message.

    Raises:
        InputError: a result names an image or a category that is not there, its score is no number
            from 0 to 1, its box no finite ``[x, y, width, height]``, its mask no compressed RLE of
            the image's size; or some results have masks and others have not.
    """
    sizes = {image.id: (image.height, image.width) for image in dataset.images}
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
    predicted, there = set(probabilities.file_names), {i.file_name for i in dataset.images}
    remedy = "predict on this dataset, split and fold"
    if predicted - there:
        raise InputError(f"{where}: {min(predicted - there)} is not in the split: {remedy}")
    if there - predicted:
        missing = sorted(there - predicted)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{where}: lacks a row for {missing[0]}{more}: {remedy}")


def are_boxes_given(results: Sequence[Result], card: PredictionCard | None) -> bool:
    """Whether the right boxes were given: the card says so, or a result says which it answers."""
    on_card = card is not None and card.boxes == "ground truth"
    return on_card or any("annotation_id" in result for result in results)


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
    without = sum(instance.crop is None for instance in instances)
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
    runs = rle_runs(rle["counts"])
    # Runs that do not fill the image make pycocotools read past them, or never return.
    if runs is None or runs.min() < 0 or runs.sum() != size[0] * size[1]:
        return "segmentation's counts do not fill the image: write the predictions again"
    return None


def rle_runs(counts: str) -> npt.NDArray[np.int64] | None:
    """Run lengths of compressed RLE, or None where the text is no whole sequence of numbers.

    The code is LEB128 with 6 bits per character (5 of data, 1 that says "goes on"), signed, and
    from the fourth number on the difference to the one before the last (``rleFrString`` in
    https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).
    """
    codes = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:  # more than 40 bits: no image has such a run
        return None
    position = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * position), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
