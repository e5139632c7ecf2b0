from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.classify.generate import latent, lro
from toolkit.classify.generate.lro import Lro, find_clusters

CPU = torch.device("cpu")
CLASSES = ("good", "patch")


@pytest.fixture(scope="module")
def fitted():
    """Twelve good pictures; of the rare class four with a patch on the left, four on the right."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [12, 8])
    pixels = rng.normal(100, 8, (20, 32, 32, 3))
    light = np.array([60, 80, 100, 120])[:, None, None, None]
    pixels[12:16, 8:24, 2:12] += light
    pixels[16:20, 8:24, 20:30] += light
    train = np.clip(pixels, 0, 255).astype(np.uint8), labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "_STEPS", 100)
        patch.setattr(lro, "_STEPS", 30)
        generator = Lro(seed=0)
        generator.fit(*train, CLASSES, CPU)
    return generator


def test_both_modes_of_a_class_are_found_and_sampled_alike(fitted):
    left, right = [12, 13, 14, 15], [16, 17, 18, 19]
    found = sorted(cluster.tolist() for cluster in fitted.clusters(1))
    assert len(found) == 2 and min(map(len, found)) >= 3
    assert set(found[0]) <= set(left) and set(found[1]) <= set(right)
    made = fitted.sample(1, 21)
    modes = [set(own) <= set(left) for own in made.parents]
    assert all(set(own) <= set(left) or set(own) <= set(right) for own in made.parents)
    assert sum(modes) in (10, 11)
    for picture, is_left in zip(made.values, modes, strict=True):
        bright = picture[8:24, 2:12].mean() - picture[8:24, 20:30].mean()
        assert (bright > 25) if is_left else (bright < -25)


def test_of_every_four_the_one_is_kept_that_its_own_autoencoder_loses_least_of(fitted, monkeypatch):
    fitness, scores = fitted._fitness, []

    def scored(small, label):
        scores.append(fitness(small, label))
        return scores[-1]

    monkeypatch.setattr(fitted, "_fitness", scored)
    made = fitted.sample(1, 40)
    four = torch.cat(scores).reshape(40, 4)
    with torch.no_grad():
        kept = fitness(fitted._space.seen(made.values), 1)
    assert torch.allclose(kept, four.amax(1), atol=0.01)
    assert (kept - four.mean(1)).mean() > 0 and (four.amax(1) > four.amin(1)).all()


def test_the_same_call_gives_the_same_pictures(fitted):
    made = fitted.sample(1, 6)
    assert np.array_equal(fitted.sample(1, 6).values, made.values)


def test_noise_is_no_cluster_unless_all_is_noise():
    rng = np.random.default_rng(0)
    modes = [rng.normal(centre, 0.1, (6, 8)) for centre in (0, 3)]
    found = find_clusters(np.concatenate([*modes, np.full((1, 8), 40.0)]).astype(np.float32))
    assert [cluster.tolist() for cluster in found] == [list(range(6)), list(range(6, 12))]
    apart = np.array([[0], [1], [2.2], [100], [200], [1000]], np.float32) ** 2
    assert [cluster.tolist() for cluster in find_clusters(apart[[0, 3, 5]])] == [[0, 1, 2]]


def test_equal_pictures_are_one_cluster():
    assert [cluster.tolist() for cluster in find_clusters(np.zeros((4, 8), np.float32))] == [
        [0, 1, 2, 3]
    ]
