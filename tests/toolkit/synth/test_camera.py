"""The camera changes light and noise, and moves nothing."""

from __future__ import annotations

import numpy as np

from toolkit.synth.camera import photograph


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
