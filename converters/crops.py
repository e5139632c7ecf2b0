"""Every instance of a dataset folder as a picture of its own, for a classifier of instances.

A window around each instance is cut out, with some of what surrounds it, and windows of the same
sizes are cut from good pictures. A classifier of these answers "which defect is in this box, if
any", where one of whole pictures has to find a defect of a few pixels first.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import ceil, floor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml
from PIL import Image as PilImage

from converters.convert import count_splits
from converters.dataset import Box, Dataset, Image, Instance
from converters.errors import InputError
from converters.files import staged_folder, write_text
from converters.folder import CARD, CROPS, WINDOW, DatasetFolder, fold_numbers
from converters.formats.coco import write_coco
from converters.geometry import whole_region
from converters.pictures import UNREADABLE

CropTrack = Callable[[Iterable[Any], int], Iterable[Any]]

Window: TypeAlias = tuple[int, int, int, int]
"""``(x, y, width, height)`` in whole pixels of a picture, inside of it."""

_Splits: TypeAlias = dict[int | None, dict[str, Dataset]]
"""Ground truth by fold, a single one under None where there are none, and by split."""

_IN_PNG = frozenset({"1", "I", "I;16", "L", "LA", "P", "RGB", "RGBA"})
"""Pillow's modes that a PNG file keeps as they are."""


@dataclass(frozen=True)
class CropOptions:
    """What to cut out.

    Attributes:
        context: side of a window, as a multiple of the longer side of the instance's box; at
            least 1.
        min_side: least side of a window, in pixels.
        good: windows of good pictures for each one of an instance, in every split.
        seed: of the places on good pictures.
        workers: threads; 0 for one per core. The result does not depend on it.
    """

    context: float = 1.5
    min_side: int = 32
    good: float = 1.0
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class Crops:
    """What was made.

    Attributes:
        splits: the crops by fold (a single one under None where there are none) and split.
        defects: windows around an instance.
        good: windows of good pictures.
        short: good windows that a part of the dataset has no good picture for.
        left_out: instances that are left out of a window because more of them than of the window's
            own category lies in it.
    """

    splits: Mapping[int | None, Mapping[str, Dataset]]
    defects: int
    good: int
    short: int
    left_out: int


@dataclass(frozen=True)
class _Cut:
    """A window to be cut out of a picture, around an instance or of a good picture."""

    source: Image
    window: Window
    own: Instance | None
    file_name: str


def crop(
    source: Path, destination: Path, options: CropOptions, track: CropTrack | None = None
) -> Crops:
    """Write a dataset folder of windows; the destination appears whole or not at all.

    Splits and folds are those of the source, so that all windows of one photograph stay on one
    side, and they keep a common ``photograph``. A window is a square that is moved into the
    picture, and cut at its border where the picture is smaller.

    Masks are cut along, those of other instances in the window, too. The image-level label of a
    window is the category of the instance that it was cut around: where more pixels of another
    category lie in it, the instances of other categories are left out.

    Windows of good pictures have the sizes of the defects' windows. Every second one lies within
    half its side of the place that a defect's window has, the others anywhere: were all of them
    anywhere, then on parts that lie alike "good" would mean "background".

    Args:
        source: a dataset folder.
        destination: must not exist or be empty.
        options: what to cut out.
        track: wraps the iteration over the pictures, given their number; for progress bars.

    Raises:
        InputError: the source has labels of whole pictures, or no instance, or was balanced; a
            picture cannot be read, or the destination cannot be written.
    """
    numbers: list[int | None] = [*fold_numbers(source)] or [None]
    folders = [DatasetFolder.open(source, number) for number in numbers]
    folders[0].require_places("cutting out defects")
    splits: _Splits = {each.fold: {n: each.read(n) for n in each.splits()} for each in folders}
    images = _check(source, splits)
    parts = _parts(splits)
    cuts = [
        _Cut(image, window_around(instance.box, image, options), instance, _name(image, instance))
        for image in images
        for instance in image.instances
    ]
    good, short = _good_cuts(cuts, images, parts, options)
    with staged_folder(destination) as staging:
        (staging / "images").mkdir()
        _write_pictures([*cuts, *good], staging / "images", options.workers, track)
        categories = next(iter(next(iter(splits.values())).values())).categories
        of_source, left_out = _entries([*cuts, *good], categories)
        made = {
            fold: {
                name: dataset.subset(_sorted(dataset.images, of_source))
                for name, dataset in of_fold.items()
            }
            for fold, of_fold in splits.items()
        }
        card = folders[0].card
        _write_splits(staging, made, str(card.get("licence", "")))
        result = Crops(made, len(cuts), len(good), short, left_out)
        _write_card(staging / CARD, card, options, result)
    return result


def window_around(box: Box, image: Image, options: CropOptions) -> Window:
    """The window for a box: all of the box is in it, and it is all in the picture."""
    x0, y0 = floor(box[0]), floor(box[1])
    x1, y1 = ceil(box[0] + box[2]), ceil(box[1] + box[3])
    side = max(options.min_side, ceil(options.context * max(x1 - x0, y1 - y0)))
    left, width = _span((x0 + x1) / 2, side, image.width)
    top, height = _span((y0 + y1) / 2, side, image.height)
    return left, top, width, height


def _span(centre: float, side: int, limit: int) -> tuple[int, int]:
    """Start and length of a side around a centre, moved into the picture, or all of it."""
    length = min(side, limit)
    return min(max(0, round(centre - length / 2)), limit - length), length


def _check(source: Path, splits: _Splits) -> list[Image]:
    """All pictures of a dataset, each once, that windows can be cut from."""
    by_name = {i.file_name: i for each in splits.values() for d in each.values() for i in d.images}
    images = [by_name[name] for name in sorted(by_name)]
    if any(i.copy_of or any(p.pasted is not None for p in i.instances) for i in images):
        raise InputError(
            f"{source}: was balanced, and what it repeats would be cut out again: crop the dataset "
            "that it was made from"
        )
    if not any(image.instances for image in images):
        raise InputError(f"{source}: has no instance: there is nothing to cut out")
    for image in images:
        for x, y, w, h in (instance.box for instance in image.instances):
            if min(x, y) < 0 or min(w, h) <= 0 or x + w > image.width or y + h > image.height:
                raise InputError(
                    f"{source}: {image.file_name} has a box outside of the picture: correct what "
                    f"`toolkit check {source}` lists"
                )
    return images


def _parts(splits: _Splits) -> dict[str, tuple[str, ...]]:
    """For every picture the splits that it is in, fold by fold: what stays together in all."""
    sides: defaultdict[str, list[str]] = defaultdict(list)
    for fold, of_fold in splits.items():
        for name, dataset in of_fold.items():
            for image in dataset.images:
                sides[image.file_name].append(f"{fold} {name}")
    return {name: tuple(where) for name, where in sides.items()}


def _name(image: Image, instance: Instance) -> str:
    return f"{Path(image.file_name).stem}__{instance.id:06}.png"


def _good_cuts(
    cuts: Sequence[_Cut],
    images: Sequence[Image],
    parts: Mapping[str, tuple[str, ...]],
    options: CropOptions,
) -> tuple[list[_Cut], int]:
    """Windows of good pictures, as many in each part as are asked for, and how many are missing.

    Within a part, good pictures and the windows that they are like are taken in turn, in an order
    by the seed.
    """
    like: defaultdict[tuple[str, ...], list[_Cut]] = defaultdict(list)
    for cut in cuts:
        like[parts[cut.source.file_name]].append(cut)
    good: defaultdict[tuple[str, ...], list[Image]] = defaultdict(list)
    for image in images:
        if image.is_good:
            good[parts[image.file_name]].append(image)
    made: list[_Cut] = []
    short = 0
    for number, part in enumerate(sorted(like)):
        rng = np.random.default_rng([options.seed, number])
        wanted = round(options.good * len(like[part]))
        if not good[part]:
            short += wanted
            continue
        hosts = [good[part][index] for index in rng.permutation(len(good[part]))]
        models = [like[part][index] for index in rng.permutation(len(like[part]))]
        for index in range(wanted):
            host, model = hosts[index % len(hosts)], models[index % len(models)]
            window = _good_window(host, model, anywhere=index % 2 == 1, rng=rng)
            name = f"{Path(host.file_name).stem}__good{len(made):06}.png"
            made.append(_Cut(host, window, None, name))
    return made, short


def _good_window(host: Image, model: _Cut, *, anywhere: bool, rng: np.random.Generator) -> Window:
    """A window as large as another one, anywhere or near the place that the other one has."""
    x, y, width, height = model.window
    spans = []
    for start, length, side, limit in (
        (x, width, model.source.width, host.width),
        (y, height, model.source.height, host.height),
    ):
        free = limit - min(length, limit)
        there = start / max(1, side - length) * free
        place = rng.uniform(0, free) if anywhere else there + rng.uniform(-0.5, 0.5) * length
        spans.append((min(max(0, round(place)), free), min(length, limit)))
    (left, w), (top, h) = spans
    return left, top, w, h


def _write_pictures(
    cuts: Sequence[_Cut], folder: Path, workers: int, track: CropTrack | None
) -> None:
    """Decode each picture once, and write what is cut out of it without loss."""
    of_picture: defaultdict[Path, list[_Cut]] = defaultdict(list)
    for cut in cuts:
        of_picture[cut.source.path].append(cut)

    def write(path: Path) -> None:
        pixels = _decode(path, of_picture[path][0].source)
        for cut in of_picture[path]:
            x, y, w, h = cut.window
            pixels.crop((x, y, x + w, y + h)).save(folder / cut.file_name)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        written = pool.map(write, of_picture)
        for _ in written if track is None else track(written, len(of_picture)):
            pass


def _decode(path: Path, image: Image) -> PilImage.Image:
    """The pixels as they lie in the file, in the frame that annotations are in."""
    try:
        with PilImage.open(path) as file:
            file.load()
            pixels = file.copy()
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path}: cannot be read ({reason}): replace it") from error
    if pixels.size != (image.width, image.height):
        raise InputError(
            f"{path}: is {pixels.width}x{pixels.height}, its annotations say "
            f"{image.width}x{image.height}: convert again"
        )
    if pixels.mode == "F":
        raise InputError(f"{path}: has 32-bit fractions as pixels: convert it to 8 or 16 bits")
    return pixels if pixels.mode in _IN_PNG else pixels.convert("RGB")


def _entries(
    cuts: Sequence[_Cut], categories: tuple[str, ...]
) -> tuple[dict[str, list[Image]], int]:
    """Numbered entries by the picture that they were cut from, and how many instances are out."""
    of_source: defaultdict[str, list[Image]] = defaultdict(list)
    first: dict[int, int] = {}  # crop of a photograph
    annotation = left_out = 0
    for number, cut in enumerate(sorted(cuts, key=lambda cut: cut.file_name), start=1):
        x, y, width, height = cut.window
        found = _inside(cut)
        if cut.own is not None:
            kept = _with_right_label(found, cut.own.category, categories)
            left_out += len(found) - len(kept)
            found = kept
        whole = cut.source.source or cut.source.file_name
        photograph = first.setdefault(cut.source.photograph or cut.source.id, number)
        of_source[cut.source.file_name].append(
            Image(
                file_name=cut.file_name,
                path=cut.source.path,
                width=width,
                height=height,
                instances=tuple(
                    replace(instance, id=annotation + offset)
                    for offset, instance in enumerate(found, start=1)
                ),
                source=f"{whole}{WINDOW}{x},{y},{width},{height}",
                id=number,
                photograph=photograph,
            )
        )
        annotation += len(found)
    return of_source, left_out


def _inside(cut: _Cut) -> list[Instance]:
    """What of the picture's instances lies in the window, in its frame."""
    found = []
    for instance in cut.source.instances:
        part = _cut_instance(instance, cut.window)
        if part is not None:
            found.append(part)
    return found


def _cut_instance(instance: Instance, window: Window) -> Instance | None:
    """An instance, cut at a window; None where nothing of it is left."""
    x, y, w, h = instance.box
    left, top, width, height = window
    x0, y0 = max(x, left), max(y, top)
    x1, y1 = min(x + w, left + width), min(y + h, top + height)
    if x1 <= x0 or y1 <= y0:
        return None
    crop = instance.crop
    if crop is None:
        return replace(instance, box=(x0 - left, y0 - top, x1 - x0, y1 - y0))
    rows, columns = slice(int(y0 - y), int(y1 - y)), slice(int(x0 - x), int(x1 - x))
    for (inner_x, inner_y, w, h), mask in whole_region(crop[rows, columns]):
        box = (x0 - left + inner_x, y0 - top + inner_y, w, h)
        return replace(instance, box=box, mask=mask)
    return None


def _with_right_label(
    found: list[Instance], category: str, categories: tuple[str, ...]
) -> list[Instance]:
    """All instances where the picture is of this category, else those of it alone."""
    picture = Image("", Path(), 0, 0, tuple(found))
    if Dataset("", categories, (picture,)).image_labels() == [category]:
        return found
    return [instance for instance in found if instance.category == category]


def _sorted(images: Iterable[Image], of_source: Mapping[str, list[Image]]) -> tuple[Image, ...]:
    crops = (crop for image in images for crop in of_source.get(image.file_name, []))
    return tuple(sorted(crops, key=lambda image: image.file_name))


def _write_splits(
    staging: Path, splits: Mapping[int | None, Mapping[str, Dataset]], licence: str
) -> None:
    for fold, of_fold in splits.items():
        folder = staging if fold is None else staging / "folds" / str(fold)
        for name, dataset in of_fold.items():
            write_coco(folder / f"{name}.json", dataset, licence=licence)


def _write_card(path: Path, card: Mapping[str, Any], options: CropOptions, result: Crops) -> None:
    """The source's card without what it says about single pictures, and how crops were made."""
    about_pictures = {"counts", "excluded", "findings", "same_photograph"}
    counts = [
        count_splits(next(iter(of.values())), {name: each.images for name, each in of.items()})
        for of in result.splits.values()
    ]
    single = None in result.splits
    chosen = {name: value for name, value in asdict(options).items() if name != "workers"}
    content = {
        **{name: value for name, value in card.items() if name not in about_pictures},
        "name": f"{card.get('name', 'dataset')}{CROPS}",
        "counts": counts[0] if single else {"folds": counts},
        "crops": {
            **chosen,
            "defects": result.defects,
            "good_windows": result.good,
            "good_windows_missing": result.short,
            "instances_left_out": result.left_out,
        },
    }
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
