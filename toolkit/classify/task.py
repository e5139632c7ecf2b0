"""What fine-tuning a classifier is to the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet

from toolkit.classify.data import DEVIATION, Batch, Labels, Pictures, Sampler, to_input
from toolkit.classify.model import Learns, freeze, set_training

LARGEST_WEIGHT = 10.0
"""A class counts at most this many times as much per picture as the most frequent one."""

LOSS_SHARE = 0.01
"""Share of the loss in the score: less than one val picture, even where there are a hundred."""

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
        class_weights: Tensor | None,
        label_smoothing: float,
    ) -> None:
        """Freeze what shall not learn.

        Args:
            model: the network, on its device; it is trained in place.
            train: pictures that batch norm takes its statistics from before each validation.
            val: pictures to choose the best epoch by.
            sampler: training batches, of the same pictures.
            learns: what learns.
            class_weights: of the cross-entropy, shape (classes,); None weighs all alike.
            label_smoothing: share of the target that is spread over all classes.
        """
        # The layout that CPUs convolve in, and GPUs in half precision; the weights are the same.
        self.model = model.to(memory_format=torch.channels_last)
        self._frozen = freeze(model, learns)
        some = np.linspace(0, len(train.labels) - 1, _PICTURES_FOR_STATISTICS).round().astype(int)
        self._typical = train.pixels[np.unique(some)]
        self._val = val
        self._sampler = sampler
        self._device = next(model.parameters()).device
        self._weights = None if class_weights is None else class_weights.to(self._device)
        self._smoothing = label_smoothing
        self.steps = sampler.steps

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """All training pictures, as often as the sampler repeats them; see its ``batches``."""
        return self._sampler.batches(epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted cross-entropy."""
        set_training(self.model, self._frozen)
        pictures = to_input(batch.pixels.to(self._device))
        contrast = batch.contrast.to(self._device)[:, None, None, None]
        deviation = torch.tensor(DEVIATION, device=self._device)[:, None, None]
        brightness = batch.brightness.to(self._device)[:, None, None, None] / deviation
        logits = self.model(pictures * contrast + brightness)
        loss = F.cross_entropy(
            logits.float(),
            batch.labels.to(self._device),
            weight=self._weights,
            label_smoothing=self._smoothing,
        )
        return {"loss": loss}

    def validate(self) -> dict[str, float]:
        """Balanced accuracy and class-balanced cross-entropy on val, and the score of both.

        On a few dozen val pictures many epochs are equally accurate, and the loss alone prefers
        the timid ones; hence the accuracy counts, and of equals the lower loss.
        """
        settle_batch_norm(self.model, self._typical)
        logits = predict_logits(self.model, self._val.pixels)
        return val_scores(logits, self._val.labels)


def val_scores(logits: npt.NDArray[np.float32], labels: Labels) -> dict[str, float]:
    """Class-balanced cross-entropy, balanced accuracy and the score of both.

    Args:
        logits: shape (n, classes).
        labels: shape (n,).
    """
    entropies = F.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), reduction="none"
    )
    losses = entropies.numpy()
    right = logits.argmax(axis=1) == labels
    of_class = [labels == label for label in np.unique(labels)]
    accuracy = float(np.mean([right[own].mean() for own in of_class]))
    loss = float(np.mean([losses[own].mean() for own in of_class]))
    return {
        "val_loss": loss,
        "val_balanced_accuracy": accuracy,
        "val_score": accuracy - LOSS_SHARE * min(loss, 1 / LOSS_SHARE),
    }


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


def balance(labels: Labels, classes: int) -> Tensor:
    """Weights of classes by their inverse frequency, capped at ``LARGEST_WEIGHT``.

    Returns:
        shape (classes,), with mean 1 over the pictures; 0 for a class without any.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.minimum(counts.max() / np.maximum(counts, 1), LARGEST_WEIGHT) * (counts > 0)
    weights *= counts.sum() / (weights * counts).sum()
    return torch.from_numpy(weights.astype(np.float32))
