"""Ground truth in COCO's form that cannot be what it says ends in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converters.errors import InputError
from converters.formats.coco import read_coco


def write(path: Path, *annotations: dict[str, Any]) -> Path:
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": "dent"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 1, 2, 2], **annotation}
            for annotation in annotations
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [8, 8], "counts": "12"}, "its runs do not fill the image"),
        ({"size": [8, 8], "counts": "P"}, "its runs do not fill the image"),
        ({"size": [8, 9], "counts": "0"}, r"RLE of size \[8, 9\], image \[8, 8\]"),
        ({"size": [8, 8], "counts": [64]}, "empty mask"),
        ([[1, 1, 2]], "no polygon of at least three points"),
    ],
)
def test_masks_that_are_none_are_refused(tmp_path: Path, segmentation, message) -> None:
    good = {"segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    path = write(tmp_path / "train.json", good, {"id": 2, "segmentation": segmentation})
    with pytest.raises(InputError, match=f"annotation 2 cannot be rasterised .{message}"):
        read_coco(path, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 6}, "annotation 1 names unknown image 6"),
        ({"category_id": 2}, "annotation 1 names unknown category 2"),
        ({"bbox": [1, 2]}, "is not valid COCO"),
        ({"pasted": {"donor": 3}}, "is not valid COCO"),
    ],
)
def test_entries_that_refer_to_nothing_are_refused(tmp_path: Path, change, message) -> None:
    with pytest.raises(InputError, match=message):
        read_coco(write(tmp_path / "train.json", change), tmp_path)


def test_a_box_without_a_mask_stays_a_box(tmp_path: Path) -> None:
    dataset = read_coco(write(tmp_path / "train.json", {}), tmp_path)
    (instance,) = dataset.images[0].instances
    assert (instance.box, instance.mask) == ((1, 1, 2, 2), None)
