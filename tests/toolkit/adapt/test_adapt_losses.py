from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.adapt.losses import (
    BANDWIDTHS,
    Discriminator,
    mean_discrepancy,
    reversal_strength,
    reverse_gradient,
    voted_labels,
)
from toolkit.adapt.private import PrivateConvolution, grey_direction
from toolkit.classify.data import DEVIATION, MEAN, to_input


def _samples(n=20, m=15, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 3, generator=generator),
        torch.randn(m, 3, generator=generator) + shift,
    )


def test_reversal_leaves_features_and_turns_their_gradient_round():
    features = torch.tensor([[1.0, -2.0]], requires_grad=True)
    reversed_ = reverse_gradient(features, 0.25)
    assert torch.equal(reversed_, features)
    (reversed_ * torch.tensor([3.0, 4.0])).sum().backward()
    assert torch.equal(features.grad, torch.tensor([[-0.75, -1.0]]))


@pytest.mark.parametrize(("progress", "expected"), [(0, 0.0), (0.5, math.tanh(2.5)), (1, 0.99991)])
def test_reversal_comes_in_as_published(progress, expected):
    assert reversal_strength(progress) == pytest.approx(expected, abs=1e-5)


def test_a_step_against_the_reversed_gradient_makes_domains_harder_to_tell():
    torch.manual_seed(0)
    discriminator = Discriminator(3)
    source, target = _samples(shift=2.0)
    target.requires_grad_(True)
    before, _ = discriminator.loss(source, target, 1.0)
    before.backward()
    after, _ = discriminator.loss(source, target - 0.5 * target.grad, 1.0)
    assert after > before  # down the reversed gradient, up the discriminator's loss


def _by_definition(x, y):
    both = np.concatenate([x, y])
    squares = [[float(((a - b) ** 2).sum()) for b in both] for a in both]
    mean = np.sum(squares) / (len(both) * (len(both) - 1))

    def kernel(a, b):
        square = float(((a - b) ** 2).sum())
        return np.mean([math.exp(-square / (factor * mean)) for factor in BANDWIDTHS])

    return (
        np.mean([kernel(a, b) for a in x for b in x])
        + np.mean([kernel(a, b) for a in y for b in y])
        - 2 * np.mean([kernel(a, b) for a in x for b in y])
    )


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_discrepancy_is_that_of_its_definition(shift):
    source, target = _samples(shift=shift)
    found = mean_discrepancy(source, target)
    assert float(found) == pytest.approx(_by_definition(source.numpy(), target.numpy()), abs=1e-5)


def test_discrepancy_is_zero_for_equal_samples_and_grows_with_a_shift():
    source, _ = _samples()
    assert float(mean_discrepancy(source, source)) == pytest.approx(0, abs=1e-6)
    found = [float(mean_discrepancy(*_samples(60, 50, shift=shift))) for shift in (0, 1, 3)]
    assert 0 < 2 * found[0] < found[1] < found[2] / 2


def test_discrepancy_draws_samples_together_and_bears_equal_points():
    source, target = _samples(shift=2.0)
    target[1] = target[0]
    target.requires_grad_(True)
    mean_discrepancy(source, target).backward()
    assert target.grad.isfinite().all()
    assert (target.grad.mean(dim=0) > 0).all()  # down the gradient is towards the source
    same = torch.zeros(4, 3, requires_grad=True)
    mean_discrepancy(same, torch.zeros(2, 3)).backward()
    assert torch.equal(same.grad, torch.zeros(4, 3))


def test_pseudo_labels_need_all_views_to_agree_and_to_be_sure():
    sure, unsure, other = [0.95, 0.05], [0.6, 0.4], [0.02, 0.98]
    probabilities = torch.tensor(
        [[sure, sure, sure, other], [sure, unsure, other, other], [sure, unsure, sure, other]]
    )
    labels, chosen = voted_labels(probabilities, 0.9)
    assert labels.tolist() == [0, 0, 0, 1]
    assert chosen.tolist() == [True, False, False, True]
    # Sure enough on average, but one view disagrees.
    probabilities = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.4, 0.6]]])
    assert voted_labels(probabilities, 0.7)[1].tolist() == [False]


@pytest.mark.parametrize(
    ("mean", "deviation"), [(MEAN, DEVIATION), ((0, 0, 0), (1, 1, 1)), ((0.5, 0.2, 0.1), (1, 2, 3))]
)
def test_a_grey_channel_is_the_mean_normalisation_of_grey_pictures(mean, deviation):
    direction = grey_direction(mean, deviation)
    grey = torch.linspace(0, 1, 7)[:, None]
    channels = (grey - torch.tensor(mean)) / torch.tensor(deviation)
    expected = (grey[:, 0] - np.mean(mean)) / np.mean(deviation)
    assert torch.allclose(channels @ direction, expected.float(), atol=1e-6)


def test_a_grey_domain_has_kernels_of_one_channel_that_act_on_the_grey_picture():
    torch.manual_seed(0)
    shared = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    grey = grey_direction(MEAN, DEVIATION)
    first = PrivateConvolution(shared, {"source": 3, "target": 1}, grey)
    assert first.private["source"].shape == (5, 3, 3, 3)
    assert first.private["target"].shape == (5, 1, 3, 3)
    pixels = torch.randint(0, 256, (2, 8, 8, 1)).expand(-1, -1, -1, 3)
    pictures = to_input(pixels)
    assert torch.equal(first(pictures), shared(pictures))
    with torch.no_grad():
        first.private["target"].normal_()
    one_channel = (pixels[..., 0] / 255 - np.mean(MEAN)) / np.mean(DEVIATION)
    own = nn.functional.conv2d(one_channel[:, None].float(), first.private["target"], padding=1)
    assert torch.allclose(first(pictures), shared(pictures) + own, atol=1e-4)
    first.domain = "source"
    assert torch.equal(first(pictures), shared(pictures))
