from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.classification import MulticlassCalibrationError

from toolkit.classify.calibrate import COLDEST, HOTTEST, fit_temperature
from toolkit.classify.scores import probabilities, suspicion


def _logits(count=200, classes=4, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (count, classes)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scores_are_what_their_papers_say(temperature):
    logits = _logits()
    p = softmax(logits.astype(np.float64) / temperature, axis=1)
    assert probabilities(logits, temperature) == pytest.approx(p)
    assert suspicion(logits, temperature, "msp") == pytest.approx(1 - p.max(axis=1))
    assert suspicion(logits, temperature, "defect") == pytest.approx(1 - p[:, 0])
    assert suspicion(logits, temperature, "uniform") == pytest.approx(np.log(p).mean(axis=1))


def test_the_undecided_is_most_suspicious_and_sure_pictures_stay_apart():
    logits = np.array([[0, 0, 0], [3, 0, 0], [50, 0, 0], [60, 0, 0], [900, 0, 0]], np.float32)
    for kind in ("msp", "uniform"):
        scores = suspicion(logits, 1.0, kind)
        assert scores.argmax() == 0 and np.all(np.diff(scores) < 0)
    assert suspicion(logits, 1.0, "uniform")[0] == pytest.approx(-np.log(3))
    assert np.isfinite(suspicion(logits, 0.05, "uniform")).all()


def _overconfident(seed, count=400, factor=5.0):
    """Logits whose softmax tells the truth, times a factor; and labels drawn from it."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (count, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(honest, axis=1)])
    return (honest * factor).astype(np.float32), labels


def _error(p, labels):
    error = MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    return float(error(torch.from_numpy(p), torch.from_numpy(labels)))


@pytest.mark.parametrize("seed", range(5))
def test_a_temperature_from_val_makes_test_as_sure_as_it_is_right(seed):
    temperature = fit_temperature(*_overconfident(seed))
    assert temperature == pytest.approx(5.0, rel=0.2)
    logits, labels = _overconfident(100 + seed)
    before, after = probabilities(logits), probabilities(logits, temperature)
    assert _error(after, labels) < 0.1 < 0.2 < _error(before, labels)
    said = [-np.log(p[np.arange(len(labels)), labels]).mean() for p in (before, after)]
    assert said[1] < said[0] - 0.5
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_it_is_where_the_loss_is_least():
    logits, labels = _overconfident(0)
    given, truth = torch.from_numpy(logits), torch.from_numpy(labels)
    loss = [
        torch.nn.functional.cross_entropy(given / t, truth).item() for t in np.geomspace(1, 20, 400)
    ]
    best = np.geomspace(1, 20, 400)[int(np.argmin(loss))]
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=0.02)


def test_few_pictures_that_are_all_right_or_all_wrong_stay_within_bounds():
    logits = 5 * np.eye(3, dtype=np.float32)
    right, wrong = (fit_temperature(logits, np.roll(np.arange(3), shift)) for shift in (0, 1))
    assert COLDEST <= right < 0.2  # where the loss is 0 to the last digit
    assert 0.9 * HOTTEST < wrong <= HOTTEST
