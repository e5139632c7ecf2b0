"""What of YOLO-World learns, and in which form its classes are.

Reference: YOLO-World (arXiv 2401.17270), sections 3.4 (re-parameterisation) and 4; the official
repository's prompt tuning and re-parameterised fine-tuning.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules import C2fAttn
from ultralytics.nn.tasks import DetectionModel, WorldModel

from toolkit.detect.models import backbone_layers

Mode: TypeAlias = Literal["full", "freeze-backbone", "prompt", "reparam"]
"""Everything but the class embeddings; that without the backbone; the class embeddings alone; or
everything, with the class embeddings turned into convolutions that learn too."""


def frozen_layers(mode: Mode, model: DetectionModel) -> list[int]:
    """Numbers of the layers that do not learn."""
    if mode == "prompt":
        return list(range(len(model.model)))
    return list(range(backbone_layers(model))) if mode == "freeze-backbone" else []


class FixedGuide(nn.Module):
    """What attention makes of the class embeddings, as weights of its own.

    It stands where the projection of the embeddings was, and does not look at them.

    Args:
        projection: of the embeddings, 512 to some channels.
        vectors: shape (classes, 512).
    """

    weight: nn.Parameter

    def __init__(self, projection: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(projection(vectors).detach().clone())

    def forward(self, guide: Tensor) -> Tensor:
        """One row per class, shape (batch, classes, channels), whatever is given."""
        return self.weight.expand(guide.shape[0], -1, -1)


class FixedHead(nn.Module):
    """Scores of the classes by a convolution instead of by comparing with their embeddings.

    Args:
        head: the contrastive head.
        vectors: shape (classes, 512).
    """

    norm: nn.Module

    def __init__(self, head: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.norm = cast(nn.Module, head.norm)
        scale, bias = (cast(Tensor, getattr(head, name)) for name in ("logit_scale", "bias"))
        unit = F.normalize(vectors, dim=-1)
        self.conv = nn.Conv2d(unit.shape[1], unit.shape[0], 1)
        with torch.no_grad():
            self.conv.weight.copy_(unit[..., None, None] * scale.exp())
            self.conv.bias.copy_(bias.expand(len(unit)))  # type: ignore[union-attr]

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """Scores before the sigmoid, shape (batch, classes, height, width); no text is read."""
        return cast(Tensor, self.conv(self.norm(features)))


def reparameterise(model: WorldModel) -> None:
    """Turn the class embeddings that are set into weights; the answers stay the same.

    Afterwards the model's classes are fixed, and ``txt_feats`` says nothing but how many.
    """
    vectors: Tensor = model.txt_feats[0].to(next(model.parameters()).device)
    for module in model.model:
        if isinstance(module, C2fAttn):
            module.attn.gl = FixedGuide(module.attn.gl, vectors)
    head = model.model[-1]
    head.cv4 = nn.ModuleList(FixedHead(old, vectors) for old in head.cv4)
    model.txt_feats = torch.zeros_like(model.txt_feats)


def is_reparameterised(model: DetectionModel) -> bool:
    """Whether it is a YOLO-World whose classes became weights."""
    return isinstance(model, WorldModel) and isinstance(model.model[-1].cv4[0], FixedHead)
