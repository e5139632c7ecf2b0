"""New pictures between the codes of an autoencoder; a discriminator keeps the realistic ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.classify.data import Labels
from toolkit.classify.generate.base import Grown, Values
from toolkit.classify.generate.latent import EACH, Candidates, LatentSpace, Rows
from toolkit.classify.generate.networks import Discriminator, seeded, train_discriminator

TOWARDS = (0.2, 0.5)
"""How far a picture goes towards another one of its class, as a share of the way; beyond half of it
the other one's traits would lie on the first one's texture."""

NOISE = 0.3
"""Deviation of the noise on a code, as a multiple of the deviation within its class."""

_STEPS = 150


class AutoencoderGenerator:
    """Autoencoder augmentation, after Li, Bertino, Wu and Wu (arXiv 2306.00202, 2023).

    Of the paper it is public that an autoencoder of the pictures gives new ones of rare classes,
    and that a discriminator keeps the realistic ones. Chosen here: one autoencoder of all classes,
    told which it is; a new code lies between those of two pictures of the class, with noise as wide
    as the class in every number; it changes the first picture (see ``LatentSpace``). Of every four
    that change the same picture as far, the one is kept that a discriminator of real and made
    pictures takes for real most.
    """

    least = 2

    def __init__(self, *, seed: int) -> None:
        """Say what everything random derives from."""
        self._seed = seed

    def fit(
        self, values: Values, labels: Labels, classes: Sequence[str], device: torch.device
    ) -> None:
        """Train both networks; see ``Generator``."""
        self._space = LatentSpace(values, labels, len(classes), device, self._seed)
        self._members = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
        rng = np.random.default_rng([self._seed, 1])
        with seeded(self._seed + 1):
            self._discriminator = Discriminator(self._space.small.shape[1]).to(device)
            train_discriminator(
                self._discriminator,
                self._space.small,
                labels,
                lambda rows: self._like(rows, rng),
                _STEPS,
                rng,
            )

    def sample(self, label: int, count: int) -> Grown:
        """Make ``count`` pictures, at least one, of a class.

        The parents are the picture that is changed, and the one that it goes towards.
        """
        rng = np.random.default_rng([self._seed, 2, label])
        members = self._members[label]
        rounds = -(-count // len(members))
        parents = np.concatenate([rng.permutation(members) for _ in range(rounds)])[:count]
        candidates = self._candidates(np.repeat(parents[:, None], EACH, axis=1), rng)
        return self._space.best(candidates, self._realism, label)

    def realism(self, pictures: Values) -> Tensor:
        """Logits of the discriminator, shape (n,): higher is more like a real picture.

        Args:
            pictures: uint8, shape (n, side, side, 3), RGB, letterboxed as those of train.
        """
        with torch.no_grad():
            return self._realism(self._space.seen(pictures))

    def _realism(self, small: Tensor) -> Tensor:
        logits: Tensor = self._discriminator(small)
        return logits

    def _like(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Made pictures for the discriminator: such as ``sample`` chooses from."""
        candidates = self._candidates(rows[:, None], rng)
        return self._space.changed(rows, candidates.codes[:, 0])

    def _candidates(self, rows: Rows, rng: np.random.Generator) -> Candidates:
        """One for each of some rows, shape (n, each); in a row of these all go equally far."""
        others = np.empty_like(rows)
        spread = np.empty((*rows.shape, self._space.codes.shape[1]), np.float32)
        for label in np.unique(self._space.labels[rows]):
            members = self._members[int(label)]
            own = self._space.labels[rows] == label
            onwards = rng.integers(1, max(2, len(members)), int(own.sum()))
            others[own] = members[(np.searchsorted(members, rows[own]) + onwards) % len(members)]
            spread[own] = self._space.codes[members].std(axis=0)
        codes, far = self._space.codes, rng.uniform(*TOWARDS, (len(rows), 1, 1))
        noise = NOISE * spread * rng.standard_normal(spread.shape)
        mixed = codes[rows] + far * (codes[others] - codes[rows]) + noise
        return Candidates(mixed.astype(np.float32), np.stack([rows, others], axis=-1))
