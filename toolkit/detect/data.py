"""A dataset as ultralytics trains on it: pictures where they lie, labels from memory.

ultralytics would read label files, cache them beside the pictures, rewrite JPEGs that it finds
incomplete and split class names at "/". Handing it the labels leaves the dataset folder untouched,
keeps all defects (it drops repeated boxes and tiny pictures) and allows any class name.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from ultralytics.data.dataset import YOLOMultiModalDataset

from converters.dataset import Dataset, Image
from converters.formats.yolo import yolo_box

STRIDE = 32
"""Pixels per cell of the coarsest feature map: sides of network inputs are multiples of it."""


def prompt_name(index: int) -> str:
    """Name by which ultralytics knows a class: neutral, since it splits names at "/"."""
    return f"class_{index}"


def data_description(splits: dict[str, Dataset]) -> dict[str, Any]:
    """What ultralytics reads from ``data.yaml``; the splits are the datasets themselves."""
    count = len(splits["train"].categories)
    names = {index: prompt_name(index) for index in range(count)}
    return {**splits, "names": names, "nc": count, "channels": 3, "path": Path()}


class DefectImages(YOLOMultiModalDataset):  # type: ignore[misc]
    """Pictures and boxes of one split, augmented for training.

    Args:
        truth: the split.
        mode: "train" augments and shuffles prompts; "val" letterboxes in batches of like shape.
        args: training arguments of ultralytics.
        data: from ``data_description``.
        batch: pictures per batch.
    """

    def __init__(
        self,
        truth: Dataset,
        mode: Literal["train", "val"],
        args: SimpleNamespace,
        data: dict[str, Any],
        batch: int,
    ) -> None:
        self.truth = truth
        train = mode == "train"
        super().__init__(
            img_path="",
            imgsz=args.imgsz,
            batch_size=batch,
            augment=train,
            hyp=args,
            rect=not train,
            stride=STRIDE,
            pad=0.0 if train else 0.5,  # as ultralytics' own validation pads
            data=data,
            task="detect",
        )

    def get_img_files(self, img_path: str) -> list[str]:
        """Paths of the pictures, in the order of the dataset."""
        return [str(image.path) for image in self.truth.images]

    def get_labels(self) -> list[dict[str, Any]]:
        """Boxes of every picture in ultralytics' form: ``cls`` (N, 1), ``bboxes`` (N, 4) xywh."""
        return [_label(image, self.truth) for image in self.truth.images]


def _label(image: Image, dataset: Dataset) -> dict[str, Any]:
    classes = [dataset.categories.index(instance.category) for instance in image.instances]
    boxes = [yolo_box(instance.box, image) for instance in image.instances]
    return {
        "im_file": str(image.path),
        "shape": (image.height, image.width),
        "cls": np.array(classes, dtype=np.float32).reshape(-1, 1),
        "bboxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "segments": [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }
