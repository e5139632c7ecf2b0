from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.classify.generate.smote import NEIGHBOURS, Smote


@pytest.mark.parametrize("count", [2, 3, 12])
def test_a_sample_lies_between_its_parents_which_are_neighbours(count):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20 + count, 6)).astype(np.float32)
    labels = np.repeat([1, 0], [20, count])[::-1].copy()  # the rare class comes first
    smote = Smote(0)
    smote.fit(values, labels, ("good", "dent"), torch.device("cpu"))
    grown = smote.sample(0, 40)
    assert grown.values.shape == (40, 6) and set(grown.labels) == {0}
    rows = np.flatnonzero(labels == 0)
    shares = []
    for sample, (first, second) in zip(grown.values, grown.parents, strict=True):
        a, b = values[[first, second]].astype(np.float64)
        share = (sample - a) @ (b - a) / ((b - a) @ (b - a))
        shares.append(share)
        assert np.allclose(sample, a + share * (b - a), atol=1e-5)
        distances = np.linalg.norm(values[rows] - a, axis=1)
        assert np.linalg.norm(b - a) <= np.sort(distances)[min(NEIGHBOURS, count - 1)] + 1e-6
    assert min(shares) > -1e-5 and max(shares) < 1 + 1e-5
    assert max(shares) - min(shares) > 0.8
