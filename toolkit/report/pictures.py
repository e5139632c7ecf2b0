"""Drawing ground truth and predictions on pictures, with supervision's annotators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import supervision as sv

from converters.dataset import BinaryMask, Dataset, Image
from converters.errors import InputError
from converters.files import write_bytes
from converters.geometry import mask_from_segmentation
from toolkit.images import RgbImage, read_image
from toolkit.predictions import Result

SHORTEST_SIDE = 320
"""Smaller pictures are enlarged to this before drawing, so that labels can be read."""

CELL = (300, 400)
"""Height and width of one picture on a sheet."""


def draw_results(
    image: RgbImage,
    results: Sequence[Result],
    categories: Sequence[str],
    scale: float | None = None,
) -> RgbImage:
    """Outlines (or boxes) with class and score on a copy of a picture.

    Args:
        image: shape (height, width, 3), RGB.
        results: COCO results on it.
        categories: names; the category id counts from 1.
        scale: size of the copy; where not given, small pictures are enlarged.
    """
    boxes = np.array([entry["bbox"] for entry in results], dtype=float).reshape(-1, 4)
    masks = [
        mask_from_segmentation(entry["segmentation"], *image.shape[:2])
        for entry in results
        if "segmentation" in entry
    ]
    labels = [f"{categories[entry['category_id'] - 1]} {entry['score']:.2f}" for entry in results]
    classes = [entry["category_id"] - 1 for entry in results]
    return _draw(image, boxes, masks, classes, labels, scale)


def draw_truth(
    image: RgbImage, truth: Image, categories: Sequence[str], scale: float | None = None
) -> RgbImage:
    """Ground-truth outlines with their class on a copy of a picture; else like draw_results."""
    boxes = np.array([i.box for i in truth.instances], dtype=float).reshape(-1, 4)
    masks = [i.to_mask(*image.shape[:2]) for i in truth.instances if i.mask is not None]
    classes = [categories.index(instance.category) for instance in truth.instances]
    labels = [instance.category for instance in truth.instances]
    return _draw(image, boxes, masks, classes, labels, scale)


def comparison_sheet(
    dataset: Dataset, results: Sequence[Result], *, threshold: float, rows: int
) -> RgbImage:
    """Pictures below one another, each as it is, with its truth, and with what was found.

    Pictures of every class take turns, good ones too.

    Args:
        dataset: ground truth.
        results: predictions on it.
        threshold: lowest score that is drawn.
        rows: most pictures.
    """
    found: dict[int, list[Result]] = {}
    for entry in results:
        if entry["score"] >= threshold:
            found.setdefault(entry["image_id"], []).append(entry)
    strips = [_header(["picture", "ground truth", f"found (score >= {threshold:.2f})"])]
    for image in _in_turns(dataset)[:rows]:
        pixels = read_image(image.path)
        scale = min(CELL[0] / image.height, CELL[1] / image.width)
        panels = [
            _draw(pixels, np.zeros((0, 4)), [], [], [], scale),
            draw_truth(pixels, image, dataset.categories, scale),
            draw_results(pixels, found.get(image.id, []), dataset.categories, scale),
        ]
        strips.append(np.hstack([_in_cell(panel) for panel in panels]))
    return np.vstack(strips)


def write_picture(path: Path, image: RgbImage) -> None:
    """Write a picture as PNG in one step.

    Raises:
        InputError: it cannot be written.
    """
    encoded, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise InputError(f"{path}: the picture cannot be encoded as PNG")
    write_bytes(path, content.tobytes())


def _draw(
    image: RgbImage,
    boxes: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    masks: Sequence[BinaryMask],
    classes: list[int],
    labels: list[str],
    scale: float | None,
) -> RgbImage:
    """Scale first and draw then, so that lines and letters have one size on every picture."""
    if scale is None:
        scale = float(max(1, -(-SHORTEST_SIDE // min(image.shape[:2]))))
    scene = resize(image, scale)
    if not len(boxes):
        return scene
    x, y, w, h = boxes.T
    has_masks = len(masks) == len(boxes)
    detections = sv.Detections(
        xyxy=np.stack([x, y, x + w, y + h], axis=1) * scale,
        mask=np.stack([resize_mask(mask, scene) for mask in masks]) if has_masks else None,
        class_id=np.array(classes),
    )
    scene = np.ascontiguousarray(scene[..., ::-1])  # supervision's colours are BGR
    if has_masks:
        scene = sv.MaskAnnotator(opacity=0.25).annotate(scene, detections)
        scene = sv.PolygonAnnotator(thickness=1).annotate(scene, detections)
    else:
        scene = sv.BoxAnnotator(thickness=2).annotate(scene, detections)
    writer = sv.LabelAnnotator(text_scale=0.4, text_padding=3, smart_position=True)
    scene = writer.annotate(scene, detections, labels=labels)
    return np.ascontiguousarray(scene[..., ::-1])


def resize(image: RgbImage, scale: float) -> RgbImage:
    """The picture enlarged or shrunk by a factor."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cast(RgbImage, cv2.resize(image, (width, height), interpolation=interpolation))


def resize_mask(mask: BinaryMask, scene: RgbImage) -> BinaryMask:
    """At the size of the scene; a thin line stays, however much it shrinks."""
    size = (scene.shape[1], scene.shape[0])
    shrinks = size[0] < mask.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    share = cv2.resize(mask.astype(np.float32), size, interpolation=interpolation)
    return share > (0.1 if shrinks else 0.5)


def _in_turns(dataset: Dataset) -> list[Image]:
    """Images class by class in turn, so that the first few show every class."""
    queues: dict[str, list[Image]] = {}
    for image in dataset.images:
        queues.setdefault(image.labels[0], []).append(image)
    lists = [queues[label] for label in sorted(queues)]
    longest = max(map(len, lists), default=0)
    return [images[turn] for turn in range(longest) for images in lists if turn < len(images)]


def _in_cell(image: RgbImage) -> RgbImage:
    height, width = CELL
    below, right = height - image.shape[0] + 4, width - image.shape[1] + 4
    return np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=255)


def _header(titles: Sequence[str]) -> RgbImage:
    width = CELL[1] + 4
    header = np.full((28, width * len(titles), 3), 255, dtype=np.uint8)
    for number, title in enumerate(titles):
        place = (6 + number * width, 19)
        cv2.putText(header, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return header
