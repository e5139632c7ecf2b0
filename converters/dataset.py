"""The one in-memory form of ground truth: a Dataset of Images with Instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from converters import rle
from converters.rle import Rle

BinaryMask: TypeAlias = npt.NDArray[np.bool_]
"""Boolean array of shape (height, width); True is defect."""

Box: TypeAlias = tuple[float, float, float, float]
"""``(x, y, width, height)`` in half-open pixel edges: a defect 30 pixels wide has width 30."""

GOOD = "good"
"""Image-level label of a picture without a defect; never the name of a category."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Pasted:
    """Where an instance that was copied onto a picture comes from.

    Attributes:
        donor: id of the annotation that was copied.
        donor_image: id of the picture that it is on.
        seed: of the random numbers behind everything else.
        transform: what was done to it, by name: turned, scaled, how it was blended and the like.
    """

    donor: int
    donor_image: int
    seed: tuple[int, ...]
    transform: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Instance:
    """One defect: its category, its tight box and its exact mask.

    Attributes:
        category: name of the defect type.
        box: tight half-open box in pixels of the image.
        mask: inside the box, of shape (box height, box width), or compressed RLE in the frame of
            the image, which is decoded where its pixels are asked for; None where the source gives
            boxes only, or labels of whole pictures: then the box is the picture.
        id: annotation id, from 1, unique in the whole dataset; 0 while not yet numbered.
        pasted: where it was copied from and how, where it was; None where a camera saw it.
    """

    category: str
    box: Box
    mask: BinaryMask | Rle | None
    id: int = 0
    pasted: Pasted | None = None

    @property
    def crop(self) -> BinaryMask | None:
        """Mask inside the box, of shape (box height, box width); None where there is none."""
        return rle.crop(self.mask, self.box) if isinstance(self.mask, dict) else self.mask

    @property
    def area(self) -> float:
        """Number of mask pixels; the area of the box where there is no mask."""
        if self.mask is None:
            return self.box[2] * self.box[3]
        if isinstance(self.mask, dict):
            return rle.area(self.mask)
        return float(np.count_nonzero(self.mask))

    def to_mask(self, height: int, width: int) -> BinaryMask:
        """The mask in the frame of the image, shape (height, width).

        Raises:
            ValueError: the instance has no mask.
        """
        crop = self.crop
        if crop is None:
            raise ValueError("a box-only instance has no mask")
        mask = np.zeros((height, width), dtype=np.bool_)
        x, y, w, h = (int(value) for value in self.box)
        mask[y : y + h, x : x + w] = crop
        return mask


def areas(instances: Sequence[Instance]) -> list[float]:
    """``Instance.area`` of each, in one go where masks are compressed."""
    masks = [instance.mask for instance in instances if isinstance(instance.mask, dict)]
    compressed = iter(rle.areas(masks).tolist())
    return [
        next(compressed) if isinstance(instance.mask, dict) else instance.area
        for instance in instances
    ]


@dataclass(frozen=True, slots=True)
class Image:
    """One picture and the defects on it.

    Attributes:
        file_name: name in the dataset's ``images/`` folder; two entries share one where one of
            them repeats the other.
        path: where the picture lies on this machine.
        width, height: pixels.
        instances: the defects; empty for a good picture.
        source: path in the source, with ``/``, from which ``file_name`` was made.
        source_split: the part of the source that it came from ("train", "val", "test"), where it
            has any.
        id: image id, from 1, the same in every split and fold; 0 while not yet numbered.
        photograph: id of the first picture that shows the same photograph, its own where there is
            no other; 0 where nobody looked.
        copy_of: id of the entry that this one repeats, or of the picture that defects were pasted
            onto to make this one; 0 for a picture of its own.
    """

    file_name: str
    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...] = ()
    source: str = ""
    source_split: str | None = None
    id: int = 0
    photograph: int = 0
    copy_of: int = 0

    @property
    def is_good(self) -> bool:
        """Whether there is no defect on it."""
        return not self.instances

    @property
    def labels(self) -> tuple[str, ...]:
        """The categories on it, sorted, each once; ``("good",)`` where there is none."""
        return tuple(sorted({instance.category for instance in self.instances})) or (GOOD,)


@dataclass(frozen=True)
class Dataset:
    """Images, and the categories that their instances are of.

    Attributes:
        name: what the card calls it.
        categories: names in order; the COCO id of ``categories[i]`` is ``i + 1``.
        images: sorted by ``file_name``.
    """

    name: str
    categories: tuple[str, ...]
    images: tuple[Image, ...] = field(default_factory=tuple)

    def category_id(self, name: str) -> int:
        """COCO id of a category, from 1."""
        return self.categories.index(name) + 1

    def subset(self, images: tuple[Image, ...]) -> Dataset:
        """The same dataset with other images."""
        return replace(self, images=images)

    def photographs(self) -> list[int]:
        """For every image a number that it shares with the pictures of the same photograph only."""
        return [image.photograph or -1 - index for index, image in enumerate(self.images)]

    def image_labels(self) -> list[str]:
        """The one label of each image: "good", or its category.

        An image with several categories is of the one that covers most pixels (instance areas
        added up; of equal ones the first category).
        """
        return list(self._labels)

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        labels = []
        each = iter(areas([instance for image in self.images for instance in image.instances]))
        for image in self.images:
            area = dict.fromkeys(self.categories, 0.0)
            for instance in image.instances:
                area[instance.category] += next(each)
            labels.append(GOOD if image.is_good else max(area, key=area.__getitem__))
        return tuple(labels)

    def count_instances(self) -> dict[str, int]:
        """Instances per category, in the order of the categories, zeros included."""
        counts = Counter(i.category for image in self.images for i in image.instances)
        return {name: counts[name] for name in self.categories}

    def count_images(self) -> dict[str, int]:
        """Images per label, ``good`` first; an image with two categories counts in both."""
        counts = Counter(label for image in self.images for label in image.labels)
        return {name: counts[name] for name in (GOOD, *self.categories)}
