"""Configuration of the image-level head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.architectures import ResNetName
from toolkit.config.adapt import AdaptMethod
from toolkit.config.base import (
    Config,
    Devices,
    ImageSize,
    NotNegative,
    NotNegativeNumber,
    Positive,
    Trackers,
)

Augmentation = Literal["auto", "flip", "turn", "rotate", "light", "autoaugment"]
"""A random change of training pictures: mirrored, turned by 90°, turned a little and zoomed,
brighter or darker, or the policy that AutoAugment found on ImageNet; auto stands for those that
suit the pictures."""

GeneratorName = Literal["smote", "autoencoder", "lro", "dac", "ecrt"]
"""Who makes samples of rare classes."""


class FinetuneClassifierConfig(Config):
    """Fine-tune a ResNet (torchvision) to say "good" or which defect for the whole picture."""

    data: Path
    """Dataset folder."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    labels: Positive | None = None
    """Train pictures of each defect class whose labels may be used, drawn by the seed; the others
    are left out, but for domain adaptation, which takes them without labels. Good pictures and val
    stay whole."""
    model: ResNetName = "resnet18"
    """Architecture, with weights "none"; otherwise the weights' own."""
    weights: str = "none"
    """"none" (random), "starter" (ours, resnet18), a file of torchvision (resnet18-f37072fd.pth), a
    .safetensors file with the same parameter names, or a run folder, of `toolkit adapt` too."""
    source: Literal["synth"] | Path | None = None
    """Where labelled pictures of another kind come from, to adapt from before fine-tuning (adapt):
    a dataset folder, or "synth" for procedural pictures."""
    source_fold: NotNegative | None = None
    """Fold of the source, where it has folds."""
    adapt: AdaptMethod | None = None
    """Adapt from the source first, as `toolkit adapt` does with its defaults and this batch and
    image_size: adversarial (gradient reversal) or mmd (maximum mean discrepancy, and pseudo
    labels)."""
    train: Literal["all", "layer4", "head"] = "all"
    """What learns: everything, the last stage and the head, or the head alone."""
    epochs: Positive | None = None
    """Passes over the training pictures; by default 30, from random weights 80."""
    steps: Positive | None = None
    """Optimiser steps in all, instead of epochs, rounded up to whole ones; an epoch, after which
    val is looked at, then has at least 20, and pictures come in it as often as that takes."""
    batch: Annotated[int, Field(ge=2)] = 32
    """Pictures per batch, of all devices together."""
    accumulate: Positive = 1
    """Batches per optimiser step, which follows the mean of their gradients; batch normalisation
    sees one batch of one device at a time."""
    image_size: ImageSize = 128
    """Side of the square that the network sees; longer sides are resized to it, the rest padded."""
    optimizer: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    """Optimiser; SGD has a momentum of 0.9."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate; by default, with AdamW and Adam, all 1e-4, layer4 3e-4, head 1e-3, all from random
    weights 1e-3, all from starters or adapted ones 3e-4; with SGD a hundred times that of all,
    layer4 and head 0.01."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """How the rate falls: as a cosine to 0, to a tenth whenever the val score has stood still for a
    third of the patience (at least 2 epochs), or never."""
    weight_decay: NotNegativeNumber = 1e-4
    """Weight decay; AdamW decouples it from the gradients, Adam and SGD add it to them."""
    augment: tuple[Augmentation, ...] = ("auto",)
    """Random changes of training pictures: flip, turn (by 90°), rotate (a little, and zoom), light,
    autoaugment; "" for none. auto: the first four; on parts that always lie alike rotate and light,
    because a part that lies another way may be a defective one."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest angle of rotate, in degrees."""
    mixup: NotNegativeNumber = 0.0
    """Mix pictures of a batch in pairs, and their labels alike, by shares from Beta(mixup, mixup);
    0 mixes none, 0.2 is usual."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """Loss; focal gives less weight to what is sure already."""
    focal_gamma: NotNegativeNumber = 2.0
    """For focal: exponent."""
    class_weights: Literal["inverse", "effective", "none"] = "inverse"
    """Weigh the loss by the classes' inverse frequency in an epoch, at most ten to one; by the
    inverse of their effective number of pictures, which grows slower than the number; or alike."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""
    repeat: Positive = 1
    """Times each training picture counts in an epoch; more on tiny datasets, for fewer, longer
    epochs between validations."""
    sampling: Literal["uniform", "repeat-factor", "balanced"] = "uniform"
    """Show all training pictures alike, those of rare classes more often (LVIS' rule), or all
    classes alike."""
    generate: GeneratorName | None = None
    """Make more samples of rare classes: of features, on which the head is then trained once more
    (smote, dac, ecrt), or of pictures, before training (autoencoder, lro)."""
    generate_to: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What rare classes are grown to, as a share of the most frequent one."""
    outliers: Literal["synth"] | Path | None = None
    """Pictures of anything else, on which the network learns to be undecided (outlier exposure): a
    folder of pictures (with those of its folders), a dataset folder (its train; of fold 0 where it
    has folds alone), or "synth" for procedural ones. None may be a picture of data."""
    outlier_weight: NotNegativeNumber = 0.5
    """Weight of that in the loss."""
    calibrate: bool = True
    """Divide logits by a temperature that fits val best, so that probabilities are as sure as they
    are right; verdicts stay."""
    pictures: bool = True
    """Also draw what the network sees into pictures/: its features in two dimensions, and where on
    held-out pictures its verdicts come from."""
    patience: Positive | None = None
    """Epochs without a better val score before stopping; by default a third of all, at least 10."""
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
    def _something_was_learnt(self) -> FinetuneClassifierConfig:
        if self.weights == "none" and self.train != "all" and self.adapt is None:
            raise ValueError(
                f"train: {self.train} leaves random weights as they are: give weights, or train all"
            )
        return self

    def _check_new_head(self) -> None:
        """Refuse what a head that is learnt once more would not heed."""
        if self.outliers is not None:
            raise ValueError(
                f"outliers: a head from {self.generate} would unlearn them: leave one of them out"
            )
        if self.class_weights == "effective":
            raise ValueError(
                f"class_weights: a head from {self.generate} knows inverse and none: give one"
            )
        for name in ("sampling", "loss", "label_smoothing", "mixup"):
            default = type(self).model_fields[name].default
            if self.train == "head" and getattr(self, name) != default:
                raise ValueError(
                    f"{name}: is for training, of which a head from {self.generate} leaves nothing "
                    "where the head alone is trained: leave it out"
                )

    @model_validator(mode="after")
    def _what_depends_on_another_field_has_it(self) -> FinetuneClassifierConfig:
        if (self.source is None) != (self.adapt is None):
            given, lacks = ("adapt", "source") if self.source is None else ("source", "adapt")
            raise ValueError(f"{given}: needs the other one, too: give --{lacks}")
        for name in ("epochs", "repeat"):
            given = getattr(self, name) != type(self).model_fields[name].default
            if self.steps is not None and given:
                raise ValueError(f"steps: are given instead of {name}: leave one of them out")
        for name, needs, there in (
            ("source_fold", "a dataset as --source", self.source not in (None, "synth")),
            ("focal_gamma", "--loss focal", self.loss == "focal"),
            ("generate_to", "--generate", self.generate is not None),
            ("outlier_weight", "--outliers", self.outliers is not None),
            ("rotation", "--augment rotate", not {"auto", "rotate"}.isdisjoint(self.augment)),
        ):
            if not there and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: nothing depends on it: give {needs}, or leave it out")
        if self.generate in ("smote", "dac", "ecrt"):
            self._check_new_head()
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("augment: give each change once")
        if "auto" in self.augment and len(self.augment) > 1:
            raise ValueError("augment: auto stands for all that suits: give it alone")
        return self
