"""Pretraining a ResNet on procedural defects without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import ResNet

from converters.errors import InputError
from toolkit import outlines
from toolkit.classify.data import letterbox, to_input
from toolkit.classify.model import build_resnet
from toolkit.classify.task import predict_logits
from toolkit.classify.weights import PRETRAIN, load_backbone
from toolkit.config import PretrainClassifierConfig
from toolkit.console import note
from toolkit.devices import resolve_device
from toolkit.outlines import OutlineHead, without_outlines
from toolkit.pretraining import (
    FREE_ON_RESUME,
    new_pictures,
    schedule,
    source_domain,
    validation_pictures,
)
from toolkit.runs import RunFolder
from toolkit.starter import write_packed
from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain
from toolkit.training import check_resumable, fit

ANY = "defect"
"""The first output: whether there is any defect at all."""

STAGES = ("layer2", "layer3", "layer4")
"""Stages whose cells the second task asks, from the finest."""
FINEST_STRIDE = 8
"""Pixels per cell of the finest of them."""

BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Batch:
    """Pictures of one step.

    Attributes:
        pixels: uint8, shape (b, side, side, 3), RGB.
        targets: float32, shape (b, outputs): 1 for what is on the picture, else 0.
        covered: float32, shape (b, 1, cells, cells): the share of each cell of ``FINEST_STRIDE``
            pixels that defects cover.
    """

    pixels: Tensor
    targets: Tensor
    covered: Tensor


def pretrain_classifier(config: PretrainClassifierConfig) -> RunFolder:
    """Pretrain a ResNet to say which kinds of defects are on procedural pictures.

    A picture may show several, so every kind is a question of its own (binary cross-entropy).
    Reads no picture: everything is drawn. The run serves as ``weights`` of ``finetune classifier``;
    ``checkpoints/starter.safetensors`` is its backbone in half precision, ready for packaging.

    Raises:
        InputError: a kind of defect is unknown, the weights cannot be used, the device is not
            there, or the run folder is taken.
    """
    device = resolve_device(config.device)
    domain = source_domain(config, config.image_size)
    outputs = (ANY, *domain.kinds) if config.classes == "kinds" else (ANY,)
    model = _starting_point(config, outputs)
    run = RunFolder.create(config.out, PRETRAIN, config, resume=config.resume)
    check_resumable(run, PRETRAIN, config, FREE_ON_RESUME)
    description = {
        "architecture": config.model,
        "classes": list(outputs),
        "image_size": config.image_size,
    }
    run.write_model(description)
    task = ClassifierPretraining(model.to(device), outputs, domain, config)
    progress = fit(task, schedule(config, "val_score"), run, resume=config.resume)
    note(f"best: piece {progress.best_epoch}, val score {progress.best_score:.4f}")
    best = without_outlines(load_file(run.checkpoints / "best.safetensors"))
    backbone = {name: tensor for name, tensor in best.items() if not name.startswith("fc.")}
    write_packed(run.checkpoints / "starter.safetensors", backbone, description)
    return run


def _starting_point(config: PretrainClassifierConfig, outputs: tuple[str, ...]) -> ResNet:
    torch.manual_seed(config.seed)
    if config.weights == "none":
        return build_resnet(config.model, len(outputs))
    model, architecture = load_backbone(config.weights, None, outputs)
    if architecture != config.model:
        raise InputError(f"{config.weights}: is {architecture}, not {config.model}: set model")
    return model


class ClassifierPretraining:
    """Procedural pictures in, kinds of defects out; a ``toolkit.training.Task``."""

    def __init__(
        self,
        model: ResNet,
        outputs: tuple[str, ...],
        domain: SourceDomain,
        config: PretrainClassifierConfig,
    ) -> None:
        """Train ``model``, which is on its device, in place."""
        self.model = model.to(memory_format=torch.channels_last)
        self.steps = config.piece
        self._config, self._domain = config, domain
        self._collate = Labelled(config.image_size, outputs)
        self._val = self._collate(validation_pictures(domain, config), 0)
        stages = [getattr(model, name) for name in STAGES]
        self._features: list[Tensor] = []
        for stage in stages:
            stage.register_forward_hook(lambda _, __, output: self._features.append(output))
        channels = [stage[0].conv1.out_channels * stage[0].expansion for stage in stages]
        self._outlines = OutlineHead(channels).to(next(model.parameters()).device)
        model.add_module(outlines.NAME, self._outlines)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Pictures that no other epoch has seen."""
        self.model.train()
        return new_pictures(self._domain, self._collate, self._config, epoch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy over all outputs, and the loss of the second task."""
        device = next(self.model.parameters()).device
        self._features.clear()
        logits = self.model(to_input(batch.pixels.to(device))).float()
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets.to(device))
        with torch.autocast(device.type, enabled=False):
            outline = self._outlines.loss(self._features, batch.covered.to(device))
        total = loss + self._config.outline_weight * outline
        return {"loss": total, "entropy": loss.detach(), "outline": outline.detach()}

    def validate(self) -> dict[str, float]:
        """Minus the loss on procedural pictures, and how often "any defect" is right."""
        logits = torch.from_numpy(predict_logits(self.model, self._val.pixels.numpy()))
        targets = self._val.targets
        right = (logits[:, 0] > 0) == (targets[:, 0] > 0)
        good = targets[:, 0] == 0
        balanced = (right[good].float().mean() + right[~good].float().mean()) / 2
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return {"val_score": -float(loss), "val_balanced_accuracy": float(balanced)}


@dataclass(frozen=True)
class Labelled:
    """Makes a batch of pictures and what is on them, in the processes that draw them.

    Attributes:
        side: of the squares, in pixels.
        outputs: ``ANY``, then kinds of defects.
    """

    side: int
    outputs: tuple[str, ...]

    def __call__(self, pictures: Sequence[Sample], number: int) -> Batch:
        """Any batch; its ``number`` decides nothing."""
        squares = np.stack([letterbox(picture.image, self.side) for picture in pictures])
        masks = np.stack([letterbox(_covered(picture), self.side, BLACK) for picture in pictures])
        targets = np.zeros((len(pictures), len(self.outputs)), np.float32)
        for row, picture in zip(targets, pictures, strict=True):
            kinds = {instance.kind for instance in picture.instances}
            row[:] = [bool(kinds), *(kind in kinds for kind in self.outputs[1:])]
        covered = torch.from_numpy(masks[..., 0])[:, None] / 255
        cells = -(-self.side // FINEST_STRIDE)
        return Batch(
            torch.from_numpy(squares),
            torch.from_numpy(targets),
            F.adaptive_avg_pool2d(covered, cells),
        )


def _covered(picture: Sample) -> NDArray[np.uint8]:
    """White where there is a defect, shape (h, w, 3)."""
    covered = np.zeros(picture.image.shape, np.uint8)
    for instance in picture.instances:
        covered[instance.mask] = 255
    return covered
