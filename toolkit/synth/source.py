"""The source domain: pictures of anything, damaged in any way, without end.

`mvtec.py` draws one product many times; this draws another product every time, as small models
must see before they meet a real one. Picture `index` of a `seed` is the same on every machine and
depends on no other picture, so that any number of processes can share the work and a run that was
stopped can go on anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from converters.errors import InputError
from toolkit.synth.camera import photograph, snapshot
from toolkit.synth.canvas import FloatImage, Mask, Size, Surface
from toolkit.synth.noise import log_uniform
from toolkit.synth.picture import (
    SMALLEST_SIDE,
    Instance,
    Sample,
    check_size,
    choose_surface,
    damage,
    lookup,
    stream,
)
from toolkit.synth.registry import DEFECTS, DISTRACTORS, SURFACES

DEFECT_COUNTS = (0.5, 0.25, 0.15, 0.1)
"""Share of the defective pictures with 1, 2, … defects."""
DISTRACTOR_COUNTS = (0.5, 0.3, 0.2)
"""Share of the pictures with 0, 1, 2 distractors."""
WIDEST_ASPECT = 2.0
"""Most times that the longer side of a picture is as long as the shorter one."""
FAINTEST_STRENGTH = 0.4
"""Least share of a defect's full contrast."""
FULL_STRENGTH = 0.4
"""Share of the defects that keep their full contrast."""
ENOUGH_LEFT = 0.25
"""Share of a defect's pixels that must lie in the picture; with less it is left unlabelled."""
FEWEST_PIXELS = 4
"""Pixels of a mask under which a defect is left unlabelled."""
FAINTEST_CHANGE = 3.0
"""Grey levels (of 255) by which a defect must change the photograph to be labelled."""
FAINTEST_RATIO = 0.3
"""The same as a multiple of the deviation of the flawless photograph around it."""
COVERED = 0.4
"""Share of a resized pixel from which it is in the mask: half would lose hair lines."""


@dataclass(frozen=True)
class SourceDomain:
    """What is drawn.

    Attributes:
        side: pixels of the longer side of every picture.
        kinds: kinds of defects, each as likely as any other.
        good: share of the pictures without a defect, 0 to 1.
        ramp: pictures over which easy ones (plain to see, nothing beside the defects, a good
            camera) give way to all others; 0 for none. What is hard from the start teaches a
            random network nothing for a long time.
    """

    side: int
    kinds: tuple[str, ...] = tuple(DEFECTS)
    good: float = 0.2
    ramp: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a side below 32 pixels or an unknown kind."""
        check_size((self.side, self.side))
        for kind in self.kinds:
            lookup(DEFECTS, kind, "defect")

    @classmethod
    def of(cls, side: int, kinds: tuple[str, ...], ramp: int = 0) -> SourceDomain:
        """Pictures with these kinds of defects, or with all of them where none is named.

        Raises:
            InputError: a kind is unknown.
        """
        try:
            return cls(side, kinds or tuple(DEFECTS), ramp=ramp)
        except ValueError as error:
            raise InputError(str(error)) from error

    def draw(self, seed: int, index: int) -> Sample:
        """Picture `index` of `seed`, with up to four defects.

        A defect that the window cuts off, or that the camera lost in blur, noise or darkness, is
        not labelled: more pictures than `good` show none.
        """
        rng = stream("source", seed, index)
        easy = rng.random() * self.ramp > index
        shape = self._shape(rng)
        surface, flawless = _scene(rng, shape, distracted=not easy)
        scene, instances = self._damaged(rng, flawless, faded=not easy)
        window = _window(rng, scene.size)
        take = _good_camera if easy else _any_camera
        camera = int(rng.integers(2**63))
        clean, photo = (
            take(camera, _resized(each.image[window], shape)) for each in (flawless, scene)
        )
        seen = [Instance(each.kind, _seen(each.mask, window, shape)) for each in instances]
        kept = tuple(
            after
            for before, after in zip(instances, seen, strict=True)
            if _is_left(before.mask, after.mask, window) and _shows(clean, photo, after.mask)
        )
        return Sample(photo, surface, kept)

    def _damaged(
        self, rng: Generator, scene: Surface, *, faded: bool
    ) -> tuple[Surface, list[Instance]]:
        """A scene with its defects, and their masks."""
        instances: list[Instance] = []
        count = 1 + rng.choice(len(DEFECT_COUNTS), p=DEFECT_COUNTS)
        for _ in range(count if rng.random() >= self.good else 0):
            kind = self.kinds[rng.integers(len(self.kinds))]
            faint = faded and rng.random() >= FULL_STRENGTH
            strength = log_uniform(rng, FAINTEST_STRENGTH, 1.0) if faint else 1.0
            scene, mask = damage(rng, scene, kind, strength=strength)
            instances.append(Instance(kind, mask))
        return scene, instances

    def _shape(self, rng: Generator) -> Size:
        """A picture's height and width: upright, square or lying."""
        aspect = max(1.0, rng.uniform(0.6, WIDEST_ASPECT))
        short = max(SMALLEST_SIDE, round(self.side / aspect))
        return (self.side, short) if rng.random() < 0.5 else (short, self.side)


def _scene(rng: Generator, shape: Size, *, distracted: bool) -> tuple[str, Surface]:
    """A flawless product, drawn finer or coarser than the picture, with what belongs on it."""
    scale = log_uniform(rng, 0.8, 1.4)
    height, width = (max(SMALLEST_SIDE, round(length * scale)) for length in shape)
    name = choose_surface(rng)
    product = np.random.default_rng(rng.integers(2**63))
    scene = SURFACES[name](product, rng, (height, width))
    if not distracted:
        return name, scene
    distractors = list(DISTRACTORS.values())
    for _ in range(rng.choice(len(DISTRACTOR_COUNTS), p=DISTRACTOR_COUNTS)):
        scene = distractors[rng.integers(len(distractors))](rng, scene)
    return name, scene


def _any_camera(seed: int, scene: FloatImage) -> NDArray[np.uint8]:
    return snapshot(np.random.default_rng(seed), scene)


def _good_camera(seed: int, scene: FloatImage) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return photograph(rng, rng, scene)


def _window(rng: Generator, size: Size) -> tuple[slice, slice]:
    """What the picture shows of the scene: in half of the cases all of it, else a part."""
    share = 1.0 if rng.random() < 0.5 else rng.uniform(0.6, 1.0)
    height, width = (max(1, round(length * share)) for length in size)
    top = int(rng.integers(size[0] - height + 1))
    left = int(rng.integers(size[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _resized(field: FloatImage, shape: Size) -> FloatImage:
    """A field (HxW or HxWx3) at another size."""
    if field.shape[:2] == shape:
        return np.ascontiguousarray(field)
    shrinks = field.shape[0] > shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(field, shape[::-1], interpolation=method), np.float32)


def _seen(mask: Mask, window: tuple[slice, slice], shape: Size) -> Mask:
    """A mask of the scene as a mask of the picture."""
    return _resized(mask[window].astype(np.float32), shape) >= np.float32(COVERED)


def _is_left(whole: Mask, seen: Mask, window: tuple[slice, slice]) -> bool:
    """Whether enough of a defect is in the picture for it to be labelled."""
    if np.count_nonzero(seen) < FEWEST_PIXELS:
        return False
    return bool(np.count_nonzero(whole[window]) >= ENOUGH_LEFT * np.count_nonzero(whole))


def _shows(clean: NDArray[np.uint8], photo: NDArray[np.uint8], mask: Mask) -> bool:
    """Whether the photograph with a defect differs from the one without it so that people see."""
    rows, columns = (slice(index.min(), index.max() + 1) for index in np.nonzero(mask))
    before = clean[rows, columns].mean(axis=2)
    change = np.abs(photo[rows, columns].mean(axis=2) - before)[mask[rows, columns]].mean()
    return bool(change >= max(FAINTEST_CHANGE, FAINTEST_RATIO * before.std()))
