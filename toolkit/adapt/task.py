"""What domain adaptation is to the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.adapt.data import UNLABELLED, Batch, Batches, Material
from toolkit.adapt.encoders import Encoder
from toolkit.adapt.losses import (
    Discriminator,
    mean_discrepancy,
    reversal_strength,
    voted_labels,
)
from toolkit.adapt.private import DomainName
from toolkit.classify.data import Labels, to_input
from toolkit.classify.losses import balance
from toolkit.classify.task import predict_logits, settle_batch_norm, val_scores
from toolkit.config import AdaptConfig

_PICTURES_FOR_STATISTICS = 512


class TwoDomains(nn.Module):
    """An encoder with a linear classifier for each domain, which share the classes of one name.

    So there is one classifier where the domains have the same classes, there are two where none is
    common, and "good", where both have it, is always the same.
    """

    rows_source: Tensor
    rows_target: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Linear,
        source: Sequence[str],
        target: Sequence[str],
        *,
        discriminates: bool,
    ) -> None:
        """Put the network together.

        Args:
            encoder: of both domains.
            head: what the classifier of the target's classes starts from.
            source: its classes, by name.
            target: its classes, by name.
            discriminates: whether there is a discriminator of domains.
        """
        super().__init__()
        self.encoder = encoder
        names = [*target, *(name for name in source if name not in target)]
        self.head = nn.Linear(encoder.width, len(names))
        with torch.no_grad():
            self.head.weight[: len(target)] = head.weight
            self.head.bias[: len(target)] = head.bias
        for domain, classes in (("source", source), ("target", target)):
            rows = torch.tensor([names.index(name) for name in classes])
            self.register_buffer(f"rows_{domain}", rows, persistent=False)
        self.discriminator = Discriminator(encoder.width) if discriminates else None

    def logits(self, features: Tensor, domain: DomainName) -> Tensor:
        """Of a domain's classes, shape (n, width) to (n, classes)."""
        rows = self.rows_source if domain == "source" else self.rows_target
        return F.linear(features, self.head.weight[rows], self.head.bias[rows])

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of normalised pictures of the target."""
        return self.logits(self.encoder.features(pictures, "target"), "target")

    def result(self) -> dict[str, Tensor]:
        """The tensors of the plain network of the target."""
        rows = self.rows_target
        return self.encoder.with_head(self.head.weight[rows], self.head.bias[rows])


class Adaptation:
    """Pictures of two domains in, classes out; a ``toolkit.training.Task``.

    L = CE(source) + CE(labelled target) + what makes the domains alike. Each domain passes the
    network in a batch of its own, so that batch norms never mix their statistics.
    """

    def __init__(
        self, model: TwoDomains, material: Material, batches: Batches, config: AdaptConfig
    ) -> None:
        """Train ``model``, which is on its device, in place."""
        self.model = model.to(memory_format=torch.channels_last)
        self.steps = batches.steps
        self._batches, self._config = batches, config
        self._device = next(model.parameters()).device
        target = material.target
        last = len(target.labels) - 1
        some = np.linspace(0, last, _PICTURES_FOR_STATISTICS).round().astype(int)
        self._typical = target.pixels[np.unique(some)]
        self._val = material.val
        known = target.labels[target.labels != UNLABELLED]
        self._weights = balance(known, len(target.classes)).to(self._device) if len(known) else None
        self._taught = _taught(material, known).to(self._device)
        enough = int(self._taught.sum()) > 1 and len(known) < len(target.labels)
        self._votes = config.method == "mmd" and enough
        self._epoch = 0

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """A pass over the target's train pictures."""
        self._epoch = epoch
        return self._batches(epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The two cross-entropies, and what makes the domains alike."""
        self.model.train()
        source = self._features(batch.source, "source")
        target = self._features(batch.target, "target")
        labels = batch.target_labels.to(self._device)
        with torch.autocast(self._device.type, enabled=False):
            parts = {
                "source": F.cross_entropy(
                    self.model.logits(source, "source"), batch.source_labels.to(self._device)
                ),
                "target": self._target_loss(self.model.logits(target, "target"), labels),
            }
            if self.model.discriminator is None:
                parts["discrepancy"] = mean_discrepancy(source, target)
                total = parts["source"] + parts["target"]
                total = total + self._config.weight * parts["discrepancy"]
            else:
                strength = self._config.weight * reversal_strength(batch.progress)
                found, told = self.model.discriminator.loss(source, target, strength)
                total = parts["source"] + parts["target"] + found
                parts |= {"discriminator": found, "told_apart": told}
        if self._votes:
            unlabelled = labels == UNLABELLED
            found, share = self._pseudo_loss(target, unlabelled, batch.votes)
            parts |= {"pseudo": found, "pseudo_labelled": share}
            total = total + self._config.pseudo_weight * parts["pseudo"]
        return {"loss": total, **{name: part.detach() for name, part in parts.items()}}

    def _features(self, pictures: Tensor, domain: DomainName) -> Tensor:
        found = self.model.encoder.features(to_input(pictures.to(self._device)), domain)
        return found.float()

    def _target_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the pictures that are labelled; 0 where none is."""
        if self._weights is None or not bool((labels != UNLABELLED).any()):
            return logits.sum() * 0
        return F.cross_entropy(logits, labels, weight=self._weights, ignore_index=UNLABELLED)

    def _pseudo_loss(
        self, features: Tensor, unlabelled: Tensor, votes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the labels that views vote for, over all unlabelled pictures.

        Returns:
            the loss, and the share of the pictures that have such a label.
        """
        if not votes:  # all of this batch are labelled; processes log the same names
            return features.sum() * 0, torch.zeros((), device=self._device)
        with torch.no_grad():
            seen = [self.model.logits(self._features(view, "target"), "target") for view in votes]
            answers = torch.stack(seen).float().masked_fill(~self._taught, -torch.inf)
            labels, sure = voted_labels(answers.softmax(dim=2), self._config.confidence)
            chosen = sure[unlabelled].float()
        with torch.autocast(self._device.type, enabled=False):
            losses = F.cross_entropy(
                self.model.logits(features[unlabelled], "target"),
                labels[unlabelled],
                reduction="none",
            )
        return (losses * chosen).mean(), chosen.mean()

    def validate(self) -> dict[str, float]:
        """How well val of the target is classified, as in fine-tuning.

        Where no label of the target may be used there is nothing to choose an epoch by, and the
        score is the epoch itself: the last one is kept.
        """
        settle_batch_norm(self.model, self._typical)
        if self._val is None:
            return {"val_score": float(self._epoch + 1)}
        return val_scores(predict_logits(self.model, self._val.pixels), self._val.labels)


def _taught(material: Material, known: Labels) -> Tensor:
    """Which of the target's classes any label teaches: pseudo labels are of these alone."""
    source, target = material.source, material.target
    return torch.tensor(
        [name in source.classes or index in known for index, name in enumerate(target.classes)]
    )
