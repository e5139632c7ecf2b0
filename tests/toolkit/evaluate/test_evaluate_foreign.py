"""Predictions of other tools: text files of YOLO, detections of supervision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv

from converters.dataset import Dataset
from converters.errors import InputError
from converters.geometry import mask_from_segmentation
from toolkit.evaluate import evaluate, score
from toolkit.evaluate.foreign import read_yolo_folder
from toolkit.predictions import Result

MakeScene = Callable[..., tuple[Dataset, list[Result]]]


def boxes_alone(results: list[Result]) -> list[Any]:
    return [{k: v for k, v in result.items() if k != "segmentation"} for result in results]


def test_boxes_of_yolo_score_like_coco_results(make_scene: MakeScene, tmp_path: Path) -> None:
    dataset, results = make_scene(1)
    for image in dataset.images:
        lines = []
        for result in results:
            if result["image_id"] == image.id:
                x, y, w, h = np.divide(result["bbox"], [image.width, image.height] * 2)
                numbers = (x + w / 2, y + h / 2, w, h, result["score"])
                lines.append(
                    f"{result['category_id'] - 1} {' '.join(map(repr, map(float, numbers)))}"
                )
        if lines:
            name = Path(image.file_name).with_suffix(".txt")
            (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = read_yolo_folder(tmp_path, dataset)
    assert len(read) == len(results)
    expected = score(dataset, boxes_alone(results), threshold=0.4, resamples=0)
    found = score(dataset, read, threshold=0.4, resamples=0)
    for name, figure in expected.figures.items():
        assert found.figures[name].value == pytest.approx(figure.value, abs=1e-9), name


def test_an_outline_of_yolo_becomes_a_mask(one_spot: MakeScene, tmp_path: Path) -> None:
    dataset, _ = one_spot()
    corners = "0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
    (tmp_path / "spot.txt").write_text(f"0 {corners} 0.9\n", encoding="utf-8")
    (result,) = read_yolo_folder(tmp_path, dataset)
    assert result["bbox"] == [5, 5, 10, 10]
    assert mask_from_segmentation(result["segmentation"], 20, 20)[5:15, 5:15].all()
    assert score(dataset, [result], resamples=0).figures["mask.AP"].value == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("spot", "0 0.5 0.5 0.1 0.1", "predict with save_txt and save_conf"),
        ("spot", "0 0.5 0.5 0.1 wide 0.9", "line 1: is neither"),
        ("other", "0 0.5 0.5 0.1 0.1 0.9", "no picture of the split is called other"),
    ],
)
def test_what_is_no_prediction_is_refused(
    one_spot: MakeScene, tmp_path: Path, name: str, line: str, message: str
) -> None:
    (tmp_path / f"{name}.txt").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_yolo_folder(tmp_path, one_spot()[0])


@pytest.mark.parametrize("masks", [False, True])
def test_detections_of_supervision_score_like_coco_results(
    make_scene: MakeScene, masks: bool
) -> None:
    dataset, results = make_scene(1)
    detections = {}
    for image in dataset.images:
        mine = [result for result in results if result["image_id"] == image.id]
        if not mine:
            detections[image.file_name] = sv.Detections.empty()
            continue
        corners = np.array([result["bbox"] for result in mine], float)
        corners[:, 2:] += corners[:, :2]
        shapes = [
            mask_from_segmentation(result["segmentation"], image.height, image.width)
            for result in mine
        ]
        detections[image.file_name] = sv.Detections(
            xyxy=corners,
            mask=np.stack(shapes) if masks else None,
            confidence=np.array([result["score"] for result in mine]),
            class_id=np.array([result["category_id"] - 1 for result in mine]),
        )
    expected = score(dataset, results if masks else boxes_alone(results), resamples=0)
    found = evaluate(dataset, detections, resamples=0)
    assert found.figures.keys() == expected.figures.keys()
    for name, figure in expected.figures.items():
        assert found.figures[name].value == pytest.approx(figure.value), name
    assert ("mask.AP" in found.figures) == masks
    with pytest.raises(InputError, match=r"elsewhere.png: is not in the split"):
        evaluate(dataset, {"elsewhere.png": sv.Detections.empty()})
