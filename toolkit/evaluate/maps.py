"""Score maps of any model, pixel by pixel against the ground truth.

A map is a picture of anomaly scores, the higher the more suspicious, as large as the picture that
it is for. Maps are read one at a time, twice each: once to find out which scores there are, once to
count them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from safetensors import SafetensorError, safe_open

from converters.dataset import BinaryMask, Dataset, Image
from converters.errors import InputError
from converters.geometry import Region, connected_regions
from toolkit import console
from toolkit.evaluate import curves
from toolkit.evaluate.curves import Binning, Bins, Histograms, Regions
from toolkit.evaluate.sheet import Sheet

ScoreMap: TypeAlias = npt.NDArray[np.floating]
"""Finite scores of pixels, shape (height, width)."""

SUFFIXES = (".png", ".npy", ".safetensors")
"""Files that maps are read from: grey pictures of 8 or 16 bits, arrays of floats, one tensor."""

FIGURES = ("pixel.AUROC", "pixel.AP", "pixel.AUPRO")

FPR_LIMIT = 0.3
"""False-positive rate that AUPRO goes up to, as the field has it."""

_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, TypeError, ValueError),
    PilImage.DecompressionBombError,
    SafetensorError,
)


def add_maps(sheet: Sheet, folder: Path, limit: float = FPR_LIMIT) -> None:
    """Enter how well score maps tell pixels of defects from good ones.

    Args:
        sheet: of the maps' split.
        folder: holds a map for each image.
        limit: false-positive rate that AUPRO goes up to, above 0 and at most 1.

    Raises:
        InputError: a map is missing, or cannot be scored.
    """
    paths = find_maps(folder, sheet.dataset)
    instances = [instance for image in sheet.dataset.images for instance in image.instances]
    without = sum(instance.mask is None for instance in instances)
    if without or not instances:
        few = f"{without} of {len(instances)} instances of the ground truth have no mask"
        sheet.leave_out(FIGURES, few if without else "the split has no defects")
        return
    sheet.protocol = replace(sheet.protocol, fpr_limit=limit)
    histograms = count_pixels(sheet.dataset, paths)
    if not histograms.fine_good.any():
        sheet.leave_out(FIGURES, "the split has no pixel without a defect")
        return
    sheet.add_found("pixel.AUROC", curves.auroc(histograms, sheet.weights))
    sheet.add_found("pixel.AP", curves.average_precision(histograms, sheet.weights))
    sheet.add_found("pixel.AUPRO", curves.aupro(histograms, sheet.weights, limit))
    for index, category in sheet.present:
        samples = curves.aupro(histograms, sheet.weights, limit, 1 + index)
        sheet.add_for(category, "pixel.AUPRO", samples)


def find_maps(folder: Path, dataset: Dataset) -> list[Path]:
    """The map of every image: a file of its name with one of the ``SUFFIXES``.

    For an image in a folder of its own (``line1/a.jpg``) that is ``line1/a.png`` or ``a.png``.

    Raises:
        InputError: an image has none, or several, or shares its map with another image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of score maps: give the one that holds them")
    paths: list[Path] = []
    images: dict[Path, str] = {}
    for image in dataset.images:
        name = Path(image.file_name)
        stems = dict.fromkeys((name.with_suffix(""), Path(name.stem)))
        tried = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        found = [path for path in tried if path.is_file()]
        if not found:
            raise InputError(
                f"{folder}: has no map for {image.file_name}: write {name.stem}.png, .npy or "
                ".safetensors for it, and for every other picture of the split"
            )
        if len(found) > 1:
            both = ", ".join(str(path.relative_to(folder)) for path in found)
            raise InputError(f"{folder}: has several maps for {image.file_name} ({both}): keep one")
        other = images.setdefault(found[0], image.file_name)
        if other != image.file_name:
            raise InputError(
                f"{found[0]}: is the map of {other} and of {image.file_name}: "
                "give these pictures names that differ in more than the suffix"
            )
        paths.append(found[0])
    return paths


def read_map(path: Path, height: int, width: int) -> ScoreMap:
    """Read a score map of a picture of the given size.

    Grey values of pictures are divided by the highest of their depth, 255 or 65535; arrays and
    tensors are taken as they are, of shape (height, width) or (1, height, width).

    Raises:
        InputError: it is not readable, of another size, no map of floats, or not finite.
    """
    read = {".png": _read_png, ".npy": _read_npy, ".safetensors": _read_safetensors}[path.suffix]
    try:
        values = read(path, (height, width))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: is not a readable score map ({reason}): write it again"
        ) from error
    if not np.isfinite(values).all():
        raise InputError(f"{path}: has scores that are not finite: write numbers in their place")
    return values


def count_pixels(dataset: Dataset, paths: Sequence[Path]) -> Histograms:
    """Count the pixels of all maps by score.

    Args:
        dataset: ground truth with masks.
        paths: map of each image.

    Raises:
        InputError: a map cannot be read.
    """
    binning = Binning(len(paths), sum(not image.is_good for image in dataset.images))
    pairs = list(zip(dataset.images, paths, strict=True))
    for image, path in console.track(pairs, "looking at score maps", len(pairs)):
        scores, mask = read_map(path, image.height, image.width), _union(image)
        binning.add(np.sort(scores[~mask]), np.sort(scores[mask]))
    tally = _Tally(dataset, binning.bins())
    for image, path in console.track(pairs, "counting pixels", len(pairs)):
        tally.add(image, read_map(path, image.height, image.width))
    return tally.histograms()


class _Tally:
    """Histograms in the making."""

    def __init__(self, dataset: Dataset, bins: Bins) -> None:
        self._dataset, self._bins = dataset, bins
        kinds = 1 + len(dataset.categories)
        self._good: list[npt.NDArray[np.int32]] = []
        self._bad: list[npt.NDArray[np.int32]] = []
        self._fine = np.zeros((2, bins.edges.size))
        self._images: list[list[int]] = [[] for _ in range(kinds)]
        self._number: list[list[int]] = [[] for _ in range(kinds)]
        self._coarse: list[list[curves.Counts]] = [[] for _ in range(kinds)]
        self._fine_regions = np.zeros((kinds, bins.edges.size))

    def add(self, image: Image, scores: ScoreMap) -> None:
        """Count the pixels of the next image."""
        mask = _union(image)
        good = self._bins.count(np.sort(scores[~mask]))
        bad = self._bins.count(np.sort(scores[mask]))
        self._fine += (good, bad)
        row = len(self._good)
        self._good.append(self._bins.coarsen(good).astype(np.int32))
        self._bad.append(self._bins.coarsen(bad).astype(np.int32))
        if image.is_good:
            return
        regions = connected_regions(mask)
        shares = self._shares(regions, scores)
        self._add_regions(0, row, len(regions), shares)
        for name in image.labels:
            if len(image.labels) > 1:
                regions = connected_regions(_union(image, name))
                shares = self._shares(regions, scores)
            self._add_regions(self._dataset.category_id(name), row, len(regions), shares)

    def histograms(self) -> Histograms:
        """What was counted."""
        bins = self._bins.coarse.size
        regions = [
            Regions(
                np.array(images, np.int64),
                np.array(number, np.float64),
                np.array(coarse, np.float64).reshape(-1, bins),
                fine,
            )
            for images, number, coarse, fine in zip(
                self._images, self._number, self._coarse, self._fine_regions, strict=True
            )
        ]
        good, bad = self._fine
        return Histograms(np.stack(self._good), np.stack(self._bad), good, bad, regions)

    def _shares(self, regions: Sequence[Region], scores: ScoreMap) -> curves.Counts:
        """Summed shares of regions in each fine bin."""
        shares = np.zeros(self._bins.edges.size)
        for box, crop in regions:
            x, y, w, h = (int(value) for value in box)
            inside = scores[y : y + h, x : x + w][crop]
            shares += self._bins.count(np.sort(inside)) / inside.size
        return shares

    def _add_regions(self, kind: int, row: int, number: int, shares: curves.Counts) -> None:
        self._images[kind].append(row)
        self._number[kind].append(number)
        self._coarse[kind].append(self._bins.coarsen(shares))
        self._fine_regions[kind] += shares


def _union(image: Image, category: str | None = None) -> BinaryMask:
    """Pixels that any instance covers, of any category or of one, shape (height, width)."""
    mask = np.zeros((image.height, image.width), dtype=np.bool_)
    for instance in image.instances:
        if category in (None, instance.category):
            crop = instance.crop
            assert crop is not None, "maps are scored where all instances have a mask"
            x, y, w, h = (int(value) for value in instance.box)
            mask[y : y + h, x : x + w] |= crop
    return mask


def _read_png(path: Path, size: tuple[int, int]) -> ScoreMap:
    with PilImage.open(path, formats=("PNG",)) as file:
        _check_size(path, (file.height, file.width), size)
        if file.mode != "L" and not file.mode.startswith("I"):
            raise InputError(f"{path}: is not a grey picture: write scores as 8 or 16 bits of grey")
        values = np.asarray(file)
        highest = 255 if file.mode == "L" else 65535
    return values.astype(np.float32) / np.float32(highest)


def _read_npy(path: Path, size: tuple[int, int]) -> ScoreMap:
    values = np.lib.format.open_memmap(path, mode="r")
    return _to_plane(path, values, values.shape, values.dtype.kind == "f", size)


def _read_safetensors(path: Path, size: tuple[int, int]) -> ScoreMap:
    with safe_open(path, framework="numpy") as file:
        keys = list(file.keys())
        if len(keys) != 1:
            raise InputError(f"{path}: has {len(keys)} tensors: write the score map alone")
        stored = file.get_slice(keys[0])
        is_float = stored.get_dtype() in ("F16", "F32", "F64")
        return _to_plane(path, stored, tuple(stored.get_shape()), is_float, size)


def _to_plane(
    path: Path, stored: Any, shape: tuple[int, ...], is_float: bool, size: tuple[int, int]
) -> ScoreMap:
    """Values of a stored array, once its shape and type are known to be right."""
    if not is_float:
        raise InputError(f"{path}: holds no floats of 16, 32 or 64 bits: write such scores")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise InputError(f"{path}: has shape {list(shape)}: write one map of shape [height, width]")
    _check_size(path, shape[-2:], size)
    values = np.array(stored[:]).reshape(size)
    return values.astype(np.promote_types(values.dtype, np.float32), copy=False)


def _check_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != size:
        raise InputError(
            f"{path}: has size {list(found)}, the picture {list(size)} (height, width): "
            "write maps at the picture's size"
        )
