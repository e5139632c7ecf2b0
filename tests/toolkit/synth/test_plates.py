"""The wide families: repeatable, sane at any size, and as varied as their names promise."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.synth.canvas import Size, Surface
from toolkit.synth.registry import SURFACES

WIDE = [
    "ground_tile",
    "hot_strip",
    "spectral",
    "gradient",
    "ribs",
    "mesh",
    "printed",
    "stamped_part",
    "screw",
]
WITH_PART = ["ground_tile", "stamped_part", "screw"]


def make(family: str, product: int, shot: int, size: Size = (64, 80)) -> Surface:
    return SURFACES[family](np.random.default_rng(product), np.random.default_rng(shot), size)


@pytest.mark.parametrize("family", WIDE)
def test_the_same_seeds_give_the_same_scene(family: str) -> None:
    one, other = make(family, 3, 4), make(family, 3, 4)
    assert one.image.tobytes() == other.image.tobytes()
    assert one.light == other.light
    assert one.image.tobytes() != make(family, 3, 5).image.tobytes()


@pytest.mark.parametrize("size", [(32, 32), (40, 333), (200, 36)])
@pytest.mark.parametrize("family", WIDE)
def test_any_product_at_any_size(family: str, size: Size) -> None:
    for product in range(8):
        scene = make(family, product, product + 1, size)
        assert scene.image.shape == (*size, 3) and scene.image.dtype == np.float32
        assert np.isfinite(scene.image).all() and np.isfinite(scene.beneath).all()
        assert scene.image.min() >= 0 and scene.image.max() <= 1.3
        np.broadcast_to(scene.beneath, scene.image.shape)
        assert np.hypot(*scene.light) == pytest.approx(1)


@pytest.mark.parametrize("family", WITH_PART)
def test_a_part_covers_some_of_the_picture(family: str) -> None:
    for product in range(12):
        part = make(family, product, product).part
        assert part is not None and part.dtype == np.float32
        assert part.min() >= 0 and part.max() <= 1
        assert 0.02 < part.mean() < 1


@pytest.mark.parametrize("family", WIDE)
def test_products_span_dark_and_light(family: str) -> None:
    levels = [make(family, product, 0, (48, 48)).image.mean() for product in range(24)]
    assert max(levels) > 1.6 * min(levels)


@pytest.mark.parametrize("family", WIDE)
def test_many_products_are_nearly_grey(family: str) -> None:
    casts = [
        np.ptp(make(family, product, 0, (48, 48)).image.mean(axis=(0, 1))) for product in range(24)
    ]
    assert sum(cast < 0.06 for cast in casts) >= 5
