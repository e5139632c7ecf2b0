"""Pretraining detectors on procedural defects without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import supervision as sv
import torch
from safetensors.torch import load_file
from supervision.metrics import MeanAveragePrecision
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from converters.dataset import Box
from converters.geometry import region_from_mask
from toolkit import outlines
from toolkit.architectures import WORLD
from toolkit.config import PretrainYoloConfig
from toolkit.console import note
from toolkit.detect.checkpoints import load_plain_start, load_starting_point
from toolkit.detect.data import STRIDE
from toolkit.detect.detector import Detector
from toolkit.detect.embeddings import ANCHOR, ClassEmbeddings, anchored_embeddings
from toolkit.detect.models import set_classes
from toolkit.detect.weights import (
    PRETRAIN,
    RunModel,
    StartingPoint,
    pack_starter,
    save_description,
)
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
from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain
from toolkit.training import fit, shared_run

PADDING = 114
"""Grey level beside pictures that are not square, as ultralytics pads."""
SCALES = (0.8, 1.0, 1.0, 1.2)
"""Sizes of the input, as multiples of the image size; one is drawn per batch."""

FINEST_STRIDE = 8
"""Pixels per cell of the finest feature map."""

Batch: TypeAlias = dict[str, Tensor]
"""As ultralytics' loss takes it: ``img`` (B, 3, S, S) uint8, ``batch_idx`` (n,), ``cls`` (n, 1),
``bboxes`` (n, 4) as centre, width and height, 0 to 1; and ``covered`` (B, 1, C, C), the share of
each cell of ``FINEST_STRIDE`` pixels that defects cover."""


def pretrain_yolo(config: PretrainYoloConfig) -> RunFolder:
    """Pretrain a detector to find procedural defects.

    Reads no picture: everything is drawn. The run serves as ``weights`` of ``finetune yolo``; of
    YOLO-World ``checkpoints/starter.safetensors`` is the same model in half precision, ready for
    packaging.

    Raises:
        InputError: a kind of defect is unknown, the weights cannot be used, the device is not
            there, the run folder is taken, or a process of several was killed.
    """
    return train_in_processes("toolkit.detect.pretrain:pretrain_yolo", config, _pretrain)


def _pretrain(config: PretrainYoloConfig, device: torch.device, here: Place) -> RunFolder:
    domain = source_domain(config, config.image_size)
    start, known, classes = _start(config, domain)
    run = shared_run(here, config.out, PRETRAIN, config, FREE_ON_RESUME, resume=config.resume)
    source = f"procedural pictures ({config.steps} steps from {start.source})"
    if here.leads:
        model = RunModel(
            start.model, start.scale, known, config.image_size, source, arch=start.arch
        )
        save_description(run, model)
    if classes is not None:
        set_classes(start.model, classes)
    start.model.to(device)
    task = YoloPretraining(start, classes, domain, share_of(config, here))
    progress = fit(task, schedule(config, "val_ap50"), run, resume=config.resume)
    note(f"best: piece {progress.best_epoch}, val AP50 {progress.best_score:.4f}")
    if here.leads and known is not None:
        pack(run)
    return run


def _start(
    config: PretrainYoloConfig, domain: SourceDomain
) -> tuple[StartingPoint, ClassEmbeddings | None, ClassEmbeddings | None]:
    """What to train, the class embeddings that it will know, and those that learn now.

    A plain detector has none of these: its classes are those that learn now.
    """
    names = (ANCHOR,) if config.classes == "defect" else domain.kinds
    if config.arch != WORLD:
        start = load_plain_start(config.arch, names, config.weights, config.seed, trust=False)
        return start, None, None
    start = load_starting_point(config.weights, config.scale, config.seed, trust=False)
    known = anchored_embeddings(domain.kinds, config.seed, start.embeddings)
    set_classes(start.model, known)
    return start, known, known.only(names)


def pack(run: RunFolder) -> Path:
    """Write the best model of a run and its class embeddings in half precision, for packaging.

    Returns:
        ``checkpoints/starter.safetensors``.
    """
    best = without_outlines(load_file(run.checkpoints / "best.safetensors"))
    return pack_starter(run, best)


class YoloPretraining:
    """Procedural pictures in, boxes out; a ``toolkit.training.Task``."""

    def __init__(
        self,
        start: StartingPoint,
        classes: ClassEmbeddings | None,
        domain: SourceDomain,
        config: PretrainYoloConfig,
    ) -> None:
        """Train the model of ``start``, whose classes are set, in place."""
        self.model: DetectionModel = start.model
        self.model.args = get_cfg()  # the weights of the losses
        self.model.requires_grad_(True)
        channels = [branch[0].conv.in_channels for branch in self.model.model[-1].cv2]
        self._outlines = OutlineHead(channels).to(next(self.model.parameters()).device)
        self.model.add_module(outlines.NAME, self._outlines)
        self._seen = _Listener(self.model)
        self.steps = config.piece
        self._trained = RunModel(
            start.model, start.scale, classes, config.image_size, "training", arch=start.arch
        )
        self._classes, self._domain, self._config = classes, domain, config
        self._names = self._trained.names
        self._collate = Letterboxed(config.image_size, self._names, config.seed)
        self._val = validation_pictures(domain, config)

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """Pictures that no other epoch has seen."""
        self.model.train()
        return new_pictures(self._domain, self._collate, self._config, epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of ultralytics' detectors, per picture, and that of the second task."""
        device = next(self.model.parameters()).device
        images = batch["img"].to(device).float() / 255
        if self._classes is None:
            found = self.model.forward(images)
        else:
            texts = self._classes.vectors.to(device).expand(len(images), -1, -1)
            found = self.model.forward(images, txt_feats=texts)
        with torch.autocast(device.type, enabled=False):
            total, parts = self.model.loss({**batch, "img": images}, found)
            outline = self._outlines.loss(self._seen.features, batch["covered"].to(device))
        weighted = total.sum() / len(images) + self._config.outline_weight * outline
        return {"loss": weighted, **parts, "outline_loss": outline.detach()}

    def validate(self) -> dict[str, float]:
        """AP50 (of supervision) on procedural pictures: per kind, and of all kinds as one."""
        detector = Detector(self._trained, next(self.model.parameters()).device)
        typed, agnostic = MeanAveragePrecision(), MeanAveragePrecision(class_agnostic=True)
        for start in range(0, len(self._val), self._config.batch):
            pictures = self._val[start : start + self._config.batch]
            found = detector([picture.image for picture in pictures])
            truth = [self._truth(picture) for picture in pictures]
            typed.update(found, truth)
            agnostic.update(found, truth)
        return {
            "val_ap50": float(typed.compute().map50),
            "val_agnostic_ap50": float(agnostic.compute().map50),
        }

    def _truth(self, picture: Sample) -> sv.Detections:
        if not picture.instances:
            return sv.Detections.empty()
        corners = [(x, y, x + w, y + h) for x, y, w, h in _boxes(picture)]
        classes = _class_ids(picture, self._names)
        return sv.Detections(xyxy=np.array(corners, np.float32), class_id=np.array(classes, int))


class _Listener:
    """Keeps the feature maps that the head of a detector was given last, while it trains."""

    def __init__(self, model: DetectionModel) -> None:
        self.features: list[Tensor] = []
        model.model[-1].register_forward_pre_hook(self._listen)

    def _listen(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.features = list(arguments[0]) if module.training else []


@dataclass(frozen=True)
class Letterboxed:
    """Makes a batch of pictures on grey squares, in the processes that draw them.

    Attributes:
        side: of the squares, in pixels.
        names: of the classes: kinds of defects, or ``ANCHOR`` for any of them.
        seed: of the size that a batch has.
    """

    side: int
    names: tuple[str, ...]
    seed: int

    def __call__(self, pictures: Sequence[Sample], number: int) -> Batch:
        """Batch ``number``, at a size of its own."""
        squares = np.full((len(pictures), self.side, self.side, 3), PADDING, np.uint8)
        masks = np.zeros((len(pictures), 1, self.side, self.side), np.float32)
        owner: list[int] = []
        classes: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        for index, picture in enumerate(pictures):
            height, width = picture.image.shape[:2]
            top, left = (self.side - height) // 2, (self.side - width) // 2
            rows, columns = slice(top, top + height), slice(left, left + width)
            squares[index, rows, columns] = picture.image
            for instance in picture.instances:
                masks[index, 0, rows, columns][instance.mask] = 1
            for x, y, w, h in _boxes(picture):
                boxes.append((x + left + w / 2, y + top + h / 2, w, h))
            classes += _class_ids(picture, self.names)
            owner += [index] * len(picture.instances)
        images = self._resized(torch.from_numpy(squares).permute(0, 3, 1, 2), number)
        cells = images.shape[-1] // FINEST_STRIDE
        return {
            "img": images.contiguous(),
            "covered": F.adaptive_avg_pool2d(torch.from_numpy(masks), cells),
            "batch_idx": torch.tensor(owner, dtype=torch.float32),
            "cls": torch.tensor(classes, dtype=torch.float32).reshape(-1, 1),
            "bboxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / self.side,
        }

    def _resized(self, images: Tensor, number: int) -> Tensor:
        factor = float(np.random.default_rng([self.seed, number]).choice(SCALES))
        side = max(1, round(factor * self.side / STRIDE)) * STRIDE
        if side == self.side:
            return images
        resized = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
        return resized.round().to(torch.uint8)


def _boxes(picture: Sample) -> list[Box]:
    return [region_from_mask(instance.mask)[0] for instance in picture.instances]


def _class_ids(picture: Sample, names: tuple[str, ...]) -> list[int]:
    """Index of each instance's class; every kind is the first where all are found as one."""
    if names == (ANCHOR,):
        return [0] * len(picture.instances)
    return [names.index(instance.kind) for instance in picture.instances]
