"""The loss of a classifier, on targets that need not be sure, and what its classes weigh in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.classify.data import Labels

ClassWeights: TypeAlias = Literal["inverse", "effective"]
"""By the inverse of how often classes are shown, or of their effective number of pictures; see
``balance``."""

LARGEST_WEIGHT = 10.0
"""With "inverse", a class counts at most this many times as much per picture as the most frequent
one."""

BETA = 0.999
"""Of the effective number of pictures: they are told apart up to about a thousand of them. The
paper tries 0.9 to 0.9999."""


@dataclass(frozen=True)
class ClassifierLoss:
    """Cross-entropy or focal loss, on shares of classes.

    Attributes:
        weights: of the classes, shape (classes,); None weighs all alike.
        smoothing: share of the target that is spread evenly over all classes.
        gamma: exponent of the focal loss; 0 is cross-entropy.
    """

    weights: Tensor | None = None
    smoothing: float = 0.0
    gamma: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean of -sum_k w_k t_k (1 - p_k)^gamma log p_k over the pictures, by their weights.

        With gamma 0 and one sure class per picture that is PyTorch's weighted cross-entropy. The
        focal factor (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4)
        stands at each class's own term, as softmax has no other; of a mixed or smoothed target
        every part is then treated as a class of its own.

        Args:
            logits: shape (n, classes).
            targets: shares of the classes, shape (n, classes); rows add up to 1.

        Returns:
            a scalar.
        """
        logarithms = logits.float().log_softmax(dim=1)
        classes = logits.shape[1]
        weights = torch.ones(classes) if self.weights is None else self.weights
        weights = weights.to(logits.device)
        smooth = targets * (1 - self.smoothing) + self.smoothing / classes
        terms = -weights * smooth * logarithms
        if self.gamma:
            # Of what is surely right the power's slope would be infinite where gamma is below 1.
            unsure = (-torch.expm1(logarithms)).clamp_min(torch.finfo(torch.float32).tiny)
            terms = terms * unsure**self.gamma
        return terms.sum() / (targets * weights).sum()


def undecided(logits: Tensor) -> Tensor:
    """Mean cross-entropy between the uniform distribution and what is said, at least log(classes).

    Hendrycks et al., Deep Anomaly Detection with Outlier Exposure, ICLR 2019, section 4.3.

    Args:
        logits: of outliers, shape (n, classes).
    """
    return -logits.float().log_softmax(dim=1).mean()


def shares(labels: Tensor, classes: int) -> Tensor:
    """Labels, shape (n,), as float32 targets of shape (n, classes)."""
    return F.one_hot(labels, classes).float()


def balance(
    labels: Labels,
    classes: int,
    factors: Sequence[float] | None = None,
    rule: ClassWeights = "inverse",
) -> Tensor:
    """Weights of the classes in the loss, by how many of their pictures an epoch shows.

    "inverse" is one over that number, capped at ``LARGEST_WEIGHT``. "effective" is one over the
    effective number (1 - BETA^n) / (1 - BETA) of n pictures (Cui et al., Class-Balanced Loss Based
    on Effective Number of Samples, CVPR 2019, equation 2), not capped.

    Args:
        labels: of train, shape (n,).
        classes: how many there are.
        factors: how often an epoch shows each picture, on average: what sampling balances, weights
            do not balance once more. Once each, where not given.
        rule: which weights.

    Returns:
        float32, shape (classes,), with mean 1 over the pictures that an epoch shows; 0 for a class
        without any.
    """
    counts = np.bincount(labels, weights=factors, minlength=classes)
    known = counts > 0
    weights = np.zeros(classes)
    if rule == "inverse":
        weights[known] = np.minimum(counts.max() / counts[known], LARGEST_WEIGHT)
    else:
        weights[known] = (1 - BETA) / (1 - BETA ** counts[known])
    weights *= counts.sum() / (weights * counts).sum()
    return torch.from_numpy(weights.astype(np.float32))
