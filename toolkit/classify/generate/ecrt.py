"""ECRT: rare classes grown by resampling independent sources of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.classify.data import Labels
from toolkit.classify.generate.base import Grown, Values
from toolkit.classify.generate.features import Projection
from toolkit.classify.generate.networks import seeded

COMPONENTS = 32
"""Principal components of the features that the flow sees, at most."""

REAL_WEIGHT = 1e-3
"""Weight of the real rows of a grown class when the head learns; that of the grown ones is the
rest to 1 (lambda of the authors' code)."""

FREQUENT = 0.5
"""Share of the most frequent class' rows that makes a class a frequent one."""

_TRANSFORMS, _HIDDEN = 4, (128, 128)
_STEPS, _BATCH, _RATE, _CLIP = 60, 64, 1e-3, 1e-3
_LIKELIHOOD = 1e-3
_CRITIC_HIDDEN = 32


class Sources(nn.Module):
    """Features to sources: principal components, then a masked autoregressive flow.

    Args:
        features: width of the features.
        sources: number of components, and so of sources.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, features: int, sources: int) -> None:
        """Build it with the flow as the identity; ``fit`` of ``Ecrt`` or a file fills the rest."""
        from zuko.flows import MAF, MaskedAutoregressiveTransform

        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.zeros(features, sources))
        self.flow: nn.Module = MAF(
            sources, transforms=_TRANSFORMS, hidden_features=_HIDDEN
        ).transform
        for part in self.flow.modules():
            if isinstance(part, MaskedAutoregressiveTransform):
                nn.init.zeros_(part.hyper[-1].weight)
                nn.init.zeros_(part.hyper[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features, shape (n, features), to sources, shape (n, sources)."""
        sources: Tensor = self.flow()((features - self.mean) @ self.matrix)
        return sources


class SourceHead(nn.Module):
    """What stands in the place of the last linear layer: a linear one, on sources.

    Args:
        features: width of the features.
        sources: number of sources.
        classes: number of outputs.
    """

    def __init__(self, features: int, sources: int, classes: int) -> None:
        """Build it empty, for a file to fill."""
        super().__init__()
        self.sources = Sources(features, sources)
        self.linear = nn.Linear(sources, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features, shape (n, features), to logits, shape (n, classes)."""
        logits: Tensor = self.linear(self.sources(features))
        return logits


class Ecrt:
    """Energy-based causal representation transfer.

    Chen et al., "Supercharging imbalanced data learning with energy-based contrastive
    representation transfer", NeurIPS 2021, arXiv 2011.12454: what makes features of a class vary
    are independent sources, s = f(z), with the same f for all classes. A masked autoregressive
    flow f learns this from the frequent classes by generalised contrastive learning (Hyvarinen et
    al., AISTATS 2019), in which a critic, a sum of functions of one source and the class each,
    tells rows with their class from rows with a drawn one, and by a little likelihood of normal
    sources. A rare class then grows by resampling every source for itself within the class, and a
    head on sources learns from what grew, real rows of it counting next to nothing
    (``REAL_WEIGHT``).

    As the authors' code has it: 4 transforms of 2 hidden layers of 128, the clipping of gradients
    to 1e-3, the weight 1e-3 of the likelihood, and the weights of rows. What differs:

    * the flow sees whitened principal components, in which all classes count alike: hundreds of
      features of a few hundred pictures span no more;
    * it starts as the identity, has no batch normalisation, and takes few steps of Adam at 1e-3,
      not 100 epochs at 1e-5, without stopping early; so it learns in seconds;
    * batches show its classes alike; where a single class is frequent, which contrastive learning
      cannot learn from, all classes with rows enough (``least``) take the frequent ones' place;
    * the head is linear; theirs has two hidden layers.

    Values are features, which the flow makes of the sources backwards. A sample's parents are all
    rows that it has sources of, the one that gave most first. A ``Generator`` of features.
    """

    least = 3

    sources: Sources
    """Of features; there when it is fitted."""

    def __init__(self, seed: int) -> None:
        """Not yet fitted; everything random derives from the seed."""
        self._seed = seed

    def fit(
        self, values: Values, labels: Labels, classes: Sequence[str], device: torch.device
    ) -> None:
        """Train the flow; see ``Generator.fit``.

        Args:
            values: features of train.
            labels: of each.
            classes: "good", then the categories.
            device: not used: a CPU is faster with a flow this small.
        """
        self._values, self._labels = values, labels
        projection = Projection.fit(values, labels, COMPONENTS)
        self._projection = projection
        chosen = np.isin(labels, self._teachers(labels))
        scores = torch.from_numpy(projection.project(values[chosen])).float()
        _, own = np.unique(labels[chosen], return_inverse=True)
        with seeded(self._seed):
            self.sources = Sources(values.shape[1], scores.shape[1])
            self.sources.mean.copy_(torch.from_numpy(projection.mean))
            self.sources.matrix.copy_(
                torch.from_numpy(projection.directions.T / projection.deviations)
            )
            _train_flow(self.sources.flow, scores, torch.from_numpy(own))
        self.sources.eval()

    def sample(self, label: int, count: int) -> Grown:
        """Make ``count`` samples of a class by drawing each source from any of its rows."""
        rows = np.flatnonzero(self._labels == label)
        rng = np.random.default_rng([self._seed, label])
        with torch.no_grad():
            own = self.sources(torch.from_numpy(self._values[rows]))
            drawn = torch.from_numpy(rng.integers(len(rows), size=(count, own.shape[1])))
            scores = self.sources.flow().inv(own.gather(0, drawn))
        return Grown(
            self._projection.lift(np.asarray(scores.numpy(), np.float64)),
            np.full(count, label, np.int64),
            tuple(_by_share(rows[places]) for places in drawn.numpy()),
        )

    def _teachers(self, labels: Labels) -> Labels:
        """The classes that the flow learns from, at least two."""
        present, counts = np.unique(labels, return_counts=True)
        frequent = present[counts >= FREQUENT * counts.max()]
        return frequent if len(frequent) > 1 else present[counts >= self.least]


def _by_share(rows: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Rows without repetition, the most frequent first."""
    found, counts = np.unique(rows, return_counts=True)
    return tuple(int(row) for row in found[np.argsort(-counts, kind="stable")])


class _Critic(nn.Module):
    """How well sources and classes fit: a sum of functions of one source and the class each.

    And what the likelihood needs, the mean and the deviation of every source in every class.
    """

    def __init__(self, sources: int, classes: int) -> None:
        super().__init__()
        self._inner = nn.Parameter(torch.randn(sources, _CRITIC_HIDDEN))
        self._inner_bias = nn.Parameter(torch.randn(sources, _CRITIC_HIDDEN))
        spread = (_CRITIC_HIDDEN * sources) ** -0.5
        self._outer = nn.Parameter(spread * torch.randn(sources * _CRITIC_HIDDEN, classes))
        self.mean = nn.Parameter(torch.zeros(classes, sources))
        self.deviation = nn.Parameter(torch.zeros(classes, sources))

    def forward(self, sources: Tensor) -> Tensor:
        """Sources, shape (n, sources), to a logit for every class, shape (n, classes)."""
        inner = F.relu(sources[:, :, None] * self._inner + self._inner_bias)
        fits: Tensor = inner.flatten(1) @ self._outer
        return fits

    def log_likelihood(self, sources: Tensor, labels: Tensor) -> Tensor:
        """Of normal sources, shape (n,)."""
        normal = torch.distributions.Normal(self.mean[labels], self.deviation[labels].exp())
        found: Tensor = normal.log_prob(sources).sum(dim=1)  # type: ignore[no-untyped-call]
        return found


def _train_flow(flow: nn.Module, scores: Tensor, labels: Tensor) -> None:
    """Generalised contrastive learning of a flow, with torch's global generator."""
    critic = _Critic(scores.shape[1], int(labels.max()) + 1)
    parameters = [*flow.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=_RATE)
    chances = 1 / torch.bincount(labels)[labels].double()
    for _ in range(_STEPS):
        rows = torch.multinomial(chances, _BATCH, replacement=True)
        own, drawn = labels[rows], labels[rows][torch.randperm(_BATCH)]
        sources, stretch = flow().call_and_ladj(scores[rows])
        fits = critic(sources)
        right = F.softplus(-fits.gather(1, own[:, None])).mean()
        wrong = F.softplus(fits.gather(1, drawn[:, None])).mean()
        likelihood = (critic.log_likelihood(sources, own) + stretch).mean()
        optimizer.zero_grad()
        torch.autograd.backward(right + wrong - _LIKELIHOOD * likelihood)
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
