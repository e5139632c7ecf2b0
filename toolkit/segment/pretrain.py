"""Pretraining SAM nano on procedural defects without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from converters.dataset import Box
from converters.errors import InputError
from converters.geometry import region_from_mask
from toolkit import outlines
from toolkit.config import PretrainSamConfig
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
from toolkit.segment.data import Batch, BatchBuilder
from toolkit.segment.losses import MEDSAM_LOSSES
from toolkit.segment.model import ARCHITECTURES, ArchitectureName, build_sam, encode
from toolkit.segment.prompts import jitter_box
from toolkit.segment.sam import Sam
from toolkit.segment.segmenter import Segmenter
from toolkit.segment.task import batch_losses, loss_cells
from toolkit.segment.views import random_zoomed_view
from toolkit.segment.weights import PRETRAIN, load_sam
from toolkit.starter import write_packed
from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain
from toolkit.training import check_resumable, fit

MODEL: ArchitectureName = "nano"


def pretrain_sam(config: PretrainSamConfig) -> RunFolder:
    """Pretrain SAM nano to outline procedural defects in boxes.

    Reads no picture: everything is drawn. The run serves as ``weights`` of ``finetune sam``;
    ``checkpoints/starter.safetensors`` is the same model in half precision, ready for packaging.

    Raises:
        InputError: a kind of defect is unknown, the weights cannot be used, the device is not
            there, or the run folder is taken.
    """
    device = resolve_device(config.device)
    domain = source_domain(config, config.picture_size)
    sam = _starting_point(config)
    run = RunFolder.create(config.out, PRETRAIN, config, resume=config.resume)
    check_resumable(run, PRETRAIN, config, FREE_ON_RESUME)
    run.write_model({"architecture": MODEL})
    task = SamPretraining(sam.to(device), domain, config)
    progress = fit(task, schedule(config, "val_iou"), run, resume=config.resume)
    note(f"best: piece {progress.best_epoch}, val IoU {progress.best_score:.4f}")
    pack(run)
    return run


def pack(run: RunFolder) -> Path:
    """Write the best model of a run in half precision, ready for packaging.

    Returns:
        ``checkpoints/starter.safetensors``.
    """
    best = without_outlines(load_file(run.checkpoints / "best.safetensors"))
    path = run.checkpoints / "starter.safetensors"
    write_packed(path, best, {"architecture": MODEL})
    return path


def _starting_point(config: PretrainSamConfig) -> Sam:
    if config.weights == "none":
        torch.manual_seed(config.seed)
        return build_sam(MODEL)
    sam, architecture = load_sam(config.weights)
    if architecture != MODEL:
        raise InputError(f"{config.weights}: is {architecture}: only {MODEL} is pretrained")
    return sam


class SamPretraining:
    """Boxes around procedural defects in, outlines out; a ``toolkit.training.Task``."""

    def __init__(self, sam: Sam, domain: SourceDomain, config: PretrainSamConfig) -> None:
        """Train ``sam``, which is on its device, in place."""
        self.model = sam
        self.steps = config.piece
        self._config = config
        self._domain = domain
        self._collate = CutPrompts(sam.image_encoder.img_size, loss_cells(sam), config)
        self._val = validation_pictures(domain, config)
        sam.requires_grad_(True)
        self._outlines = OutlineHead([ARCHITECTURES[MODEL].embedding_width]).to(sam.device)
        sam.add_module(outlines.NAME, self._outlines)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Pictures that no other epoch has seen."""
        return new_pictures(self._domain, self._collate, self._config, epoch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of MedSAM, and that of the second task on the embeddings."""
        embeddings = encode(self.model, batch.pixels)
        losses = batch_losses(self.model, embeddings, batch, MEDSAM_LOSSES)
        covered = batch.targets[:, None].to(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            outline = self._outlines.loss([embeddings], covered)
        return {**losses, "loss": losses["loss"] + outline, "outline": outline.detach()}

    def validate(self) -> dict[str, float]:
        """Mean IoU over procedural defects, from exact boxes, in pixels of the pictures."""
        segmenter = Segmenter(self.model, MODEL)
        ious: list[float] = []
        filled: list[float] = []
        for picture in self._val:
            truths = [instance.mask for instance in picture.instances]
            boxes = [region_from_mask(truth)[0] for truth in truths]
            for mask, truth, box in zip(
                segmenter(picture.image, boxes)[0], truths, boxes, strict=True
            ):
                ious.append(np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth))
                filled.append(np.count_nonzero(truth) / (box[2] * box[3]))
        return {"val_iou": float(np.mean(ious)), "val_box_filled_iou": float(np.mean(filled))}


@dataclass(frozen=True)
class CutPrompts:
    """Makes a batch of prompts from pictures, in the processes that draw them.

    Attributes:
        side: of the encoder's input, in pixels.
        cells: side of the square that masks are compared on.
        config: batch, jitter and seed.
    """

    side: int
    cells: int
    config: PretrainSamConfig

    def __call__(self, pictures: Sequence[Sample], number: int) -> Batch:
        """A window around each defect of the pictures of batch ``number``."""
        rng = np.random.default_rng([self.config.seed, number])
        builder = BatchBuilder(self.side, self.cells)
        zoom = ARCHITECTURES[MODEL].zoom
        assert zoom is not None, "windows are what nano sees"
        for index, picture in enumerate(pictures):
            height, width = picture.image.shape[:2]
            regions = [region_from_mask(instance.mask) for instance in picture.instances]
            boxes: list[Box] = [
                jitter_box(box, self.config.box_jitter, height, width, rng) for box, _ in regions
            ]
            views = [random_zoomed_view(box, height, width, zoom, rng) for box in boxes]
            builder.add(str(index), picture.image, views, range(len(views)), boxes, regions)
        return builder.build()
