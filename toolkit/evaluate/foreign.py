"""Predictions of other tools in our form: YOLO's text files, and supervision's detections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

from converters.dataset import Dataset, Image
from converters.errors import InputError
from converters.geometry import rle_from_mask
from toolkit.predictions import Result

if TYPE_CHECKING:
    import supervision as sv


def read_yolo_folder(folder: Path, dataset: Dataset) -> list[Result]:
    """Read text files as YOLO writes them (``save_txt`` with ``save_conf`` in ultralytics).

    One file per picture, named like it; a picture without a file has no detections. A line is
    ``class cx cy w h score`` for a box or ``class x1 y1 x2 y2 x3 y3 … score`` for an outline: class
    numbers from 0 in the order of the dataset's categories, coordinates as shares of the picture's
    width and height.

    Raises:
        InputError: a file belongs to no picture of the split, or a line cannot be read.
    """
    of_stem: dict[str, Image] = {}
    for image in dataset.images:
        stem = Path(image.file_name).stem
        if stem in of_stem:
            raise InputError(
                f"{folder}: {stem}.txt could belong to {of_stem[stem].file_name} or "
                f"{image.file_name}: write the predictions as COCO results"
            )
        of_stem[stem] = image
    results: list[Result] = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in of_stem:
            raise InputError(
                f"{path}: no picture of the split is called {path.stem}: "
                "predict on this dataset, split and fold"
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                results.append(_yolo_result(f"{path}: line {number}", line, of_stem[path.stem]))
    return results


def _yolo_result(where: str, line: str, image: Image) -> Result:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    corners = len(values) - 2
    if corners != 4 and (corners < 6 or corners % 2):
        raise InputError(
            f"{where}: is neither `class cx cy w h score` nor an outline with a score: "
            "predict with save_txt and save_conf"
        )
    scale = np.array([image.width, image.height], np.float64)
    points = np.array(values[1:-1]).reshape(-1, 2) * scale
    result: dict[str, Any] = {
        "image_id": image.id,
        "category_id": int(values[0]) + 1,
        "score": values[-1],
    }
    if corners == 4:
        (cx, cy), (w, h) = points.tolist()
        return {**result, "bbox": [cx - w / 2, cy - h / 2, w, h]}  # type: ignore[typeddict-item]
    polygon = [points.ravel().tolist()]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygon, image.height, image.width))
    low, high = points.min(axis=0), points.max(axis=0)
    result["bbox"] = [*low.tolist(), *(high - low).tolist()]
    size = [image.height, image.width]
    result["segmentation"] = {"size": size, "counts": rle["counts"].decode("ascii")}
    return result  # type: ignore[return-value]


def results_from_supervision(
    dataset: Dataset, detections: Mapping[str, sv.Detections]
) -> list[Result]:
    """Detections of supervision as results.

    Args:
        dataset: ground truth of the split.
        detections: by ``file_name`` of the picture; ``class_id`` is from 0 in the order of
            ``Dataset.categories``. Masks are taken where there are any.

    Raises:
        InputError: a picture is not in the split, or detections have no score or no class.
    """
    images = {image.file_name: image for image in dataset.images}
    results: list[Result] = []
    for name, found in detections.items():
        if name not in images:
            raise InputError(f"{name}: is not in the split: predict on this dataset and split")
        if len(found) and (found.confidence is None or found.class_id is None):
            raise InputError(f"{name}: its detections have no confidence or class_id: set them")
        for row in range(len(found)):
            assert found.confidence is not None and found.class_id is not None
            x1, y1, x2, y2 = map(float, found.xyxy[row])
            result: Result = {
                "image_id": images[name].id,
                "category_id": int(found.class_id[row]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found.confidence[row]),
            }
            if found.mask is not None:
                result["segmentation"] = rle_from_mask(np.asarray(found.mask[row], np.bool_))
            results.append(result)
    return results
