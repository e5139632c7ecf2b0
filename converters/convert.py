"""A source folder to a dataset folder: read, split, link the pictures, write COCO and the card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from converters.dataset import GOOD, Dataset, Image
from converters.errors import InputError
from converters.files import staged_folder, write_text
from converters.findings import Finding, count_by_code, ordered, refuse_errors
from converters.folder import CARD
from converters.formats.coco import write_coco
from converters.formats.yolo import write_yolo
from converters.layouts import Layout, Terms, find_layout
from converters.read import ReadOptions, Source, Track, read_source
from converters.split import Assignment, SplitOptions, SplitResult, split


@dataclass(frozen=True)
class ConvertOptions:
    """What to make of a source.

    Attributes:
        layout: name of the layout, or "auto".
        read: how pictures and masks are read.
        split: how images are split.
        name: of the dataset; the source folder's where None.
        yolo: also write YOLO detection labels.
        skip_invalid: leave out what cannot be used instead of stopping.
    """

    layout: str = "auto"
    read: ReadOptions = field(default_factory=ReadOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    name: str | None = None
    yolo: bool = False
    skip_invalid: bool = False


@dataclass(frozen=True)
class Conversion:
    """What was made.

    Attributes:
        dataset: all images.
        assignments: images by split, one for each fold or a single one.
        findings: what was odd, errors first.
        excluded: pictures left out, with the reason.
    """

    dataset: Dataset
    assignments: tuple[Assignment, ...]
    findings: tuple[Finding, ...]
    excluded: dict[str, str]


def convert(
    source: Path, destination: Path, options: ConvertOptions, track: Track | None = None
) -> Conversion:
    """Convert a source to a dataset folder; the destination appears whole or not at all.

    Args:
        source: folder of pictures and masks.
        destination: must not exist or be empty.
        options: what to make of it.
        track: wraps the iteration over the pictures, given their number; for progress bars.

    Raises:
        InputError: the source cannot be used as it is, or the destination cannot be written.
    """
    layout = find_layout(source, options.layout)
    if options.yolo and layout.labels == "image":
        raise InputError(
            f"{source}: has labels of whole pictures, and YOLO labels are boxes: leave --yolo out"
        )
    with staged_folder(destination) as staging:
        read = read_source(source, layout, options.read, track)
        if not options.skip_invalid:
            refuse_errors(read.findings, str(source))
        if not read.dataset.categories:
            raise InputError(f"{source}: has no picture of a defect: there is nothing to learn")
        result = split(read.dataset.images, read.dataset.photographs(), options.split)
        _link_images(read.dataset.images, staging / "images")
        terms = layout.terms(source)
        _write_splits(staging, read.dataset, result, terms, yolo=options.yolo)
        card = _card(layout, terms, options, read, result)
        write_text(
            staging / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
        )
    findings = ordered((*read.findings, *result.findings))
    return Conversion(read.dataset, result.assignments, tuple(findings), read.excluded)


def _link_images(images: Sequence[Image], folder: Path) -> None:
    folder.mkdir()
    for image in images:
        link_or_copy(image.path, folder / image.file_name)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link, else symbolic link, else copy: no second copy of the pictures where possible."""
    source = source.resolve()
    with suppress(OSError):
        os.link(source, target)
        return
    with suppress(OSError):
        target.symlink_to(source)
        return
    shutil.copy2(source, target)


def _write_splits(
    staging: Path, dataset: Dataset, result: SplitResult, terms: Terms, *, yolo: bool
) -> None:
    single = len(result.assignments) == 1
    for number, assignment in enumerate(result.assignments):
        folder = staging if single else staging / "folds" / str(number)
        subsets = {name: dataset.subset(images) for name, images in assignment.items()}
        for name, subset in subsets.items():
            write_coco(folder / f"{name}.json", subset, licence=terms.licence)
        if yolo:
            write_yolo(subsets, staging, prefix="" if single else f"fold{number}_")


def _card(
    layout: Layout, terms: Terms, options: ConvertOptions, read: Source, result: SplitResult
) -> dict[str, Any]:
    dataset = read.dataset
    single = len(result.assignments) == 1
    counts = [count_splits(dataset, assignment) for assignment in result.assignments]
    findings = ordered((*read.findings, *result.findings))
    return {
        "name": options.name or dataset.name,
        "layout": layout.name,
        "labels": layout.labels,
        "licence": terms.licence,
        "attribution": terms.attribution,
        "categories": list(dataset.categories),
        "instances": {
            "classes": options.read.classes,
            "rule": options.read.instances,
            "merge_distance": options.read.merge_distance,
        },
        "split": _protocol(options.split),
        "counts": counts[0] if single else {"folds": counts},
        "source": {"files_sha256": read.sha256},
        "same_photograph": _same_photograph(dataset)
        if options.read.near_duplicates
        else "not looked for",
        "excluded": read.excluded,
        "findings": {
            "counts": count_by_code(findings),
            "list": [finding.to_dict() for finding in findings],
        },
    }


def _protocol(options: SplitOptions) -> dict[str, Any]:
    """The fields of the split that its protocol uses."""
    unused = {
        "stratified": {"folds", "shots", "known"},
        "folds": {"fractions", "shots", "known"},
        "general": {"folds", "known"},
        "hard": {"folds", "shots"},
        "source": {"folds", "shots", "known"},
    }[options.protocol]
    fields = {name: value for name, value in asdict(options).items() if name not in unused}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def count_splits(dataset: Dataset, assignment: Assignment) -> dict[str, Any]:
    """Images and instances of every split by class, as a card lists them."""
    counts = {}
    for name, images in assignment.items():
        subset = dataset.subset(images)
        per_class = subset.count_images()
        instances = subset.count_instances()
        counts[name] = {
            "images": len(images),
            GOOD: per_class[GOOD],
            "classes": {
                category: {"images": per_class[category], "instances": instances[category]}
                for category in dataset.categories
            },
        }
    return counts


def _same_photograph(dataset: Dataset) -> list[list[str]]:
    """File names of pictures that show one photograph, where it is more than one picture."""
    members: dict[int, list[str]] = {}
    for image, photograph in zip(dataset.images, dataset.photographs(), strict=True):
        members.setdefault(photograph, []).append(image.file_name)
    return [names for names in members.values() if len(names) > 1]
