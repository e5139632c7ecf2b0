"""Large pictures as windows: where they lie, and what of each defect shows in them.

A small defect on a large picture is lost when the picture is made as small as a network takes it.
Cut into windows, it keeps its pixels (Akyon et al., "Slicing Aided Hyper Inference", ICIP 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from converters.dataset import Box, Dataset, Image, Instance
from converters.errors import InputError
from toolkit.regions import Frame, region_of, tight_region, within
from toolkit.sampling import Sampling, picture_factors

LEAST_SIDE = 32
"""Pixels: a smaller window shows nothing to a network whose coarsest cells are that wide."""
MOST_OVERLAP = 0.9
"""From there on, windows become too many to be looked at."""

MIN_VISIBLE = 0.25
"""A window shows a defect if it holds this share of what the window that holds most of it does."""


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        size: side of a window in pixels of the picture, at least 32.
        overlap: share of the side that neighbours have in common at least, 0 to 0.9.

    Raises:
        ValueError: one of them is out of range.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < LEAST_SIDE:
            raise ValueError(f"tile: {self.size} is too small: give at least {LEAST_SIDE} pixels")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise ValueError(f"tile_overlap: {self.overlap} is not between 0 and {MOST_OVERLAP}")

    def __str__(self) -> str:
        return f"in tiles of {self.size} px that overlap by {self.overlap:g}"

    def frames(self, width: int, height: int) -> list[Frame]:
        """The windows of a picture, row by row.

        They cover every pixel, lie inside the picture, and are all of full size; where a side of
        the picture is shorter than a window, they are as long as it. As few as the overlap allows
        are spread evenly, so that neighbours share as much as they can.
        """
        rows, columns = self._starts(height), self._starts(width)
        w, h = min(self.size, width), min(self.size, height)
        return [(x, y, w, h) for y, x in product(rows, columns)]

    def _starts(self, side: int) -> list[int]:
        last = max(0, side - self.size)
        step = max(1, self.size - round(self.size * self.overlap))
        gaps = math.ceil(last / step)
        return [round(index * last / gaps) for index in range(gaps + 1)] if gaps else [0]


def tiling_for(trained: Tiling | None, tile: int | None, overlap: float | None) -> Tiling | None:
    """How to cut pictures for a model, where a user may ask for something else.

    Args:
        trained: how its training pictures were cut; None where they were not.
        tile: side of a window, 0 for whole pictures, None for what the model was trained on.
        overlap: of windows; None for what the model was trained on, else 0.2.

    Raises:
        InputError: an overlap is given for pictures that are not cut, or a number is out of range.
    """
    if tile == 0 or (tile is None and trained is None):
        if overlap is not None:
            raise InputError("tile_overlap: pictures are not cut into tiles: give tile as well")
        return None
    plain = trained or Tiling(LEAST_SIDE)
    try:
        return Tiling(
            plain.size if tile is None else tile, plain.overlap if overlap is None else overlap
        )
    except ValueError as error:
        raise InputError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Window(Image):
    """A part of a picture, as a picture: width, height and instances are those of the part.

    Attributes:
        left, top: pixel of the picture at which it begins.
    """

    left: int = 0
    top: int = 0


def cut(image: Image, tiling: Tiling) -> list[Window]:
    """The windows of a picture, with the defects that show in them, to train or to validate on.

    A window shows a defect, as the tight box of what lies inside, if it holds at least a quarter of
    the mask pixels (of the box, where there is no mask) that the window with most of them holds. So
    every defect is in one window at least. A defect that fits into a window whole has to show a
    quarter of itself; one that is larger than windows is in every window that it fills as well.

    Less than that, a sliver, is no background either, and too little to tell what it is of. A
    window that shows slivers alone is left out: whatever is learnt from it would be wrong. In one
    that shows another defect as well, slivers are boxes, too.

    Returns:
        windows in the order of ``Tiling.frames``; ``file_name``, ``id`` and the like are those of
        the picture.
    """
    frames = tiling.frames(image.width, image.height)
    kept: list[list[Instance]] = [[] for _ in frames]
    slivers: list[list[Instance]] = [[] for _ in frames]
    for instance in image.instances:
        views = dict(_views(instance, frames))
        most = max((view.area for view in views.values()), default=0.0)
        for index, view in views.items():
            (kept if view.area >= MIN_VISIBLE * most else slivers)[index].append(view)
    return [
        _window(image, frame, (*shown, *little))
        for frame, shown, little in zip(frames, kept, slivers, strict=True)
        if shown or not little
    ]


def tile_dataset(dataset: Dataset, tiling: Tiling) -> Dataset:
    """The windows of all pictures, in their order: see ``cut``."""
    return dataset.subset(tuple(w for image in dataset.images for w in cut(image, tiling)))


def window_factors(windows: Dataset, sampling: Sampling, background: float) -> list[float]:
    """How often an epoch shows each window, on average.

    A picture with one defect is mostly windows without any. Those share a number of places in the
    epoch, each in its turn: all are seen in time, and good pictures as often as they are large.

    Args:
        windows: from ``tile_dataset``.
        sampling: of windows with defects, as for pictures.
        background: windows without defects for each with one, at most; none comes twice.
    """
    factors = picture_factors(windows, sampling)
    defects = sum(f for f, window in zip(factors, windows.images, strict=True) if window.instances)
    empty = sum(1 for window in windows.images if window.is_good)
    share = min(1.0, background * defects / max(1, empty))
    return [
        share if window.is_good else factor
        for factor, window in zip(factors, windows.images, strict=True)
    ]


def _window(image: Image, frame: Frame, instances: tuple[Instance, ...]) -> Window:
    left, top, width, height = frame
    return Window(
        image.file_name,
        image.path,
        width,
        height,
        instances,
        image.source,
        image.source_split,
        image.id,
        image.photograph,
        image.copy_of,
        left,
        top,
    )


def _views(instance: Instance, frames: Sequence[Frame]) -> Iterator[tuple[int, Instance]]:
    """What shows of an instance in every window that it reaches into, in the window's pixels."""
    region = None if instance.mask is None else region_of(instance)
    for index, frame in enumerate(frames):
        box = _shared(instance.box, frame)
        if box is None:
            continue
        if region is None:
            yield index, replace(instance, box=box)
            continue
        part = tight_region(within(region, frame))
        if part is not None:
            yield index, replace(instance, box=part[0], mask=part[1].copy())


def _shared(box: Box, frame: Frame) -> Box | None:
    """The part of a box in a frame, in the frame's pixels; None where there is none."""
    left, top = max(box[0], frame[0]), max(box[1], frame[1])
    right = min(box[0] + box[2], frame[0] + frame[2])
    bottom = min(box[1] + box[3], frame[1] + frame[3])
    if left >= right or top >= bottom:
        return None
    return (left - frame[0], top - frame[1], right - left, bottom - top)
