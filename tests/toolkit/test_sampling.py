"""Which training items an epoch shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.dataset import Dataset, Image, Instance
from toolkit.sampling import class_factors, draw_epoch, epoch_length, picture_factors

FACTORS = st.lists(st.floats(1, 6), min_size=1, max_size=40)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(FACTORS, st.integers(0, 2**32))
def test_an_epoch_has_its_length_and_every_item(factors, seed) -> None:
    drawn = draw_epoch(factors, np.random.default_rng(seed))
    assert len(drawn) == epoch_length(factors)
    counts = np.bincount(drawn, minlength=len(factors))
    scaled = np.array(factors) * epoch_length(factors) / sum(factors)
    if all(factor == int(factor) for factor in factors):
        assert counts.tolist() == factors
    assert np.all(counts >= np.floor(scaled - 1e-9))
    assert np.all(counts <= np.floor(scaled + 1e-9) + 1)


def test_items_come_as_often_as_their_factors_on_average() -> None:
    factors = [1.0, 1.5, 2.25, 1.25, 4.0]
    epochs = [draw_epoch(factors, np.random.default_rng([0, epoch])) for epoch in range(2000)]
    mean = np.bincount(np.concatenate(epochs)) / len(epochs)
    assert mean == pytest.approx(factors, abs=0.04)


@given(LABELS, st.integers(0, 2**32))
def test_a_balanced_epoch_shows_all_classes_alike_and_is_as_long_as_a_plain_one(labels, seed):
    labels = np.array(labels)
    factors = class_factors(labels)
    drawn = draw_epoch(factors, np.random.default_rng(seed))
    assert len(drawn) == epoch_length(factors) == len(labels)
    counts = np.bincount(drawn, minlength=len(labels))
    assert np.all(counts >= np.floor(np.array(factors) - 1e-9))
    assert np.all(counts <= np.floor(np.array(factors) + 1e-9) + 1)


def test_pictures_of_a_frequent_class_take_turns_in_balanced_epochs() -> None:
    labels = np.repeat([0, 1], [8, 2])
    factors = class_factors(labels)
    assert factors == pytest.approx([10 / 16] * 8 + [10 / 4] * 2)
    epochs = [draw_epoch(factors, np.random.default_rng([0, epoch])) for epoch in range(2000)]
    mean = np.bincount(np.concatenate(epochs)) / len(epochs)
    assert mean == pytest.approx(factors, abs=0.06)
    assert min(len(np.unique(drawn)) for drawn in epochs) < 10


def test_uniform_epochs_are_permutations() -> None:
    drawn = draw_epoch([1.0] * 9, np.random.default_rng(3))
    assert drawn.tolist() == np.random.default_rng(3).permutation(9).tolist()


def test_rare_classes_have_larger_factors() -> None:
    labels = ["good"] * 4 + ["scratch"] * 8 + ["spot"] * 2
    images = [
        Image(
            f"{number}.png",
            Path(),
            64,
            64,
            () if label == "good" else (Instance(label, (0, 0, 4, 4), None),),
        )
        for number, label in enumerate(labels)
    ]
    train = Dataset("data", ("scratch", "spot"), tuple(images))
    factors = picture_factors(train, "repeat-factor")
    assert factors == pytest.approx([1.0] * 12 + [2.0] * 2)
    assert picture_factors(train, "uniform") == [1.0] * len(train.images)
