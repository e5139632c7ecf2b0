"""Pretraining a ResNet on procedural defects without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import ResNet

from converters.dataset import Box
from converters.errors import InputError
from converters.files import read_json
from converters.geometry import region_from_mask
from toolkit import outlines
from toolkit.classify.data import letterbox, to_input
from toolkit.classify.model import build_resnet
from toolkit.classify.task import predict_logits
from toolkit.classify.weights import PRETRAIN, load_backbone
from toolkit.config import PretrainClassifierConfig
from toolkit.console import note
from toolkit.outlines import OutlineHead, without_outlines
from toolkit.pretraining import (
    FREE_ON_RESUME,
    new_pictures,
    schedule,
    share_of,
    source_domain,
    validation_pictures,
)
from toolkit.processes import Place, train_in_processes
from toolkit.runs import RunFolder
from toolkit.starter import write_packed
from toolkit.synth.picture import Instance, Sample
from toolkit.synth.registry import SURFACES
from toolkit.synth.source import SourceDomain
from toolkit.training import fit, shared_run

ANY = "defect"
"""The first output: whether there is any defect at all."""

STAGES = ("layer2", "layer3", "layer4")
"""Stages whose cells the second task asks, from the finest."""
FINEST_STRIDE = 8
"""Pixels per cell of the finest of them."""

CLOSE_UPS = 0.5
"""Share of the defective pictures of which the network sees a window around one of the defects: on
the whole picture many are so small that what kind they are is learnt late."""
CLOSENESS = (1.5, 4.0)
"""Side of such a window, as a multiple of the defect's longer side."""
SMALLEST_WINDOW = 24
"""Least side of such a window, in pixels."""
LEFT = 0.25
"""Share of a defect's pixels that must lie in the window for it to count as there."""

SURFACE_WEIGHT = 0.3
"""Weight of the question which surface it is."""

BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Batch:
    """Pictures of one step.

    Attributes:
        pixels: uint8, shape (b, side, side, 3), RGB.
        targets: float32, shape (b, outputs): 1 for what is on the picture, else 0.
        surfaces: int64, shape (b,): index of the surface in ``SURFACES``.
        covered: float32, shape (b, 1, cells, cells): the share of each cell of ``FINEST_STRIDE``
            pixels that defects cover.
    """

    pixels: Tensor
    targets: Tensor
    surfaces: Tensor
    covered: Tensor


def pretrain_classifier(config: PretrainClassifierConfig) -> RunFolder:
    """Pretrain a ResNet to say which kinds of defects are on procedural pictures.

    A picture may show several, so every kind is a question of its own (binary cross-entropy). Which
    surface it shows is another (cross-entropy): a whole picture is full of it, so that the network
    learns to see texture long before it sees defects, as with procedural categories of nothing at
    all (Kataoka et al., Pre-training without Natural Images, ACCV 2020).

    Reads no picture: everything is drawn. The run serves as ``weights`` of ``finetune classifier``;
    ``checkpoints/starter.safetensors`` is its backbone in half precision, ready for packaging.

    Raises:
        InputError: a kind of defect is unknown, the weights cannot be used, the device is not
            there, the run folder is taken, or a process of several was killed.
    """
    return train_in_processes("toolkit.classify.pretrain:pretrain_classifier", config, _pretrain)


def _pretrain(config: PretrainClassifierConfig, device: torch.device, here: Place) -> RunFolder:
    domain = source_domain(config, config.image_size)
    outputs = (ANY, *domain.kinds) if config.classes == "kinds" else (ANY,)
    answers = (*outputs, *(f"on {surface}" for surface in SURFACES))
    model = _starting_point(config, answers)
    run = shared_run(here, config.out, PRETRAIN, config, FREE_ON_RESUME, resume=config.resume)
    description = {
        "architecture": config.model,
        "classes": list(answers),
        "image_size": config.image_size,
    }
    if here.leads:
        run.write_model(description)
    task = ClassifierPretraining(model.to(device), outputs, domain, share_of(config, here))
    progress = fit(task, schedule(config, "val_score"), run, resume=config.resume)
    note(f"best: piece {progress.best_epoch}, val score {progress.best_score:.4f}")
    if here.leads:
        pack(run)
    return run


def pack(run: RunFolder) -> Path:
    """Write the best backbone of a run in half precision, ready for packaging.

    Returns:
        ``checkpoints/starter.safetensors``.
    """
    best = without_outlines(load_file(run.checkpoints / "best.safetensors"))
    backbone = {name: tensor for name, tensor in best.items() if not name.startswith("fc.")}
    path = run.checkpoints / "starter.safetensors"
    write_packed(path, backbone, read_json(run.checkpoints / "model.json"))
    return path


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
        self._collate = Labelled(config.image_size, outputs, config.seed, CLOSE_UPS)
        whole = replace(self._collate, close_ups=0)
        self._val = whole(validation_pictures(domain, config), 0)
        stages = [getattr(model, name) for name in STAGES]
        self._features: list[Tensor] = []
        for stage in stages:
            stage.register_forward_hook(lambda _, __, output: self._features.append(output))
        channels = [stage[0].conv1.out_channels * stage[0].expansion for stage in stages]
        self._outlines = OutlineHead(channels).to(next(model.parameters()).device)
        model.add_module(outlines.NAME, self._outlines)

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """Pictures that no other epoch has seen."""
        self.model.train()
        return new_pictures(self._domain, self._collate, self._config, epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropies of the kinds and of the surface, and the loss of the second task."""
        device = next(self.model.parameters()).device
        self._features.clear()
        logits = self.model(to_input(batch.pixels.to(device))).float()
        kinds, surfaces = torch.split(logits, [batch.targets.shape[1], len(SURFACES)], dim=1)
        entropy = F.binary_cross_entropy_with_logits(kinds, batch.targets.to(device))
        surface = F.cross_entropy(surfaces, batch.surfaces.to(device))
        with torch.autocast(device.type, enabled=False):
            outline = self._outlines.loss(self._features, batch.covered.to(device))
        total = entropy + SURFACE_WEIGHT * surface + self._config.outline_weight * outline
        parts = {"entropy": entropy, "surface": surface, "outline": outline}
        return {"loss": total, **{name: part.detach() for name, part in parts.items()}}

    def validate(self) -> dict[str, float]:
        """Minus the losses on procedural pictures, and how often the answers are right."""
        answers = torch.from_numpy(predict_logits(self.model, self._val.pixels.numpy()))
        targets = self._val.targets
        logits, surfaces = torch.split(answers, [targets.shape[1], len(SURFACES)], dim=1)
        surface = F.cross_entropy(surfaces, self._val.surfaces)
        known = (surfaces.argmax(dim=1) == self._val.surfaces).float().mean()
        right = (logits[:, 0] > 0) == (targets[:, 0] > 0)
        good = targets[:, 0] == 0
        balanced = (right[good].float().mean() + right[~good].float().mean()) / 2
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return {
            "val_score": -float(loss + SURFACE_WEIGHT * surface),
            "val_entropy": float(loss),
            "val_balanced_accuracy": float(balanced),
            "val_surface_accuracy": float(known),
        }


@dataclass(frozen=True)
class Labelled:
    """Makes a batch of pictures and what is on them, in the processes that draw them.

    Attributes:
        side: of the squares, in pixels.
        outputs: ``ANY``, then kinds of defects.
        seed: of the close-ups.
        close_ups: share of the defective pictures that are shown as a window around a defect.
    """

    side: int
    outputs: tuple[str, ...]
    seed: int
    close_ups: float

    def __call__(self, pictures: Sequence[Sample], number: int) -> Batch:
        """Batch ``number``, with close-ups of its own."""
        rng = np.random.default_rng([self.seed, number])
        pictures = [self._view(picture, rng) for picture in pictures]
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
            torch.tensor([list(SURFACES).index(picture.surface) for picture in pictures]),
            F.adaptive_avg_pool2d(covered, cells),
        )

    def _view(self, picture: Sample, rng: Generator) -> Sample:
        """The picture, or a window around one of its defects."""
        if rng.random() >= self.close_ups or not picture.instances:
            return picture
        chosen = picture.instances[rng.integers(len(picture.instances))]
        (x, y, w, h), _ = region_from_mask(chosen.mask)
        window = _window((x, y, w, h), picture.image.shape[:2], rng)
        instances = [Instance(each.kind, each.mask[window]) for each in picture.instances]
        left = [
            after
            for before, after in zip(picture.instances, instances, strict=True)
            if np.count_nonzero(after.mask) >= LEFT * np.count_nonzero(before.mask)
        ]
        return Sample(picture.image[window], picture.surface, tuple(left))


def _window(box: Box, shape: tuple[int, int], rng: Generator) -> tuple[slice, slice]:
    """Rows and columns of a window that holds a box somewhere, cut at the picture's border."""
    wanted = rng.uniform(*CLOSENESS) * max(box[2:])
    ranges = []
    for start, length, limit in zip(box[1::-1], box[:1:-1], shape, strict=True):
        side = min(limit, max(SMALLEST_WINDOW, round(max(wanted, length))))
        lowest, highest = max(0, int(start + length) - side), min(int(start), limit - side)
        first = int(rng.integers(lowest, max(lowest, highest) + 1))
        ranges.append(slice(first, first + side))
    return ranges[0], ranges[1]


def _covered(picture: Sample) -> NDArray[np.uint8]:
    """White where there is a defect, shape (h, w, 3)."""
    covered = np.zeros(picture.image.shape, np.uint8)
    for instance in picture.instances:
        covered[instance.mask] = 255
    return covered
