from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.classify.generate import ecrt
from toolkit.classify.generate.ecrt import Ecrt

CLASSES = ("good", "dent", "hole")
CPU = torch.device("cpu")


def _fitted(counts=(80, 80, 5), seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    values = (3 * np.eye(10)[labels] + rng.normal(size=(len(labels), 10))).astype(np.float32)
    generator = Ecrt(seed)
    generator.fit(values, labels, CLASSES, CPU)
    return generator, values, labels


def _sources(generator, values):
    with torch.no_grad():
        return generator.sources(torch.from_numpy(values)).numpy()


def test_every_source_of_a_sample_is_one_of_a_parent_and_they_are_combined_anew():
    generator, values, labels = _fitted()
    grown = generator.sample(2, 40)
    own = _sources(generator, values)
    for sample, parents in zip(_sources(generator, grown.values), grown.parents, strict=True):
        matches = np.isclose(own[list(parents)], sample, atol=1e-3)
        assert matches.any(axis=0).all()
        assert matches[0].sum() >= matches[-1].sum()  # the one that gave most comes first
    assert np.mean([len(parents) > 1 for parents in grown.parents]) > 0.9
    assert set(np.concatenate(grown.parents)) == set(np.flatnonzero(labels == 2))


@pytest.mark.parametrize(
    ("counts", "classes", "rows"),
    [((80, 80, 5), 2, 160), ((80, 5, 5), 3, 90), ((80, 5, 2), 2, 85)],
)
def test_the_flow_learns_from_frequent_classes_or_from_all_that_have_enough(
    monkeypatch, counts, classes, rows
):
    seen = []
    monkeypatch.setattr(ecrt, "_train_flow", lambda flow, *given: seen.append(given))
    _fitted(counts)
    ((scores, labels),) = seen
    assert len(scores) == len(labels) == rows
    assert labels.unique().tolist() == list(range(classes))


def _dependence(of_rows, labels):
    own = [of_rows[labels == label] for label in (0, 1)]
    return np.mean([abs(np.corrcoef(part.T)[0, 1]) for part in own])


def test_contrastive_learning_makes_sources_less_dependent_within_a_class():
    """Two features curve with one another, the same way in all classes."""
    falls = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1, 2], [200, 200, 5])
        first = np.array([-1.5, 1.5, 0])[labels] + rng.normal(size=405)
        second = rng.normal(size=405) / 2 + first**2
        values = np.stack([first, second], axis=1).astype(np.float32)
        generator = Ecrt(seed)
        generator.fit(values, labels, CLASSES, CPU)
        before = _dependence(generator._projection.project(values), labels)
        falls.append(before - _dependence(_sources(generator, values), labels))
    assert min(falls) > 0 and np.mean(falls) > 0.08, falls
