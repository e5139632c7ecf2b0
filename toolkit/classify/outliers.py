"""Outliers: pictures of anything else, on which a classifier learns to be undecided.

Outlier exposure (Hendrycks, Mazeika & Dietterich, ICLR 2019, arXiv 1812.04606) measures how well a
network knows what it does not know. That says something only while no outlier is a picture of the
dataset: a held-out one would be learnt from, and one of train would have two targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from converters.dataset import Dataset
from converters.duplicates import SIDE, Fingerprint, fingerprint, near_duplicates_between
from converters.errors import InputError
from converters.folder import CARD, DatasetFolder
from converters.layouts.base import IMAGE_SUFFIXES
from toolkit.classify.data import Pictures, letterbox
from toolkit.console import note, track
from toolkit.images import RgbImage, read_image
from toolkit.runs import fold_of_outliers
from toolkit.synth.source import SourceDomain

SYNTH_PICTURES = 400
"""How many of them are drawn."""

MOST = 4000
"""Outliers that are kept, at most: 200 MB at 128 x 128 pixels. Of more, the seed draws these."""

OUTLIER = -1
"""Label of every outlier: it is of no class."""

_SMALLEST_DRAWN = 64
"""Side, in pixels, under which procedural pictures are drawn larger and reduced."""


@dataclass(frozen=True)
class _Look:
    """What tells whether two files hold the same picture.

    Attributes:
        content: digest of the file.
        pixels: digest of the decoded picture: a file that was encoded anew has the same.
        print_: tells copies that lost something (JPEG, another size, another exposure).
    """

    content: bytes
    pixels: bytes
    print_: Fingerprint


def read_outliers(
    given: Literal["synth"] | Path,
    datasets: Mapping[str, Dataset],
    side: int,
    *,
    workers: int,
    seed: int,
) -> Pictures:
    """Read, or draw, pictures of anything but what is in a dataset.

    Args:
        given: a folder of pictures, with those of the folders in it; a dataset folder, of which
            train is taken, of fold 0 where it has folds alone; or "synth".
        datasets: the splits that no outlier may be in.
        side: of the square that the network sees, in pixels.
        workers: threads that decode.
        seed: of procedural pictures, and of the choice where there are more than ``MOST``.

    Returns:
        the pictures; every label is -1.

    Raises:
        InputError: there is no such folder, it holds no picture, one cannot be read, or one is in
            the dataset: the same file, the same pixels, or the same photograph, as
            ``converters.duplicates`` finds it. A detail cut out of a photograph is not found.
    """
    squares = (
        _read_folder(given, datasets, side, workers=workers, seed=seed)
        if isinstance(given, Path)
        else _drawn(side, seed, workers)
    )
    return Pictures(np.stack(squares), np.full(len(squares), OUTLIER, dtype=np.int64))


def _drawn(side: int, seed: int, workers: int) -> list[RgbImage]:
    domain = SourceDomain(max(side, _SMALLEST_DRAWN))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        drawn = pool.map(lambda index: domain.draw(seed, index).image, range(SYNTH_PICTURES))
        return [
            letterbox(image, side) for image in track(drawn, "drawing outliers", SYNTH_PICTURES)
        ]


def _read_folder(
    given: Path, datasets: Mapping[str, Dataset], side: int, *, workers: int, seed: int
) -> list[RgbImage]:
    paths = _some(given, _paths(given), seed)
    reduced = _common_side(datasets)
    with ThreadPoolExecutor(max(1, workers)) as pool:

        def read(path: Path) -> tuple[RgbImage, _Look]:
            image = read_image(path)
            return letterbox(image, side), _look(path, image, reduced)

        found = list(track(pool.map(read, paths), "reading outliers", len(paths)))
        looks = [look for _, look in found]
        for split, dataset in datasets.items():
            known = [image.path for image in dataset.images]
            seen = pool.map(lambda path: _look(path, read_image(path), reduced), known)
            own = list(track(seen, f"comparing {split}", len(known)))
            _refuse_shared(paths, looks, split, known, own, workers)
    return [square for square, _ in found]


def _paths(root: Path) -> list[Path]:
    """The pictures that are meant, sorted."""
    if (root / CARD).is_file():
        train = DatasetFolder.open(root, fold_of_outliers(root)).read("train")
        # A picture that train lists more than once is one picture.
        paths = {image.path for image in train.images}
    elif root.is_dir():
        paths = {path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    else:
        raise InputError(
            f"{root}: no such folder of outliers: give a folder of pictures, a dataset folder, or "
            "synth"
        )
    if not paths:
        raise InputError(f"{root}: holds no pictures to take as outliers: give another folder")
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _some(given: Path, paths: list[Path], seed: int) -> list[Path]:
    """As many as are kept, in their order."""
    if len(paths) <= MOST:
        return paths
    note(f"{given}: {MOST} of {len(paths)} pictures are taken as outliers, drawn by the seed")
    chosen = np.random.default_rng(seed).choice(len(paths), MOST, replace=False)
    return [paths[index] for index in np.sort(chosen)]


def _common_side(datasets: Mapping[str, Dataset]) -> int:
    """Longer side, in pixels, at which pictures are compared: no larger than they mostly are."""
    sides = [max(i.width, i.height) for dataset in datasets.values() for i in dataset.images]
    return min(SIDE, round(float(np.median(sides))))


def _look(path: Path, image: RgbImage, reduced: int) -> _Look:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
    return _Look(
        content=hashlib.sha256(path.read_bytes()).digest(),
        pixels=hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest(),
        print_=fingerprint(grey, reduced / max(grey.shape)),
    )


def _refuse_shared(
    paths: Sequence[Path],
    looks: Sequence[_Look],
    split: str,
    known: Sequence[Path],
    own: Sequence[_Look],
    workers: int,
) -> None:
    """Refuse outliers (paths, and their looks) that are among a split's pictures (known, own)."""
    by_content = {look.content: path for path, look in zip(known, own, strict=True)}
    by_pixels = {look.pixels: path for path, look in zip(known, own, strict=True)}
    shared = {}
    for outlier, look in zip(paths, looks, strict=True):
        twin = by_content.get(look.content) or by_pixels.get(look.pixels)
        if twin is not None:
            shared[outlier] = f"is the same picture as {twin.name}"
    prints = [look.print_ for look in looks], [look.print_ for look in own]
    for one, other in near_duplicates_between(*prints, max(1, workers)):
        shared.setdefault(paths[one], f"shows the same photograph as {known[other].name}")
    if shared:
        outlier, what = min(shared.items())
        others = f", and so are {len(shared) - 1} more" if len(shared) > 1 else ""
        raise InputError(
            f"{outlier}: {what} in {split} of the dataset{others}: outliers must be pictures of "
            "anything else: remove what is in the dataset, or give another folder"
        )
