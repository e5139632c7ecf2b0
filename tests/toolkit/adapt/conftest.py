"""A network that trains in seconds, and two domains of which we know what is on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from converters.dataset import Dataset, Image, Instance
from converters.formats.coco import write_coco
from converters.geometry import connected_regions
from toolkit.classify import model as models

SHAPES = ("bars", "disc")


class TinyResNet(ResNet):
    """ResNet-18 with an eighth of the channels."""

    def __init__(self, *, weights: None, num_classes: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(512 // 8, num_classes)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> Any:
        if planes == 64:
            self.inplanes = 8
        return super()._make_layer(block, planes // 8, *arguments, **options)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make resnet18 tiny; threads only slow down so small a model."""
    monkeypatch.setitem(models._BUILDERS, "resnet18", TinyResNet)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _mask(rng: np.random.Generator, kind: str | None, size: int) -> np.ndarray:
    """A disc, or three bars, somewhere; shape (size, size)."""
    mask = np.zeros((size, size), np.uint8)
    x, y = rng.integers(size // 3, size - size // 3, 2).tolist()
    radius = int(rng.integers(size // 5, size // 4))
    if kind == "disc":
        cv2.circle(mask, (x, y), radius, 1, -1)
    elif kind == "bars":
        for row in range(y - radius, y + radius, 5):
            cv2.rectangle(mask, (x - radius, row), (x + radius, row + 1), 1, -1)
    return mask > 0


def plain(rng: np.random.Generator, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The source: bright coloured shapes on dark and nearly even ground, 32 pixels."""
    mask = _mask(rng, kind, 32)
    image = rng.normal((60, 70, 80), 4, (32, 32, 3))
    image[mask] += (130, 110, 90)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def shifted(rng: np.random.Generator, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The target: grey and faint shapes on a bright ground with noise and a grain, 40 pixels."""
    mask = _mask(rng, kind, 40)
    image = rng.normal(150, 8, (40, 40)) + 6 * np.sin(np.arange(40) * 1.3)
    image[mask] += 45
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


LOOKS = {"plain": plain, "shifted": shifted}

MakeDomain = Callable[..., Path]


@pytest.fixture
def make_domain(tmp_path: Path) -> MakeDomain:
    """Write a dataset folder of drawn shapes in one of ``LOOKS`` and return its path."""

    def make(
        name: str,
        look: str,
        *,
        per_class: int = 8,
        val: int = 4,
        test: int = 2,
        seed: int = 0,
        kinds: tuple[str, ...] = SHAPES,
    ) -> Path:
        root = tmp_path / name
        (root / "images").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        number = 0
        for split, count in (("train", per_class), ("val", val), ("test", test)):
            images = []
            for kind in [kind for kind in (None, *kinds) for _ in range(count)]:
                pixels, mask = LOOKS[look](rng, kind)
                number += 1
                file_name = f"{split}_{kind or 'good'}_{number:03d}.png"
                path = root / "images" / file_name
                cv2.imwrite(str(path), pixels)
                instances = tuple(
                    Instance(str(kind), box, crop, 1000 * number + index)
                    for index, (box, crop) in enumerate(connected_regions(mask))
                )
                side = len(pixels)
                images.append(Image(file_name, path, side, side, instances, file_name, id=number))
            write_coco(root / f"{split}.json", Dataset(name, kinds, tuple(images)))
        card = {"name": name, "categories": list(kinds)}
        (root / "dataset.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
        return root

    return make
