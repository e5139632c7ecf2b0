"""How much of each defect survives the way to polygons and back, and how long it takes.

    make bench                                   # procedural pictures
    python -m benchmarks.convert SOURCE [SOURCE…]  # folders that `toolkit convert` reads

Every instance goes from its mask to polygons by each peer's own code, and back to a mask with
pycocotools, as COCO evaluation would do it. Ours writes RLE where polygons cannot be exact. The
time of ultralytics includes a file for the mask and one for the label, because its converter takes
nothing else.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import supervision as sv
from rich.console import Console
from rich.table import Table

from converters.dataset import Image
from converters.geometry import (
    Segmentation,
    mask_from_segmentation,
    rle_from_region,
    segmentation_from_region,
)
from converters.layouts import find_layout
from converters.read import ReadOptions, read_source

Outline = Callable[[Image, int], Segmentation | None]


def ours(image: Image, index: int) -> Segmentation | None:
    instance = image.instances[index]
    assert instance.crop is not None
    return segmentation_from_region((instance.box, instance.crop), image.height, image.width)


def ours_as_rle(image: Image, index: int) -> Segmentation | None:
    instance = image.instances[index]
    assert instance.crop is not None
    return rle_from_region((instance.box, instance.crop), image.height, image.width)


def plain_opencv(image: Image, index: int) -> Segmentation | None:
    """What most scripts do: external contours, written as they come."""
    mask = image.instances[index].to_mask(image.height, image.width).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel().tolist() for contour in contours if len(contour) >= 3] or None


def supervision(image: Image, index: int) -> Segmentation | None:
    mask = image.instances[index].to_mask(image.height, image.width)
    return [polygon.ravel().tolist() for polygon in sv.mask_to_polygons(mask)] or None


def ultralytics(image: Image, index: int) -> Segmentation | None:
    """The contours that ``convert_segment_masks_to_yolo_seg`` writes for one class."""
    from ultralytics.data.converter import convert_segment_masks_to_yolo_seg
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("ERROR")
    mask = image.instances[index].to_mask(image.height, image.width).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        masks, labels = Path(folder) / "masks", Path(folder) / "labels"
        masks.mkdir()
        labels.mkdir()
        cv2.imwrite(str(masks / "mask.png"), mask)
        convert_segment_masks_to_yolo_seg(str(masks), str(labels), classes=1)
        lines = (labels / "mask.txt").read_text().splitlines()
    size = np.array([image.width, image.height])
    polygons = [np.array(line.split()[1:], float).reshape(-1, 2) * size for line in lines]
    return [polygon.ravel().tolist() for polygon in polygons] or None


PEERS: dict[str, Outline] = {
    "ours": ours,
    "ours, RLE only": ours_as_rle,
    "cv2.findContours": plain_opencv,
    "supervision": supervision,
    "ultralytics": ultralytics,
}


def measure(images: list[Image], outline: Outline) -> tuple[list[float], float]:
    """IoU of every instance after the round trip, and seconds of the outlining alone."""
    ious, seconds = [], 0.0
    for image in images:
        for index, instance in enumerate(image.instances):
            started = time.perf_counter()
            segmentation = outline(image, index)
            seconds += time.perf_counter() - started
            truth = instance.to_mask(image.height, image.width)
            again = np.zeros_like(truth)
            if segmentation is not None:
                again = mask_from_segmentation(segmentation, image.height, image.width)
            ious.append(float((truth & again).sum() / (truth | again).sum()))
    return ious, seconds


def main(sources: list[Path]) -> None:
    """Print one table per source."""
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        if not sources:
            from toolkit.synth import write_mvtec

            for surface in ("brushed_metal", "weave"):
                write_mvtec(
                    Path(folder), category=surface, surface=surface, train_good=1, test_good=1,
                    per_defect=10,
                )  # fmt: skip
            sources = [Path(folder)]
        for source in sources:
            read = read_source(source, find_layout(source), ReadOptions(near_duplicates=False))
            images = [image for image in read.dataset.images if image.instances]
            count = sum(len(image.instances) for image in images)
            table = Table(title=f"{source.name}: {count} instances", title_justify="left")
            for column in ("by", "lost", "IoU < 0.9", "mean IoU", "worst IoU", "ms each"):
                table.add_column(column, justify="left" if column == "by" else "right")
            for name, outline in PEERS.items():
                ious, seconds = measure(images, outline)
                table.add_row(
                    name,
                    str(sum(iou == 0 for iou in ious)),
                    str(sum(iou < 0.9 for iou in ious)),
                    f"{statistics.mean(ious):.4f}",
                    f"{min(ious):.4f}",
                    f"{1000 * seconds / count:.2f}",
                )
            console.print(table)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
