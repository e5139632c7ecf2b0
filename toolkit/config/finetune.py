"""Configurations of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.config.base import (
    Config,
    Device,
    Devices,
    Fraction,
    ImageSize,
    NotNegative,
    Positive,
    Trackers,
    check_stride,
)


class FinetuneYoloConfig(Config):
    """Fine-tune YOLO-World v2 (ultralytics) to find defects."""

    data: Path
    """Dataset folder."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    weights: str = "none"
    """"none" (random), "starter" (ours, scale n), an official .pt file (yolov8s-worldv2.pt; of a
    plain YOLOv8 the backbone alone), or a run folder."""
    scale: Literal["n", "s", "m", "l", "x"] = "n"
    """Model scale, with weights "none"; otherwise the weights' own."""
    mode: Literal["full", "freeze-backbone", "prompt", "reparam"] = "full"
    """What learns: all but the class embeddings; that without the backbone; the class embeddings
    alone (prompt); or all, with the class embeddings turned into convolutions (reparam)."""
    embeddings: Path | None = None
    """safetensors file of class embeddings (class name -> 512 numbers)."""
    epochs: Positive = 40
    """Passes over the training images."""
    image_size: ImageSize | Literal["auto"] = 640
    """Pixels of the longer side that the network sees, a multiple of 32; auto: so many that
    nineteen defects in twenty keep 8, at most 1280."""
    batch: Positive = 16
    """Images per optimiser step, of all devices together."""
    repeat: Positive = 1
    """Times each training image counts in an epoch: fewer validations where images are few."""
    sampling: Literal["uniform", "repeat-factor"] = "uniform"
    """Show all training pictures alike, or those of rare classes more often (LVIS' rule)."""
    optimizer: Literal["SGD", "AdamW"] | None = None
    """Optimiser; by default AdamW from random weights, from starters and for class embeddings
    alone, else SGD."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; by default, with AdamW, 2e-3 from random weights, 1e-3 from starters
    and 2e-4 from others; with SGD, 1e-2 from random weights and starters, 1e-3 from others; for
    class embeddings alone 2e-3."""
    weight_decay: Fraction = 5e-4
    """Weight decay; class embeddings alone have none."""
    close_mosaic: NotNegative | None = None
    """Last epochs without mosaic augmentation; by default a quarter of the epochs from random
    weights and starters, three quarters from any others."""
    patience: Positive = 30
    """Epochs without a better val AP before stopping early."""
    confidence: Fraction = 0.001
    """Lowest score that predictions keep; thresholds are chosen later, on val."""
    resume: bool = False
    """Go on from the last whole epoch of the run folder."""
    device: Devices = "auto"
    """auto, cpu, mps, cuda, cuda:N, or several (cuda:0,cuda:1) that share each batch."""
    workers: NotNegative = 2
    """Processes that load images, for each device."""
    track: Trackers = ()
    """Trackers that get every record of the log too: tensorboard, mlflow, wandb."""
    seed: NotNegative = 0
    """Seed of everything random."""
    trust: bool = False
    """Load a checkpoint that is a pickle and not on the list of known files."""

    @model_validator(mode="after")
    def _size_fits_the_strides(self) -> FinetuneYoloConfig:
        if self.image_size != "auto":
            check_stride(self.image_size)
        return self

    @model_validator(mode="after")
    def _something_was_learnt(self) -> FinetuneYoloConfig:
        if self.weights == "none" and self.mode in ("prompt", "freeze-backbone"):
            raise ValueError(
                f"mode: {self.mode} leaves random weights as they are: "
                "give weights, or another mode"
            )
        return self


class FinetuneSamConfig(Config):
    """Fine-tune SAM (segment-anything) to outline the defect in a box."""

    data: Path
    """Dataset folder; needs masks."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    model: Literal["nano", "vit_b", "vit_l", "vit_h"] = "nano"
    """Architecture; nano is small enough to train on a CPU."""
    weights: str = "none"
    """"none" (random), "starter" (ours, nano), an official file (sam_vit_b_01ec64.pth), or a run
    folder."""
    train: Literal["decoder", "all"] | None = None
    """What learns; by default all from random weights and starters, the decoder from others."""
    epochs: Positive | None = None
    """Passes over the training instances; by default 15, from random weights 40."""
    batch: Positive = 16
    """Box prompts per optimiser step, all decoded in one call."""
    repeat: Positive = 1
    """Times each instance counts in an epoch: fewer validations where instances are few."""
    sampling: Literal["uniform", "repeat-factor"] = "uniform"
    """Show all training pictures alike, or those of rare classes more often (LVIS' rule)."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default 2e-3 from random weights, 5e-4 from starters, and from others
    1e-4 for the decoder and 1e-5 for all."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay."""
    box_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Standard deviation of the noise on box corners, as a share of the side; at most 20 px."""
    patience: Positive | None = None
    """Epochs without a better val IoU before stopping; by default a third of all, at least 5."""
    resume: bool = False
    """Go on from the last whole checkpoint of the run folder."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: NotNegative = 2
    """Threads that load images."""
    track: Trackers = ()
    """Trackers that get every record of the log too: tensorboard, mlflow, wandb."""
    seed: NotNegative = 0
    """Seed of everything random."""


class FinetuneClassifierConfig(Config):
    """Fine-tune a ResNet (torchvision) to say "good" or which defect for the whole picture."""

    data: Path
    """Dataset folder."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    model: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """Architecture, with weights "none"; otherwise the weights' own."""
    weights: str = "none"
    """"none" (random), "starter" (ours, resnet18), a file of torchvision (resnet18-f37072fd.pth), a
    .safetensors file with the same parameter names, or a run folder."""
    train: Literal["all", "layer4", "head"] = "all"
    """What learns: everything, the last stage and the head, or the head alone."""
    epochs: Positive | None = None
    """Passes over the training pictures; by default 30, from random weights 80."""
    batch: Annotated[int, Field(ge=2)] = 32
    """Pictures per optimiser step."""
    image_size: ImageSize = 128
    """Side of the square that the network sees; longer sides are resized to it, the rest padded."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default all 1e-4, layer4 3e-4, head 1e-3; all from random weights
    1e-3, all from starters 3e-4."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""
    augment: bool = True
    """Change training pictures at random: flips, turns, small zoom, brightness, contrast."""
    class_weights: bool = True
    """Weigh the loss by the classes' inverse frequency, at most ten to one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""
    repeat: Positive = 1
    """Times each training picture counts in an epoch; more on tiny datasets, for fewer, longer
    epochs between validations."""
    sampling: Literal["uniform", "repeat-factor"] = "uniform"
    """Show all training pictures alike, or those of rare classes more often (LVIS' rule)."""
    patience: Positive | None = None
    """Epochs without a better val score before stopping; by default a third of all, at least 10."""
    resume: bool = False
    """Go on from the last whole checkpoint of the run folder."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: NotNegative = 2
    """Threads that load images."""
    track: Trackers = ()
    """Trackers that get every record of the log too: tensorboard, mlflow, wandb."""
    seed: NotNegative = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def _something_was_learnt(self) -> FinetuneClassifierConfig:
        if self.weights == "none" and self.train != "all":
            raise ValueError(
                f"train: {self.train} leaves random weights as they are: give weights, or train all"
            )
        return self
