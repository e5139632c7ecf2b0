from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.classify.generate import autoencoder, latent
from toolkit.classify.generate.autoencoder import AutoencoderGenerator

CPU = torch.device("cpu")
CLASSES = ("good", "dark", "bright")


@pytest.fixture(scope="module")
def train():
    """Eight good pictures, three dark on the left, four bright above, some more."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [8, 3, 4])
    pixels = rng.normal(120, 8, (15, 32, 32, 3))
    pixels[labels == 1, :, :16] -= np.array([30, 60, 90])[:, None, None, None]
    pixels[labels == 2, :16] += np.array([30, 50, 70, 90])[:, None, None, None]
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def fitted(train):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "_STEPS", 60)
        patch.setattr(autoencoder, "_STEPS", 40)
        generator = AutoencoderGenerator(seed=3)
        generator.fit(*train, CLASSES, CPU)
    return generator


def grain(pixels):
    """Differences of neighbouring pixels: of the noise, not of light and dark."""
    return np.diff(pixels.astype(int), axis=-2)


def test_pictures_are_of_their_class_and_of_two_of_its_members(train, fitted):
    pixels = train[0]
    made = fitted.sample(1, 20)
    assert made.values.shape == (20, 32, 32, 3) and made.values.dtype == np.uint8
    assert made.labels.tolist() == [1] * 20
    assert all(set(own) <= {8, 9, 10} and len(set(own)) == 2 for own in made.parents)
    changed = [own[0] for own in made.parents]
    assert {changed.count(row) for row in (8, 9, 10)} == {6, 7}
    for picture, row in zip(made.values, changed, strict=True):
        assert np.abs(grain(pixels) - grain(picture)).mean((1, 2, 3)).argmin() == row
        assert np.abs(pixels[row].astype(int) - picture).mean() > 0.5
    halves = made.values[:, :, 16:].mean((1, 2, 3)) - made.values[:, :, :16].mean((1, 2, 3))
    assert halves.min() > 15


def test_the_same_seed_gives_the_same_pictures_and_no_other_one_does(train, monkeypatch):
    for module in (latent, autoencoder):
        monkeypatch.setattr(module, "_STEPS", 8)
    made = []
    for seed in (3, 3, 4):
        state = torch.get_rng_state()
        generator = AutoencoderGenerator(seed=seed)
        generator.fit(*train, CLASSES, CPU)
        made += [generator.sample(2, 9).values for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(made[0], other) for other in made[1:4])
    assert not np.array_equal(made[0], made[4])


def test_those_that_are_kept_are_more_realistic_than_all_candidates(fitted, monkeypatch):
    kept = fitted.realism(fitted.sample(2, 60).values)
    for module in (latent, autoencoder):
        monkeypatch.setattr(module, "EACH", 1)
    any_one = fitted.realism(fitted.sample(2, 60).values)
    assert kept.mean() > any_one.mean() + 0.3 * any_one.std()


def test_a_class_of_one_picture_does_not_stop_the_others(train, monkeypatch):
    monkeypatch.setattr(latent, "_STEPS", 3)
    monkeypatch.setattr(autoencoder, "_STEPS", 3)
    pixels, labels = train
    kept = np.flatnonzero((labels != 1) | (np.arange(15) == 8))
    generator = AutoencoderGenerator(seed=0)
    generator.fit(pixels[kept], labels[kept], CLASSES, CPU)
    assert len(generator.sample(2, 5).labels) == 5
