"""Prompts as people and detectors give them: boxes nearly right, points somewhere on the defect.

And the clicks that a person would add, having seen the answer: see ``corrective_clicks``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from converters.dataset import BinaryMask, Box
from converters.geometry import Region
from toolkit.segment.losses import binary_targets

PromptKind: TypeAlias = Literal["box", "point", "box+point"]
"""What a first prompt is made of."""

INSIDE, OUTSIDE, NOTHING = 1, 0, -1
"""What a point says of its place: the object is there, or it is not; or it says nothing at all."""

LIMIT = 20 / 1024
"""Largest shift of a corner, in longer sides of the image: 20 pixels of SAM's 1024."""


def jitter_box(box: Box, std: float, height: int, width: int, rng: np.random.Generator) -> Box:
    """Shift every corner coordinate by normal noise, within the image.

    A box never degenerates: where its width or height would fall under half, that axis stays
    exact, so a one-pixel scratch keeps a valid box.

    Source: arXiv 2304.02643, appendix A ("Training algorithm"): standard deviation of a tenth of
    the side, at most 20 pixels.

    Args:
        box: ``(x, y, width, height)`` in pixels of the image.
        std: standard deviation as a share of the box's width (x) and height (y).
        height: of the image.
        width: of the image.
        rng: source of randomness.
    """
    start, sides = np.array(box[:2]), np.array(box[2:])
    corners = np.stack([start, start + sides])
    limit = LIMIT * max(height, width)
    shifted = corners + np.clip(rng.normal(0, 1, (2, 2)) * std * sides, -limit, limit)
    shifted = np.clip(shifted, 0, (width, height))
    collapsed = shifted[1] - shifted[0] < sides / 2
    (x0, y0), (x1, y1) = np.where(collapsed, corners, shifted).tolist()
    return x0, y0, x1 - x0, y1 - y0


def random_point(region: Region, rng: np.random.Generator) -> tuple[float, float] | None:
    """The middle of any pixel of a region, as (x, y); None where it has no pixel.

    Source: arXiv 2304.02643, appendix A ("Training algorithm").
    """
    (x, y, _, _), crop = region
    rows, columns = np.nonzero(crop)
    if not len(rows):
        return None
    k = int(rng.integers(len(rows)))
    return x + float(columns[k]) + 0.5, y + float(rows[k]) + 0.5


def inner_point(region: Region) -> tuple[float, float]:
    """The middle of the pixel that is farthest from the region's edge, as (x, y): a careful click.

    Raises:
        ValueError: the region has no pixel.
    """
    (x, y, _, _), crop = region
    if not crop.any():
        raise ValueError("empty region")
    distances = cv2.distanceTransform(_framed(crop), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = np.unravel_index(int(distances[1:-1, 1:-1].argmax()), crop.shape)
    return x + float(column) + 0.5, y + float(row) + 0.5


def _framed(mask: BinaryMask) -> npt.NDArray[np.uint8]:
    return np.pad(mask, 1).astype(np.uint8)


@torch.no_grad()
def corrective_clicks(
    logits: Tensor, targets: Tensor, inside: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """A click for each prompt, anywhere in the region where the answer is wrong.

    Where the answer is right everywhere, the click confirms a place of the object; where there is
    no object either, it says nothing. Of a scratch thinner than a cell, the cells along it count.
    Random numbers come from PyTorch's global generator.

    Source: arXiv 2304.02643, appendix A ("Training algorithm").

    Args:
        logits: the answer, shape (n, cells, cells).
        targets: share of each cell that the object covers, same shape.
        inside: share of each cell that is image, same shape.
        side: of the input frame, in pixels.

    Returns:
        points (x, y) in pixels of the input frame, shape (n, 1, 2), and what they say, shape
        (n, 1): ``INSIDE``, ``OUTSIDE`` or ``NOTHING``.
    """
    cells = logits.shape[-1]
    truth = (binary_targets(targets) > 0) & (inside > 0)
    wrong = (((logits > 0) & (inside > 0)) != truth).flatten(1)
    chances = torch.where(wrong.any(1, keepdim=True), wrong, truth.flatten(1)).float()
    silent = ~chances.any(1)
    # Drawn on the CPU: its generator gives the same clicks whatever the device.
    drawn = torch.multinomial((chances + silent[:, None]).cpu(), 1).to(logits.device)
    says = truth.flatten(1).gather(1, drawn).long()
    says[silent] = NOTHING
    places = torch.stack([drawn % cells, drawn // cells], dim=-1).float()
    return (places + 0.5) * (side / cells), says
