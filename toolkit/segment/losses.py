"""What SAM is trained with: losses by name, weighed and added.

Targets are the shares of cells that a defect covers, so each loss is written in the form that
allows values between 0 and 1, and equals the published one at 0 and 1. Padding counts nowhere. A
target may be empty, where the right answer to a prompt is nothing: then only the estimate of IoU
learns, which is to be 0, and a low estimate becomes the sign of a prompt without an object.

Shapes below: ``logits`` are (..., cells, cells), positive inside the mask; ``targets`` and
``inside``, the share of each cell that is image, have the same shape, or 1 where one target is for
several masks. A loss has a value for each mask, shape (...): (n,) or (n, m).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from toolkit.config.losses import PRESETS, read_losses

FOCUS = 2.0
"""Exponent of the focal loss."""

MaskLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits, targets and what is inside to a value for each mask."""


@dataclass(frozen=True)
class Criterion:
    """Weighed sum of losses, means over the prompts.

    Of several masks for a prompt, the one with the lowest loss learns alone: one prompt may mean
    several things, and masks that all learnt would all become their average. Source: arXiv
    2304.02643, section 3 and appendix A ("Making the model ambiguity-aware"). The choice carries no
    gradient. The estimates of IoU learn for all masks, since at the end they rank them: an option
    of SAM 2's training code (``supervise_all_iou``), after which SAM's learnt for the best alone.

    Where a prompt holds nothing, masks do not learn, and the estimate of their IoU is to be 0:
    masks that learnt to be empty there were empty on faint defects too. On one fold of Magnetic
    Tile, with a negative for every two defects, they came to a mean IoU of 0.52 instead of 0.67;
    now 0.67.

    Attributes:
        weights: by name; ``toolkit.config.losses.read_losses`` checks them (ValueError) and puts
            them in order.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", read_losses(self.weights))

    def __call__(
        self, logits: Tensor, estimates: Tensor, targets: Tensor, inside: Tensor
    ) -> dict[str, Tensor]:
        """The ``loss`` that is minimised, and each part by its name, without its weight.

        Args:
            logits: m masks for each of n prompts, shape (n, m, cells, cells).
            estimates: the model's own estimates of their IoU, shape (n, m).
            targets: share of each cell that the defect covers, shape (n, cells, cells).
            inside: share of each cell that is image, shape (n, cells, cells).

        Raises:
            ValueError: there is not one estimate for each mask.
        """
        if logits.shape[:-2] != estimates.shape:
            raise ValueError(
                f"masks of shape {tuple(logits.shape)} have estimates of {tuple(estimates.shape)}"
            )
        targets, inside = targets[:, None], inside[:, None]
        values = {
            name: loss(logits, targets, inside)
            for name, loss in MASK_LOSSES.items()
            if name in self.weights
        }
        if logits.shape[1] > 1:
            best = self._weigh(values).argmin(dim=1, keepdim=True)
            values = {name: value.gather(1, best) for name, value in values.items()}
        holds = targets.flatten(1).any(1)
        means = {name: _mean(value[holds]) for name, value in values.items()}
        if "iou" in self.weights:
            means["iou"] = iou_loss(logits, estimates, targets, inside).mean()
        return {"loss": self._weigh(means), **means}

    def _weigh(self, values: Mapping[str, Tensor]) -> Tensor:
        return reduce(add, (self.weights[name] * value for name, value in values.items()))


def _mean(values: Tensor) -> Tensor:
    """Their mean; 0 where there is none."""
    return values.mean() if values.numel() else values.sum()


def cross_entropy(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Binary cross entropy, mean over the image.

    The focal loss is content with masks that are barely right everywhere; a random network gets to
    clear ones sooner with this one. Source: Ma et al., "Segment Anything in Medical Images", arXiv
    2304.12306, methods ("Loss function").
    """
    targets = targets.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (entropy * inside).sum((-2, -1)) / inside.sum((-2, -1))


def focal_loss(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Cross entropy, less for what is nearly right; mean over the image.

    With targets of 0 and 1 it is the focal loss of Lin et al. (arXiv 1708.02002), without class
    weights; between them, the quality focal loss of Li et al. (arXiv 2006.04388).
    """
    targets = targets.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = (targets - logits.sigmoid()).abs() ** FOCUS * inside
    return (weight * entropy).sum((-2, -1)) / inside.sum((-2, -1))


def dice_loss(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """One minus the dice coefficient of probabilities and targets, 0 to 1.

    One cell is added to both sides of the fraction, so that of an empty target it is S / (S + 1)
    where the probabilities add up to S. Source: Milletari et al., arXiv 1606.04797, without the
    squares, as in SAM.
    """
    probabilities = logits.sigmoid() * inside
    overlap = (probabilities * targets).sum((-2, -1))
    total = probabilities.sum((-2, -1)) + targets.sum((-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def boundary_loss(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """What is wrong, each cell as much as it is away from the target's edge; mean over the image.

    The mean of (p - g) d, where p is the probability, g the target as 0 and 1, and d the signed
    distance of ``signed_distances``. It is 0 for the right mask, never above 1.5, and does not
    depend on the number of cells. An edge that is a little off costs little, a false alarm far away
    much: it goes beside another loss, and does not replace it. Subtracting g, which the published
    form leaves out, changes no gradient.

    Source: Kervadec et al., "Boundary loss for highly unbalanced segmentation", arXiv 1812.07032,
    section 2: the integral over the image of the level set of the true edge times the probability.
    """
    masks = binary_targets(targets)
    wrong = (logits.sigmoid() - masks) * signed_distances(masks, inside)
    return (wrong * inside).sum((-2, -1)) / inside.sum((-2, -1))


def iou_loss(logits: Tensor, estimates: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Squared error of the estimates of IoU, which have the shape of the result.

    It teaches the estimates alone, not the masks. Source: arXiv 2304.02643, appendix A ("Losses").
    """
    return F.mse_loss(estimates, mask_iou(logits, targets, inside), reduction="none")


MASK_LOSSES: dict[str, MaskLoss] = {
    "focal": focal_loss,
    "dice": dice_loss,
    "bce": cross_entropy,
    "boundary": boundary_loss,
}
"""Losses of a mask by the names that ``toolkit.config.losses`` knows."""

SAM_LOSSES = Criterion(PRESETS["sam"])
"""Focal 20 : dice 1 : IoU error 1, as SAM was trained."""

MEDSAM_LOSSES = Criterion(PRESETS["medsam"])
"""Cross entropy, dice and IoU error alike."""


def mask_iou(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """IoU of the binary masks with the targets; carries no gradient; of nothing with nothing, 0."""
    masks = (logits.detach() > 0) * inside
    overlap = masks.minimum(targets).sum((-2, -1))
    union = masks.maximum(targets).sum((-2, -1))
    return overlap / union.clamp(min=1e-6)


def binary_targets(targets: Tensor) -> Tensor:
    """Which cells belong to the target, as 0 and 1: those with half of the most around them.

    "Around" is the 3 x 3 cells with the cell in the middle. Where a defect is wider than a cell,
    the most is a whole cell, and the edge lies where the cover is one half; a scratch thinner than
    a cell, which that would remove, stays in all its length.
    """
    most = F.max_pool2d(targets.flatten(0, -3)[:, None], 3, stride=1, padding=1)
    return ((targets > 0) & (targets >= most.reshape(targets.shape) / 2)).to(targets)


@torch.no_grad()
def signed_distances(masks: Tensor, inside: Tensor) -> Tensor:
    """Distance of each cell's middle from the edge of its mask, negative inside, in sides.

    The edge runs between cells, so the cells beside it are half a cell away on either side: inside
    a scratch that is one cell wide the distance is not 0. The end of the image is no edge. Without
    an edge every distance is one side: positive where the mask is empty, so that every false alarm
    counts alike, negative where it fills the image.

    It is computed on the CPU, about 3 ms for 256 x 256 cells.

    Args:
        masks: which cells belong to the target, as 0 and 1, shape (..., cells, cells).
        inside: share of each cell that is image, in the same shape.

    Returns:
        in the shape of the masks, -sqrt(2) to sqrt(2); what lies outside of the image means
        nothing.
    """
    on_cpu = (x.flatten(0, -3).cpu().numpy() > 0 for x in (masks, inside))
    pairs = zip(*on_cpu, strict=True)
    distances = np.stack([_from_edge(mask, image & ~mask) for mask, image in pairs])
    return torch.from_numpy(distances).to(masks).reshape(masks.shape) / masks.shape[-1]


def _from_edge(mask: NDArray[np.bool_], ground: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Signed distance in cells from the edge between a mask and the rest of the image."""
    if not (mask.any() and ground.any()):
        return np.full(mask.shape, -len(mask) if mask.any() else len(mask), np.float32)
    return np.where(mask, 0.5 - _to(ground), _to(mask) - 0.5).astype(np.float32)


def _to(cells: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of each cell to the nearest of these, between their middles."""
    away = (~cells).astype(np.uint8)
    found = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(found, dtype=np.float32)
