"""torchvision's ResNets by name, and what of them learns."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast, get_args

from torch import nn
from torchvision.models import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    wide_resnet50_2,
    wide_resnet101_2,
)

from toolkit.architectures import ResNetName

Architecture: TypeAlias = ResNetName

Learns: TypeAlias = Literal["all", "layer4", "head"]
"""What learns: everything, the last stage and the head, or the head alone."""

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

_BUILDERS = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "wide_resnet50_2": wide_resnet50_2,
    "wide_resnet101_2": wide_resnet101_2,
}


def build_resnet(architecture: Architecture, classes: int) -> ResNet:
    """A ResNet with random weights from torch's global generator.

    Returns:
        model from pictures (n, 3, height, width), normalised, to logits (n, classes).
    """
    return cast(ResNet, _BUILDERS[architecture](weights=None, num_classes=classes))


def freeze(model: ResNet, learns: Learns) -> list[nn.Module]:
    """Freeze what shall not learn.

    Returns:
        the frozen parts; ``set_training`` keeps their batch-norm statistics, too.
    """
    learning = {"all": None, "layer4": ("layer4", "fc"), "head": ("fc",)}[learns]
    frozen = [
        part
        for name, part in model.named_children()
        if learning is not None and name not in learning
    ]
    for part in frozen:
        part.requires_grad_(False)
    return frozen


def set_training(model: ResNet, frozen: list[nn.Module]) -> None:
    """Training mode, in which frozen parts normalise by the statistics that they came with."""
    model.train()
    for part in frozen:
        part.eval()
