"""What makes features of two domains alike: gradient reversal, maximum mean discrepancy, votes."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernels, as multiples of the mean squared distance."""

HIDDEN = 128
"""Hidden channels of the discriminator; the source's are not public."""

STEEPNESS = 10.0
"""How fast the reversal comes in: gamma of Ganin and Lempitsky."""


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradients[0], None


def reverse_gradient(features: Tensor, strength: float) -> Tensor:
    """The features as they are; their gradient comes back times minus ``strength``.

    Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015.
    """
    return cast(Tensor, _Reversal.apply(features, strength))


def reversal_strength(progress: float) -> float:
    """lambda_p of the same paper: from 0 to 1 over a training, so that noise is not followed first.

    Args:
        progress: share of the training that is done, 0 to 1.
    """
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


class Discriminator(nn.Module):
    """Says which domain features are from, through a gradient reversal."""

    def __init__(self, width: int) -> None:
        """Take features of ``width`` channels."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def loss(self, source: Tensor, target: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, in which both domains count alike, and the share that is told.

        Args:
            source: features, shape (n, width).
            target: features, shape (m, width).
            strength: of the reversal.
        """
        features = reverse_gradient(torch.cat([source, target]), strength)
        logits = self.layers(features).squeeze(1)
        ours, theirs = logits[: len(source)], logits[len(source) :]
        loss = (F.softplus(-ours).mean() + F.softplus(theirs).mean()) / 2
        told = ((ours > 0).float().mean() + (theirs <= 0).float().mean()) / 2
        return loss, told.detach()


def mean_discrepancy(source: Tensor, target: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples, averaged over several Gaussian kernels.

    The biased estimate, which is never negative: the mean of k(x, x') over both orders of all
    pairs of the source, plus that of the target, minus twice that between them, where
    k(x, y) = exp(-|x - y|² / bandwidth). The bandwidths follow the samples: multiples
    (``BANDWIDTHS``) of the mean squared distance between two different ones of all.

    Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), equation 5; kernels and
    bandwidths after Long et al., "Learning Transferable Features with Deep Adaptation Networks",
    ICML 2015.

    Args:
        source: features, shape (n, width).
        target: features, shape (m, width); together they are two pictures at least.

    Returns:
        a scalar from 0 (the same) to 2.
    """
    both = torch.cat([source, target])
    # Not by torch.cdist, whose gradient at distance 0 is not a number.
    distances = (both[:, None] - both[None]).square().sum(dim=2)
    mean = distances.detach().sum() / (len(both) * (len(both) - 1))
    scaled = distances / mean.clamp(min=torch.finfo(distances.dtype).tiny)
    kernel = torch.stack([torch.exp(-scaled / factor) for factor in BANDWIDTHS]).mean(dim=0)
    n = len(source)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def voted_labels(probabilities: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Pseudo labels that all views of a picture vote for, and whether they are sure enough.

    Args:
        probabilities: shape (views, n, classes).
        confidence: which the mean probability of the class must be above.

    Returns:
        labels, int64 of shape (n,), and which of them count, bool of shape (n,).
    """
    votes = probabilities.argmax(dim=2)
    sure, labels = probabilities.mean(dim=0).max(dim=1)
    return labels, (votes == labels).all(dim=0) & (sure > confidence)
