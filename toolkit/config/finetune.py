"""Configurations of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.architectures import WORLD, SamName
from toolkit.config.base import (
    Config,
    Devices,
    Fraction,
    ImageSize,
    NotNegative,
    NotNegativeNumber,
    Overlap,
    Positive,
    Trackers,
    check_architecture,
    check_scale,
    check_stride,
)
from toolkit.config.losses import PRESETS, LossWeights
from toolkit.known_weights import CLIP


class FinetuneYoloConfig(Config):
    """Fine-tune YOLO-World v2, or a plain detector (ultralytics), to find defects."""

    data: Path
    """Dataset folder."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    weights: str = "none"
    """"none" (random), "starter" (ours, scale n), an official .pt file (yolov8s-worldv2.pt; of a
    plain YOLOv8 the backbone alone), or a run folder; for a plain detector its own, or what has its
    backbone."""
    arch: str = WORLD
    """yolov8-worldv2 (YOLO-World), or a plain detector to compare with: yolov8n, yolo11s, yolo26n,
    rtdetr-l, …"""
    scale: Literal["n", "s", "m", "l", "x"] = "n"
    """Scale of YOLO-World, with weights "none"; otherwise the weights' own."""
    mode: Literal["full", "freeze-backbone", "prompt", "reparam"] = "full"
    """What learns: all but the class embeddings; that without the backbone; the class embeddings
    alone (prompt); or all, with the class embeddings turned into convolutions (reparam)."""
    embeddings: Path | None = None
    """safetensors file of class embeddings (class name -> 512 numbers), or a .yaml file of phrases
    (class name -> what it is called in words), which needs the weights of CLIP."""
    clip: str = CLIP
    """Weights of CLIP ViT-B/32 for phrases: "clip-vit-b-32" (the official file in weights/), or a
    file."""
    open_vocabulary: bool = False
    """Keep the vocabulary open, so that `toolkit predict --embeddings` can look for other classes:
    what reads class embeddings is frozen, and pictures of the replay are shown in between."""
    replay: Path | None = None
    """Dataset folder of other classes whose train pictures keep the vocabulary open."""
    replay_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the pictures of an epoch that are of the replay."""
    epochs: Positive = 40
    """Passes over the training images."""
    steps: Positive | None = None
    """Optimiser steps in all, instead of epochs; an epoch, after which val is looked at, then has
    at least 20 of them, and pictures come in it as often as that takes."""
    image_size: ImageSize | Literal["auto"] = 640
    """Pixels of the longer side that the network sees, a multiple of 32; auto: so many that
    nineteen defects in twenty keep 8, at most 1280."""
    tile: ImageSize | None = None
    """Cut pictures into windows of so many pixels, for training and for prediction, each of which
    the network sees at image_size: for small defects on large pictures. By default none is cut."""
    tile_overlap: Overlap = 0.2
    """Share of a window's side that neighbours have in common, 0 to 0.9."""
    tile_background: NotNegativeNumber = 1.0
    """Windows without defects in an epoch, for each with one, at most."""
    batch: Positive = 16
    """Images, or windows of them, per optimiser step, of all devices together."""
    repeat: Positive = 1
    """Times each training image counts in an epoch: fewer validations where images are few."""
    sampling: Literal["uniform", "repeat-factor"] = "uniform"
    """Show all training pictures alike, or those of rare classes more often (LVIS' rule)."""
    optimizer: Literal["SGD", "AdamW"] | None = None
    """Optimiser; by default AdamW, but SGD for YOLO-World from weights that know photographs, class
    embeddings alone excepted."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; by default, with AdamW, 2e-3 from random weights, 1e-3 from starters
    and 2e-4 from others; with SGD, 1e-2 from random weights and starters, 1e-3 from others; for
    class embeddings alone 2e-3; for plain detectors from photographs 0.01 / (4 + classes), for
    RT-DETR 1e-4."""
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
    def _detector_can_do_it(self) -> FinetuneYoloConfig:
        check_architecture(self.arch)
        if self.arch != WORLD:
            if self.mode in ("prompt", "reparam"):
                raise ValueError(
                    f"mode: {self.mode} is for class embeddings, and {self.arch} has none: "
                    "give full or freeze-backbone"
                )
            if self.embeddings is not None:
                raise ValueError(f"embeddings: {self.arch} has none: leave them out")
            if self.open_vocabulary:
                raise ValueError(f"open_vocabulary: {self.arch} has none: leave it out")
        check_scale(self.arch, self.scale, "scale" in self.model_fields_set)
        return self

    @model_validator(mode="after")
    def _tiles_are_asked_for(self) -> FinetuneYoloConfig:
        for name in ("tile_overlap", "tile_background"):
            default = type(self).model_fields[name].default
            if self.tile is None and getattr(self, name) != default:
                raise ValueError(f"{name}: pictures are not cut into tiles: give tile as well")
        return self

    @model_validator(mode="after")
    def _something_was_learnt(self) -> FinetuneYoloConfig:
        if self.weights == "none" and self.mode in ("prompt", "freeze-backbone"):
            raise ValueError(
                f"mode: {self.mode} leaves random weights as they are: "
                "give weights, or another mode"
            )
        return self

    @model_validator(mode="after")
    def _open_vocabulary_is_kept_by_replay(self) -> FinetuneYoloConfig:
        if not self.open_vocabulary:
            share = type(self).model_fields["replay_share"].default
            if self.replay is not None or self.replay_share != share:
                raise ValueError("replay: keeps a vocabulary open: give --open-vocabulary with it")
            return self
        if self.replay is None:
            raise ValueError("open_vocabulary: needs pictures of other classes: give --replay")
        if self.mode not in ("full", "freeze-backbone"):
            raise ValueError(
                f"open_vocabulary: --mode {self.mode} learns the classes themselves: "
                "give --mode full or freeze-backbone"
            )
        if self.weights == "none":
            raise ValueError("open_vocabulary: random weights have none to keep: give weights")
        if self.tile is not None:
            raise ValueError("open_vocabulary: pictures of a replay are not cut: leave tile out")
        if self.image_size != "auto" and self.image_size < 64:
            raise ValueError("open_vocabulary: needs an image_size of 64 or more")
        return self


class FinetuneSamConfig(Config):
    """Fine-tune SAM, MobileSAM or SAM 2 to outline the defect in a box."""

    data: Path
    """Dataset folder; needs masks."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    model: SamName = "nano"
    """Architecture, with weights "none"; otherwise the weights' own. nano is small enough to train
    on a CPU, vit_t (MobileSAM) for its decoder to; vit_b to vit_h are SAM's, the others SAM 2's."""
    weights: str = "none"
    """"none" (random), "starter" (ours, nano), an official file (sam_vit_b_01ec64.pth,
    mobile_sam.pt, sam2.1_hiera_tiny.pt), or a run folder."""
    train: Literal["decoder", "decoder+prompt", "lora", "all"] | None = None
    """What learns: the mask decoder; it and the prompt encoder; it and low-rank adapters in the
    image encoder (lora); or all. By default all from random weights and starters, the decoder from
    others."""
    lora_rank: Positive = 4
    """Rank of the adapters that train lora puts on the encoder's queries and values."""
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """Strength of the adapters, over their rank; by default the rank."""
    epochs: Positive | None = None
    """Passes over the training instances; by default 15, from random weights 40."""
    batch: Positive = 16
    """Box prompts decoded in one call, or in one on each of several devices together."""
    accumulate: Positive = 1
    """Batches per optimiser step, which follows the mean of their gradients: as a batch so many
    times as large, where memory is too small for it."""
    repeat: Positive = 1
    """Times each instance counts in an epoch: fewer validations where instances are few."""
    sampling: Literal["uniform", "repeat-factor"] = "uniform"
    """Show all training pictures alike, or those of rare classes more often (LVIS' rule)."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default 2e-3 from random weights, 5e-4 from starters, and from others
    1e-5 for all and 1e-4 for anything less."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor between the rates of a block of the image encoder and of the one before it, the last
    being at the full rate; 0.8 to 0.9 keeps early blocks as they are where all learns."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a moving average of the weights, which is then what is validated and kept
    (0.99, or 0.999 for thousands of steps); 0 keeps the weights themselves."""
    prompts: tuple[Literal["box", "point", "box+point"], ...] = ("box",)
    """What it is asked by in training, one kind per step, drawn evenly: box, point (anywhere on the
    defect), box+point; the first chooses the best epoch."""
    box_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Standard deviation of the noise on box corners, as a share of the side; at most 20 px."""
    clicks: Annotated[int, Field(ge=0, le=16)] = 0
    """Corrective clicks per prompt, each on what is wrong with the answer before it, and answered
    again; SAM itself had 8."""
    negatives: Annotated[float, Field(ge=0, le=4)] = 0.0
    """Prompts on good surfaces, whose right answer is nothing, for each prompt on a defect: the
    estimated IoU becomes a score by which boxes can be rejected."""
    context: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Side of the window around each box that the encoder sees, in longer sides of the box, at
    least 1; 0: the whole picture. By default as the weights were trained: nano 1.5, official ones
    0."""
    loss: LossWeights = PRESETS["sam"]
    """What is minimised, by weight: focal, dice, bce (cross entropy) and boundary (distance of what
    is wrong from the edge) for the mask, iou (error of its estimate); or a preset: sam, medsam."""
    multimask: bool = False
    """Let the decoder give three masks for a first prompt: in training the best of them learns, at
    work the surest counts."""
    patience: Positive | None = None
    """Epochs without a better val IoU before stopping; by default a third of all, at least 5."""
    cache: Path | None = None
    """Folder that keeps what a frozen image encoder makes of the pictures (train decoder,
    decoder+prompt), for later runs too; by default defect-toolkit/embeddings in your cache folder,
    or embeddings in that of $TOOLKIT_CACHE."""
    cache_gb: NotNegativeNumber = 8.0
    """Gigabytes that the cache may take in all: what was used least recently goes. 0 writes no
    files and keeps embeddings in memory."""
    cache_views: Positive = 1
    """Views of each group of instances that a frozen encoder makes embeddings of: the plain one,
    and random windows, turned and mirrored; each step draws one. 1 is the plain one alone."""
    resume: bool = False
    """Go on from the last whole checkpoint of the run folder."""
    device: Devices = "auto"
    """auto, cpu, mps, cuda, cuda:N, or several (cuda:0,cuda:1) that share each batch."""
    workers: NotNegative = 2
    """Threads that load images."""
    track: Trackers = ()
    """Trackers that get every record of the log too: tensorboard, mlflow, wandb."""
    seed: NotNegative = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def _adapters_are_asked_for(self) -> FinetuneSamConfig:
        for name in ("lora_rank", "lora_alpha"):
            default = type(self).model_fields[name].default
            if self.train != "lora" and getattr(self, name) != default:
                raise ValueError(f"{name}: is for adapters: give train lora as well")
        return self

    @model_validator(mode="after")
    def _prompts_make_sense(self) -> FinetuneSamConfig:
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError("prompts: give each kind once: box, point, box+point")
        if self.prompts == ("point",):
            raise ValueError("prompts: predictions ask by boxes: give box or box+point as well")
        if self.context is not None and 0 < self.context < 1:
            raise ValueError(
                f"context: a window of {self.context:g} sides cuts the box off: give 1 or more, or "
                "0 for the whole picture"
            )
        if self.negatives and not self.loss.get("iou"):
            raise ValueError(
                "negatives: teach the estimate of the IoU: give it a weight (--loss …,iou=1)"
            )
        return self

    @model_validator(mode="after")
    def _something_was_learnt(self) -> FinetuneSamConfig:
        if self.weights == "none" and self.train == "lora":
            raise ValueError(
                "train: lora leaves random weights as they are: give weights, or train all"
            )
        return self
