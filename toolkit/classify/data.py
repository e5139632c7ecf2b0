"""Pictures at the network's size, their labels, and batches of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from converters.dataset import Dataset
from toolkit.classify.augment import (
    ANYHOW,
    LARGEST_ANGLE,
    MOVES,
    UPRIGHT,
    auto_augment,
    draw_light,
    move,
)
from toolkit.config.classifier import Augmentation
from toolkit.console import track
from toolkit.images import RgbImage, read_image
from toolkit.sampling import draw_epoch, epoch_length
from toolkit.scene import glance, lie_alike

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue, which torchvision's weights expect."""

PADDING = (124, 116, 104)
"""ImageNet's mean colour."""

_LOOKED_AT = 64

Labels: TypeAlias = npt.NDArray[np.int64]
"""Shape (pictures,): index of each picture's class."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of a split, ready for the network.

    Attributes:
        pixels: uint8, shape (n, side, side, 3), RGB, letterboxed.
        labels: index into the classes, shape (n,).
    """

    pixels: npt.NDArray[np.uint8]
    labels: Labels


@dataclass(frozen=True)
class Batch:
    """Pictures of one step.

    Attributes:
        pixels: uint8, shape (b, side, side, 3), RGB.
        contrast, brightness: of each picture, float32, shape (b,), as of ``augment.draw_light``.
        labels: int64, shape (b,).
        outliers: as many pictures of anything else, where there are any.
    """

    pixels: Tensor
    contrast: Tensor
    brightness: Tensor
    labels: Tensor
    outliers: Batch | None = None


def letterbox(image: RgbImage, side: int, padding: tuple[int, int, int] = PADDING) -> RgbImage:
    """Fit a picture of any shape into a square, padded evenly with ImageNet's mean colour.

    Squashed to a square, a thin defect would change its direction and its width; padding keeps it,
    and the mean colour is what the network takes for nothing: zero, after normalisation.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = padding
    top, left = (side - h) // 2, (side - w) // 2
    square[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=smooth)
    return square


def read_pictures(
    dataset: Dataset, classes: Sequence[str], side: int, *, workers: int, name: str
) -> Pictures:
    """Decode every picture once and keep it at the network's size: 3 x side² bytes each.

    Args:
        dataset: one split, with one picture at least.
        classes: "good", then the categories.
        side: of the square, in pixels.
        workers: threads that decode.
        name: of the split, for the progress bar.

    Raises:
        InputError: a picture cannot be read.
    """
    paths = [image.path for image in dataset.images]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        read = pool.map(lambda path: letterbox(read_image(path), side), paths)
        pixels = np.stack(list(track(read, f"reading {name}", total=len(paths))))
    labels = [classes.index(label) for label in dataset.image_labels()]
    return Pictures(pixels, np.array(labels, dtype=np.int64))


def to_input(pixels: Tensor) -> Tensor:
    """Pixels of 0 to 255, shape (n, height, width, 3), as the network takes them.

    Returns:
        float32, shape (n, 3, height, width), normalised.
    """
    mean = torch.tensor(MEAN, device=pixels.device)
    deviation = torch.tensor(DEVIATION, device=pixels.device)
    return ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def suited(
    changes: tuple[Augmentation, ...], pixels: npt.NDArray[np.uint8]
) -> tuple[Augmentation, ...]:
    """The changes that are meant: "auto" is ``UPRIGHT`` where parts lie alike, else ``ANYHOW``.

    On transistors, where "misplaced" is a class, flips and quarter turns cost much of the accuracy.

    Args:
        changes: as they were asked for.
        pixels: of train, letterboxed, shape (n, side, side, 3).
    """
    if changes != ("auto",):
        return changes
    some = pixels[np.unique(np.linspace(0, len(pixels) - 1, _LOOKED_AT).round().astype(int))]
    # What is padding on all of them lies alike, but is no part.
    there = (some != np.array(PADDING, np.uint8)).any(axis=(0, 3))
    some = some[:, there.any(axis=1)][:, :, there.any(axis=0)]
    alike = len(some) > 1 and lie_alike([glance(picture) for picture in some])
    return UPRIGHT if alike else ANYHOW


def count_batches(pictures: int, batch: int) -> int:
    """Batches that so many pictures are dealt out to, each of two at least."""
    # Batch norm cannot learn from one picture: rather one batch fewer, each a picture larger.
    return max(1, min(-(-pictures // batch), pictures // 2))


class Sampler:
    """Training batches, the same ones for the same seed, epoch and step."""

    def __init__(
        self,
        pictures: Pictures,
        *,
        batch: int,
        repeat: int,
        factors: Sequence[float],
        augment: Collection[Augmentation],
        seed: int,
        rotation: float = LARGEST_ANGLE,
        outliers: Pictures | None = None,
    ) -> None:
        """Describe the batches.

        Args:
            pictures: of train.
            batch: pictures per step.
            repeat: passes over the pictures in an epoch.
            factors: how often a pass shows each picture, on average.
            augment: how pictures are changed at random.
            seed: everything random derives from it, the epoch and the step.
            rotation: largest angle of "rotate", in degrees.
            outliers: pictures of anything else, of which each batch gets as many as it has
                pictures, drawn at random.
        """
        self._pictures, self._outliers = pictures, outliers
        self._repeat, self._seed = repeat, seed
        self._augment, self._rotation = frozenset(augment), rotation
        self._factors = factors
        self.steps = count_batches(epoch_length(factors) * repeat, batch)

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """All passes of an epoch, in ``steps`` batches of equal sizes, give or take one.

        Where numbers are given, the batches with these alone.
        """
        rng = np.random.default_rng([self._seed, epoch])
        order = np.concatenate([draw_epoch(self._factors, rng) for _ in range(self._repeat)])
        parts = np.array_split(order, self.steps)
        for step in range(self.steps) if numbers is None else numbers:
            # Plus one, because a seed of [s, e, 0] is the same as one of [s, e].
            own = np.random.default_rng([self._seed, epoch, step + 1])
            batch = self._make(self._pictures, parts[step], own)
            if self._outliers is not None:  # drawn last, so that the others are as without them
                chosen = own.integers(len(self._outliers.labels), size=len(parts[step]))
                batch = replace(batch, outliers=self._make(self._outliers, chosen, own))
            yield batch

    def _make(self, pictures: Pictures, chosen: Labels, rng: np.random.Generator) -> Batch:
        pixels = pictures.pixels[chosen]
        light = np.tile(np.array([1, 0], dtype=np.float32), (len(chosen), 1))
        if not self._augment.isdisjoint(MOVES):
            pixels = np.stack([move(each, rng, self._augment, self._rotation) for each in pixels])
        if "light" in self._augment:
            light = np.array([draw_light(rng) for _ in chosen], dtype=np.float32)
        if "autoaugment" in self._augment:
            pixels = auto_augment(pixels, rng)
        return Batch(
            pixels=torch.from_numpy(pixels),
            contrast=torch.from_numpy(light[:, 0].copy()),
            brightness=torch.from_numpy(light[:, 1].copy()),
            labels=torch.from_numpy(pictures.labels[chosen]),
        )
