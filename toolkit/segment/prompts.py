"""Box prompts as a detector would give them: nearly right."""

from __future__ import annotations

import numpy as np

from converters.dataset import Box

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
