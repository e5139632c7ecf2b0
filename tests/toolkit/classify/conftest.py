"""A network with torchvision's parameter names that trains in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from toolkit.classify import model as models


class NarrowResNet(ResNet):
    """ResNet-18 with an eighth of the channels after its first convolution."""

    def __init__(self, *, weights: None, num_classes: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)
        self.fc = nn.Linear(512 // 8, num_classes)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> Any:
        return super()._make_layer(block, planes // 8, *arguments, **options)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make resnet18 narrow; threads only slow down so small a model."""
    monkeypatch.setitem(models._BUILDERS, "resnet18", NarrowResNet)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
