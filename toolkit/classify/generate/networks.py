"""The small networks of the generators of pictures, and how they learn: in seconds, on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.classify.data import Labels

CODE = 64
"""Numbers that an autoencoder describes a picture by."""

BATCH = 32
"""Pictures per step."""

_CODE_NOISE = 0.1
"""Deviation of the noise on codes in training; a code's own deviation is 1."""

_WIDTHS = (16, 32, 32)
_AUTOENCODER_RATE = 2e-3
_DISCRIMINATOR_RATE = 1e-3


class Autoencoder(nn.Module):
    """Describes a picture by ``CODE`` numbers, and draws it from them and its class.

    The numbers of a code have mean 0 and deviation 1, so that noise and distances mean the same
    wherever a picture lies.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, classes: int) -> None:
        """Make one with random weights.

        Args:
            mean: picture that it draws the difference to, shape (channels, side, side); the side is
                a multiple of 8.
            classes: how many there are.
        """
        super().__init__()
        channels, side, _ = mean.shape
        self.register_buffer("mean", mean)
        self._classes = classes
        self._inner = (_WIDTHS[-1], side // 8, side // 8)
        numbers = _WIDTHS[-1] * (side // 8) ** 2
        steps: list[nn.Module] = []
        for before, after in pairwise((channels, *_WIDTHS)):
            steps += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        code = nn.Linear(numbers, CODE)
        self._encoder = nn.Sequential(
            *steps, nn.Flatten(), code, nn.LayerNorm(CODE, elementwise_affine=False)
        )
        outer = (*reversed(_WIDTHS), channels)
        steps = [nn.Linear(CODE + classes, numbers), nn.Unflatten(1, self._inner)]
        for before, after in pairwise(outer):
            steps += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self._decoder = nn.Sequential(*steps)

    def encode(self, pictures: Tensor) -> Tensor:
        """Codes, shape (n, CODE), of pictures of 0 to 1, shape (n, channels, side, side)."""
        codes: Tensor = self._encoder(pictures - self.mean)
        return codes

    def decode(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Pictures, of about 0 to 1, of codes and the index of each one's class, shape (n,)."""
        known = F.one_hot(labels, self._classes).float()
        drawn: Tensor = self._decoder(torch.cat([codes, known], dim=1))
        return self.mean + drawn

    def losses(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of each picture that is drawn from its own code, shape (n,)."""
        return (self.decode(self.encode(pictures), labels) - pictures).square().mean((1, 2, 3))


class Discriminator(nn.Module):
    """Says of pictures whether they are real: a logit, the mean over many small windows.

    Windows, because a rare class has too few whole pictures to learn from.
    """

    def __init__(self, channels: int) -> None:
        """Make one with random weights, for pictures of so many channels."""
        super().__init__()
        steps: list[nn.Module] = []
        for before, after in pairwise((channels, *_WIDTHS)):
            steps += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self._windows = nn.Sequential(*steps, nn.Conv2d(_WIDTHS[-1], 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits, shape (n,), of pictures of 0 to 1, shape (n, channels, side, side)."""
        logits: Tensor = self._windows(2 * pictures - 1)
        return logits.mean((1, 2, 3))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights and noise from a seed inside; afterwards the global generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def balanced_draw(labels: Labels, rng: np.random.Generator) -> Labels:
    """Rows of a batch in which every class comes as often as any other, on average.

    A class of five pictures is drawn as well as one of a thousand: it is the one that matters here.
    """
    present = np.unique(labels)
    chosen = rng.choice(present, BATCH)
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in chosen])


def train_autoencoder(
    model: Autoencoder, pictures: Tensor, labels: Labels, steps: int, rng: np.random.Generator
) -> None:
    """Learn to draw pictures from their codes, with noise on these, all classes alike.

    Decoding codes with noise makes what lies between them pictures too, without the blur of a
    variational autoencoder (Ghosh et al., "From variational to deterministic autoencoders", ICLR
    2020). The global torch generator draws the noise.

    Args:
        model: on the device of the pictures.
        pictures: of 0 to 1, shape (n, channels, side, side).
        labels: of each.
        steps: how many.
        rng: draws the batches.
    """
    device = pictures.device
    known = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_AUTOENCODER_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.from_numpy(balanced_draw(labels, rng)).to(device)
        codes = model.encode(pictures[rows])
        noise = _CODE_NOISE * torch.randn(codes.shape).to(device)  # the same on any device
        loss = F.mse_loss(model.decode(codes + noise, known[rows]), pictures[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()


def train_discriminator(
    model: Discriminator,
    pictures: Tensor,
    labels: Labels,
    made: Callable[[Labels], Tensor],
    steps: int,
    rng: np.random.Generator,
) -> None:
    """Learn to tell real pictures from made ones.

    Both are mirrored at random alike, so that the few real ones of a rare class are not learnt by
    heart so soon (Karras et al., "Training generative adversarial networks with limited data",
    NeurIPS 2020).

    Args:
        model: on the device of the pictures.
        pictures: real ones, of 0 to 1, shape (n, channels, side, side).
        labels: of each.
        made: makes a picture like each of these rows, of the same class.
        steps: how many.
        rng: draws the batches.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=_DISCRIMINATOR_RATE, betas=(0.5, 0.999))
    for _ in range(steps):
        real = pictures[torch.from_numpy(balanced_draw(labels, rng)).to(pictures.device)]
        logits = [model(_mirrored(some, rng)) for some in (real, made(balanced_draw(labels, rng)))]
        loss = F.softplus(-logits[0]).mean() + F.softplus(logits[1]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def _mirrored(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """All pictures of a batch, mirrored in one of the four ways."""
    axes = [axis for axis in (2, 3) if rng.random() < 0.5]
    return pictures.flip(axes) if axes else pictures
