from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from toolkit.classify.losses import ClassifierLoss, balance, shares, undecided


def _case(classes=4, count=50):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5, 0.0])])
def test_sure_targets_give_the_cross_entropy_of_pytorch(weights, smoothing):
    logits, labels = _case()
    if weights is not None:
        labels = labels.clamp(max=2)
    found = ClassifierLoss(weights, smoothing)(logits, shares(labels, 4))
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixed_targets_give_the_mix_of_their_losses():
    logits, first = _case()
    second = first.roll(1)
    mixed = 0.3 * shares(first, 4) + 0.7 * shares(second, 4)
    for loss in (ClassifierLoss(), ClassifierLoss(smoothing=0.2), ClassifierLoss(gamma=2.0)):
        parts = [loss(logits, shares(labels, 4)) for labels in (first, second)]
        assert loss(logits, mixed).item() == pytest.approx(
            0.3 * parts[0].item() + 0.7 * parts[1].item(), rel=1e-5
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_of_two_classes_the_focal_loss_is_the_binary_one(gamma):
    """A softmax over (0, x) is a sigmoid of x."""
    x = torch.linspace(-6, 6, 41)
    labels = torch.arange(41) % 2
    logits = torch.stack([torch.zeros(41), x], dim=1)
    found = ClassifierLoss(gamma=gamma)(logits, shares(labels, 2))
    expected = sigmoid_focal_loss(x, labels.float(), alpha=-1, gamma=gamma, reduction="mean")
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_what_is_surely_right_or_wrong_has_finite_gradients(gamma):
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    loss = ClassifierLoss(gamma=gamma)(logits, shares(torch.tensor([0, 0]), 2))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert logits.grad.isfinite().all()


def test_to_be_undecided_costs_least():
    logits, _ = _case()
    assert undecided(torch.zeros(3, 4)).item() == pytest.approx(np.log(4))
    assert undecided(logits) > np.log(4)
    uniform = torch.full_like(logits, 1 / 4)
    assert undecided(logits).item() == pytest.approx(F.cross_entropy(logits, uniform).item())


def test_classes_weigh_by_their_inverse_frequency_up_to_a_limit():
    labels = np.repeat([0, 1, 2], [1000, 200, 10])
    weights = balance(labels, 4).numpy()
    assert weights[1] / weights[0] == pytest.approx(5)
    assert weights[2] / weights[0] == pytest.approx(10)  # not 100
    assert weights[3] == 0
    assert weights[labels].mean() == pytest.approx(1)


def test_effective_numbers_weigh_few_pictures_by_their_number_and_many_alike():
    labels = np.repeat([0, 1, 2, 3], [20_000, 10_000, 20, 10])
    weights = balance(labels, 5, rule="effective").numpy()
    assert weights[1] / weights[0] == pytest.approx(1, abs=1e-3)
    assert weights[3] / weights[2] == pytest.approx(2, rel=0.01)
    assert weights[3] / weights[0] == pytest.approx((1 - 0.999) ** -1 / 9.955, rel=1e-3)
    assert weights[4] == 0
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("rule", ["inverse", "effective"])
def test_what_sampling_balances_is_not_balanced_once_more(rule):
    labels = np.repeat([0, 1], [90, 10])
    factors = [100 / 180] * 90 + [100 / 20] * 10
    assert balance(labels, 2, factors, rule).tolist() == pytest.approx([1, 1])
