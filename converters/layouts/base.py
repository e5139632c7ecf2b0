"""What a layout is: it knows where pictures and masks lie, and opens none of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from converters.findings import Finding

ClassNaming = Literal["defect", "category-defect", "single"]

Labels = Literal["mask", "image"]
"""What labels are of: of what a mask outlines, or of the whole picture."""

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Record:
    """One picture of a source and what belongs to it.

    Attributes:
        image: the picture.
        label: name of the defect class; None for a good picture.
        masks: ground-truth masks; a good picture may have one too, which then must be empty.
        source_split: "train", "val" or "test", where the source says so.
        capture: sequence name and number, where the names tell in which order the camera took
            the pictures: neighbours are likely to show the same part.
    """

    image: Path
    label: str | None
    masks: tuple[Path, ...] = ()
    source_split: str | None = None
    capture: tuple[str, int] | None = None


@dataclass
class Listing:
    """All records of a source, sorted by path, and what was odd about its folders."""

    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Terms:
    """Under which terms data may be used, and whom to cite; empty where the source is silent."""

    licence: str = ""
    attribution: str = ""


class Layout(Protocol):
    """A way in which a dataset lies on disk.

    Attributes:
        name: as in ``--layout``.
        describe: the shape of its folders in a few words, for messages.
        labels: whether defects have masks, or pictures as wholes have labels.
    """

    name: str
    describe: str
    labels: Labels

    def recognise(self, root: Path) -> bool:
        """Whether a folder looks like this layout."""
        ...

    def list(self, root: Path, classes: ClassNaming) -> Listing:
        """Enumerate pictures and masks; opens no file."""
        ...

    def terms(self, root: Path) -> Terms:
        """Licence and attribution of the data below a folder."""
        ...


def folders(path: Path) -> list[Path]:
    """Sub-folders, sorted by name, hidden ones left out; empty where the path is no folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return [path / name for name in sorted(names)]


def images_in(folder: Path, root: Path, findings: list[Finding]) -> list[Path]:
    """Picture files of a folder, sorted by name; anything else is noted as skipped."""
    images = []
    for path in files_in(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            findings.append(skipped(path, root))
    return images


def files_in(folder: Path) -> list[Path]:
    """Files of a folder, sorted by name; empty where the path is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return [folder / name for name in sorted(names)]


def skipped(path: Path, root: Path) -> Finding:
    """A file among the pictures that is no picture."""
    return Finding(
        "info", "not-an-image", relative(path, root), "is no picture and was left out", ""
    )


def relative(path: Path, root: Path) -> str:
    """Path below the root, with ``/`` on every machine."""
    return path.relative_to(root).as_posix()


def orphan_masks(masks: Iterable[Path], used: Iterable[Path], root: Path) -> list[Finding]:
    """Masks that no picture asked for: a picture is missing, or its name differs."""
    return [
        Finding(
            "error",
            "mask-without-image",
            relative(mask, root),
            "is a mask without its image",
            "add the image or remove the mask",
        )
        for mask in sorted(set(masks) - set(used))
    ]


def image_without_mask(image: Path, root: Path, expected: Path) -> Finding:
    """A picture in a defect folder whose mask is missing."""
    return Finding(
        "error",
        "image-without-mask",
        relative(image, root),
        "shows a defect but has no mask",
        f"add {relative(expected, root)}, or pass --skip-invalid to leave the image out",
    )
