"""The same matches from pycocotools itself: the reference, and the fallback."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from converters.dataset import Dataset
from toolkit.evaluate.matching import (
    IOUS,
    MAX_DETECTIONS,
    SIZES,
    Kind,
    Matches,
    Shapes,
    results_in_columns,
    truth_in_columns,
)
from toolkit.predictions import Result


def match(
    dataset: Dataset,
    results: Sequence[Result],
    kind: Kind,
    *,
    iou: float = 0.5,
    max_detections: int = MAX_DETECTIONS,
) -> list[Matches]:
    """What ``toolkit.evaluate.matching.match`` gives, by ``COCOeval.evaluate``."""
    images = [
        {"id": image.id, "height": image.height, "width": image.width} for image in dataset.images
    ]
    categories = [{"id": index} for index, _ in enumerate(dataset.categories, start=1)]
    ids = [image.id for image in dataset.images]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (
            _index(images, categories, _annotations(shapes, ids))
            for shapes in (
                truth_in_columns(dataset, kind),
                results_in_columns(dataset, results, kind),
            )
        )
        evaluation = COCOeval(truth, found, "bbox" if kind == "box" else "segm")
        evaluation.params.iouThrs = np.append(IOUS, iou)
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng = [list(ends) for ends in SIZES.values()]
        evaluation.evaluate()
    position = {image.id: index for index, image in enumerate(dataset.images)}
    grid = np.empty((len(categories), len(SIZES), len(images)), object)
    grid.ravel()[:] = evaluation.evalImgs
    return [_collect(entries, position) for entries in grid]


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


def _annotations(shapes: Shapes, image_ids: Sequence[int]) -> list[dict[str, Any]]:
    annotations = []
    for row in range(len(shapes.image)):
        annotation: dict[str, Any] = {
            "id": row + 1,  # pycocotools takes 0 for "unmatched"
            "image_id": image_ids[shapes.image[row]],
            "category_id": int(shapes.category[row]) + 1,
            "bbox": shapes.box[row].tolist(),
            "area": float(shapes.area[row]),
            "iscrowd": 0,
            "score": float(shapes.score[row]),
        }
        if shapes.rles:
            annotation["segmentation"] = shapes.rles[row]
        annotations.append(annotation)
    return annotations


def _collect(entries: npt.NDArray[np.object_], position: dict[int, int]) -> Matches:
    """Join what COCOeval found on each image, in its order, so that ties rank as in pycocotools.

    Args:
        entries: shape (A, images), of one category.
        position: of each image id.
    """
    of_all = [entry for entry in entries[0] if entry is not None]
    scores = np.array([s for entry in of_all for s in entry["dtScores"]], np.float64)
    image = np.array([position[e["image_id"]] for e in of_all for _ in e["dtIds"]], np.int64)
    rank = np.array([r for entry in of_all for r, _ in enumerate(entry["dtIds"])], np.int64)
    result = np.array([number - 1 for e in of_all for number in e["dtIds"]], np.int64)
    order = np.argsort(-scores, kind="stable")
    found, ignored, taken = [], [], []
    instances = np.zeros((len(entries), len(position)), np.int64)
    for size, row in enumerate(entries):
        there = [entry for entry in row if entry is not None]
        for entry in there:
            instances[size, position[entry["image_id"]]] = np.count_nonzero(entry["gtIgnore"] == 0)
        hits = np.concatenate([np.zeros((len(IOUS) + 1, 0)), *(e["dtMatches"] for e in there)], 1)
        outside = np.concatenate([np.zeros_like(hits[:, :0]), *(e["dtIgnore"] for e in there)], 1)
        ignored.append(outside[:, order] != 0)
        found.append((hits[:, order] != 0) & ~ignored[-1])
        taken.append(np.where(found[-1][-1], hits[-1, order] - 1, -1).astype(np.int64))
    return Matches(
        scores=scores[order],
        image=image[order],
        rank=rank[order],
        found=np.stack(found)[:, :-1],
        ignored=np.stack(ignored)[:, :-1],
        result=result[order],
        taken_at_iou=taken[0],
        instances=instances,
    )
