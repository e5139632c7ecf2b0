"""COCO instances: the form in which ground truth lies in a dataset folder.

Reference: https://cocodataset.org/#format-data. Annotation ids start at 1, because pycocotools
takes id 0 for "unmatched" (cocodataset/cocoapi#332). Nothing is ``iscrowd``: that would take an
instance out of the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from converters.dataset import Box, Dataset, Image, Instance, Pasted
from converters.errors import InputError
from converters.files import read_json, write_json
from converters.geometry import rle_from_segmentation, segmentation_from_region
from converters.rle import Rle, are_filled, tight_boxes


def to_coco(dataset: Dataset, *, licence: str = "") -> dict[str, Any]:
    """The dataset as a COCO dictionary.

    Images and annotations must be numbered (``Image.id``, ``Instance.id`` from 1). Besides the
    standard fields an image has ``source``, its path in the source, and ``photograph``, the number
    that it shares with other pictures of the same photograph; where they are not empty, an image
    has ``copy_of`` and an annotation ``pasted``.
    """
    annotations = [
        _annotation(dataset, image, instance)
        for image in dataset.images
        for instance in image.instances
    ]
    return {
        "info": {"description": dataset.name},
        "licenses": [{"id": 1, "name": licence, "url": ""}],
        "categories": [
            {"id": index, "name": name, "supercategory": "defect"}
            for index, name in enumerate(dataset.categories, start=1)
        ],
        "images": [
            {
                "id": image.id,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
                "license": 1,
                "source": image.source,
                "photograph": image.photograph,
                **({"copy_of": image.copy_of} if image.copy_of else {}),
            }
            for image in dataset.images
        ],
        "annotations": annotations,
    }


def write_coco(path: Path, dataset: Dataset, *, licence: str = "") -> None:
    """Write a dataset as one COCO file; equal datasets give equal bytes."""
    write_json(path, to_coco(dataset, licence=licence))


def read_coco(path: Path, images_folder: Path) -> Dataset:
    """Read a COCO instances file.

    Polygons and RLE become masks; an annotation without segmentation stays a box. Category ids
    must be 1 to N, because predictions refer to them.

    Args:
        path: the JSON file.
        images_folder: where its ``file_name`` entries lie; the pictures are not opened.

    Raises:
        InputError: the file is not COCO, or an entry refers to something that is not there.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise InputError(f"{path}: is not COCO: it needs images, annotations and categories")
    try:
        names = {
            int(entry["id"]): str(entry["name"])
            for entry in sorted(content["categories"], key=lambda entry: int(entry["id"]))
        }
        if list(names) != list(range(1, len(names) + 1)):
            raise InputError(f"{path}: has category ids {list(names)}: number them 1 to N")
        instances: dict[int, list[Instance]] = {int(entry["id"]): [] for entry in content["images"]}
        sizes = {
            int(entry["id"]): (int(entry["height"]), int(entry["width"]))
            for entry in content["images"]
        }
        for entry in content["annotations"]:
            if int(entry["image_id"]) not in instances:
                raise InputError(
                    f"{path}: annotation {entry['id']} names unknown image {entry['image_id']}"
                )
            if int(entry["category_id"]) not in names:
                raise InputError(
                    f"{path}: annotation {entry['id']} names unknown category "
                    f"{entry['category_id']}"
                )
        for entry, (box, mask) in zip(
            content["annotations"], _shapes(path, content["annotations"], sizes), strict=True
        ):
            instances[int(entry["image_id"])].append(
                Instance(
                    names[int(entry["category_id"])], box, mask, int(entry["id"]), _pasted(entry)
                )
            )
        images = tuple(
            Image(
                file_name=str(entry["file_name"]),
                path=images_folder / str(entry["file_name"]),
                width=int(entry["width"]),
                height=int(entry["height"]),
                instances=tuple(instances[int(entry["id"])]),
                source=str(entry.get("source", "")),
                id=int(entry["id"]),
                photograph=int(entry.get("photograph", 0)),
                copy_of=int(entry.get("copy_of", 0)),
            )
            for entry in content["images"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not valid COCO ({error!r}): write it again") from error
    return Dataset(name=path.stem, categories=tuple(names.values()), images=images)


def _annotation(dataset: Dataset, image: Image, instance: Instance) -> dict[str, Any]:
    annotation: dict[str, Any] = {
        "id": instance.id,
        "image_id": image.id,
        "category_id": dataset.category_id(instance.category),
        "bbox": list(instance.box),
        "area": int(instance.area),
        "iscrowd": 0,
    }
    crop = instance.crop
    if crop is not None:
        annotation["segmentation"] = segmentation_from_region(
            (instance.box, crop), image.height, image.width
        )
    if instance.pasted is not None:
        annotation["pasted"] = asdict(instance.pasted)
    return annotation


def _pasted(entry: Mapping[str, Any]) -> Pasted | None:
    found = entry.get("pasted")
    if found is None:
        return None
    return Pasted(
        int(found["donor"]),
        int(found["donor_image"]),
        tuple(int(part) for part in found["seed"]),
        dict(found["transform"]),
    )


def _shapes(
    path: Path, entries: Sequence[Mapping[str, Any]], sizes: Mapping[int, tuple[int, int]]
) -> Iterator[tuple[Box, Rle | None]]:
    """Box and mask of every annotation; the box is the mask's where there is one."""
    masks = [_mask(path, entry, sizes[int(entry["image_id"])]) for entry in entries]
    there = [mask for mask in masks if mask is not None]
    if not _are_filled(there):
        for entry, mask in zip(entries, masks, strict=True):
            if mask is not None and not _are_filled([mask]):
                raise _cannot_be_rasterised(path, entry, "its runs do not fill the image")
    boxes = iter(tight_boxes(there).tolist())
    for entry, mask in zip(entries, masks, strict=True):
        x, y, w, h = map(float, entry["bbox"]) if mask is None else map(int, next(boxes))
        if mask is not None and w * h == 0:
            raise _cannot_be_rasterised(path, entry, "empty mask")
        yield (x, y, w, h), mask


def _are_filled(masks: Sequence[Rle]) -> bool:
    sizes = np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2)
    return are_filled([mask["counts"] for mask in masks], sizes.prod(axis=1))


def _mask(path: Path, entry: Mapping[str, Any], size: tuple[int, int]) -> Rle | None:
    segmentation = entry.get("segmentation")
    if not segmentation:
        return None
    try:
        return rle_from_segmentation(segmentation, *size)
    except ValueError as error:
        raise _cannot_be_rasterised(path, entry, error) from error


def _cannot_be_rasterised(path: Path, entry: Mapping[str, Any], why: object) -> InputError:
    return InputError(f"{path}: annotation {entry['id']} cannot be rasterised ({why}): correct it")
