from __future__ import annotations

import numpy as np
import pytest
import torch

from converters.errors import InputError
from toolkit.classify.generate import FEATURE_GENERATORS, dac, ecrt, grow, make_generator
from toolkit.classify.generate.base import wanted

CLASSES = ("good", "dent", "hole", "scratch")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Networks that have hardly learnt: what is tested here holds for them as well."""
    monkeypatch.setattr(dac, "_STEPS", 50)
    monkeypatch.setattr(ecrt, "_STEPS", 10)


def _train(counts, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    values = 4 * np.eye(8)[labels] + rng.normal(size=(len(labels), 8))
    return values.astype(np.float32), labels


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((10, 4, 0, 10), 1.0, [0, 6, 0, 0]),
        ((10, 4, 0, 2), 0.5, [0, 1, 0, 3]),
    ],
)
def test_rare_classes_lack_what_is_missing_to_their_share(counts, share, expected):
    assert wanted(_train(counts)[1], 4, share) == expected


@pytest.mark.parametrize("name", FEATURE_GENERATORS)
def test_equal_seeds_give_equal_samples_and_others_do_not(name):
    values, labels = _train((30, 30, 8, 5))
    random = torch.get_rng_state()
    first, again, other = (
        grow(make_generator(name, seed), values, labels, CLASSES, 1.0, CPU) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert first.values.dtype == np.float32 and len(first.labels) > 10
    assert np.array_equal(first.values, again.values) and first.parents == again.parents
    assert not np.array_equal(first.values[:10], other.values[:10])


@pytest.mark.parametrize("name", FEATURE_GENERATORS)
def test_every_sample_has_parents_of_its_own_class_in_train(name):
    values, labels = _train((30, 30, 8, 5))
    grown = grow(make_generator(name, 0), values, labels, CLASSES, 1.0, CPU)
    assert set(grown.labels) == {2, 3}
    assert len(grown.values) == len(grown.labels) == len(grown.parents)
    for label, parents in zip(grown.labels, grown.parents, strict=True):
        assert parents and len(set(parents)) == len(parents)
        assert set(labels[list(parents)]) == {label}


@pytest.mark.parametrize("name", FEATURE_GENERATORS)
def test_too_few_to_learn_from_are_said_in_one_line(name, capsys):
    generator = make_generator(name, 0)
    few = generator.least - 1
    values, labels = _train((20, 20, few, 6))
    grown = grow(generator, values, labels, CLASSES, 1.0, CPU)
    assert set(grown.labels) == {3}
    least = generator.least
    assert f"hole: has {few} train pictures, and the generator needs {least}: none are made\n" in (
        capsys.readouterr().err
    )
    values, labels = _train((20, 20, few, 20))
    with pytest.raises(InputError, match=r"no rare class has the \d train pictures") as caught:
        grow(make_generator(name, 0), values, labels, CLASSES, 1.0, CPU)
    assert "\n" not in str(caught.value)


def test_nothing_is_made_where_no_class_lacks_any():
    values, labels = _train((5, 5, 5, 5))
    assert not len(grow(make_generator("smote", 0), values, labels, CLASSES, 1.0, CPU).labels)
