"""Outline what points mark, without a detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converters.dataset import Dataset
from converters.geometry import rle_from_region
from converters.rle import tight_boxes
from toolkit.console import track
from toolkit.marks import Mark, Marks
from toolkit.predictions import Result
from toolkit.segment.prompts import NOTHING
from toolkit.segment.segmenter import Prompts, Segmenter, outlines_on


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
        if not asked:
            continue
        outlines = outlines_on(segmenter, image, point_prompts(asked))
        for mark, outline in zip(asked, outlines, strict=True):
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


def point_prompts(marks: Sequence[Mark]) -> Prompts:
    """Marks on one picture as prompts of one call: rows with fewer points say nothing more."""
    most = max(len(mark.points) for mark in marks)
    points = np.zeros((len(marks), most, 2))
    labels: npt.NDArray[np.int64] = np.full((len(marks), most), NOTHING)
    for k, mark in enumerate(marks):
        points[k, : len(mark.points)] = mark.points
        labels[k, : len(mark.labels)] = mark.labels
    return Prompts(points=points, labels=labels)
