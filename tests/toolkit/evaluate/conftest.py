"""Random scenes: ground truth, and detections that are sometimes right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance
from converters.geometry import connected_regions, rle_from_region, whole_region
from toolkit.predictions import Result

Scene = tuple[Dataset, list[Result]]
MakeScene = Callable[..., Scene]

SIZE = 64


def _instance(rng: np.random.Generator, category: str, number: int) -> Instance:
    x, y, w, h = (int(v) for v in rng.integers([0, 0, 4, 4], [44, 44, 20, 20]))
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.8
    mask[y, x] = True
    box, crop = whole_region(mask)[0]
    return Instance(category, box, crop, number)


def _result(
    rng: np.random.Generator,
    image: Image,
    box: tuple[int, ...],
    category: int,
    lowest: float,
    ties: bool,
) -> Result:
    x, y, w, h = box
    crop = rng.random((h, w)) < 0.85
    score = float(lowest + 0.6 * rng.random())
    return {
        "image_id": image.id,
        "category_id": category,
        "bbox": [x, y, w, h],
        "score": round(score, 1) if ties else score,
        "segmentation": rle_from_region(((x, y, w, h), crop), SIZE, SIZE),
    }


@pytest.fixture
def make_scene() -> MakeScene:
    """Ground truth with good, crowded and missed images, and results with some false alarms."""

    def make(
        seed: int = 0,
        *,
        good: int = 6,
        defective: int = 14,
        categories: tuple[str, ...] = ("dent", "hole", "scratch"),
        ties: bool = False,
        crowded: int = 5,
    ) -> Scene:
        rng = np.random.default_rng(seed)
        images: list[Image] = []
        results: list[Result] = []
        annotation = 0
        for number in range(good + defective):
            instances = []
            for _ in range(0 if number < good else int(rng.integers(1, crowded + 1))):
                annotation += 1
                category = categories[int(rng.integers(len(categories)))]
                instances.append(_instance(rng, category, annotation))
            name = f"{number:03d}.png"
            image = Image(name, Path(name), SIZE, SIZE, tuple(instances), name, id=10 + number)
            images.append(image)
            for instance in instances:
                for _ in range(int(rng.integers(0, 3))):  # missed, found, found twice
                    x, y, w, h = (int(v) for v in instance.box)
                    x, y = (int(np.clip(v + rng.integers(-2, 3), 0, SIZE - 24)) for v in (x, y))
                    right = categories.index(instance.category) + 1
                    wrong = int(rng.integers(1, len(categories) + 1))
                    category_id = right if rng.random() < 0.8 else wrong
                    results.append(_result(rng, image, (x, y, w, h), category_id, 0.3, ties))
            if rng.random() < 0.5:
                category_id = int(rng.integers(1, len(categories) + 1))
                results.append(_result(rng, image, (5, 5, 12, 9), category_id, 0.0, ties))
        return Dataset("scene", categories, tuple(images)), results

    return make


@pytest.fixture
def one_spot() -> Callable[..., Scene]:
    """One image of a 10 x 10 spot in a 20 x 20 picture, and one good image; no results."""

    def make(images: int = 2) -> Scene:
        mask = np.zeros((20, 20), dtype=np.bool_)
        mask[5:15, 5:15] = True
        box, crop = connected_regions(mask)[0]
        spot = Image("spot.png", Path("spot.png"), 20, 20, (Instance("spot", box, crop, 1),), id=1)
        good = Image("good.png", Path("good.png"), 20, 20, (), id=2)
        return Dataset("spots", ("spot",), (spot, good)[:images]), []

    return make
