"""What is wrong with a dataset folder, or with a source before it is converted."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.dataset import GOOD, Dataset, Image
from converters.duplicates import Fingerprint, common_scale, fingerprint, near_duplicate_pairs
from converters.errors import InputError
from converters.findings import Finding, ordered
from converters.folder import CARD, DatasetFolder, fold_numbers
from converters.layouts import find_layout
from converters.pictures import UNREADABLE, decode_grey
from converters.read import ReadOptions, read_source

CheckTrack = Callable[[Iterable[Any], int], Iterable[Any]]

FEW_IMAGES = 5
"""A class with fewer pictures than this in train is reported."""

IMBALANCE = 10
"""A class with this many times fewer instances in train than another is reported."""


@dataclass(frozen=True)
class _Picture:
    """What is compared of one picture across splits."""

    digest: str
    fingerprint: Fingerprint | None


def check(
    root: Path, *, near_duplicates: bool = True, track: CheckTrack | None = None
) -> list[Finding]:
    """Findings about a dataset folder or a source folder, errors first.

    Args:
        root: a dataset folder, or a folder in one of the layouts.
        near_duplicates: also look for pictures of one photograph on two sides of a split.
        track: wraps the iteration over the pictures, given their number; for progress bars.

    Raises:
        InputError: it is neither.
    """
    if not (root / CARD).is_file():
        layout = find_layout(root)
        options = ReadOptions(near_duplicates=False)
        return list(read_source(root, layout, options, track).findings)
    folds: list[int | None] = [*fold_numbers(root)] or [None]
    findings = _from_card(DatasetFolder.open(root, folds[0]).card)
    pictures: dict[str, _Picture] = {}
    for fold in folds:
        folder = DatasetFolder.open(root, fold)
        splits = {name: folder.read(name) for name in folder.splits()}
        if not splits:
            raise InputError(f"{root}: has no train.json, val.json or test.json: convert again")
        images = {i.file_name: i for dataset in splits.values() for i in dataset.images}
        new = [image for name, image in images.items() if name not in pictures]
        pictures.update(_look_at(new, near_duplicates, findings, track))
        where = "" if fold is None else f"folds/{fold}/"
        findings += _leaks(splits, pictures, where)
        findings += _origins(splits, where)
        findings += _balance(splits, where)
        for name, dataset in splits.items():
            findings += _annotations(dataset, f"{where}{name}.json")
    return ordered(set(findings))


def _from_card(card: dict[str, Any]) -> list[Finding]:
    findings = [Finding(**entry) for entry in card.get("findings", {}).get("list", [])]
    if not card.get("licence"):
        message, remedy = "names no licence", "add `licence:` with the terms of the source"
        findings.append(Finding("warning", "no-licence", CARD, message, remedy))
    return findings


def _look_at(
    images: Sequence[Image],
    near_duplicates: bool,
    findings: list[Finding],
    track: CheckTrack | None,
) -> dict[str, _Picture]:
    """Open every picture once: it must be there, whole, and of the size that annotations say."""
    scale = common_scale([max(image.width, image.height) for image in images])

    def look(image: Image) -> tuple[str, _Picture | None, Finding | None]:
        name = f"images/{image.file_name}"
        try:
            content = image.path.read_bytes()
            grey, size, _, left = decode_grey(content, scale if near_duplicates else None)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:80]
            message = "is missing" if not image.path.exists() else f"cannot be read ({reason})"
            finding = Finding("error", "unreadable-image", name, message, "replace it")
            return image.file_name, None, finding
        if size != (image.width, image.height):
            message = f"is {size[0]}x{size[1]}, its annotations say {image.width}x{image.height}"
            finding = Finding("error", "size-mismatch", name, message, "convert again")
            return image.file_name, None, finding
        print_ = fingerprint(grey, left) if near_duplicates and grey is not None else None
        digest = hashlib.sha256(content).hexdigest()
        return image.file_name, _Picture(digest, print_), None

    pictures = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(look, images)
        for name, picture, finding in looked if track is None else track(looked, len(images)):
            if finding is not None:
                findings.append(finding)
            if picture is not None:
                pictures[name] = picture
    return pictures


def _leaks(splits: dict[str, Dataset], pictures: dict[str, _Picture], where: str) -> list[Finding]:
    """Pictures, or photographs, that stand on two sides of a split."""
    findings = []
    sides: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, dataset in splits.items():
        for image in dataset.images:
            picture = pictures.get(image.file_name)
            if picture is not None:
                sides[picture.digest].append((split, image.file_name))
    for places in sides.values():
        if len({split for split, _ in places}) > 1:
            (one, name), (other, twin) = places[0], places[-1]
            message = f"is in {one}, and as {twin} in {other}"
            findings.append(_leak(where + name, "same-picture-in-two-splits", message))
    names = [
        (split, image.file_name, print_)
        for split, dataset in splits.items()
        for image in dataset.images
        if image.file_name in pictures
        and (print_ := pictures[image.file_name].fingerprint) is not None
    ]
    for i, j in near_duplicate_pairs([print_ for _, _, print_ in names]):
        (one, name, _), (other, twin, _) = names[i], names[j]
        if one != other and pictures[name].digest != pictures[twin].digest:
            message = f"in {one} and {twin} in {other} show the same photograph"
            findings.append(_leak(where + name, "same-photograph-in-two-splits", message))
    return findings


def _origins(splits: dict[str, Dataset], where: str) -> list[Finding]:
    """What was pasted or listed again comes from train, and is in train."""
    train = splits.get("train")
    images = {} if train is None else {image.id: image for image in train.images}
    camera = {
        instance.id: image.id
        for image in images.values()
        for instance in image.instances
        if instance.pasted is None
    }
    findings = []
    for split, dataset in splits.items():
        file = f"{where}{split}.json"
        for image in dataset.images:
            made = [instance for instance in image.instances if instance.pasted is not None]
            problems = []
            if split != "train" and (made or image.copy_of):
                problems.append(("made-in-held-out", "is no picture as a camera took it"))
            elif image.copy_of and (image.copy_of not in images or images[image.copy_of].copy_of):
                problems.append(("host-not-in-train", f"shows image {image.copy_of}"))
            for instance in made if split == "train" else ():
                assert instance.pasted is not None
                if camera.get(instance.pasted.donor) != instance.pasted.donor_image:
                    what = f"annotation {instance.id} is a copy of {instance.pasted.donor}"
                    problems.append(("donor-not-in-train", what))
            for code, what in problems:
                message = f"{image.file_name}: {what}, which is not in train"
                if code == "made-in-held-out":
                    message = f"{image.file_name}: {what}"
                remedy = "balance again, from the dataset that was converted"
                findings.append(Finding("error", code, file, message, remedy))
    return findings


def _leak(file: str, code: str, message: str) -> Finding:
    return Finding("error", code, file, message, "convert again with --near-duplicates")


def _balance(splits: dict[str, Dataset], where: str) -> list[Finding]:
    """Classes that cannot be learnt, or not be tested."""
    findings = []
    for split, dataset in splits.items():
        instances, images = dataset.count_instances(), dataset.count_images()
        for category, count in instances.items():
            if count == 0:
                message, remedy = f"{category!r} has no instance", "its figures will be missing"
                file = f"{where}{split}.json"
                findings.append(
                    Finding("warning", "class-without-instances", file, message, remedy)
                )
        if images[GOOD] == 0:
            message = "has no good picture"
            remedy = "false alarms cannot be measured"
            findings.append(Finding("info", "no-good", f"{where}{split}.json", message, remedy))
    train = splits.get("train")
    if train is None:
        return findings
    images, instances = train.count_images(), train.count_instances()
    most = max(instances.values(), default=0)
    for category, count in instances.items():
        if 0 < images[category] < FEW_IMAGES:
            message = f"{category!r} has {images[category]} pictures in train"
            findings.append(Finding("warning", "few-images", f"{where}train.json", message))
        if 0 < count * IMBALANCE <= most:
            message = f"{category!r} has {count} instances in train, another class {most}"
            findings.append(Finding("warning", "imbalance", f"{where}train.json", message))
    return findings


def _annotations(dataset: Dataset, file: str) -> list[Finding]:
    """Boxes that leave the picture, and ids that pycocotools takes for "unmatched"."""
    findings = []
    for image in dataset.images:
        for instance in image.instances:
            x, y, w, h = instance.box
            what = f"annotation {instance.id} of {image.file_name}"
            if w <= 0 or h <= 0 or x < 0 or y < 0 or x + w > image.width or y + h > image.height:
                message = f"{what} has a box outside its picture"
                findings.append(Finding("error", "box-outside", file, message, "correct it"))
            if instance.id < 1:
                message = f"{what} has an id below 1, which pycocotools ignores"
                findings.append(Finding("error", "annotation-id", file, message, "number from 1"))
    return findings
