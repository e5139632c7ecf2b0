"""A plain U-Net that outlines the defect in a box: what a SAM of its size has to beat.

It sees what nano sees: a window of 128 pixels around the box, and the box, filled, as a fourth
channel. With 17 channels at full resolution it has about as many parameters as nano. It starts from
random weights, as a U-Net usually does.

Source: Ronneberger et al., "U-Net", arXiv 1505.04597; padded, with batch norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.outlines import fits
from converters.dataset import Box
from toolkit.images import RgbImage
from toolkit.segment.data import Batch, Prompt, by_image
from toolkit.segment.frames import Frame
from toolkit.segment.losses import cross_entropy, dice_loss
from toolkit.segment.task import SamTask
from toolkit.segment.views import views_of

WIDTHS = (17, 34, 68, 136, 272)  # channels, from full resolution to a sixteenth
SIDE = 128
ZOOM = 1.5


class UNet(nn.Module):
    """From picture and box, shape (n, 4, side, side), to mask logits, shape (n, side, side)."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.first = _block(4, WIDTHS[0])
        self.down = nn.ModuleList(_block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs[::-1])
        self.join = nn.ModuleList(_block(2 * a, a) for a, _ in pairs[::-1])
        self.last = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x, kept = self.first(x), []
        for block in self.down:
            kept.append(x)
            x = block(F.max_pool2d(x, 2))
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], dim=1))
        return cast(Tensor, self.last(x))[:, 0]


def _block(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels, out):
        layers += [nn.Conv2d(before, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


def inputs(pixels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What ``UNet`` sees of n pictures (3, height, width), 0 to 255, longer side ``SIDE``, with one
    box each: shape (n, 4), corners (x0, y0, x1, y1) in the same pixels.
    """
    low, high = boxes.reshape(-1, 2, 2, 1).unbind(1)
    edge = torch.arange(SIDE)
    across, down = (torch.minimum(high, edge + 1) - torch.maximum(low, edge)).clamp(min=0).unbind(1)
    shown = torch.zeros(len(boxes), 4, SIDE, SIDE)
    for row, image in zip(shown, pixels, strict=True):
        row[:3, : image.shape[1], : image.shape[2]] = (image.float() - 127.5) / 64
    shown[:, 3] = down[:, :, None] * across[:, None, :]
    return shown


class UNetTask:
    """A ``toolkit.training.Task``, from random weights, on the very batches of nano's own task."""

    def __init__(self, nano: SamTask, val: Sequence[Prompt], seed: int) -> None:
        torch.manual_seed(seed)
        self.model = UNet()
        self.batches, self.steps = nano.batches, nano.steps
        self._val = by_image(val)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy plus dice, padding left out."""
        assert batch.boxes is not None, "boxes prompt"
        logits = self.model.train()(inputs(batch.pixels, batch.boxes))
        entropy = cross_entropy(logits, batch.targets, batch.inside).mean()
        dice = dice_loss(logits, batch.targets, batch.inside).mean()
        return {"loss": entropy + dice, "entropy": entropy, "dice": dice}

    def validate(self) -> dict[str, float]:
        """Mean IoU over the val instances, from exact boxes, in pixels of the images."""
        boxes = [[instance.box for instance in instances] for _, instances in self._val]
        found = fits(partial(outline, self.model), self._val, boxes)
        return {"val_iou": float(np.mean([iou for iou, _ in found]))}


@torch.no_grad()
def outline(model: nn.Module, image: RgbImage, boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """Masks of shape (n, height, width) of what is in the boxes ``(x, y, width, height)``."""
    masks = np.zeros((len(boxes), *image.shape[:2]), np.bool_)
    views, _ = views_of(boxes, image.shape[0], image.shape[1], ZOOM)
    for mask, view, box in zip(masks, views, boxes, strict=True):
        frame = Frame(*view.size, SIDE)
        corners = torch.from_numpy(frame.boxes(view.box(box)))
        logits = model.eval()(inputs([frame.image(view.image(image))], corners))
        height, width = frame.resized
        full = F.interpolate(logits[:, None, :height, :width], view.size, mode="bilinear")[0, 0]
        mask[view.y : view.y + view.height, view.x : view.x + view.width] = (full > 0).numpy()
    return masks
