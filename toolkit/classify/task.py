"""What fine-tuning a classifier is to the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet

from toolkit.classify.data import DEVIATION, Batch, Labels, Pictures, Sampler, to_input
from toolkit.classify.losses import ClassifierLoss, shares, undecided
from toolkit.classify.model import Learns, freeze, set_training

LOSS_SHARE = 0.01
"""Share of the loss in the score: less than one val picture, even where there are a hundred."""

if TYPE_CHECKING:
    from torchvision.transforms.v2 import MixUp

_PICTURES_PER_CALL = 64
_PICTURES_FOR_STATISTICS = 512


class ClassifierTask:
    """Pictures in, classes out; a ``toolkit.training.Task``."""

    def __init__(
        self,
        model: ResNet,
        train: Pictures,
        val: Pictures,
        sampler: Sampler,
        *,
        learns: Learns,
        loss: ClassifierLoss,
        mixup: float = 0.0,
        outlier_weight: float = 0.0,
    ) -> None:
        """Freeze what shall not learn.

        Args:
            model: the network, on its device; it is trained in place.
            train: pictures that batch norm takes its statistics from before each validation.
            val: pictures to choose the best epoch by.
            sampler: training batches, of the same pictures, with outliers or without.
            learns: what learns.
            loss: what the classes' shares are learnt by.
            mixup: alpha of the Beta distribution that pictures are mixed by; 0 mixes none.
            outlier_weight: of being undecided about outliers, in the loss.
        """
        # The layout that CPUs convolve in, and GPUs in half precision; the weights are the same.
        self.model = model.to(memory_format=torch.channels_last)
        self._frozen = freeze(model, learns)
        some = np.linspace(0, len(train.labels) - 1, _PICTURES_FOR_STATISTICS).round().astype(int)
        self._typical = train.pixels[np.unique(some)]
        self._val = val
        self._sampler = sampler
        self._device = next(model.parameters()).device
        self._loss, self._outlier_weight = loss, outlier_weight
        self._mixup = _mixup(mixup) if mixup else None
        self.steps = sampler.steps

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """All training pictures, as often as the sampler repeats them; see its ``batches``."""
        return self._sampler.batches(epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the share of right answers; of outliers what they add.

        Outliers take no part in the statistics of batch normalisation. At work parts and anything
        else alike are normalised by statistics of parts; half a batch of strange pictures would
        shift those that the classes are learnt by, and outliers normalised by their own would lose
        just what sets them apart.
        """
        set_training(self.model, self._frozen)
        targets = shares(batch.labels.to(self._device), self.model.fc.out_features)
        pictures = self._input(batch)
        if self._mixup is not None:
            pictures, targets = self._mixup(pictures, targets)
        if batch.outliers is None:
            logits = self.model(pictures)
            return self._learnt(logits, targets)
        with statistics_of_this_batch(self.model):
            logits = self.model(pictures)
        losses = self._learnt(logits, targets)
        self.model.eval()
        outlier_loss = undecided(self.model(self._input(batch.outliers)))
        total = losses["loss"] + self._outlier_weight * outlier_loss
        return {**losses, "loss": total, "outlier_loss": outlier_loss.detach()}

    def _learnt(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss, and the accuracy: the share of the target that the verdict has."""
        right = targets.gather(1, logits.detach().argmax(dim=1, keepdim=True))
        return {"loss": self._loss(logits, targets), "train_accuracy": right.mean()}

    def _input(self, batch: Batch) -> Tensor:
        """The pictures as the network takes them, in their light."""
        pictures = to_input(batch.pixels.to(self._device))
        contrast = batch.contrast.to(self._device)[:, None, None, None]
        deviation = torch.tensor(DEVIATION, device=self._device)[:, None, None]
        brightness = batch.brightness.to(self._device)[:, None, None, None] / deviation
        return pictures * contrast + brightness

    def validate(self) -> dict[str, float]:
        """Figures of val: see ``val_scores``."""
        settle_batch_norm(self.model, self._typical)
        return val_scores(predict_logits(self.model, self._val.pixels), self._val.labels)


def val_scores(logits: npt.NDArray[np.float32], labels: Labels) -> dict[str, float]:
    """Accuracies and class-balanced cross-entropy on val, and the score of the balanced ones.

    On a few dozen val pictures many epochs are equally accurate, and the loss alone prefers the
    timid ones; hence the accuracy counts, and of equals the lower loss.

    Args:
        logits: shape (n, classes).
        labels: shape (n,), at least one.
    """
    given, known = torch.from_numpy(logits), torch.from_numpy(labels)
    losses = F.cross_entropy(given, known, reduction="none").numpy()
    right = logits.argmax(axis=1) == labels
    of_class = [labels == label for label in np.unique(labels)]
    accuracy = float(np.mean([right[own].mean() for own in of_class]))
    loss = float(np.mean([losses[own].mean() for own in of_class]))
    return {
        "val_loss": loss,
        "val_accuracy": float(right.mean()),
        "val_balanced_accuracy": accuracy,
        "val_score": accuracy - LOSS_SHARE * min(loss, 1 / LOSS_SHARE),
    }


def _mixup(alpha: float) -> MixUp:
    """Mixing by torch's global generator, which the training loop seeds for each batch."""
    # Here, because it takes a second, and few ask for it.
    from torchvision.transforms.v2 import MixUp

    return MixUp(alpha=alpha)


@contextmanager
def statistics_of_this_batch(model: nn.Module) -> Iterator[None]:
    """Let batch norms that are in training mode keep a batch's statistics as their running ones."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def settle_batch_norm(model: nn.Module, pixels: npt.NDArray[np.uint8]) -> None:
    """Take the statistics of the batch norms that learn anew, from pictures as they are.

    The running ones trail behind weights that move fast: with a few steps per epoch a network that
    tells its batches apart well would be validated at chance until the learning rate falls.

    Args:
        model: its frozen batch norms are left alone.
        pixels: letterboxed training pictures, shape (n, side, side, 3), at least two.
    """
    norms = [
        part
        for part in model.modules()
        if isinstance(part, nn.BatchNorm2d) and part.weight.requires_grad
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    device = next(model.parameters()).device
    for part in np.array_split(pixels, -(-len(pixels) // _PICTURES_PER_CALL)):
        model(to_input(torch.from_numpy(part).to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def predict_logits(model: nn.Module, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Logits of letterboxed pictures, shape (n, side, side, 3) to (n, classes)."""
    model.eval()
    device = next(model.parameters()).device
    parts = torch.split(torch.from_numpy(pixels), _PICTURES_PER_CALL)
    found = [model(to_input(part.to(device))).float().cpu() for part in parts]
    return np.asarray(torch.cat(found).numpy(), dtype=np.float32)
