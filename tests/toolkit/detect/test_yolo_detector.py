"""Prediction: boxes in the picture's pixels, the same every time, whatever the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from converters.dataset import Dataset, Image
from converters.errors import InputError
from toolkit.detect import Detector, predict_dataset
from toolkit.detect.embeddings import resolve_embeddings
from toolkit.detect.models import build_model, set_classes
from toolkit.detect.weights import RunModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def eager() -> RunModel:
    """A model that, untrained, sees defects everywhere."""
    model = build_model("n", seed=0)
    embeddings = resolve_embeddings(("scratch", "spot"), None, None, seed=0)
    set_classes(model, embeddings)
    for head in model.model[-1].cv4:
        torch.nn.init.zeros_(head.bias)
    return RunModel(model, "n", embeddings, 64, "random weights")


class _Fixed(torch.nn.Module):
    """A network that predicts the same rows (cx, cy, w, h, scores…) for every picture."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.rows.T.expand(len(pixels), -1, -1).clone(),)


def _fixed(trained: RunModel, *rows: list[float], **options: Any) -> Detector:
    return Detector(replace(trained, model=_Fixed(list(rows))), CPU, **options)


def _noise(seed: int, height: int, width: int) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_boxes_come_back_to_the_pixels_of_the_picture(eager: RunModel) -> None:
    detector = _fixed(eager, [32, 16, 32, 16, 0.1, 0.9], [0, 0, 20, 20, 0.8, 0.0])

    # 100 x 50 becomes 64 x 32 of the input, without padding; 50 x 100 becomes 32 x 64
    (wide, tall) = detector([_noise(0, 50, 100), _noise(0, 100, 50)])

    assert wide.xyxy[0].tolist() == pytest.approx([25, 12.5, 75, 37.5])
    assert wide.xyxy[1].tolist() == pytest.approx([0, 0, 15.625, 15.625])  # cut to the picture
    assert wide.data["class_name"].tolist() == ["spot", "scratch", "scratch"]
    assert wide.confidence is not None and wide.confidence.tolist() == pytest.approx(
        [0.9, 0.8, 0.1]
    )
    assert tall.xyxy[0].tolist() == pytest.approx([25, 12.5, 50, 37.5])


def test_what_lies_in_the_padding_is_no_detection(eager: RunModel) -> None:
    detector = _fixed(eager, [32, 4, 20, 4, 0.9, 0], [32, 16, 20, 4, 0.8, 0])

    # 100 x 20 becomes 64 x 13 of the input, with 9 rows of padding above it
    (found,) = detector([_noise(0, 20, 100)])

    assert found.confidence is not None and found.confidence.tolist() == pytest.approx([0.8])
    assert (found.xyxy[:, 2:] > found.xyxy[:, :2]).all()


def test_a_box_suppresses_others_of_its_own_class_alone(eager: RunModel) -> None:
    same = _fixed(eager, [32, 32, 20, 20, 0.9, 0], [33, 32, 20, 20, 0.8, 0])
    other = _fixed(eager, [32, 32, 20, 20, 0.9, 0], [33, 32, 20, 20, 0, 0.8])

    assert len(same([_noise(0, 64, 64)])[0]) == 1
    assert len(other([_noise(0, 64, 64)])[0]) == 2


def test_confidence_and_number_of_boxes_are_limits(eager: RunModel) -> None:
    rows = [[x, 32, 4, 4, x / 64, 0] for x in (5, 20, 35, 50)]
    image = [_noise(0, 64, 64)]

    assert len(_fixed(eager, *rows, confidence=0.3)(image)[0]) == 3
    (best,) = _fixed(eager, *rows, max_detections=2)(image)
    assert best.confidence is not None
    assert best.confidence.tolist() == pytest.approx([50 / 64, 35 / 64])


def test_a_picture_gets_the_same_boxes_alone_and_in_any_batch(eager: RunModel) -> None:
    detector = Detector(eager, CPU)
    images = [_noise(1, 50, 90), _noise(2, 64, 64), _noise(3, 50, 90)]

    together = detector(images)
    again = detector(images)

    for index, image in enumerate(images):
        (alone,) = detector([image])
        assert len(alone) > 10
        assert np.array_equal(together[index].xyxy, again[index].xyxy)
        # Sums are rounded otherwise in a batch, which may tip a suppression, but no more than that.
        apart = np.abs(alone.xyxy[:, None] - together[index].xyxy[None]).max(axis=2)
        assert (apart.min(axis=1) < 1e-2).mean() > 0.9
        assert (apart.min(axis=0) < 1e-2).mean() > 0.9
        height, width = image.shape[:2]
        assert alone.xyxy.min() >= 0 and (alone.xyxy <= [width, height, width, height]).all()


def test_a_slow_machine_loses_no_picture(eager: RunModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import nms

    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(nms.time, "time", lambda: float(next(clock)))

    found = _fixed(eager, [32, 32, 9, 9, 0.9, 0])([_noise(i, 64, 64) for i in range(3)])

    assert [len(boxes) for boxes in found] == [1, 1, 1]


def _dataset(folder: Path, *categories: str) -> Dataset:
    images = []
    for number, (height, width) in enumerate([(50, 100), (64, 64), (50, 100)]):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
        images.append(Image(path.name, path, width, height, id=number + 7))
    return Dataset("data", categories, tuple(images))


def test_results_are_coco_with_the_categories_of_the_dataset(
    eager: RunModel, tmp_path: Path
) -> None:
    detector = _fixed(eager, [32, 16, 32, 16, 0, 0.9])

    results = predict_dataset(detector, _dataset(tmp_path, "spot", "dent", "scratch"), batch=2)

    assert [result["image_id"] for result in results] == [7, 8, 9]
    assert results[0]["bbox"] == pytest.approx([25, 12.5, 50, 25])
    assert results[0]["category_id"] == 1  # the detector's second class, the dataset's first
    assert results[0]["score"] == pytest.approx(0.9)


def test_a_dataset_that_lacks_a_class_of_the_detector_is_refused(
    eager: RunModel, tmp_path: Path
) -> None:
    detector = _fixed(eager, [32, 16, 32, 16, 0, 0.9])

    with pytest.raises(InputError, match="knows 'spot', which data lacks"):
        predict_dataset(detector, _dataset(tmp_path, "scratch"))
