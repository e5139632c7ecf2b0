"""YOLO detection labels beside the pictures of a dataset folder.

::

    ROOT/
      images/                      the pictures, already there
      labels/NAME.txt              one line per defect: class x_centre y_centre width height
      train.txt val.txt test.txt   the pictures of each split, as ./images/NAME
      data.yaml                    splits and class names

All numbers are shares of the picture's size, classes count from 0, and a good picture has an empty
file. ultralytics finds a label by putting ``labels`` for ``images`` in the picture's path and
resolves everything else against the folder of ``data.yaml``, so the folder can be moved.

Reference: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import yaml

from converters.dataset import Box, Dataset, Image
from converters.errors import InputError
from converters.files import write_text


def write_yolo(dataset_by_split: Mapping[str, Dataset], root: Path, *, prefix: str = "") -> None:
    """Write YOLO detection labels, picture lists and ``data.yaml`` into ``root``.

    Args:
        dataset_by_split: "train", "val" and "test", those that there are; all with the same
            categories.
        root: folder that holds ``images/``.
        prefix: before the names of the picture lists and of ``data.yaml``, so that several folds
            can share the pictures and labels of one folder.

    Raises:
        InputError: two pictures would share one label file, or the folder cannot be written to.
    """
    categories = next(iter(dataset_by_split.values())).categories
    labels = _label_names([image for data in dataset_by_split.values() for image in data.images])
    for split, dataset in dataset_by_split.items():
        for image in dataset.images:
            write_text(root / "labels" / labels[image.file_name], yolo_lines(image, categories))
        listed = "".join(f"./images/{image.file_name}\n" for image in dataset.images)
        write_text(root / f"{prefix}{split}.txt", listed)
    description = {
        **{split: f"{prefix}{split}.txt" for split in dataset_by_split},
        "names": dict(enumerate(categories)),
    }
    write_text(
        root / f"{prefix}data.yaml",
        yaml.safe_dump(description, sort_keys=False, allow_unicode=True),
    )


def yolo_lines(image: Image, categories: tuple[str, ...]) -> str:
    """The label file of one picture; empty where there is no defect."""
    lines = []
    for instance in image.instances:
        numbers = " ".join(f"{value:.12g}" for value in yolo_box(instance.box, image))
        lines.append(f"{categories.index(instance.category)} {numbers}\n")
    return "".join(lines)


def yolo_box(box: Box, image: Image) -> Box:
    """Centre, width and height as shares of the picture's size, cut to the picture.

    ultralytics leaves out every defect of a picture when one box ends more than 1 % outside it.
    """
    left, right = max(box[0], 0.0), min(box[0] + box[2], float(image.width))
    top, bottom = max(box[1], 0.0), min(box[1] + box[3], float(image.height))
    return (
        (left + right) / 2 / image.width,
        (top + bottom) / 2 / image.height,
        (right - left) / image.width,
        (bottom - top) / image.height,
    )


def _label_names(images: list[Image]) -> dict[str, str]:
    """Label file by picture; the ending does not count, so ``a.png`` and ``a.jpg`` collide."""
    owners: dict[str, str] = {}
    for image in images:
        label = PurePosixPath(image.file_name).with_suffix(".txt").as_posix()
        owner = owners.setdefault(label, image.file_name)
        if owner != image.file_name:
            raise InputError(
                f"{owner}, {image.file_name}: would share one YOLO label file: rename one of them"
            )
    return {file_name: label for label, file_name in owners.items()}
