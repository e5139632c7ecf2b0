"""Batches of prompts: which instances, seen through which views, with which targets."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from converters.dataset import Box, Dataset, Image, Instance
from converters.errors import InputError
from converters.geometry import Region
from toolkit.images import RgbImage, read_image
from toolkit.sampling import draw_epoch
from toolkit.segment.frames import FloatArray, Frame
from toolkit.segment.prompts import INSIDE, PromptKind, jitter_box, random_point
from toolkit.segment.views import View, random_view, random_zoomed_view, views_of

PROMPTS_PER_VIEW = 4
"""Instances of one image that are drawn together and share a view; more crowd out others."""

MEMORY = 2**30
"""Bytes of decoded pictures that are kept."""

S = TypeVar("S")
T = TypeVar("T")


Prompt: TypeAlias = tuple[Image, Instance]
"""An instance to outline, and the image that it is on."""

Point: TypeAlias = tuple[float, float]
"""``(x, y)`` in pixels, from the top left corner of the picture; (0.5, 0.5) is in the first."""

ImageView: TypeAlias = tuple[str, View]
"""What is encoded: a view, and the file name of its image."""

Recall: TypeAlias = Callable[[Sequence[ImageView]], Sequence[Tensor]]
"""Gives what a frozen encoder has made of views."""


@dataclass(frozen=True)
class Batch:
    """Prompts, and what they should give.

    Attributes:
        views: the n views, with their images, that the prompts are on.
        pixels: the same, resized for the encoder: n tensors (3, height, width), uint8; empty where
            the encoder is frozen.
        owner: index into ``views`` of each of the b prompts, shape (b,).
        boxes: shape (b, 4), corners in pixels of the input frame; None where points alone prompt.
        points: shape (b, 1, 2), x and y in pixels of the input frame, each of them inside what it
            asks for; None where boxes alone prompt.
        targets: share of each cell that the defect covers, shape (b, cells, cells).
        inside: share of each cell that is image, not padding, shape (b, cells, cells).
        embeddings: of the views, n tensors (channels, grid, grid), float16; empty where the encoder
            learns.
    """

    views: tuple[ImageView, ...]
    pixels: tuple[Tensor, ...]
    owner: Tensor
    boxes: Tensor | None
    points: Tensor | None
    targets: Tensor
    inside: Tensor
    embeddings: tuple[Tensor, ...] = ()

    def clicks(self) -> tuple[Tensor, Tensor] | None:
        """The points, and what they say, shape (b, 1)."""
        if self.points is None:
            return None
        return self.points, torch.full(self.points.shape[:2], INSIDE)


class ImageStore:
    """Pictures, decoded once as long as they fit into ``MEMORY``."""

    def __init__(self) -> None:
        self._kept: dict[str, RgbImage] = {}
        self._bytes = 0

    def read(self, image: Image) -> RgbImage:
        """The pixels of an image.

        Raises:
            InputError: it cannot be read, or its size is not that of its annotations.
        """
        if image.file_name in self._kept:
            return self._kept[image.file_name]
        pixels = read_picture(image)
        if self._bytes + pixels.nbytes <= MEMORY:
            self._kept[image.file_name] = pixels
            self._bytes += pixels.nbytes
        return pixels


def read_picture(image: Image) -> RgbImage:
    """The pixels of an image.

    Raises:
        InputError: it cannot be read, or its size is not that of its annotations.
    """
    pixels = read_image(image.path)
    if pixels.shape[:2] != (image.height, image.width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise InputError(
            f"{image.path}: is {found} pixels, its annotations say "
            f"{image.width} x {image.height}: convert again"
        )
    return pixels


def masked_prompts(dataset: Dataset) -> list[Prompt]:
    """The instances that have a mask, with their images."""
    return [
        (image, instance)
        for image in dataset.images
        for instance in image.instances
        if instance.mask is not None
    ]


class BatchBuilder:
    """Collects the prompts of a batch, image by image.

    Args:
        side: of the encoder's input, in pixels.
        cells: side of the square that masks are compared on.
    """

    def __init__(self, side: int, cells: int) -> None:
        self._side, self._cells = side, cells
        self._views: list[ImageView] = []
        self._pixels: list[Tensor] = []
        self._owner: list[int] = []
        self._boxes: list[FloatArray] = []
        self._points: list[FloatArray] = []
        self._targets: list[FloatArray] = []
        self._inside: list[FloatArray] = []

    def add(
        self,
        name: str,
        image: RgbImage | None,
        views: Sequence[View],
        owner: Sequence[int],
        boxes: Sequence[Box] | None,
        regions: Sequence[Region],
        points: Sequence[Point] | None = None,
    ) -> None:
        """Add the prompts of one image: of the same kind as those that are there.

        Args:
            name: of the image.
            image: its pixels; None where the encoder is frozen.
            views: what is encoded of it.
            owner: index into ``views`` for each prompt.
            boxes: of each prompt, ``(x, y, width, height)`` in pixels of the image; None where
                points alone prompt.
            regions: what each prompt should give.
            points: of each prompt, ``(x, y)`` in pixels of its view; None where boxes alone prompt.
        """
        frames = [Frame(*view.size, self._side) for view in views]
        if boxes is not None:
            self._boxes += [
                frames[k].boxes(views[k].box(box))[0] for box, k in zip(boxes, owner, strict=True)
            ]
        if points is not None:
            self._points += [frames[k].points([p]) for p, k in zip(points, owner, strict=True)]
        for region, k in zip(regions, owner, strict=True):
            self._targets.append(frames[k].target(views[k].region(region), self._cells))
            self._inside.append(frames[k].inside(self._cells))
            self._owner.append(len(self._views) + k)
        if image is not None:
            self._pixels += [f.image(v.image(image)) for f, v in zip(frames, views, strict=True)]
        self._views += [(name, view) for view in views]

    def build(self) -> Batch:
        """The batch of all prompts so far."""
        return Batch(
            views=tuple(self._views),
            pixels=tuple(self._pixels),
            owner=torch.tensor(self._owner),
            boxes=torch.from_numpy(np.stack(self._boxes)) if self._boxes else None,
            points=torch.from_numpy(np.stack(self._points)) if self._points else None,
            targets=torch.from_numpy(np.stack(self._targets)),
            inside=torch.from_numpy(np.stack(self._inside)),
        )


class Sampler:
    """Training batches, the same ones for the same seed, epoch and step."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        store: ImageStore,
        *,
        side: int,
        cells: int,
        zoom: float | None,
        batch: int,
        repeat: int = 1,
        factors: Mapping[str, float] | None = None,
        kinds: Sequence[PromptKind] = ("box",),
        negatives: Sequence[Prompt] = (),
        negative_share: float = 0.0,
        jitter: float,
        recall: Recall | None = None,
        frozen_views: int = 1,
        seed: int,
        workers: int,
    ) -> None:
        """Describe the batches.

        Args:
            prompts: the training instances, all of them with masks.
            store: reads the pictures.
            side: of the encoder's input, in pixels.
            cells: side of the square that masks are compared on.
            zoom: window around each box, in its longer sides, or None for the whole image; points
                alone do not say how large a window should be, and are shown with the whole image.
            batch: prompts per step.
            repeat: times each prompt counts in an epoch.
            factors: how often the prompts of a picture come on average, by its file name; once
                where not given.
            kinds: what prompts are; those of a step are of one kind.
            negatives: prompts that hold nothing.
            negative_share: of these, how many come into a step for each other prompt, on average.
            jitter: standard deviation of the noise on box corners, as a share of the side.
            recall: gives the embeddings that a frozen encoder has made of ``frozen_views``; None
                where the encoder learns, from random views, and batches carry pixels.
            frozen_views: views of each group of prompts that a frozen encoder has encoded.
            seed: everything random derives from it, the epoch and the step.
            workers: threads that make batches ahead of their use; 0 makes them when asked.
        """
        self._groups = _groups(prompts)
        # Prompts on one picture come together.
        of_picture = factors or {}
        self._factors = [
            repeat * of_picture.get(group[0][0].file_name, 1.0) for group in self._groups
        ]
        self._store = store
        self._side, self._cells, self._zoom = side, cells, zoom
        self._kinds, self._negatives, self._share = tuple(kinds), negatives, negative_share
        self._batch, self._jitter, self._recall = batch, jitter, recall
        self._frozen = {
            window: {
                id(prompt[1]): ((part, group), views)
                for part, some in enumerate((prompts, negatives))
                for group, prompt, views in frozen_views_of(some, window, frozen_views)
            }
            for window in ({zoom_for(kind, zoom) for kind in kinds} if recall else ())
        }
        self._seed, self._workers = seed, workers
        shown = sum(f * len(group) for f, group in zip(self._factors, self._groups, strict=True))
        self.steps = math.ceil(shown / batch - 1e-9)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """All prompts, as often as they count, in ``steps`` batches.

        Pictures with many prompts may come a time more or less than on average: what is too much is
        left out, and what is missing for the last batch drawn from the first.
        """
        rng = np.random.default_rng([self._seed, epoch])
        order = [p for index in draw_epoch(self._factors, rng) for p in self._groups[index]]
        least = (self.steps - 1) * self._batch + 1
        order = [order[n % len(order)] for n in range(max(least, len(order)))]
        plans = [
            (step, order[step * self._batch : (step + 1) * self._batch])
            for step in range(self.steps)
        ]

        def make(plan: tuple[int, list[Prompt]]) -> Batch:
            step, prompts = plan
            # Plus one, because a seed of [s, e, 0] is the same as one of [s, e].
            return self._make(prompts, np.random.default_rng([self._seed, epoch, step + 1]))

        return ahead(make, plans, self._workers)

    def _make(self, prompts: list[Prompt], rng: np.random.Generator) -> Batch:
        kind = (
            self._kinds[int(rng.integers(len(self._kinds)))] if self._kinds[1:] else self._kinds[0]
        )
        prompts = prompts + self._draw_negatives(len(prompts), rng)
        builder = BatchBuilder(self._side, self._cells)
        for image, instances in by_image(prompts):
            jittered = [
                jitter_box(instance.box, self._jitter, image.height, image.width, rng)
                for instance in instances
            ]
            views, owner = self._choose_views(image, instances, jittered, kind, rng)
            whole = self._store.read(image) if self._recall is None else None
            regions = [_region(instance) for instance in instances]
            points = None
            if kind != "box":
                shown = zip(regions, jittered, owner, strict=True)
                points = [_click(views[k], region, box, rng) for region, box, k in shown]
            boxes = None if kind == "point" else jittered
            builder.add(image.file_name, whole, views, owner, boxes, regions, points)
        batch = builder.build()
        if self._recall is None:
            return batch
        return replace(batch, embeddings=tuple(self._recall(batch.views)))

    def _draw_negatives(self, count: int, rng: np.random.Generator) -> list[Prompt]:
        """Some of the prompts that hold nothing, none twice, for so many others."""
        if not self._negatives or not self._share:
            return []
        wanted = min(len(self._negatives), int(self._share * count + rng.random()))
        chosen = rng.choice(len(self._negatives), wanted, replace=False)
        return [self._negatives[k] for k in chosen.tolist()]

    def _choose_views(
        self,
        image: Image,
        instances: list[Instance],
        jittered: list[Box],
        kind: PromptKind,
        rng: np.random.Generator,
    ) -> tuple[list[View], list[int]]:
        """Views of one image, and for each instance the index of its view."""
        zoom = zoom_for(kind, self._zoom)
        if self._recall is not None:
            return self._choose_frozen_views(instances, zoom, rng)
        return _random_views(jittered, image.height, image.width, zoom, rng)

    def _choose_frozen_views(
        self, instances: list[Instance], zoom: float | None, rng: np.random.Generator
    ) -> tuple[list[View], list[int]]:
        """As ``_choose_views``: one of the views of each group."""
        drawn: dict[tuple[int, int], int] = {}
        views: dict[View, int] = {}
        owner = []
        for instance in instances:
            group, choices = self._frozen[zoom][id(instance)]
            if group not in drawn:
                drawn[group] = int(rng.integers(len(choices))) if len(choices) > 1 else 0
            owner.append(views.setdefault(choices[drawn[group]], len(views)))
        return list(views), owner


def frozen_views_of(
    prompts: Sequence[Prompt], zoom: float | None, count: int
) -> Iterator[tuple[int, Prompt, list[View]]]:
    """The views in which a frozen encoder is shown each prompt.

    They do not depend on the seed of a run, so that runs share what they encode.

    Args:
        prompts: the training instances.
        zoom: of the architecture.
        count: views of each group of prompts on an image: the first is that of ``views_of``, the
            others are random ones of the exact boxes.

    Yields:
        number of the group, prompt, and ``count`` views.
    """
    groups_on: Counter[str] = Counter()
    for number, group in enumerate(_groups(prompts)):
        image = group[0][0]
        boxes = [instance.box for _, instance in group]
        name = list(hashlib.sha256(image.file_name.encode()).digest())
        choices = []
        for k in range(count):
            rng = np.random.default_rng([k, groups_on[image.file_name], *name])
            draw = partial(_random_views, rng=rng) if k else views_of
            views, owner = draw(boxes, image.height, image.width, zoom)
            choices.append([views[n] for n in owner])
        groups_on[image.file_name] += 1
        for prompt, seen in zip(group, zip(*choices, strict=True), strict=True):
            yield number, prompt, list(seen)


def zoom_for(kind: PromptKind, zoom: float | None) -> float | None:
    """The window around prompts of a kind: points alone are shown with the whole image."""
    return None if kind == "point" else zoom


def _click(view: View, region: Region, box: Box, rng: np.random.Generator) -> Point:
    """A point on what is seen of a region, or anywhere in its box where nothing is."""
    point = random_point(view.region(region), rng)
    if point is not None:
        return point
    x, y, w, h = view.box(box)
    return x + w * float(rng.random()), y + h * float(rng.random())


def by_image(prompts: Sequence[Prompt]) -> list[tuple[Image, list[Instance]]]:
    """The instances of each image, in the order of their first appearance."""
    found: dict[str, tuple[Image, list[Instance]]] = {}
    for image, instance in prompts:
        found.setdefault(image.file_name, (image, []))[1].append(instance)
    return list(found.values())


def _groups(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Prompts that are drawn together because they share an encoding."""
    return [
        [(image, instance) for instance in instances[start : start + PROMPTS_PER_VIEW]]
        for image, instances in by_image(prompts)
        for start in range(0, len(instances), PROMPTS_PER_VIEW)
    ]


def _random_views(
    boxes: Sequence[Box], height: int, width: int, zoom: float | None, rng: np.random.Generator
) -> tuple[list[View], list[int]]:
    """As ``views_of``, at random."""
    if zoom is None:
        return [random_view(height, width, boxes, rng)], [0] * len(boxes)
    # As at work, the window lies around the box that the detector gave.
    views = [random_zoomed_view(box, height, width, zoom, rng) for box in boxes]
    return views, list(range(len(boxes)))


def _region(instance: Instance) -> Region:
    crop = instance.crop
    assert crop is not None, "prompts have masks"
    return instance.box, crop


def ahead(make: Callable[[S], T], plans: Iterable[S], workers: int) -> Iterator[T]:
    """``map`` in order, made by threads a few items ahead of their use."""
    if workers == 0:
        yield from map(make, plans)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[T]] = deque()
        for plan in plans:
            pending.append(pool.submit(make, plan))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
