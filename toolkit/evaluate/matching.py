"""Which detection finds which defect: pycocotools' greedy matching, taken from ``COCOeval``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from converters.dataset import Dataset
from converters.geometry import rle_from_region
from toolkit.predictions import Result

Kind: TypeAlias = Literal["box", "mask"]
"""What overlaps: boxes or masks."""

IOUS: npt.NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""IoU thresholds that AP is the mean over; AP50 is the first."""

_MAX_DETECTIONS = 100  # per image and class, as COCO counts them


@dataclass(frozen=True)
class Matches:
    """Detections of one category over all images, the surest first.

    Attributes:
        scores: shape (D,), descending; equal scores in the order of pycocotools.
        image: shape (D,), index into ``Dataset.images``.
        found: shape (10, D), whether a defect was found, at each of ``IOUS``.
        found_at_iou: shape (D,), the same at the IoU that F1 is asked for.
        instances: shape (images,), ground-truth instances of the category.
    """

    scores: npt.NDArray[np.float64]
    image: npt.NDArray[np.int64]
    found: npt.NDArray[np.bool_]
    found_at_iou: npt.NDArray[np.bool_]
    instances: npt.NDArray[np.int64]


def match(dataset: Dataset, results: Sequence[Result], kind: Kind, iou: float) -> list[Matches]:
    """Match detections to ground truth of the same image and category.

    A detection takes the free instance that it overlaps most, the surest detection first; hence
    detections below a score never change what those above it found.

    Args:
        dataset: ground truth; its ids of annotations play no part, so 0 is as good as any.
        results: checked detections.
        kind: overlap of boxes or of masks.
        iou: IoU that F1 is asked for.

    Returns:
        one per category, in their order.
    """
    images = [
        {"id": image.id, "height": image.height, "width": image.width} for image in dataset.images
    ]
    categories = [{"id": index} for index, _ in enumerate(dataset.categories, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _index(images, categories, _ground_truth(dataset, kind)),
            _index(images, categories, _detections(results, kind)),
            "bbox" if kind == "box" else "segm",
        )
        evaluation.params.iouThrs = np.append(IOUS, iou)
        evaluation.params.maxDets = [_MAX_DETECTIONS]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    position = {image.id: index for index, image in enumerate(dataset.images)}
    count = len(dataset.images)
    return [
        _collect(evaluation.evalImgs[start : start + count], position)
        for start in range(0, count * len(categories), count)
    ]


def _index(
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
) -> Any:
    # Not loadRes: it fails on an empty list.
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _ground_truth(dataset: Dataset, kind: Kind) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        for instance in image.instances:
            annotation = {
                "id": len(annotations) + 1,  # pycocotools takes 0 for "unmatched"
                "image_id": image.id,
                "category_id": dataset.category_id(instance.category),
                "bbox": list(instance.box),
                "area": instance.area,
                "iscrowd": 0,
            }
            if kind == "mask":
                assert instance.crop is not None, "masks are matched where all instances have one"
                region = (instance.box, instance.crop)
                annotation["segmentation"] = rle_from_region(region, image.height, image.width)
            annotations.append(annotation)
    return annotations


def _detections(results: Sequence[Result], kind: Kind) -> list[dict[str, Any]]:
    annotations = []
    for number, result in enumerate(results, start=1):
        annotation: dict[str, Any] = {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "bbox": result["bbox"],
            "area": result["bbox"][2] * result["bbox"][3],
            "iscrowd": 0,
            "score": result["score"],
        }
        if kind == "mask":
            annotation["segmentation"] = result["segmentation"]
        annotations.append(annotation)
    return annotations


def _collect(evaluated: Sequence[dict[str, Any] | None], position: dict[int, int]) -> Matches:
    """Join what COCOeval found on each image, in its order, so that ties rank as in pycocotools."""
    entries = [entry for entry in evaluated if entry is not None]
    scores = np.array([s for entry in entries for s in entry["dtScores"]], dtype=np.float64)
    image = np.array(
        [position[entry["image_id"]] for entry in entries for _ in entry["dtIds"]], dtype=np.int64
    )
    found = np.concatenate(
        [np.zeros((len(IOUS) + 1, 0), dtype=np.bool_)]
        + [entry["dtMatches"].astype(np.bool_) for entry in entries],
        axis=1,
    )
    instances = np.zeros(len(position), dtype=np.int64)
    for entry in entries:
        instances[position[entry["image_id"]]] = len(entry["gtIds"])
    order = np.argsort(-scores, kind="stable")
    found = found[:, order]
    return Matches(scores[order], image[order], found[:-1], found[-1], instances)
