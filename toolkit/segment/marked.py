"""Outline what points mark, without a detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.dataset import Dataset, Image
from converters.geometry import rle_from_region
from converters.rle import tight_boxes
from toolkit.console import track
from toolkit.marks import Mark, Marks
from toolkit.predictions import Result
from toolkit.segment.segmenter import Outline, Prompts, Segmenter, outlines_on


def predict_marked(segmenter: Segmenter, dataset: Dataset, marks: Marks) -> list[Result]:
    """Outline what is marked on the pictures of a dataset.

    Args:
        segmenter: has learnt what points mean.
        dataset: the pictures; those without marks are left alone.
        marks: of its categories, inside its pictures; those on other pictures are left alone.

    Returns:
        in the order of the pictures, and of the marks on each, one result for each mark whose mask
        has a pixel: its box is that of the mask, its score the estimate of the IoU, 0 to 1.

    Raises:
        InputError: the model has never learnt what points mean, or a picture cannot be read.
    """
    results: list[Result] = []
    for image in track(dataset.images, "outlining", len(dataset.images)):
        asked = marks.on(image.file_name)
        for mark, outline in zip(asked, outlines_of(segmenter, image, asked), strict=True):
            if not outline.region[1].any():
                continue
            rle = rle_from_region(outline.region, image.height, image.width)
            results.append(
                {
                    "image_id": image.id,
                    "category_id": dataset.category_id(str(mark.category)),
                    "bbox": tight_boxes([rle])[0].tolist(),
                    "score": outline.clipped,
                    "segmentation": rle,
                    "predicted_iou": outline.clipped,
                }
            )
    return results


def outlines_of(segmenter: Segmenter, image: Image, marks: Sequence[Mark]) -> list[Outline]:
    """What each of the marks on a picture means, whatever else is marked there.

    Those of as many points go in one call, which encodes the picture. Rows filled up with points
    that say nothing would all go in one, but such points move the answer a little, and a mark would
    be outlined in another way beside a mark of more points.
    """
    alike: dict[int, list[int]] = {}
    for k, mark in enumerate(marks):
        alike.setdefault(len(mark.points), []).append(k)
    found: dict[int, Outline] = {}
    for numbers in alike.values():
        points = np.stack([marks[k].points for k in numbers])
        labels = np.stack([marks[k].labels for k in numbers])
        prompts = Prompts(points=points, labels=labels)
        found.update(zip(numbers, outlines_on(segmenter, image, prompts), strict=True))
    return [found[k] for k in range(len(marks))]
