"""YOLO labels: exact boxes, good pictures as backgrounds, readable by ultralytics from anywhere."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from converters.dataset import Box, Dataset, Image, Instance
from converters.errors import InputError
from converters.formats.yolo import write_yolo, yolo_lines

CATEGORIES = ("scratch", "cable/bent wire")


def _image(name: str, *defects: tuple[str, Box], width: int = 97, height: int = 61) -> Image:
    instances = tuple(Instance(category, box, None) for category, box in defects)
    return Image(name, Path("images") / name, width, height, instances)


def _dataset(*images: Image) -> Dataset:
    return Dataset("data", CATEGORIES, images)


def test_boxes_come_back_to_a_millionth_of_a_pixel() -> None:
    boxes: list[Box] = [(0, 0, 7919, 1), (13.25, 6007, 1, 2), (7900, 0, 17.5, 6011)]
    image = _image("a.png", *(("scratch", box) for box in boxes), width=7919, height=6011)

    for line, box in zip(yolo_lines(image, CATEGORIES).splitlines(), boxes, strict=True):
        x, y, w, h = (float(number) for number in line.split()[1:])
        back = ((x - w / 2) * 7919, (y - h / 2) * 6011, w * 7919, h * 6011)
        assert back == pytest.approx(box, abs=1e-6)


def test_a_box_over_the_edge_is_cut_to_the_picture() -> None:
    # ultralytics would drop the whole picture, with its other defects
    image = _image("a.png", ("scratch", (-10, 50, 40, 30)), width=100, height=60)

    numbers = [float(number) for number in yolo_lines(image, CATEGORIES).split()[1:]]

    assert numbers == pytest.approx([0.15, 55 / 60, 0.3, 10 / 60])


def test_the_files_are_lists_labels_and_a_description_without_absolute_paths(
    tmp_path: Path,
) -> None:
    train = _dataset(_image("a.png", ("cable/bent wire", (10, 10, 20, 20))), _image("good.png"))
    write_yolo({"train": train, "val": _dataset(_image("c.png"))}, tmp_path)

    assert (tmp_path / "train.txt").read_text() == "./images/a.png\n./images/good.png\n"
    assert (tmp_path / "labels" / "a.txt").read_text().startswith("1 ")
    assert (tmp_path / "labels" / "good.txt").read_text() == ""
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "train": "train.txt",
        "val": "val.txt",
        "names": {0: "scratch", 1: "cable/bent wire"},
    }


def test_two_pictures_that_differ_in_their_ending_alone_are_refused(tmp_path: Path) -> None:
    data = _dataset(_image("a.png", ("scratch", (1, 1, 2, 2))), _image("a.jpg"))

    with pytest.raises(InputError, match=r"a\.png, a\.jpg: would share one YOLO label file"):
        write_yolo({"train": data}, tmp_path)


def test_ultralytics_reads_the_same_defects_and_backgrounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit import offline  # switches ultralytics' network off

    offline.prepare()
    from ultralytics.data import utils
    from ultralytics.data.dataset import YOLODataset

    monkeypatch.setattr(utils, "check_font", lambda font: None)  # would download one
    root = tmp_path / "images" / "set"  # "images" twice in the path: the last one counts
    (root / "images").mkdir(parents=True)
    box: Box = (10.5, 20, 30, 8)
    data = _dataset(
        _image("a.png", ("cable/bent wire", box), ("scratch", (0, 0, 97, 61))),
        _image("good.png"),
        _image("b.png", ("scratch", (96, 60, 1, 1))),
    )
    for image in data.images:
        pixels = np.zeros((image.height, image.width), np.uint8)
        cv2.imwrite(str(root / "images" / image.file_name), pixels)
    write_yolo({"train": data, "val": data}, root)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    description = utils.check_det_dataset(str(root / "data.yaml"))
    labels = YOLODataset(description["train"], data=description, augment=False).labels

    found = {Path(label["im_file"]).name: label for label in labels}
    assert {name: len(label["cls"]) for name, label in found.items()} == {
        "a.png": 2,
        "b.png": 1,
        "good.png": 0,
    }
    first = found["a.png"]["cls"][:, 0] == 1
    assert found["a.png"]["bboxes"][first][0] * [97, 61, 97, 61] == pytest.approx(
        [25.5, 24, 30, 8], abs=1e-4
    )
