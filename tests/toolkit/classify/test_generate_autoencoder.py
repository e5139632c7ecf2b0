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
    """Eight good pictures, three with a dark and four with a bright half, all noisy."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [8, 3, 4])
    pixels = rng.normal(120, 8, (15, 32, 32, 3))
    pixels[labels == 1, :, :16] -= 60
    pixels[labels == 2, :16] += 60
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def fitted(train):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "_STEPS", 60)
        generator = AutoencoderGenerator(seed=3)
        generator.fit(*train, CLASSES, CPU)
    return generator


def test_pictures_are_of_their_class_and_of_two_of_its_members(train, fitted):
    pixels, labels = train
    made = fitted.sample(1, 20)
    assert made.values.shape == (20, 32, 32, 3) and made.values.dtype == np.uint8
    assert made.labels.tolist() == [1] * 20
    assert all(set(own) <= {8, 9, 10} and len(set(own)) == 2 for own in made.parents)
    changed = [own[0] for own in made.parents]
    assert {changed.count(row) for row in (8, 9, 10)} == {6, 7}
    for picture, row in zip(made.values, changed, strict=True):
        distances = np.abs(pixels.astype(int) - picture).mean((1, 2, 3))
        assert distances.argmin() == row and distances[row] > 0.5
    halves = made.values[:, :, 16:].mean((1, 2, 3)) - made.values[:, :, :16].mean((1, 2, 3))
    assert halves.min() > 30


def test_the_same_call_gives_the_same_pictures_and_no_other_seed_does(train, fitted, monkeypatch):
    monkeypatch.setattr(latent, "_STEPS", 60)
    first = fitted.sample(2, 9)
    assert np.array_equal(fitted.sample(2, 9).values, first.values)
    for seed, same in ((3, True), (4, False)):
        state = torch.get_rng_state()
        again = AutoencoderGenerator(seed=seed)
        again.fit(*train, CLASSES, CPU)
        assert np.array_equal(again.sample(2, 9).values, first.values) == same
        assert torch.equal(torch.get_rng_state(), state)


def test_those_that_are_kept_are_more_realistic_than_all_candidates(fitted, monkeypatch):
    kept = fitted.realism(fitted.sample(2, 60).values)
    for module in (latent, autoencoder):
        monkeypatch.setattr(module, "EACH", 1)
    any_one = fitted.realism(fitted.sample(2, 60).values)
    assert kept.mean() > any_one.mean() + 0.3 * any_one.std()


def test_none_are_made_where_none_are_asked_for(fitted):
    assert fitted.sample(1, 0).values.shape == (0, 32, 32, 3)


def test_a_class_of_one_picture_does_not_stop_the_others(train, monkeypatch):
    monkeypatch.setattr(latent, "_STEPS", 3)
    monkeypatch.setattr(autoencoder, "_STEPS", 3)
    pixels, labels = train
    kept = np.flatnonzero((labels != 1) | (np.arange(15) == 8))
    generator = AutoencoderGenerator(seed=0)
    generator.fit(pixels[kept], labels[kept], CLASSES, CPU)
    assert len(generator.sample(2, 5).labels) == 5
