"""A second task for pretraining: which cells of a feature map defects cover.

A random network that is told about a few boxes or one mask at a time learns little for a long
time; every cell of every map is asked here. The head is a module of the network, named ``NAME``,
so that it is trained and resumed with it; what starts from a pretrained run leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "outlines"


class OutlineHead(nn.Module):
    """A 1x1 convolution from each feature map to "covered or not"."""

    def __init__(self, channels: Sequence[int]) -> None:
        """One convolution for each number of ``channels``."""
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(count, 1, 1) for count in channels)

    def loss(self, features: Sequence[Tensor], covered: Tensor) -> Tensor:
        """Binary cross-entropy plus dice, averaged over the maps.

        Args:
            features: a map for each of the convolutions, shape (B, channels, H, W).
            covered: share of each cell that defects cover, shape (B, 1, H', W'), as fine as the
                finest map or finer.
        """
        losses = []
        for convolution, map_ in zip(self.maps, features, strict=True):
            logits = convolution(map_.float())
            target = F.adaptive_avg_pool2d(covered, logits.shape[-2:])
            entropy = F.binary_cross_entropy_with_logits(logits, target)
            likely = logits.sigmoid()
            overlap, total = (likely * target).sum(), likely.sum() + target.sum()
            losses.append(entropy + 1 - (2 * overlap + 1) / (total + 1))
        return torch.stack(losses).mean()


def without_outlines(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network without those of such a head."""
    return {name: t for name, t in state.items() if not name.startswith(f"{NAME}.")}
