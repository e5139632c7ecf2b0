"""A conditional generative adversarial network of features, whose samples are sieved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from toolkit.classify.data import Labels
from toolkit.classify.generate.base import Grown, Values
from toolkit.classify.generate.features import Projection
from toolkit.classify.generate.networks import seeded

COMPONENTS = 16
"""Principal components of the features that the networks see, at most."""

REAL_ENOUGH = 0.05
"""Share of a class' real rows, blurred as in training, that may score lower than any sample."""

SURE_ENOUGH = 0.5
"""Least probability that the classifier gives a sample's class."""

_STEPS, _BATCH, _RATE, _HIDDEN = 200, 64, 1e-3, 64
_BLUR = 0.5
_BLURRED = 20
_NEIGHBOURS = 3
_ROUNDS = 20


class Dac:
    """Data augmentation classifier, after Jiang and Ge.

    After Jiang and Ge, "Data augmentation classifier for imbalanced fault classification", IEEE
    TASE 18(3):1206, 2021: a conditional GAN learns together with a classifier, and what it makes is
    filtered and purified before it counts. Details are not public, and chosen here:

    * the networks see standardised principal components, in which all classes count alike, and are
      perceptrons; a sample takes from its nearest real row what the components leave out;
    * batches show all classes alike; real rows are blurred a little, or the discriminator would
      learn the few of a rare class by heart;
    * the generator starts from the class' mean with noise as wide as classes are on average, and
      learns what to add, because a few rows tell too little to learn this, too;
    * the discriminator has spectral normalisation, the projection of the class (Miyato and Koyama,
      ICLR 2018) and the hinge loss; the classifier learns from real and made rows, and the
      generator also from its answer (Odena et al., AC-GAN, ICML 2017);
    * filtering keeps samples that score higher than the lowest ``REAL_ENOUGH`` of the real rows of
      their class, blurred as the discriminator knows them; purification keeps those that the
      classifier is sure of (``SURE_ENOUGH``) and whose class has the vote of the three nearest real
      rows, as edited nearest neighbours do (Wilson, IEEE SMC 1972), but with votes by the inverse
      frequency of classes, or a rare one would hardly ever have it.

    A sample's parent is the nearest real row of its class, whose rest it has: what the networks
    made of the components comes from no rows in particular. A ``Generator`` of features.
    """

    least = 3

    def __init__(self, seed: int) -> None:
        """Not yet fitted; everything random derives from the seed."""
        self._seed = seed

    def fit(
        self, values: Values, labels: Labels, classes: Sequence[str], device: torch.device
    ) -> None:
        """Train the three networks; see ``Generator.fit``.

        Args:
            values: features of train.
            labels: of each.
            classes: "good", then the categories.
            device: not used: a CPU is faster with networks this small.
        """
        self._values, self._labels = values, labels
        self._projection = Projection.fit(values, labels, COMPONENTS)
        self._scores = self._projection.project(values)
        size = self._scores.shape[1]
        with seeded(self._seed):
            self._generator = _Generator(self._scores, labels, len(classes))
            self._discriminator = _Discriminator(size, len(classes))
            self._classifier = _perceptron(size, len(classes))
            self._train(torch.from_numpy(self._scores).float(), torch.from_numpy(labels))
        for network in (self._generator, self._discriminator, self._classifier):
            network.eval()

    def sample(self, label: int, count: int) -> Grown:
        """Make samples until ``count`` have passed, or ``_ROUNDS`` times as many were made."""
        draw = torch.Generator().manual_seed(
            int(np.random.default_rng([self._seed, label]).integers(2**31))
        )
        made = np.empty((0, self._scores.shape[1]))
        for _ in range(_ROUNDS):
            candidates = self._make(label, count, draw)
            made = np.concatenate([made, candidates[self._passes(candidates, label)]])[:count]
            if len(made) == count:
                break
        if not len(made):
            return Grown.none(self._values)
        rows = np.flatnonzero(self._labels == label)
        nearest = rows[_nearest(self._scores[rows], made, 1)[:, 0]]
        rest = self._values[nearest] - self._projection.lift(self._scores[nearest])
        return Grown(
            self._projection.lift(made) + rest,
            np.full(len(made), label, np.int64),
            tuple((int(row),) for row in nearest),
        )

    def _train(self, scores: Tensor, labels: Tensor) -> None:
        making = torch.optim.Adam(self._generator.parameters(), lr=_RATE, betas=(0.0, 0.9))
        judges = [*self._discriminator.parameters(), *self._classifier.parameters()]
        judging = torch.optim.Adam(judges, lr=_RATE, betas=(0.0, 0.9))
        chances = 1 / torch.bincount(labels)[labels].double()
        for _ in range(_STEPS):
            rows = torch.multinomial(chances, _BATCH, replacement=True)
            own = labels[rows]
            real = scores[rows] + _BLUR * torch.randn(_BATCH, scores.shape[1])
            made = self._generator(own)
            judging.zero_grad()
            torch.autograd.backward(self._judges_loss(real, made.detach(), own))
            judging.step()
            making.zero_grad()
            taken = F.cross_entropy(self._classifier(made), own)
            torch.autograd.backward(taken - self._discriminator(made, own).mean())
            making.step()

    def _judges_loss(self, real: Tensor, made: Tensor, labels: Tensor) -> Tensor:
        """Hinge loss of the discriminator, and cross-entropy of the classifier on both kinds."""
        hinge = F.relu(1 - self._discriminator(real, labels)).mean()
        hinge = hinge + F.relu(1 + self._discriminator(made, labels)).mean()
        right = F.cross_entropy(self._classifier(real), labels)
        return hinge + right + 0.5 * F.cross_entropy(self._classifier(made), labels)

    @torch.no_grad()
    def _make(self, label: int, count: int, draw: torch.Generator) -> npt.NDArray[np.float64]:
        made = self._generator(torch.full((count,), label), draw)
        return np.asarray(made.numpy(), np.float64)

    @torch.no_grad()
    def _passes(self, candidates: npt.NDArray[np.float64], label: int) -> npt.NDArray[np.bool_]:
        """Which candidates of a class are like real ones (filter) and no other's (purify)."""
        made = torch.from_numpy(candidates).float()
        own = self._labels == label
        real = torch.from_numpy(self._scores[own]).float().repeat(_BLURRED, 1)
        blur = torch.randn(real.shape, generator=torch.Generator().manual_seed(self._seed))
        real = real + _BLUR * blur  # as the discriminator has learnt them
        bar = self._discriminator(real, torch.full((len(real),), label)).quantile(REAL_ENOUGH)
        like_real = self._discriminator(made, torch.full((len(made),), label)) >= bar
        sure = self._classifier(made).softmax(dim=1)[:, label] >= SURE_ENOUGH
        return np.asarray((like_real & sure).numpy() & (self._vote(candidates) == label), np.bool_)

    def _vote(self, candidates: npt.NDArray[np.float64]) -> Labels:
        """The class for which the nearest real rows vote."""
        counts = np.bincount(self._labels)
        voters = self._labels[_nearest(self._scores, candidates, _NEIGHBOURS)]
        votes = (voters[:, :, None] == np.arange(len(counts))).sum(axis=1) / np.maximum(counts, 1)
        return np.asarray(votes.argmax(axis=1), np.int64)


def _nearest(
    rows: npt.NDArray[np.float64], candidates: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.int64]:
    """Numbers of the rows nearest to each candidate, shape (candidates, count)."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=count).fit(rows)
    return np.asarray(found.kneighbors(candidates, return_distance=False), np.int64)


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, _HIDDEN),
        nn.LeakyReLU(0.2),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.LeakyReLU(0.2),
        nn.Linear(_HIDDEN, outputs),
    )


class _Generator(nn.Module):
    """Classes to scores of a row each, with noise."""

    means: Tensor
    width: Tensor

    def __init__(self, scores: npt.NDArray[np.float64], labels: Labels, classes: int) -> None:
        """Start from the mean of every class, and the mean deviation within them."""
        super().__init__()
        means = np.zeros((classes, scores.shape[1]))
        widths = []
        for label in np.unique(labels):
            own = scores[labels == label]
            means[label] = own.mean(axis=0)
            widths.append(own.std(axis=0))
        self.register_buffer("means", torch.from_numpy(means).float())
        self.register_buffer("width", torch.from_numpy(np.mean(widths, axis=0)).float())
        self._more = _perceptron(scores.shape[1] + classes, scores.shape[1])
        for start in list(self._more.parameters())[-2:]:  # of the last layer
            nn.init.zeros_(start)

    def forward(self, labels: Tensor, draw: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(len(labels), len(self.width), generator=draw)
        shown = F.one_hot(labels, len(self.means)).float()
        more = self._more(torch.cat([noise, shown], dim=1))
        made: Tensor = self.means[labels] + self.width * (noise + more)
        return made


class _Discriminator(nn.Module):
    """Scores and classes to how real each looks for one of its class, shape (n,)."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        layers = [nn.Linear(size, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)]
        self._body = nn.Sequential(
            *(part for layer in layers for part in (spectral_norm(layer), nn.LeakyReLU(0.2)))
        )
        self._any = spectral_norm(nn.Linear(_HIDDEN, 1))
        self._of_class = spectral_norm(nn.Embedding(classes, _HIDDEN))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        body = self._body(scores)
        real: Tensor = self._any(body)[:, 0] + (self._of_class(labels) * body).sum(dim=1)
        return real
