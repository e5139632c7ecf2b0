"""Detectors as networks: YOLO-World v2 and plain ones, with random weights.

References: YOLO-World (arXiv 2401.17270), in the v2 architecture of ultralytics; RT-DETR (arXiv
2304.08069).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import nn
from ultralytics.nn.tasks import (
    DetectionModel,
    RTDETRDetectionModel,
    WorldModel,
    yaml_model_load,
)
from ultralytics.utils import ROOT

from toolkit.architectures import PLAIN, WORLD, is_transformer, scale_of
from toolkit.detect.embeddings import MAX_CLASSES, ClassEmbeddings
from toolkit.devices import has_bfloat16

Scale = Literal["n", "s", "m", "l", "x"]

_SCORE_PRIOR = -7.0  # logit of 0.1 %, about the share of positions that a defect is assigned to
_FILES = ROOT / "cfg" / "models"


class _MixedPrecision(nn.Module):
    """Learns in bfloat16 on processors that are made for it.

    ultralytics mixes precision on GPUs only. What losses are given is in single precision: their
    distributions over pixels need more digits than bfloat16 has.
    """

    def predict(self, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """As ultralytics' ``predict``; training on a CPU in bfloat16 where that is native."""
        mixed = self.training and x.device.type == "cpu" and has_bfloat16(x.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = super().predict(x, *arguments, **options)  # type: ignore[misc]
        return _in_full(found) if self.training else found


class MixedWorldModel(_MixedPrecision, WorldModel):  # type: ignore[misc]
    """YOLO-World in mixed precision."""

    def get_text_pe(self, text: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        """Refuse: the one place where ultralytics would install CLIP and ask it for embeddings.

        Here they are handed in: see ``set_classes``, ``toolkit.detect.prompts`` for phrases, and
        ``OfflineWorldTrainer`` for those of training.
        """
        raise RuntimeError(f"ultralytics asked for CLIP: set class embeddings of {text!r} instead")


class MixedDetectionModel(_MixedPrecision, DetectionModel):  # type: ignore[misc]
    """A plain YOLO in mixed precision."""


def _in_full(found: Any) -> Any:
    """Whatever a head gives, in single precision."""
    if isinstance(found, torch.Tensor):
        return found.float()
    if isinstance(found, dict):
        return {name: _in_full(value) for name, value in found.items()}
    return type(found)(_in_full(value) for value in found)


def build_model(scale: Scale, seed: int = 0) -> WorldModel:
    """YOLO-World v2 with random weights.

    It is always built for 80 classes, as the official files are, since at scale n the width of the
    head depends on that number; ``set_classes`` then sets the real ones, which changes no tensor.
    """
    architecture = yaml_model_load(_FILES / "v8" / f"{WORLD}.yaml")
    architecture["scale"] = scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MixedWorldModel(architecture, nc=MAX_CLASSES, verbose=False)


def build_plain(name: str, classes: tuple[str, ...], seed: int = 0) -> DetectionModel:
    """A plain detector with random weights.

    Args:
        name: one of ``toolkit.architectures.PLAIN``.
        classes: in order; the last layers have as many outputs.
        seed: of the weights.
    """
    architecture = yaml_model_load(_FILES / PLAIN[name])
    architecture["scale"] = scale_of(name)
    kind = RTDETRDetectionModel if is_transformer(name) else MixedDetectionModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(architecture, nc=len(classes), verbose=False)
    model.names = dict(enumerate(classes))
    return model


def set_classes(model: WorldModel, embeddings: ClassEmbeddings) -> None:
    """Make the model look for these classes: ``WorldModel.set_classes`` without CLIP."""
    model.txt_feats = embeddings.vectors[None].clone()
    model.model[-1].nc = len(embeddings.names)
    model.nc = len(embeddings.names)
    model.names = dict(enumerate(embeddings.names))


def backbone_layers(model: DetectionModel) -> int:
    """How many layers, from the first, are the backbone."""
    return len(cast(dict[str, Any], model.yaml)["backbone"])


def prepare_to_learn(model: DetectionModel) -> None:
    """Let batch statistics follow weights that are far from their goal.

    ultralytics is tuned for long training. With a few steps per epoch, its statistics (momentum
    0.03) lag so far behind random weights that AP on val stays 0 for the first hundred steps.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def lower_scores(model: WorldModel) -> None:
    """Start random scores where they belong.

    AdamW moves their bias by one learning rate per step on its long way from ultralytics' -10.
    """
    for head in model.model[-1].cv4:
        nn.init.constant_(head.bias, _SCORE_PRIOR)
