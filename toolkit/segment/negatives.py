"""Prompts on good surfaces, whose right answer is nothing.

A detector is wrong at times, and SAM outlines something in any box: trained on defects alone, it
has never been told that there may be none. With such prompts among the others, its estimate of the
IoU becomes a score by which a box can be rejected.
"""

from __future__ import annotations

import hashlib

import numpy as np

from converters.dataset import GOOD, Box, Dataset, Image, Instance
from toolkit.segment.data import Prompt

MARGIN = 0.3
"""Least distance to a defect, in sides of the box: boxes are shifted by noise in training."""

TRIES = 20
"""Places that are tried for a box before another one is taken."""


def negative_prompts(dataset: Dataset, count: int) -> list[Prompt]:
    """Boxes of the sizes that defects have, where no defect is.

    Half of them lie beside the defects of defect pictures, half on good pictures, where there are
    any; of good pictures no more are used than there are defect pictures, because with a frozen
    encoder each has to be encoded. They depend on the dataset alone, whatever the run's seed, so
    that runs share the encodings.

    Args:
        dataset: a split; the sizes are those of its own instances.
        count: how many are wanted.

    Returns:
        prompts that hold nothing: instances named ``GOOD``, whose mask has no pixel. Fewer than
        ``count`` where pictures are too full of defects; none where there is no defect.
    """
    sizes = [i.box[2:] for image in dataset.images for i in image.instances]
    if not sizes:
        return []
    rng = np.random.default_rng(_seed(dataset))
    with_defects = [image for image in dataset.images if not image.is_good]
    good = [image for image in dataset.images if image.is_good]
    if len(good) > len(with_defects):
        good = [good[k] for k in sorted(rng.permutation(len(good))[: len(with_defects)].tolist())]
    grounds = [pictures for pictures in (with_defects, good) if pictures]
    found: list[Prompt] = []
    for number in range(TRIES * count):
        if len(found) == count:
            break
        pictures = grounds[number % len(grounds)]
        image = pictures[int(rng.integers(len(pictures)))]
        box = _place(image, sizes[int(rng.integers(len(sizes)))], rng)
        if box is not None:
            empty = np.zeros((int(box[3]), int(box[2])), np.bool_)
            found.append((image, Instance(GOOD, box, empty)))
    return found


def _seed(dataset: Dataset) -> int:
    names = "\n".join(f"{image.file_name} {len(image.instances)}" for image in dataset.images)
    return int.from_bytes(hashlib.sha256(names.encode()).digest()[:8], "big")


def _place(image: Image, size: tuple[float, float], rng: np.random.Generator) -> Box | None:
    """A box of a size, cut to the picture's, that keeps away from its defects."""
    width, height = (
        min(max(1, int(own)), most)
        for own, most in zip(size, (image.width, image.height), strict=True)
    )
    x = int(rng.integers(image.width - width + 1))
    y = int(rng.integers(image.height - height + 1))
    aside, above = MARGIN * width, MARGIN * height
    for instance in image.instances:
        left, top, w, h = instance.box
        if (
            left < x + width + aside
            and x - aside < left + w
            and top < y + height + above
            and y - above < top + h
        ):
            return None
    return float(x), float(y), float(width), float(height)
