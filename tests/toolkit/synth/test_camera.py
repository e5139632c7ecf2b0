"""The camera changes light and noise, and moves nothing."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.synth.camera import photograph, snapshot


def shoot(image: np.ndarray, product: int = 0, shot: int = 0) -> np.ndarray:
    return photograph(np.random.default_rng(product), np.random.default_rng(shot), image)


def test_noise_is_there_and_small() -> None:
    photo = shoot(np.full((96, 96, 3), 0.5, np.float32))
    assert photo.dtype == np.uint8
    middle = photo[40:56, 40:56].astype(float)
    assert 0.3 < middle.std() < 12
    assert 90 < middle.mean() < 165


def test_values_beyond_white_and_black_are_cut() -> None:
    scene = np.full((64, 64, 3), 3.0, np.float32)
    scene[:, :32] = -1.0
    photo = shoot(scene)
    assert (photo[:, 40:] == 255).all()
    assert (photo[:, :24] < 30).all()


def test_an_edge_stays_in_its_place() -> None:
    scene = np.full((64, 64, 3), 0.1, np.float32)
    scene[:, 32:] = 0.9
    profile = shoot(scene).astype(float).mean(axis=(0, 2))
    half = (profile[:24].mean() + profile[40:].mean()) / 2
    assert profile[31] < half < profile[32]


def test_shots_differ_and_repeat() -> None:
    scene = np.full((32, 32, 3), 0.5, np.float32)
    assert np.array_equal(shoot(scene, 1, 1), shoot(scene, 1, 1))
    assert not np.array_equal(shoot(scene, 1, 1), shoot(scene, 1, 2))


def snap(seed: int, image: np.ndarray) -> np.ndarray:
    return snapshot(np.random.default_rng(seed), image)


def coloured(height: int = 48, width: int = 64) -> np.ndarray:
    scene = np.full((height, width, 3), (0.6, 0.3, 0.2), np.float32)
    scene[:, width // 2 :] = (0.2, 0.5, 0.4)
    return scene


def test_half_of_the_snapshots_are_grey() -> None:
    grey = 0
    for seed in range(80):
        photo = snap(seed, coloured())
        assert photo.shape == (48, 64, 3) and photo.dtype == np.uint8
        grey += bool((photo == photo[..., :1]).all())
    assert 32 <= grey <= 56


def test_a_snapshot_repeats_and_leaves_the_scene_alone() -> None:
    scene = coloured()
    for seed in range(20):
        assert np.array_equal(snap(seed, scene), snap(seed, scene))
    np.testing.assert_array_equal(scene, coloured())


def test_snapshots_reach_from_dark_to_bright() -> None:
    means = [snap(seed, coloured()).mean() for seed in range(80)]
    assert min(means) < 50 and max(means) > 180


@pytest.mark.parametrize("axis", [0, 1])
def test_a_snapshot_moves_no_edge(axis: int) -> None:
    scene = np.full((64, 64, 3), 0.25, np.float32)
    scene[(slice(32, None), slice(None))[:: 1 - 2 * axis]] = 0.6
    places = []
    for seed in range(60):
        profile = snap(seed, scene).astype(float).mean(axis=(1 - axis, 2))
        places.append(24 + int(np.abs(np.diff(profile[24:40])).argmax()))
    # Lamps and noise may hide the edge in a few; in all others it lies between pixels 31 and 32.
    assert np.median(places) == 31
    assert np.mean(np.abs(np.array(places) - 31) <= 1) > 0.85


@pytest.mark.parametrize("size", [(32, 32), (33, 190), (301, 47)])
def test_a_snapshot_of_any_size(size: tuple[int, int]) -> None:
    for seed in range(25):
        assert snap(seed, coloured(*size)).shape == (*size, 3)
