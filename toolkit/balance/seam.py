"""Can a small network tell pasted defects from real ones? Then a detector can, and learns that.

Patches of real defects and of their pasted copies are shown to a small convolutional network,
which is tested on donors that it has not seen. An accuracy of 0.5 means that nothing gives a paste
away, and 1.0 that every one is seen through.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from toolkit.evaluate.bootstrap import image_weights, ratio, to_figure
from toolkit.evaluate.metrics import Figure
from toolkit.images import read_image

SIDE = 48
"""Pixels of a patch, which shows twice the defect."""

_FOLDS = 5
_STEPS = 200
_BATCH = 32
_FEWEST = 10
_RESAMPLES = 1000


@dataclass(frozen=True)
class Patch:
    """A defect, real or pasted.

    Attributes:
        pixels: uint8, shape (SIDE, SIDE, 3), RGB.
        donor: id of the annotation that it is, or is a copy of.
        blend: how it was pasted; empty for a real one.
    """

    pixels: npt.NDArray[np.uint8]
    donor: int
    blend: str


def seam_test(train: Dataset, *, seed: int = 0) -> dict[str, Figure]:
    """Accuracy at telling pasted from real, by way of blending.

    As many pasted patches as real ones are drawn, each way of blending for itself; a donor and its
    copies are learnt from or tested on, never both. Intervals are over donors.

    Args:
        train: a balanced train split.
        seed: of the network, the folds and the draw.

    Returns:
        by name of the blending.

    Raises:
        InputError: nothing or fewer than ten donors were pasted, or a picture cannot be read.
    """
    patches = read_patches(train)
    blends = sorted({patch.blend for patch in patches} - {""})
    if not blends:
        raise InputError("seam_test: nothing was pasted, so there is no seam: leave it out")
    figures = {}
    for blend in blends:
        pairs = _pairs(patches, blend, np.random.default_rng(seed))
        donors = sorted({patch.donor for patch in pairs})
        if len(donors) < _FEWEST:
            raise InputError(
                f"{blend}: {len(donors)} donors were pasted, too few to test the seams: "
                "ask for more by --target"
            )
        right = _cross_validate(pairs, donors, seed)
        groups = [patch.donor for patch in pairs]
        weights = image_weights(["patch"] * len(pairs), _RESAMPLES, seed, groups)
        accuracy = ratio(right.astype(np.float64), np.ones(len(pairs)), weights)
        figures[blend] = to_figure(accuracy, n=len(pairs))
    return figures


def read_patches(train: Dataset) -> list[Patch]:
    """All pasted defects, and the real ones that they are copies of."""
    of_image: defaultdict[Path, list[tuple[Image, Instance]]] = defaultdict(list)
    for image in train.images:
        for instance in image.instances:
            if instance.pasted is not None or not image.copy_of:
                of_image[image.path].append((image, instance))
    copied = {
        i.pasted.donor for image in train.images for i in image.instances if i.pasted is not None
    }
    patches = []
    for path, pairs in of_image.items():
        wanted = [i for _, i in pairs if i.pasted is not None or i.id in copied]
        pixels = read_image(path) if wanted else None
        for instance in wanted:
            assert pixels is not None
            real = instance.pasted is None
            patches.append(
                Patch(
                    _cut(pixels, instance),
                    instance.id if instance.pasted is None else instance.pasted.donor,
                    "" if real or instance.pasted is None else instance.pasted.transform["blend"],
                )
            )
    return patches


def _cut(pixels: npt.NDArray[np.uint8], instance: Instance) -> npt.NDArray[np.uint8]:
    x, y, w, h = instance.box
    side = max(16, round(2 * max(w, h)))
    padded = cv2.copyMakeBorder(pixels, side, side, side, side, cv2.BORDER_REFLECT_101)
    left, top = round(x + w / 2 + side / 2), round(y + h / 2 + side / 2)
    window = padded[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(window, (SIDE, SIDE), interpolation=how), np.uint8)


def _pairs(patches: list[Patch], blend: str, rng: np.random.Generator) -> list[Patch]:
    """Every real donor that was pasted this way, and one of its copies."""
    copies: defaultdict[int, list[Patch]] = defaultdict(list)
    for patch in patches:
        if patch.blend == blend:
            copies[patch.donor].append(patch)
    pairs = []
    for patch in patches:
        if not patch.blend and patch.donor in copies:
            those = copies[patch.donor]
            pairs += [patch, those[int(rng.integers(len(those)))]]
    return pairs


def _cross_validate(pairs: list[Patch], donors: list[int], seed: int) -> npt.NDArray[np.bool_]:
    """Whether each patch is judged right by a network that has not seen its donor."""
    rng = np.random.default_rng(seed)
    fold_of = dict(zip(rng.permutation(donors).tolist(), range(len(donors)), strict=True))
    folds = np.array([fold_of[patch.donor] % _FOLDS for patch in pairs])
    labels = torch.tensor([float(patch.blend != "") for patch in pairs])
    stacked = np.stack([patch.pixels for patch in pairs])
    pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - pixels.mean((1, 2, 3), keepdim=True)) / (
        pixels.std((1, 2, 3), keepdim=True) + 1e-3
    )
    right = np.zeros(len(pairs), np.bool_)
    for fold in range(_FOLDS):
        held = torch.from_numpy(folds == fold)
        with torch.random.fork_rng():
            torch.manual_seed(seed + fold)
            network = _learn(pixels[~held], labels[~held])
            with torch.inference_mode():
                verdicts = network(pixels[held]).flatten() > 0
        right[folds == fold] = (verdicts == (labels[held] > 0.5)).numpy()
    return right


def _learn(pixels: Tensor, labels: Tensor) -> nn.Module:
    """A small network: three convolutions, learnt with flips and quarter turns."""
    layers: list[nn.Module] = []
    width = 3
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        width = wider
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(width, 1)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(_STEPS):
        chosen = torch.randint(len(pixels), (_BATCH,))
        batch = pixels[chosen]
        if torch.rand(1) < 0.5:
            batch = batch.flip(-1)
        batch = torch.rot90(batch, int(torch.randint(4, (1,))), (-2, -1))
        loss = nn.functional.binary_cross_entropy_with_logits(
            network(batch).flatten(), labels[chosen]
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()
