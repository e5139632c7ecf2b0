"""Features of pictures, and the few directions in which they differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from toolkit.classify.data import Labels, Pictures
from toolkit.classify.task import predict_logits

FeatureArray = npt.NDArray[np.float32]
"""Shape (n, d): what the network's last pooling gives for n pictures."""

_KEPT_VARIANCE = 0.99


@dataclass(frozen=True)
class Features:
    """Features of a split.

    Attributes:
        values: shape (n, d).
        labels: index into the classes of each, shape (n,).
    """

    values: FeatureArray
    labels: Labels


def pooled_features(model: ResNet, pictures: Pictures) -> Features:
    """What goes into the last layer for pictures, by a network in evaluation mode."""
    parts: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        parts.append(inputs[0].float().cpu())

    hook = model.fc.register_forward_pre_hook(keep)
    try:
        predict_logits(model, pictures.pixels)
    finally:
        hook.remove()
    return Features(torch.cat(parts).numpy(), pictures.labels)


@dataclass(frozen=True)
class Projection:
    """The directions in which features differ most, each scaled to a deviation of 1.

    Attributes:
        mean: of the features, float64, shape (d,).
        directions: float64, shape (k, d), orthonormal.
        deviations: of the features along each, float64, shape (k,).
    """

    mean: npt.NDArray[np.float64]
    directions: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, values: FeatureArray, labels: Labels, most: int) -> Projection:
        """Principal components of features in which every class counts alike.

        Were all pictures to count alike, the directions in which a rare class differs would be
        lost among those in which good parts vary.

        Args:
            values: shape (n, d), not all equal.
            labels: of each.
            most: components; fewer where these give 99 % of the variance.
        """
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        shares = 1 / (len(counts) * counts[inverse])
        exact = values.astype(np.float64)
        mean = shares @ exact
        _, lengths, directions = np.linalg.svd(
            np.sqrt(shares)[:, None] * (exact - mean), full_matrices=False
        )
        explained = np.cumsum(lengths**2) / np.sum(lengths**2)
        kept = min(most, int(np.searchsorted(explained, _KEPT_VARIANCE)) + 1)
        return cls(mean, directions[:kept], lengths[:kept])

    def project(self, values: FeatureArray) -> npt.NDArray[np.float64]:
        """Features, shape (n, d), to scores, shape (n, k)."""
        return (values - self.mean) @ self.directions.T / self.deviations

    def lift(self, scores: npt.NDArray[np.float64]) -> FeatureArray:
        """Scores, shape (n, k), to the features with these scores that are nearest the mean."""
        return (self.mean + scores * self.deviations @ self.directions).astype(np.float32)
