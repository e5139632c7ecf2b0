"""A dataset as ultralytics trains on it: pictures where they lie, labels from memory.

ultralytics would read label files, cache them beside the pictures, rewrite JPEGs that it finds
incomplete and split class names at "/". Handing it the labels leaves the dataset folder untouched,
keeps all defects (it drops repeated boxes and tiny pictures) and allows any class name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ultralytics.data.augment import Albumentations, Mosaic
from ultralytics.data.dataset import YOLODataset, YOLOMultiModalDataset

from converters.dataset import Dataset, Image
from converters.formats.yolo import yolo_box
from toolkit.sampling import draw_epoch, epoch_length

STRIDE = 32
"""Pixels per cell of the coarsest feature map: sides of network inputs are multiples of it."""


_BUFFER = 2**29
"""Bytes of pictures that every worker keeps, so that mosaics need not read them again."""


def prompt_name(index: int) -> str:
    """Name by which ultralytics knows a class: neutral, since it splits names at "/"."""
    return f"class_{index}"


def data_description(splits: dict[str, Dataset]) -> dict[str, Any]:
    """What ultralytics reads from ``data.yaml``; the splits are the datasets themselves."""
    count = len(splits["train"].categories)
    names = {index: prompt_name(index) for index in range(count)}
    return {**splits, "names": names, "nc": count, "channels": 3, "path": Path()}


class Draw(NamedTuple):
    """A picture to show, and the seed of whatever is random about it."""

    picture: int
    seed: int


class EpochDraws(torch.utils.data.Sampler[Draw]):
    """What the epochs show, the same whatever the number of workers and wherever training resumes.

    Args:
        factors: how often each picture comes on average.
        seed: of everything random.
        epoch: the next one to draw, from 0.
        rank, world: which of how many processes draws. All see the same epoch and take turns, so
            that their batches together are the batch of one process; where it cannot be shared out
            evenly, the first pictures come once more.
    """

    def __init__(
        self, factors: Sequence[float], seed: int, epoch: int = 0, *, rank: int = 0, world: int = 1
    ) -> None:
        self._factors, self._seed = factors, seed
        self._rank, self._world = rank, world
        self.epoch = epoch

    def __len__(self) -> int:
        """Pictures in an epoch, of this process."""
        return -(-epoch_length(self._factors) // self._world)

    def __iter__(self) -> Iterator[Draw]:
        """Draw the next epoch."""
        rng = np.random.default_rng([self._seed, self.epoch])
        self.epoch += 1
        order = draw_epoch(self._factors, rng)
        seeds = rng.integers(0, 2**32, len(order))
        draws = [Draw(*pair) for pair in zip(order.tolist(), seeds.tolist(), strict=True)]
        yield from islice(cycle(draws), self._rank, len(self) * self._world, self._world)


class DefectImages(YOLOMultiModalDataset):  # type: ignore[misc]
    """Pictures and boxes of one split, augmented for training.

    What is random about a picture depends on its ``Draw`` alone: ultralytics would take the other
    pictures of a mosaic from those that the worker has seen last.

    Args:
        truth: the split.
        mode: "train" augments and shuffles prompts; "val" letterboxes in batches of like shape.
        args: training arguments of ultralytics.
        data: from ``data_description``.
        batch: pictures per batch.
        fixed_classes: whether the model's classes stand in their order; else every picture brings
            the texts that it was given, as ultralytics has it.
        factors: how often a mosaic takes each picture, relative to the others; alike by default.
        squares: whether pictures are stretched to squares, as RT-DETR learnt them.
    """

    def __init__(
        self,
        truth: Dataset,
        mode: Literal["train", "val"],
        args: SimpleNamespace,
        data: dict[str, Any],
        batch: int,
        fixed_classes: bool = False,
        factors: Sequence[float] | None = None,
        squares: bool = False,
    ) -> None:
        self.truth = truth
        self.squares = squares
        self._fixed_classes = fixed_classes
        self._marks = list(accumulate(factors or [1.0] * len(truth.images)))
        train = mode == "train"
        super().__init__(
            img_path="",
            imgsz=args.imgsz,
            batch_size=batch,
            augment=train,
            hyp=args,
            rect=not train and not squares,
            stride=STRIDE,
            pad=0.0 if train else 0.5,  # as ultralytics' own validation pads
            data=data,
            task="detect",
        )
        self.max_buffer_length = max(2, _BUFFER // (3 * args.imgsz**2))

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        """The picture and its boxes, as they come out of augmentation."""
        if isinstance(index, Draw):
            random.seed(index.seed)
            np.random.seed(index.seed)
            index = index.picture
        item: dict[str, Any] = super().__getitem__(index)
        return item

    def load_image(self, i: int, rect_mode: bool = True) -> Any:
        """The picture with its longer side, or both sides, at the size of training."""
        return super().load_image(i, rect_mode=rect_mode and not self.squares)

    def build_transforms(self, hyp: SimpleNamespace) -> Any:
        """Ultralytics' augmentation, without what draws from generators of its own."""
        base: Any = YOLODataset if self._fixed_classes else YOLOMultiModalDataset
        transforms = base.build_transforms(self, hyp)
        transforms.transforms = [t for t in transforms.transforms if type(t) is not Albumentations]
        for mosaic in _mosaics(transforms):
            mosaic.get_indexes = self._draw_others
        return transforms

    def _draw_others(self) -> list[int]:
        """Three more pictures for a mosaic."""
        return random.choices(range(len(self.truth.images)), cum_weights=self._marks, k=3)

    def get_img_files(self, img_path: str) -> list[str]:
        """Paths of the pictures, in the order of the dataset."""
        return [str(image.path) for image in self.truth.images]

    def get_labels(self) -> list[dict[str, Any]]:
        """Boxes of every picture in ultralytics' form: ``cls`` (N, 1), ``bboxes`` (N, 4) xywh."""
        return labels_of(self.truth)


def labels_of(dataset: Dataset) -> list[dict[str, Any]]:
    """Boxes of every picture in ultralytics' form; ``cls`` counts in the dataset's categories."""
    return [_label(image, dataset) for image in dataset.images]


def _mosaics(transforms: Any) -> Iterator[Mosaic]:
    for transform in getattr(transforms, "transforms", ()):
        if isinstance(transform, Mosaic):
            yield transform
        yield from _mosaics(transform)


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
