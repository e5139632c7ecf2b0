"""Pictures sorted into a folder for each class, as torchvision's ``ImageFolder`` reads them.

``ROOT/CLASS/*.png``, or with splits of its own ``ROOT/{train,val,test}/CLASS/*.png``; ``valid`` and
``validation`` are val. Pictures in folders inside of a class's folder belong to the class, too.

Pictures in a folder named ``good``, ``ok`` or ``normal``, in any case of letters, are good; every
other folder is a class of defects. Labels are of whole pictures: nothing says where a defect is.
Where something does (annotations or masks beside the pictures), it is another layout.

Reference: torchvision.datasets.ImageFolder,
https://pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from converters.dataset import GOOD, SPLITS
from converters.findings import Finding
from converters.layouts.base import (
    IMAGE_SUFFIXES,
    ClassNaming,
    Labels,
    Listing,
    Record,
    Terms,
    files_in,
    folders,
    images_in,
    relative,
    skipped,
)

GOOD_NAMES = (GOOD, "ok", "normal")
"""Folders of good pictures, in any case of letters."""

_SPLITS = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}

_NO_CLASSES = frozenset(
    {"annotations", "ground_truth", "gt", "image", "images", "img", "imgs"}
    | {"label", "labels", "mask", "masks", "msk"}
)
"""Folders that tell what their files are, not what they show: other layouts have these."""

_A_SPLIT = re.compile(r"(train|training|val|test|testing)([-_ ]?\d.*)?")
"""Folders of a split, as train2017 of COCO; so are those of ``_SPLITS``."""

_MASK = re.compile(r".*_(gt|label|mask)")
"""Pictures that say where defects are on others: KolektorSDD has them side by side."""

_TERMS = ("licence", "license", "readme")


class ImageFolderLayout:
    """A folder for each class, with or without splits above them."""

    name = "image_folder"
    describe = "CLASS/NAME.png or {train,val,test}/CLASS/NAME.png"
    labels: Labels = "image"

    def recognise(self, root: Path) -> bool:
        """A folder with at least one class, and none that only other layouts have."""
        return bool(_parts(root))

    def list(self, root: Path, classes: ClassNaming) -> Listing:
        """Enumerate all classes of all splits."""
        listing = Listing()
        parts = _parts(root)
        for split, part in parts:
            for folder in folders(part):
                _list_class(folder, root, classes, split, listing)
            listing.findings.extend(_loose_files(part, root))
        if parts[0][0] is not None:
            _tell_splits(root, parts, listing)
        _tell_classes(parts, listing)
        listing.records.sort(key=lambda record: relative(record.image, root))
        return listing

    def terms(self, root: Path) -> Terms:
        """The first line of a licence file."""
        for path in files_in(root):
            if path.stem.lower() in {"licence", "license"} and path.suffix.lower() in {"", ".txt"}:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                return Terms(next((line.strip() for line in lines if line.strip()), ""))
        return Terms()


def _parts(root: Path) -> list[tuple[str | None, Path]]:
    """The folders that hold classes, with their splits; empty where it is another layout."""
    if _holds_classes(root):
        return [(None, root)]
    parts: list[tuple[str | None, Path]] = [
        (_SPLITS[folder.name.lower()], folder)
        for folder in folders(root)
        if folder.name.lower() in _SPLITS and _holds_classes(folder)
    ]
    parts.sort(key=lambda part: SPLITS.index(str(part[0])))
    return parts if any(split == "train" for split, _ in parts) else []


def _holds_classes(folder: Path) -> bool:
    """Whether the folders in one are classes: at least one has pictures, and none says others."""
    inner = folders(folder)
    if any(_names_no_class(each.name.lower()) for each in inner):
        return False
    contents = [files_in(each) for each in inner]
    pictures = [[path for path in files if _is_picture(path)] for files in contents]
    return any(pictures) and not any(map(_has_annotations, contents, pictures))


def _names_no_class(name: str) -> bool:
    return name in _NO_CLASSES or name in _SPLITS or _A_SPLIT.fullmatch(name) is not None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _has_annotations(files: list[Path], pictures: list[Path]) -> bool:
    """Whether pictures have annotations or masks beside them, so that the folder is no class."""
    stems = {path.stem for path in pictures}
    return bool(pictures) and (
        any(path.suffix.lower() in {".json", ".xml"} for path in files)
        # A text may also be a note; YOLO's has the name of a picture.
        or any(path.suffix.lower() == ".txt" and path.stem in stems for path in files)
        or any(_MASK.fullmatch(stem.lower()) for stem in stems)
    )


def _list_class(
    folder: Path, root: Path, classes: ClassNaming, split: str | None, listing: Listing
) -> None:
    label = _class_name(root, folder.name, classes)
    images = [
        image
        for inside in _with_folders_below(folder)
        for image in images_in(inside, root, listing.findings)
    ]
    if not images:
        listing.findings.append(
            Finding(
                "warning",
                "empty-class",
                relative(folder, root),
                "holds no picture",
                "add pictures or remove the folder",
            )
        )
    listing.records.extend(Record(image, label, (), split) for image in images)


def _with_folders_below(folder: Path) -> Iterator[Path]:
    yield folder
    for inside in folders(folder):
        yield from _with_folders_below(inside)


def _class_name(root: Path, folder: str, classes: ClassNaming) -> str | None:
    if folder.lower() in GOOD_NAMES:
        return None
    if classes == "single":
        return "defect"
    return f"{root.resolve().name}-{folder}" if classes == "category-defect" else folder


def _loose_files(part: Path, root: Path) -> Iterator[Finding]:
    """Files beside the folders of classes: a picture there has no class."""
    for path in files_in(part):
        if _is_picture(path):
            message, remedy = "lies in no class's folder and was left out", "move it into one"
            yield Finding("warning", "image-without-class", relative(path, root), message, remedy)
        elif path.stem.lower() not in _TERMS:
            yield skipped(path, root)


def _tell_splits(root: Path, parts: list[tuple[str | None, Path]], listing: Listing) -> None:
    """That the source has splits, and what lies beside them."""
    names = ", ".join(part.name for _, part in parts)
    message = f"has splits of its own ({names})"
    listing.findings.append(
        Finding("info", "source-splits", "", message, "`--split source` keeps them")
    )
    used = {part for _, part in parts}
    listing.findings.extend(
        Finding(
            "warning",
            "folder-left-out",
            relative(folder, root),
            "is no split with a folder for each class and was left out",
            "name it train, val or test",
        )
        for folder in folders(root)
        if folder not in used
    )
    listing.findings.extend(_loose_files(root, root))


def _tell_classes(parts: list[tuple[str | None, Path]], listing: Listing) -> None:
    """Which folder was taken for good, and whether there is anything to tell apart."""
    labels = {record.label for record in listing.records}
    if None in labels:
        names = {folder.name for _, part in parts for folder in folders(part)}
        good = ", ".join(f"{name}/" for name in sorted(names) if name.lower() in GOOD_NAMES)
        message = f"pictures in {good} are good ones"
        listing.findings.append(Finding("info", "good-class", "", message))
    else:
        message = f"has no folder named {', '.join(GOOD_NAMES[:-1])} or {GOOD_NAMES[-1]}"
        remedy = "every class is a defect; rename the folder of good pictures if there is one"
        listing.findings.append(Finding("info", "no-good-class", "", message, remedy))
    if len(labels) == 1:
        message = f"all pictures are {next(iter(labels)) or GOOD!r}"
        remedy = "add a folder of another class"
        listing.findings.append(Finding("error", "one-class", "", message, remedy))
