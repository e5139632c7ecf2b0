"""Finding defects with a trained detector."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import supervision as sv
import torch
from ultralytics.data.augment import LetterBox
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes, xywh2xyxy

from converters.dataset import Dataset
from converters.errors import InputError
from toolkit.architectures import is_transformer
from toolkit.console import track
from toolkit.detect.data import STRIDE
from toolkit.detect.embeddings import ANCHOR
from toolkit.detect.merging import find_in_tiles
from toolkit.detect.tiles import tiling_for
from toolkit.detect.weights import RunModel, load_trained, with_kinds_only
from toolkit.images import RgbImage, read_image
from toolkit.predictions import Result


class Detector:
    """Boxes of defects on pictures.

    A box counts once for every class that it scores on (as in the evaluation of YOLO-World), and
    suppresses others of its own class only.

    Args:
        trained: the model.
        device: where it runs.
        confidence: lowest score that is kept, 0 to 1.
        max_detections: most boxes per picture, best first.
        iou: overlap from which the weaker of two boxes of one class goes.
        as_one: name under which all classes are found as one, each box with its highest score.

    Pictures are cut, and boxes merged, as ``trained.tile`` says.
    """

    def __init__(
        self,
        trained: RunModel,
        device: torch.device,
        *,
        confidence: float = 0.001,
        max_detections: int = 100,
        iou: float = 0.7,
        as_one: str | None = None,
    ) -> None:
        self.names = (as_one,) if as_one else trained.names
        self._as_one = as_one is not None
        self.image_size = trained.image_size
        self.tile = trained.tile
        self.description = trained.description
        self._model = trained.model.to(device).eval()
        self._device = device
        self._confidence = confidence
        self._max_detections = max_detections
        self._iou = iou
        self._transformer = is_transformer(trained.arch)
        # The smallest rectangle of whole strides around the resized picture, whatever the batch;
        # of RT-DETR a square that the picture is stretched to.
        self._fit = (
            LetterBox(trained.image_size, scale_fill=True)
            if self._transformer
            else LetterBox(trained.image_size, auto=True, stride=STRIDE)
        )

    @classmethod
    def load(
        cls,
        run: Path,
        device: torch.device,
        *,
        confidence: float = 0.001,
        max_detections: int = 100,
        tile: int | None = None,
        tile_overlap: float | None = None,
    ) -> Detector:
        """Load the best model of a run of ``toolkit finetune yolo``, or a pretrained one.

        A pretrained model ("starter", or a run of ``toolkit pretrain yolo``) has seen no product
        and finds one class, "defect". Pictures are cut as those that it was trained on, unless
        ``tile`` (pixels; 0 for whole pictures) or ``tile_overlap`` (0 to 0.9) say otherwise.

        Raises:
            InputError: it is no such run, a file of it is missing or damaged, or pictures cannot be
                cut so.
        """
        trained = load_trained(run)
        trained = replace(trained, tile=tiling_for(trained.tile, tile, tile_overlap))
        as_one = None
        if trained.pretrained:
            as_one, trained = ANCHOR, with_kinds_only(trained)
        return cls(
            trained, device, confidence=confidence, max_detections=max_detections, as_one=as_one
        )

    def __call__(self, images: Sequence[RgbImage]) -> list[sv.Detections]:
        """Find defects.

        Args:
            images: pictures of any sizes; those that fill the same rectangle run together.

        Returns:
            for each picture its boxes, best first: ``xyxy`` (N, 4) in pixels of the picture, cut
            to it, ``confidence`` (N,), ``class_id`` (N,) as index into ``names``, and
            ``data["class_name"]`` (N,).
        """
        if self.tile is None:
            return self._find(images)
        return find_in_tiles(
            self._find, images, self.tile, iou=self._iou, max_detections=self._max_detections
        )

    def _find(self, images: Sequence[RgbImage]) -> list[sv.Detections]:
        """Find defects on pictures as they are."""
        inputs = [self._fit(image=image) for image in images]
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, array in enumerate(inputs):
            by_shape[array.shape[:2]].append(index)
        found = [sv.Detections.empty() for _ in images]
        for shape, indices in by_shape.items():
            batch = np.stack([inputs[index] for index in indices])
            for index, rows in zip(indices, self._forward(batch), strict=True):
                height, width = images[index].shape[:2]
                found[index] = self._detections(rows, shape, (height, width))
        return found

    @torch.inference_mode()
    def _forward(self, batch: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """Rows (x1, y1, x2, y2, score, class) in pixels of the input, per picture of the batch."""
        pixels = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).float() / 255
        answers = self._model(pixels)[0]  # (n, 4 + classes, places)
        if self._transformer:
            return [self._rows_of_transformer(each) for each in answers]
        if self._as_one:
            answers = torch.cat([answers[:, :4], answers[:, 4:].amax(dim=1, keepdim=True)], dim=1)
        rows = non_max_suppression(
            answers,
            self._confidence,
            self._iou,
            multi_label=True,
            max_det=self._max_detections,
            max_time_img=float("inf"),  # by default a slow machine silently loses the last pictures
            max_wh=2 * self.image_size,  # shift that keeps the boxes of different classes apart
        )
        return [found.cpu().numpy() for found in rows]

    def _rows_of_transformer(self, answers: torch.Tensor) -> npt.NDArray[np.float32]:
        """Rows as of ``_forward`` from (queries, 6): centre, width, height, score and class.

        Boxes are shares of the square. Each query is another object: nothing is suppressed.
        """
        kept = answers[answers[:, 4] > self._confidence]
        kept = kept[kept[:, 4].argsort(descending=True, stable=True)[: self._max_detections]]
        boxes = xywh2xyxy(kept[:, :4]) * self.image_size
        classes = torch.zeros_like(kept[:, 5:]) if self._as_one else kept[:, 5:]
        return torch.cat([boxes, kept[:, 4:5], classes], dim=1).float().cpu().numpy()

    def _boxes(
        self,
        boxes: npt.NDArray[np.float32],
        input_shape: tuple[int, int],
        image_shape: tuple[int, int],
    ) -> npt.NDArray[np.float32]:
        """Boxes of the input, in pixels of the picture."""
        if not self._transformer:
            return cast(npt.NDArray[np.float32], scale_boxes(input_shape, boxes, image_shape))
        height, width = image_shape
        ratios = np.array([width, height] * 2, np.float32) / self.image_size
        return (boxes * ratios).clip(0, [width, height] * 2).astype(np.float32)

    def _detections(
        self,
        rows: npt.NDArray[np.float32],
        input_shape: tuple[int, int],
        image_shape: tuple[int, int],
    ) -> sv.Detections:
        boxes = self._boxes(rows[:, :4].copy(), input_shape, image_shape)
        # What lies in the padding alone is cut to a line at the picture's edge, and is nothing.
        seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        boxes, rows = boxes[seen], rows[seen]
        classes = rows[:, 5].astype(int)
        return sv.Detections(
            xyxy=boxes,
            confidence=rows[:, 4],
            class_id=classes,
            data={"class_name": np.array(self.names, dtype=object)[classes]},
        )


def predict_dataset(detector: Detector, dataset: Dataset, *, batch: int = 16) -> list[Result]:
    """Find defects on every picture of a dataset.

    Returns:
        COCO results in the order of the pictures, best first within each.

    Raises:
        InputError: a picture cannot be read, or the detector knows a class that the dataset lacks.
    """
    for name in detector.names:
        if name not in dataset.categories:
            raise InputError(
                f"the detector knows {name!r}, which {dataset.name} lacks "
                f"(it has {', '.join(dataset.categories)}): predict on data of the same classes"
            )
    ids = [dataset.category_id(name) for name in detector.names]
    results: list[Result] = []
    images = iter(track(dataset.images, "Finding defects", len(dataset.images)))
    while chunk := list(islice(images, batch)):
        for image, found in zip(
            chunk, detector([read_image(image.path) for image in chunk]), strict=True
        ):
            results.extend(_results(image.id, found, ids))
    return results


def _results(image_id: int, found: sv.Detections, category_ids: list[int]) -> list[Result]:
    scores = found.confidence if found.confidence is not None else np.zeros(len(found))
    classes = found.class_id if found.class_id is not None else np.zeros(len(found), dtype=int)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(index)],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for (x1, y1, x2, y2), score, index in zip(found.xyxy, scores, classes, strict=True)
    ]
