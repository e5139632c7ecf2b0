"""What SAM is trained with: focal 20 : dice 1 : IoU error 1.

Source: arXiv 2304.02643, section 3 and appendix A ("Losses"). Targets are the shares of cells
that a defect covers, so each loss is written in the form that allows values between 0 and 1, and
equals the published one at 0 and 1. Padding counts nowhere.

Shapes below: ``logits``, ``targets`` and ``inside`` are (n, cells, cells); ``inside`` is the share
of each cell that is image.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT = 20.0
"""Weight of the focal loss beside dice and IoU error, which count once each."""

FOCUS = 2.0
"""Exponent of the focal loss."""


def sam_losses(
    logits: Tensor, estimates: Tensor, targets: Tensor, inside: Tensor
) -> dict[str, Tensor]:
    """The loss that is minimised, and its parts, as means over the prompts.

    Args:
        logits: predicted masks, positive inside.
        estimates: the model's own estimates of their IoU, shape (n,).
        targets: share of each cell that the defect covers.
        inside: share of each cell that is image.
    """
    focal = focal_loss(logits, targets, inside).mean()
    dice = dice_loss(logits, targets, inside).mean()
    iou = F.mse_loss(estimates, mask_iou(logits, targets, inside))
    return {"loss": FOCAL_WEIGHT * focal + dice + iou, "focal": focal, "dice": dice, "iou": iou}


def medsam_losses(
    logits: Tensor, estimates: Tensor, targets: Tensor, inside: Tensor
) -> dict[str, Tensor]:
    """As ``sam_losses``, with plain cross entropy in place of the focal loss.

    The focal loss is content with masks that are barely right everywhere; a random network gets to
    clear ones sooner without it. Source: Ma et al., "Segment Anything in Medical Images", arXiv
    2304.12306, methods ("Loss function"), beside SAM's IoU error.
    """
    entropy = cross_entropy(logits, targets, inside).mean()
    dice = dice_loss(logits, targets, inside).mean()
    iou = F.mse_loss(estimates, mask_iou(logits, targets, inside))
    return {"loss": entropy + dice + iou, "entropy": entropy, "dice": dice, "iou": iou}


def cross_entropy(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Binary cross entropy, mean over the image, shape (n,)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (entropy * inside).sum((-2, -1)) / inside.sum((-2, -1))


def focal_loss(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Cross entropy, less for what is nearly right; mean over the image, shape (n,).

    With targets of 0 and 1 it is the focal loss of Lin et al. (arXiv 1708.02002), without class
    weights; between them, the quality focal loss of Li et al. (arXiv 2006.04388).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = (targets - logits.sigmoid()).abs() ** FOCUS * inside
    return (weight * entropy).sum((-2, -1)) / inside.sum((-2, -1))


def dice_loss(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """One minus the dice coefficient of probabilities and targets, shape (n,).

    Source: Milletari et al., arXiv 1606.04797, without the squares, as in SAM.
    """
    probabilities = logits.sigmoid() * inside
    overlap = (probabilities * targets).sum((-2, -1))
    total = probabilities.sum((-2, -1)) + targets.sum((-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_iou(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """IoU of the binary masks with the targets, shape (n,); carries no gradient."""
    masks = (logits.detach() > 0) * inside
    overlap = masks.minimum(targets).sum((-2, -1))
    union = masks.maximum(targets).sum((-2, -1))
    return overlap / union.clamp(min=1e-6)
