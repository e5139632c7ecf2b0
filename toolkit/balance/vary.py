"""A picture once more, a little different: turned, moved, in other light."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from converters.dataset import BinaryMask, Image, Instance
from converters.files import write_bytes
from toolkit.balance.compose import read_pixels
from toolkit.balance.objects import Pixels
from toolkit.regions import region_of, tight_region

_TRIES = 5
_ENLARGED = 1.15  # of lengths, at most
_LEAST = 0.95  # of a defect's pixels that are left, at least
_MOST = 1.05 * _ENLARGED**2  # and at most
_FEW = 10  # pixels more that rounding may make of a speck


@dataclass(frozen=True)
class Variation:
    """A variation to make.

    Attributes:
        number: among the variations, from 0; with the seed it decides all that is random.
        image: the picture.
        target: file to write.
    """

    number: int
    image: Image
    target: Path


class _Changes(threading.local):
    """What albumentations does to pictures; what it draws depends on its last seed."""

    def __init__(self) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for news when imported
        import albumentations as A

        def changes(*more: Any) -> Any:
            return A.Compose(
                [
                    A.HorizontalFlip(p=0.5),
                    A.VerticalFlip(p=0.5),
                    *more,
                    A.RandomBrightnessContrast(0.08, 0.15, p=0.8),
                    A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 0.8), p=0.2),
                    A.GaussNoise(std_range=(0.004, 0.015), p=0.2),
                ]
            )

        # Enlarged, so that hardly anything comes in from beyond the picture.
        move = A.Affine(
            scale=(1.0, _ENLARGED),
            rotate=(-5, 5),
            translate_percent=(-0.03, 0.03),
            border_mode=cv2.BORDER_REFLECT_101,
            p=1.0,
        )
        self.moving, self.still = changes(move), changes()


@cache
def _changes() -> _Changes:
    return _Changes()


def vary(task: Variation, seed: int) -> tuple[Instance, ...]:
    """Make a variation and write it, as PNG; the same task and seed give the same bytes.

    No defect is lost or cut off: where moving the picture would do so, it is flipped alone.

    Returns:
        its instances, without numbers.

    Raises:
        InputError: the picture cannot be read.
    """
    pixels = read_pixels(task.image.path)
    height, width = pixels.shape[:2]
    masks: list[BinaryMask] = []
    for instance in task.image.instances:
        (x, y, w, h), crop = region_of(instance)
        mask = np.zeros((height, width), np.bool_)
        mask[y : y + h, x : x + w] = crop
        masks.append(mask)
    draws = np.random.SeedSequence([seed, task.number, 1]).generate_state(_TRIES + 1)
    for attempt, draw in enumerate(draws.tolist()):
        change = _changes().still if attempt == _TRIES else _changes().moving
        changed, moved = _apply(change, pixels, masks, draw)
        if all(map(_is_whole, masks, moved)):
            break
    _, png = cv2.imencode(".png", changed)
    write_bytes(task.target, png.tobytes())
    return tuple(
        _moved(instance, mask) for instance, mask in zip(task.image.instances, moved, strict=True)
    )


def _apply(
    change: Any, pixels: Pixels, masks: list[BinaryMask], seed: int
) -> tuple[Pixels, list[BinaryMask]]:
    change.set_random_seed(seed)
    planes = [mask.astype(np.uint8) for mask in masks]
    if pixels.dtype == np.uint8:
        done = change(image=pixels, masks=planes)
        varied = done["image"].reshape(pixels.shape)
    else:
        most = float(np.iinfo(pixels.dtype).max)
        done = change(image=pixels.astype(np.float32) / most, masks=planes)
        bright = np.clip(done["image"].reshape(pixels.shape), 0, 1) * most
        varied = np.rint(bright).astype(pixels.dtype)
    return varied, [np.asarray(mask > 0) for mask in done["masks"]]


def _is_whole(before: BinaryMask, after: BinaryMask) -> bool:
    """Whether moving a defect neither cut it off nor brought its mirror image in; it may grow."""
    if _touches_side(after) and not _touches_side(before):
        return False
    if _count_parts(after) > _count_parts(before):
        return False
    area, was = int(np.count_nonzero(after)), int(np.count_nonzero(before))
    return _LEAST * was <= area <= _MOST * was + _FEW


def _count_parts(mask: BinaryMask) -> int:
    return int(cv2.connectedComponents(mask.view(np.uint8))[0])


def _touches_side(mask: BinaryMask) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _moved(instance: Instance, mask: BinaryMask) -> Instance:
    region = tight_region(mask)
    assert region is not None, "no mask is empty"
    (x, y, w, h), crop = region
    box = (float(x), float(y), float(w), float(h))
    return replace(instance, box=box, mask=None if instance.mask is None else crop)
