"""Every surface, every defect, and every defect on every surface."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest

from toolkit.synth import DEFECTS, SURFACES
from toolkit.synth.canvas import Size, Surface
from toolkit.synth.picture import damage

SIZE = (96, 112)
MARGIN = 6
"""Pixels around a mask that its soft edge and a thread's shadow may reach."""


def make(surface: str, *, product: int = 3, shot: int = 4, size: Size = SIZE) -> Surface:
    return SURFACES[surface](np.random.default_rng(product), np.random.default_rng(shot), size)


@pytest.mark.parametrize("surface", SURFACES)
def test_a_surface_is_a_finite_picture_with_texture(surface: str) -> None:
    scene = make(surface)
    assert scene.image.shape == (*SIZE, 3)
    assert scene.image.dtype == np.float32
    assert np.isfinite(scene.image).all()
    assert scene.image.min() > -0.1 and scene.image.max() < 1.5
    assert scene.image.std() > 0.01
    assert np.hypot(*scene.light) == pytest.approx(1)
    np.broadcast_to(scene.beneath, (*SIZE, 3))


@pytest.mark.parametrize("surface", SURFACES)
def test_shots_of_a_product_differ_less_than_products(surface: str) -> None:
    def mean_colours(pairs: list[tuple[int, int]]) -> np.ndarray:
        scenes = [make(surface, product=product, shot=shot) for product, shot in pairs]
        return np.array([scene.image.mean(axis=(0, 1)) for scene in scenes])

    shots = mean_colours([(1, shot) for shot in range(6)])
    products = mean_colours([(product, product) for product in range(6)])
    assert 0 < shots.std(axis=0).max() < products.std(axis=0).max()


@pytest.mark.parametrize("surface", ["board", "turned_disc"])
def test_a_part_lies_on_its_ground(surface: str) -> None:
    scene = make(surface)
    assert scene.part is not None and scene.part.shape == SIZE
    assert 0.05 < scene.part.mean() < 0.7
    outside = scene.part == 0
    changed = np.abs(scene.image - scene.beneath).max(axis=2)
    assert changed[scene.part == 1].mean() > 0.05
    assert changed[outside].mean() < 0.1


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("surface", SURFACES)
def test_the_mask_is_where_the_surface_changed(surface: str, kind: str) -> None:
    rng = np.random.default_rng(zlib.crc32(f"{surface} {kind}".encode()))
    for shot in range(2):
        scene = make(surface, product=shot, shot=shot)
        damaged, mask = damage(rng, scene, kind)
        change = np.abs(damaged.image - scene.image).max(axis=2)

        assert mask.shape == SIZE and mask.dtype == bool and mask.any()
        near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0
        if scene.part is not None:
            # Pixels that the part itself covers by less than half change and are in no mask.
            near |= (scene.part > 0) & (scene.part < 0.5)
        # A drop that only grazes the part may show in a few pixels and be in no mask.
        assert (change[~near] > 0).mean() < 1e-3
        assert change[mask].mean() > 0.03
        assert (change[mask] > 1e-4).mean() > 0.9


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_starts_from_half_coverage(kind: str) -> None:
    rng, scene = np.random.default_rng(0), make("painted")
    for _ in range(3):
        patch = DEFECTS[kind](rng, scene)
        assert patch.coverage.min() >= 0 and patch.coverage.max() <= 1
        np.testing.assert_array_equal(patch.mask, patch.coverage >= 0.5)
        # Anti-aliased: pixels between clear and covered exist.
        assert ((patch.coverage > 0.05) & (patch.coverage < 0.95)).any()


@pytest.mark.parametrize("kind", ["hole", "scratch", "crack", "dent", "missing_piece", "stain"])
def test_damage_of_a_part_ends_where_the_part_ends(kind: str) -> None:
    scene = make("turned_disc")
    assert scene.part is not None
    rng = np.random.default_rng(5)
    for _ in range(4):
        _, mask = damage(rng, scene, kind)
        assert scene.part[mask].min() >= 0.5


def test_a_missing_piece_shows_what_lies_beneath() -> None:
    scene = make("turned_disc", size=(256, 256))
    damaged, mask = damage(np.random.default_rng(2), scene, "missing_piece")
    core = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    shown = np.abs(damaged.image - scene.beneath).max(axis=2)[core]
    assert np.median(shown) < 1e-5


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_vary_in_size_and_place(kind: str) -> None:
    rng, scene = np.random.default_rng(8), make("painted", size=(128, 128))
    masks = [damage(rng, scene, kind)[1] for _ in range(12)]
    areas = sorted(int(mask.sum()) for mask in masks)
    assert areas[-1] > 2 * areas[0]
    middles = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    assert middles.std(axis=0).min() > 10
