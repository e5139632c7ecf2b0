"""Pictures of a source and a target, their labels, and batches of both."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder, shared_pictures
from toolkit.classify.augment import draw_light, move
from toolkit.classify.data import Labels, count_batches, letterbox, suited
from toolkit.classify.labels import labelled_part
from toolkit.config import AdaptConfig
from toolkit.config.classifier import Augmentation
from toolkit.console import note, track
from toolkit.images import RgbImage, read_image
from toolkit.sampling import class_factors, draw_epoch
from toolkit.synth.picture import SMALLEST_SIDE, Sample
from toolkit.synth.source import SourceDomain
from toolkit.synth.streaming import SynthBatches, load

SYNTH_PICTURES = 1000
"""How many procedural pictures are drawn: some forty of each kind of defect."""
_SYNTH_BATCH = 50

UNLABELLED = -1

Squares = npt.NDArray[np.uint8]
"""Letterboxed RGB pictures, shape (n, side, side, 3)."""


@dataclass(frozen=True)
class Domain:
    """Pictures of one kind.

    Attributes:
        pixels: letterboxed, uint8, shape (n, side, side, 3), RGB.
        labels: index into the classes, or ``UNLABELLED``; shape (n,).
        classes: names.
        channels: 1 where all pictures are grey, else 3.
    """

    pixels: Squares
    labels: Labels
    classes: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Material:
    """All that is learnt from, or looked at.

    Attributes:
        source: all labelled, of the classes that it has pictures of.
        target: train pictures, with the labels that may be used; "good", then all its categories.
        val: of the target; None where no label of it may be used, which leaves nothing to look at.
    """

    source: Domain
    target: Domain
    val: Domain | None


@dataclass(frozen=True)
class Batch:
    """Pictures of one step, uint8 RGB squares.

    Attributes:
        source: shape (b, side, side, 3), with labels of shape (b,).
        target: shape (c, side, side, 3), with labels of shape (c,), some ``UNLABELLED``.
        votes: other random views of the target's, each of shape (c, side, side, 3); of all of them,
            as batch norms would not know what single ones are like; none where all are labelled.
        progress: share of the training that is done, 0 to 1.
    """

    source: Tensor
    source_labels: Tensor
    target: Tensor
    target_labels: Tensor
    votes: Sequence[Tensor]
    progress: float


@dataclass(frozen=True)
class _Read:
    """A picture as it was read: letterboxed, whether it is grey, and what it is known by."""

    square: RgbImage
    grey: bool
    digest: bytes


def read_material(config: AdaptConfig) -> Material:
    """Read source and target.

    Raises:
        InputError: a dataset or a picture cannot be used, there is nothing to tell apart, or the
            source holds pictures of the target.
    """
    folder = DatasetFolder.open(config.data, config.fold)
    _refuse_same_folder(config)
    _refuse_same_files(config, folder)
    source, seen = _read_source(config)
    splits = {split: folder.read(split) for split in folder.splits()}
    train = splits["train"]
    if len(train.images) < 2:
        raise InputError(
            f"{folder.annotations('train')}: has fewer than two pictures: convert with a split "
            "that has more"
        )
    pictures = {
        split: _read_all(dataset, config.image_size, config.workers, split)
        for split, dataset in splits.items()
    }
    for split, read in pictures.items():
        _refuse_shared(config, seen, split, read)
    classes = (GOOD, *train.categories)
    target = _domain(pictures["train"], _labels(train, classes), classes)
    target = _with_budget(target, train, config)
    val = splits.get("val")
    if config.labels == 0 or val is None or not val.images:
        return Material(source, target, None)
    return Material(source, target, _domain(pictures["val"], _labels(val, classes), classes))


def _refuse_same_folder(config: AdaptConfig) -> None:
    if isinstance(config.source, Path) and config.source.resolve() == config.data.resolve():
        raise InputError(
            f"{config.source}: is source and target at once: give another dataset as the source"
        )


def _refuse_same_files(config: AdaptConfig, target: DatasetFolder) -> None:
    """Refuse windows or another split of the target's pictures that it holds out.

    Where few labels may be used, those of its train pictures are no source either.
    """
    if not isinstance(config.source, Path):
        return
    source = DatasetFolder.open(config.source, config.source_fold)
    splits = ("val", "test") if config.labels is None else ("train", "val", "test")
    shared = shared_pictures(source, target, splits)
    if shared:
        raise InputError(
            f"{config.source}: was made of the same files as {config.data}, {shared} of them in "
            f"{', '.join(splits)} of it: give the same fold of both and all labels, or another "
            "source"
        )


def _refuse_shared(
    config: AdaptConfig, seen: frozenset[bytes], split: str, pictures: Sequence[_Read]
) -> None:
    shared = sum(picture.digest in seen for picture in pictures)
    if shared:
        raise InputError(
            f"{config.source}: has {shared} pictures that are in {split} of {config.data}, too: "
            "give a source without them"
        )


def _read_source(config: AdaptConfig) -> tuple[Domain, frozenset[bytes]]:
    """The source, and what its pictures are known by."""
    side = config.source_image_size or config.image_size
    if not isinstance(config.source, Path):
        return draw_source(side, config.seed, config.workers), frozenset()
    folder = DatasetFolder.open(config.source, config.source_fold)
    train = folder.read("train")
    labels = train.image_labels()
    classes = tuple(name for name in (GOOD, *train.categories) if name in set(labels))
    if len(classes) < 2:
        raise InputError(
            f"{folder.annotations('train')}: has pictures of {len(classes)} class: give a source "
            "with two classes at least"
        )
    pictures = _read_all(train, side, config.workers, "source")
    digests = frozenset(picture.digest for picture in pictures)
    return _domain(pictures, _labels(train, classes), classes), digests


def draw_source(side: int, seed: int, workers: int) -> Domain:
    """Procedural pictures, ``SYNTH_PICTURES`` of them, of all kinds of defects.

    Each is of the kind that covers most of it, as in a dataset.

    Args:
        side: of the squares, in pixels.
        seed: of the pictures.
        workers: processes that draw.
    """
    drawn = SourceDomain(max(side, SMALLEST_SIDE))
    total = SYNTH_PICTURES // _SYNTH_BATCH
    stream = SynthBatches(drawn, _Collate(side), batch=_SYNTH_BATCH, seed=seed, count=total)
    batches = list(track(load(stream, workers), "drawing the source", total=total))
    pictures = [picture for part, _ in batches for picture in part]
    names = [name for _, part in batches for name in part]
    present = set(names)
    classes = tuple(name for name in (GOOD, *drawn.kinds) if name in present)
    labels = np.array([classes.index(name) for name in names], dtype=np.int64)
    return _domain(pictures, labels, classes)


@dataclass(frozen=True)
class _Collate:
    """Procedural pictures as squares, with the name of each one's class."""

    side: int

    def __call__(self, pictures: Sequence[Sample], _: int) -> tuple[list[_Read], list[str]]:
        read = [_as_read(picture.image, self.side) for picture in pictures]
        return read, [_largest(picture) for picture in pictures]


def _largest(picture: Sample) -> str:
    """The kind of defect that covers most pixels."""
    areas: dict[str, int] = {}
    for instance in picture.instances:
        covered = int(np.count_nonzero(instance.mask))
        areas[instance.kind] = areas.get(instance.kind, 0) + covered
    return max(areas, key=areas.__getitem__) if areas else GOOD


def _as_read(image: RgbImage, side: int) -> _Read:
    grey = bool((image == image[..., :1]).all())
    digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
    return _Read(letterbox(image, side), grey, digest)


def _read_all(dataset: Dataset, side: int, workers: int, name: str) -> list[_Read]:
    paths = [image.path for image in dataset.images]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        read = pool.map(lambda path: _as_read(read_image(path), side), paths)
        return list(track(read, f"reading {name}", total=len(paths)))


def _labels(dataset: Dataset, classes: Sequence[str]) -> Labels:
    return np.array([classes.index(label) for label in dataset.image_labels()], dtype=np.int64)


def _domain(pictures: Sequence[_Read], labels: Labels, classes: tuple[str, ...]) -> Domain:
    channels = 1 if all(picture.grey for picture in pictures) else 3
    return Domain(np.stack([each.square for each in pictures]), labels, classes, channels)


def _with_budget(target: Domain, train: Dataset, config: AdaptConfig) -> Domain:
    """The target with the labels that may be used, the same ones as fine-tuning draws."""
    if config.labels is None:
        return target
    kept: set[int] = set()
    if config.labels > 0:
        kept = {id(image) for image in labelled_part(train, config.labels, config.seed).images}
    known = np.array([id(image) in kept for image in train.images])
    note(f"target: labels of {known.sum()} of {len(known)} train pictures are used")
    labels = np.where(known, target.labels, UNLABELLED)
    return Domain(target.pixels, labels, target.classes, target.channels)


class Batches:
    """Batches of both domains, the same ones for the same seed, epoch and step.

    An epoch is a pass over the target; of the source each step takes as many pictures, all classes
    alike.
    """

    def __init__(
        self, material: Material, *, batch: int, views: int, epochs: int, seed: int
    ) -> None:
        """Describe the batches.

        Args:
            material: pictures of both.
            batch: pictures per step, of each domain.
            views: random views of the target's pictures that vote; 0 for none.
            epochs: passes over the target in all.
            seed: everything random derives from it, the epoch and the step.
        """
        self._source, self._target = material.source, material.target
        shown = len(self._target.labels)
        self.steps = count_batches(shown, batch)
        factors = np.array(class_factors(self._source.labels))
        self._factors = [float(factor) for factor in factors * (batch / factors.sum())]
        self._views, self._epochs, self._seed = views, epochs, seed
        self._suit_source = suited(("auto",), self._source.pixels)
        self._suit_target = suited(("auto",), self._target.pixels)

    def __call__(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """Those of an epoch; where numbers are given, these alone."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._target.labels))
        parts = np.array_split(order, self.steps)
        for step in range(self.steps) if numbers is None else numbers:
            # Plus one, because a seed of [s, e, 0] is the same as one of [s, e].
            rng = np.random.default_rng([self._seed, epoch, step + 1])
            done = (epoch * self.steps + step) / (self._epochs * self.steps)
            yield self._make(parts[step], rng, done)

    def _make(self, chosen: Labels, rng: np.random.Generator, progress: float) -> Batch:
        ours = draw_epoch(self._factors, rng)
        labels = self._target.labels[chosen]
        pixels = self._target.pixels[chosen]
        views = self._views if (labels == UNLABELLED).any() else 0
        return Batch(
            source=_viewed(self._source.pixels[ours], self._suit_source, rng),
            source_labels=torch.from_numpy(self._source.labels[ours]),
            target=_viewed(pixels, self._suit_target, rng),
            target_labels=torch.from_numpy(labels),
            votes=[_viewed(pixels, self._suit_target, rng) for _ in range(views)],
            progress=progress,
        )


def _viewed(
    pictures: Squares, changes: Collection[Augmentation], rng: np.random.Generator
) -> Tensor:
    """A random view of each picture: moved as ``changes`` say, in another light."""
    views = np.empty_like(pictures)
    for view, picture in zip(views, pictures, strict=True):
        contrast, brightness = draw_light(rng)
        lit = (
            (move(picture, rng, changes).astype(np.float32) - 128) * contrast
            + 128
            + 255 * brightness
        )
        view[:] = np.clip(np.rint(lit), 0, 255)
    return torch.from_numpy(views)
