"""Configurations of pretraining on procedural pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.architectures import WORLD, ResNetName, is_transformer
from toolkit.config.base import (
    Config,
    Devices,
    Fraction,
    ImageSize,
    NotNegative,
    Positive,
    Trackers,
    check_architecture,
    check_scale,
    check_stride,
)


class PretrainConfig(Config):
    """What pretraining on procedural pictures has in common, whatever the model."""

    out: Path
    """Run folder to make, or to go on with (resume)."""
    weights: str = "none"
    """What to go on from: "none" (random), "starter", or a run folder."""
    kinds: tuple[str, ...] = ()
    """Kinds of defects that are drawn; all of them where not given."""
    steps: Positive = 20000
    """Optimiser steps in all, rounded up to whole pieces."""
    ramp: Fraction = 0.3
    """Share of the steps over which easy pictures give way to all others."""
    piece: Positive = 500
    """Optimiser steps between validations, after each of which the run can be resumed."""
    val_pictures: Positive = 256
    """Procedural pictures to validate on, drawn from another seed."""
    batch: Annotated[int, Field(ge=8)] = 32
    """Pictures per optimiser step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak rate of AdamW."""
    weight_decay: Fraction = 0.01
    """Weight decay."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay per step of the moving average of the weights, which is what is kept."""
    resume: bool = False
    """Go on from the last whole piece of the run folder."""
    device: Devices = "auto"
    """auto, cpu, mps, cuda, cuda:N, or several (cuda:0,cuda:1) that share each batch."""
    workers: NotNegative = 1
    """Processes that draw pictures."""
    track: Trackers = ()
    """Trackers that get every record of the log too: tensorboard, mlflow, wandb."""
    seed: NotNegative = 0
    """Seed of everything random."""


class PretrainYoloConfig(PretrainConfig):
    """Pretrain a detector on procedural defects without end."""

    arch: str = WORLD
    """yolov8-worldv2 (YOLO-World), or a plain YOLO (yolov8n, yolo11n, yolo26n, …)."""
    scale: Literal["n", "s", "m", "l", "x"] = "n"
    """Scale of YOLO-World, with weights "none"; otherwise the weights' own."""
    classes: Literal["kinds", "defect"] = "kinds"
    """Tell the kinds of defects apart, or find them all as "defect"."""
    image_size: ImageSize = 160
    """Pixels of the square that the network sees; a multiple of 32."""
    outline_weight: Annotated[float, Field(ge=0)] = 2.0
    """Weight of a second task, in which every cell says whether a defect covers it; 0 for none."""

    @model_validator(mode="after")
    def _detector_can_do_it(self) -> PretrainYoloConfig:
        check_stride(self.image_size)
        check_architecture(self.arch)
        check_scale(self.arch, self.scale, "scale" in self.model_fields_set)
        if is_transformer(self.arch):
            raise ValueError(f"arch: {self.arch} is not pretrained on procedural pictures so far")
        return self


class PretrainSamConfig(PretrainConfig):
    """Pretrain SAM nano on procedural defects without end."""

    picture_size: ImageSize = 192
    """Pixels of the longer side of the pictures that windows are cut from."""
    batch: Annotated[int, Field(ge=8)] = 12
    """Pictures per optimiser step; each has one to four prompts."""
    box_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Standard deviation of the noise on box corners, as a share of the side; at most 20 px."""


class PretrainClassifierConfig(PretrainConfig):
    """Pretrain a ResNet on procedural defects without end."""

    model: ResNetName = "resnet18"
    """Architecture."""
    classes: Literal["kinds", "defect"] = "kinds"
    """Tell the kinds of defects apart, or only defective pictures from good ones."""
    image_size: ImageSize = 128
    """Pixels of the square that the network sees."""
    outline_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a second task, in which every cell says whether a defect covers it; 0 for none."""
