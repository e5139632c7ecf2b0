from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.classify.generate import dac
from toolkit.classify.generate.dac import Dac

CLASSES = ("good", "dent", "hole")


def _fitted(apart, seed=0):
    """Two frequent clusters, and a rare one beside the second, in 12 dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [60, 60, 6])
    centres = np.zeros((3, 12))
    centres[1, 0], centres[2, :2] = 6, (6, apart)
    values = (centres[labels] + rng.normal(size=(126, 12))).astype(np.float32)
    generator = Dac(seed)
    generator.fit(values, labels, CLASSES, torch.device("cpu"))
    return generator, values, labels, centres


@pytest.fixture(scope="module")
def fitted():
    return _fitted(apart=6)


def test_samples_are_nearest_the_centre_of_their_own_class(fitted):
    generator, _, _, centres = fitted
    made = generator.sample(2, 50)
    assert len(made.labels) == 50
    distances = np.linalg.norm(made.values[:, None] - centres, axis=2)
    assert np.mean(distances.argmin(axis=1) == 2) > 0.9
    assert np.all(made.values.std(axis=0) > 0.1)  # not one and the same


def test_a_samples_parent_is_the_nearest_row_of_its_class(fitted):
    generator, values, labels, _ = fitted
    made = generator.sample(2, 10)
    rows = np.flatnonzero(labels == 2)
    project = generator._projection.project
    for sample, parents in zip(project(made.values), made.parents, strict=True):
        distances = np.linalg.norm(project(values[rows]) - sample, axis=1)
        assert parents == (rows[distances.argmin()],)


def test_fewer_candidates_pass_in_a_class_that_cannot_be_told_from_another(fitted):
    shares = []
    for generator in (fitted[0], _fitted(apart=0)[0]):
        candidates = generator._make(2, 300, torch.Generator().manual_seed(0))
        shares.append(generator._passes(candidates, 2).mean())
    assert shares[1] < shares[0]


def test_fewer_are_made_where_hardly_any_pass(fitted, monkeypatch):
    generator, *_ = fitted
    monkeypatch.setattr(dac, "SURE_ENOUGH", 1.1)
    none = generator.sample(2, 7)
    assert none.values.shape == (0, 12) and none.parents == ()


def test_each_sieve_lets_through_only_what_it_shall(fitted, monkeypatch):
    generator, *_ = fitted
    draw = torch.Generator().manual_seed(0)
    of_another = generator._make(1, 100, draw)
    own = generator._make(2, 100, draw)
    assert not generator._passes(of_another, 2).any()
    assert generator._passes(own, 2).any()
    assert not generator._passes(own + 50, 2).any()
    monkeypatch.setattr(dac, "SURE_ENOUGH", 1.1)
    assert not generator._passes(own, 2).any()


@pytest.mark.parametrize(("place", "expected"), [((6, 6), 2), ((0, 0), 0), ((6, -1), 1)])
def test_the_vote_of_neighbours_is_that_of_the_class_around(fitted, place, expected):
    generator, *_ = fitted
    point = np.zeros((1, 12), np.float32)
    point[0, :2] = place
    assert generator._vote(generator._projection.project(point)) == expected
