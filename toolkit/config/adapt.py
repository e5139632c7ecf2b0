"""Configuration of domain adaptation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.architectures import WORLD, ResNetName
from toolkit.config.base import (
    Config,
    Devices,
    ImageSize,
    NotNegative,
    NotNegativeNumber,
    Positive,
    Trackers,
    check_stride,
)

AdaptMethod = Literal["adversarial", "mmd"]
"""How features of two domains are made alike."""

SAM_NANO_SIDE = 128
"""Side of SAM nano's input, in pixels."""


class AdaptConfig(Config):
    """Teach an encoder a poor data set by a rich one (domain adaptation).

    The run is a starting point (weights) for fine-tuning.
    """

    data: Path
    """Dataset folder: the target, whose train pictures are learnt from; its val chooses the epoch
    that is kept, where labels may be used, else the last one is."""
    source: Literal["synth"] | Path
    """Where labelled pictures of another kind come from: a dataset folder (its train), or "synth"
    for procedural pictures."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    method: AdaptMethod = "mmd"
    """adversarial: a discriminator that shall not tell domains apart, through gradient reversal;
    mmd: maximum mean discrepancy with several kernels, and pseudo labels."""
    fold: NotNegative | None = None
    """Fold of the target, where it has folds."""
    source_fold: NotNegative | None = None
    """Fold of the source, where it has folds."""
    labels: NotNegative | None = None
    """Train pictures of each defect class of the target whose labels may be used, drawn by the
    seed; 0 uses no label at all, not even that of good ones; by default all."""
    model: ResNetName | Literal["nano", "yolov8-worldv2"] = "resnet18"
    """Encoder: a ResNet, whose depth is the weights' own where there are some, the image encoder of
    SAM nano, or the backbone of YOLO-World n."""
    weights: str = "none"
    """"none" (random), "starter", an official file for the model, or a run folder of one."""
    weight: NotNegativeNumber = 0.1
    """Weight of what makes the domains alike, to which that of adversarial rises over the training.
    Too much of it lays classes on the wrong ones."""
    pseudo_weight: NotNegativeNumber = 0.1
    """For mmd: weight of the pseudo labels."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 0.9
    """For mmd: least probability, averaged over the views, of a pseudo label."""
    views: Annotated[int, Field(ge=1, le=16)] = 3
    """For mmd: random views of a picture that vote for its pseudo label."""
    epochs: Positive = 50
    """Passes over the target's train pictures."""
    steps: Positive | None = None
    """Optimiser steps in all, instead of epochs; rounded up to whole ones."""
    batch: Annotated[int, Field(ge=4)] = 32
    """Pictures per step, of each domain."""
    image_size: ImageSize = 128
    """Side of the square that the target's pictures are seen at."""
    source_image_size: ImageSize | None = None
    """The same for the source's; by default that of the target."""
    optimizer: Literal["AdamW", "SGD"] = "SGD"
    """Optimiser; SGD has a momentum of 0.9."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate; by default SGD 0.01, AdamW 3e-4."""
    weight_decay: NotNegativeNumber = 5e-4
    """Weight decay."""
    resume: bool = False
    """Go on from the last whole checkpoint of the run folder."""
    device: Devices = "auto"
    """auto, cpu, mps, cuda, cuda:N, or several that share each batch."""
    workers: NotNegative = 2
    """Threads that load images."""
    track: Trackers = ()
    """Trackers that get every record of the log too: tensorboard, mlflow, wandb."""
    seed: NotNegative = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def _what_depends_on_another_field_has_it(self) -> AdaptConfig:
        fields = type(self).model_fields
        for name in ("pseudo_weight", "confidence", "views"):
            if self.method != "mmd" and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: nothing depends on it: give --method mmd, or leave it out"
                )
        if self.source == "synth" and self.source_fold is not None:
            raise ValueError("source_fold: procedural pictures have no folds: leave it out")
        return self

    @model_validator(mode="after")
    def _encoder_takes_the_sizes(self) -> AdaptConfig:
        sizes = self.image_size, self.source_image_size or self.image_size
        if self.model == "nano" and sizes != (SAM_NANO_SIDE, SAM_NANO_SIDE):
            raise ValueError(f"image_size: SAM nano sees {SAM_NANO_SIDE} pixels: leave it out")
        if self.model == WORLD:
            for size in sizes:
                check_stride(size)
        return self
