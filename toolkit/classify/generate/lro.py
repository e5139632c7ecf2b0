"""New pictures of each cluster of a class, chosen by what autoencoders of single classes lose."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.classify.data import Labels
from toolkit.classify.generate.base import Grown, Values
from toolkit.classify.generate.latent import EACH, Candidates, LatentSpace, Rows
from toolkit.classify.generate.networks import seeded, train_autoencoder

NEIGHBOURS = 3
"""Codes within the radius, itself among them, that make one the core of a cluster."""

RADIUS = 1.5
"""Radius, as a multiple of the median distance to the nearest but one of the same class."""

BANDWIDTH = 0.5
"""Deviation of a new code around that of a picture, as a multiple of that within its cluster."""

_STEPS = 60


class Lro:
    """Oversampling by label-wise reconstruction loss, after Kim et al. (2021).

    "Label-wise reconstruction-loss-based oversampling", Computers & Industrial Engineering 162,
    107767. It is public that DBSCAN clusters each rare class, that an autoencoder learns the
    clusters' distributions, and that new samples are chosen by label-wise reconstruction loss until
    classes balance. Chosen here: clusters of the codes of one autoencoder of all classes; a new
    code is drawn from a kernel density estimate of its cluster, all clusters alike, with the
    cluster's own covariance; it changes the picture whose kernel it is (see ``LatentSpace``). An
    autoencoder for each label goes on from the common one. Of every four that change the same
    picture, the one is kept whose reconstruction loss by the autoencoder of its own label is lowest
    against the lowest by another.
    """

    least = 3

    def __init__(self, *, seed: int) -> None:
        """Say what everything random derives from."""
        self._seed = seed

    def fit(
        self, values: Values, labels: Labels, classes: Sequence[str], device: torch.device
    ) -> None:
        """Train the autoencoders; see ``Generator``."""
        self._space = LatentSpace(values, labels, len(classes), device, self._seed)
        self._of_label = {}
        for label in np.unique(labels).tolist():
            own = np.flatnonzero(labels == label)
            model = deepcopy(self._space.model)
            rng = np.random.default_rng([self._seed, 1, label])
            with seeded(self._seed + 1 + label):
                small = self._space.small[torch.from_numpy(own).to(device)]
                train_autoencoder(model, small, labels[own], _STEPS, rng)
            self._of_label[label] = model

    def sample(self, label: int, count: int) -> Grown:
        """Make ``count`` pictures, at least one, of a class; see ``Generator``.

        The parents are the picture that is changed, and the two of its cluster whose difference
        changes it.
        """
        rng = np.random.default_rng([self._seed, 2, label])
        clusters = self.clusters(label)
        chosen = [clusters[number % len(clusters)] for number in range(count)]
        parents = np.stack([self._draw(cluster, rng) for cluster in chosen])
        # The difference of two members, of any length, has twice the cluster's covariance.
        codes, length = self._space.codes, rng.standard_normal((count, EACH, 1)) / np.sqrt(2)
        towards = codes[parents[..., 1]] - codes[parents[..., 2]]
        drawn = codes[parents[..., 0]] + BANDWIDTH * length * towards
        candidates = Candidates(drawn.astype(np.float32), parents)
        return self._space.best(candidates, lambda small: self._fitness(small, label), label)

    def clusters(self, label: int) -> list[Rows]:
        """The clusters of a class, as rows of train; what DBSCAN takes for noise is in none."""
        own = np.flatnonzero(self._space.labels == label)
        return [own[part] for part in find_clusters(self._space.codes[own])]

    @staticmethod
    def _draw(cluster: Rows, rng: np.random.Generator) -> Rows:
        """A member to change, and for each candidate two to differ by; shape (EACH, 3)."""
        changed = rng.choice(cluster)
        pairs = [rng.choice(cluster, 2, replace=False) for _ in range(EACH)]
        return np.array([[changed, *pair] for pair in pairs], np.int64)

    def _fitness(self, small: Tensor, label: int) -> Tensor:
        """How much less the autoencoder of a label loses of pictures than any other; a logarithm.

        Args:
            small: pictures as autoencoders see them.
            label: their own.
        """
        losses = {
            of: model.losses(small, torch.full((len(small),), of, device=small.device)).log()
            for of, model in self._of_label.items()
        }
        own = losses.pop(label)
        return torch.stack(list(losses.values())).amin(0) - own


def find_clusters(codes: npt.NDArray[np.float32]) -> list[Rows]:
    """Clusters of the codes of one class by DBSCAN (Ester et al., KDD 1996).

    The radius follows the distances to the k-th nearest, as there (section 4.2); where their sorted
    curve bends cannot be seen of five codes, so it is ``RADIUS`` times their median.

    Args:
        codes: shape (n, d), at least ``NEIGHBOURS``.

    Returns:
        rows of each cluster, of two at least; one of all codes where all are noise.
    """
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import pairwise_distances

    distances = pairwise_distances(codes)
    radius = RADIUS * float(np.median(np.sort(distances, axis=1)[:, NEIGHBOURS - 1]))
    search = DBSCAN(eps=max(radius, 1e-6), min_samples=NEIGHBOURS, metric="precomputed")
    found = search.fit_predict(distances)
    clusters = [np.flatnonzero(found == number) for number in range(found.max() + 1)]
    # A core can be alone where its neighbours belong to a cluster that was found before.
    return [cluster for cluster in clusters if len(cluster) > 1] or [np.arange(len(codes))]
