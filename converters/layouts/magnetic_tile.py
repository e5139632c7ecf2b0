"""Magnetic Tile defects: ``MT_<Type>/Imgs/NAME.jpg`` with ``NAME.png`` as its mask.

Reference: Huang, Qiu, Guo, Wang, Yuan, "Surface defect saliency of magnetic tile", CASE 2018.

The masks were saved through a lossy step, so their values are grey. A name, ``exp3_num_38023``,
gives the exposure and the number of the capture: one tile was photographed at up to six
exposures, one after the other, so the 450 or so pictures show about half as many surfaces. Split
by picture, the same scratch would stand in train and in test.
"""

from __future__ import annotations

import re
from pathlib import Path

from converters.layouts.base import (
    ClassNaming,
    Labels,
    Listing,
    Record,
    Terms,
    files_in,
    folders,
    image_without_mask,
    orphan_masks,
    relative,
    skipped,
)

_CAPTURE = re.compile(r"exp\d+_num_(\d+)")


REFERENCE = "Huang, Qiu, Guo, Wang, Yuan: Surface defect saliency of magnetic tile, IEEE CASE 2018"


class MagneticTileLayout:
    """The magnetic tile dataset as its authors publish it."""

    name = "magnetic_tile"
    describe = "MT_<Type>/Imgs/NAME.jpg with NAME.png as its mask"
    labels: Labels = "mask"

    def recognise(self, root: Path) -> bool:
        """A folder with at least one ``MT_<Type>/Imgs``."""
        return bool(_types(root))

    def list(self, root: Path, classes: ClassNaming) -> Listing:
        """Enumerate all types; ``MT_Free`` is good."""
        listing = Listing()
        for folder in _types(root):
            label = _class_name(folder.name.removeprefix("MT_"), classes)
            _list_type(folder / "Imgs", root, label, listing)
        listing.records.sort(key=lambda record: relative(record.image, root))
        return listing

    def terms(self, root: Path) -> Terms:
        """As the authors state them where they publish the data."""
        return Terms("stated by its authors: welcome to use; cite the reference", REFERENCE)


def _types(root: Path) -> list[Path]:
    return [
        folder
        for folder in folders(root)
        if folder.name.startswith("MT_") and (folder / "Imgs").is_dir()
    ]


def _class_name(kind: str, classes: ClassNaming) -> str | None:
    if kind == "Free":
        return None
    if classes == "single":
        return "defect"
    return f"magnetic_tile-{kind}" if classes == "category-defect" else kind


def _list_type(folder: Path, root: Path, label: str | None, listing: Listing) -> None:
    files = files_in(folder)
    masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
    used = []
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".png":
            continue
        if suffix not in {".jpg", ".jpeg"}:
            listing.findings.append(skipped(path, root))
            continue
        mask = masks.get(path.stem)
        if mask is not None:
            used.append(mask)
        elif label is not None:
            expected = path.with_suffix(".png")
            listing.findings.append(image_without_mask(path, root, expected))
            continue
        found = _CAPTURE.fullmatch(path.stem)
        capture = ("camera", int(found[1])) if found else None
        listing.records.append(Record(path, label, () if mask is None else (mask,), None, capture))
    listing.findings.extend(orphan_masks(masks.values(), used, root))
