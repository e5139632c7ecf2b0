"""Random changes of training pictures that leave a defect what it is."""

from __future__ import annotations

import cv2
import numpy as np

from toolkit.images import RgbImage

WARP_CHANCE = 0.5
"""Share of the pictures that are turned and scaled; the rest keep their very pixels, as at work."""

LARGEST_ANGLE = 10.0
"""Degrees that a picture is turned by, at most, after its turns by 90°."""

SCALES = (0.85, 1.05)
"""Range of the zoom. Mostly out: zooming in could push the only defect over the rim."""

LIGHT_CHANCE = 0.5
LARGEST_CONTRAST = 0.2
"""Largest change of the contrast, as a share."""
LARGEST_BRIGHTNESS = 0.1
"""Largest change of the brightness, as a share of the range from black to white."""


def move(picture: RgbImage, rng: np.random.Generator) -> RgbImage:
    """Flip a square picture, turn it by 90°, and perhaps by a small angle; same shape."""
    picture = np.rot90(picture, int(rng.integers(4)))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() >= WARP_CHANCE:
        return np.ascontiguousarray(picture)
    side = picture.shape[0]
    centre = ((side - 1) / 2, (side - 1) / 2)
    matrix = cv2.getRotationMatrix2D(
        centre, float(rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE)), float(rng.uniform(*SCALES))
    )
    # Reflected, because a straight edge of padding would look like a scratch.
    moved = cv2.warpAffine(
        np.ascontiguousarray(picture),
        matrix,
        (side, side),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return moved.astype(np.uint8, copy=False)


def draw_light(rng: np.random.Generator) -> tuple[float, float]:
    """Contrast and brightness of a picture: factor and, of the range, share to add."""
    if rng.random() >= LIGHT_CHANCE:
        return 1.0, 0.0
    contrast = 1 + rng.uniform(-LARGEST_CONTRAST, LARGEST_CONTRAST)
    return float(contrast), float(rng.uniform(-LARGEST_BRIGHTNESS, LARGEST_BRIGHTNESS))
