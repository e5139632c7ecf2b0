"""Random changes of training pictures that leave a defect what it is."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch

from toolkit.config.classifier import Augmentation
from toolkit.images import RgbImage

if TYPE_CHECKING:
    from torchvision.transforms.v2 import AutoAugment

MOVES: tuple[Augmentation, ...] = ("flip", "turn", "rotate")
"""Changes of where things are on a picture."""

ANYHOW: tuple[Augmentation, ...] = (*MOVES, "light")
"""Changes that suit what may lie any way."""

UPRIGHT: tuple[Augmentation, ...] = ("rotate", "light")
"""Changes that suit what always lies one way."""

WARP_CHANCE = 0.5
"""Share of the pictures that "rotate" turns and scales; the rest keep their very pixels, as at
work."""

LARGEST_ANGLE = 10.0
"""Degrees that "rotate" turns a picture by, at most, where nothing else is said."""

SCALES = (0.85, 1.05)
"""Range of the zoom. Mostly out: zooming in could push the only defect over the rim."""

LIGHT_CHANCE = 0.5
LARGEST_CONTRAST = 0.2
"""Largest change of the contrast, as a share."""
LARGEST_BRIGHTNESS = 0.1
"""Largest change of the brightness, as a share of the range from black to white."""

GREY = (128.0, 128.0, 128.0)
"""What AutoAugment fills corners with that it turns in, as its authors do."""


def move(
    picture: RgbImage,
    rng: np.random.Generator,
    changes: Collection[Augmentation] = MOVES,
    largest_angle: float = LARGEST_ANGLE,
) -> RgbImage:
    """Turn a square picture by 90°, flip it, and perhaps turn it a little; same shape.

    Args:
        picture: shape (side, side, 3).
        rng: what is drawn for a change does not depend on the others, but on their order.
        changes: of ``MOVES`` those that are made; others are left to others.
        largest_angle: of "rotate", in degrees.
    """
    if "turn" in changes:
        picture = np.rot90(picture, int(rng.integers(4)))
    if "flip" in changes and rng.random() < 0.5:
        picture = picture[:, ::-1]
    if "rotate" not in changes or rng.random() >= WARP_CHANCE:
        return np.ascontiguousarray(picture)
    side = picture.shape[0]
    centre = ((side - 1) / 2, (side - 1) / 2)
    matrix = cv2.getRotationMatrix2D(
        centre, float(rng.uniform(-largest_angle, largest_angle)), float(rng.uniform(*SCALES))
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


def auto_augment(
    pictures: npt.NDArray[np.uint8], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Change pictures by the policy that was found on ImageNet, each by a pair of changes.

    Cubuk et al., AutoAugment: Learning Augmentation Policies from Data, CVPR 2019, as torchvision
    has it. Its shears, inverted colours and posterised grey values were found on photographs.

    Args:
        pictures: shape (n, side, side, 3), RGB.
        rng: gives each picture a seed; torch's global generator stays as it is.
    """
    policy = _policy()
    changed = np.empty_like(pictures)
    seeds = rng.integers(2**63, size=len(pictures))
    with torch.random.fork_rng(devices=[]):
        for picture, seed, result in zip(pictures, seeds.tolist(), changed, strict=True):
            torch.default_generator.manual_seed(seed)
            result[:] = policy(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0)
    return changed


@cache
def _policy() -> AutoAugment:
    # Here, because it takes a second, and few ask for it.
    from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, InterpolationMode

    return AutoAugment(AutoAugmentPolicy.IMAGENET, InterpolationMode.BILINEAR, list(GREY))
