"""MVTec AD: ``train/good``, ``test/<type>``, ``ground_truth/<type>/<name>_mask.png``.

One category, or a folder of several. Reference: Bergmann, Fauser, Sattlegger, Steger, "MVTec AD:
A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", CVPR 2019.
"""

from __future__ import annotations

from pathlib import Path

from converters.dataset import GOOD
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
    image_without_mask,
    images_in,
    orphan_masks,
    relative,
)

REFERENCE = (
    "Bergmann, Fauser, Sattlegger, Steger: MVTec AD: A Comprehensive Real-World Dataset for "
    "Unsupervised Anomaly Detection, CVPR 2019"
)


class MvtecLayout:
    """MVTec AD and everything laid out like it."""

    name = "mvtec"
    describe = "train/good, test/<type> and ground_truth/<type>/<name>_mask.png"
    labels: Labels = "mask"

    def recognise(self, root: Path) -> bool:
        """A category, or a folder with at least one category in it."""
        return _is_category(root) or any(_is_category(folder) for folder in folders(root))

    def list(self, root: Path, classes: ClassNaming) -> Listing:
        """Enumerate one category or all categories below the root."""
        listing = Listing()
        if _is_category(root):
            _list_category(root, root, classes, listing)
        else:
            for folder in folders(root):
                if _is_category(folder):
                    _list_category(folder, root, classes, listing)
        listing.records.sort(key=lambda record: relative(record.image, root))
        return listing

    def terms(self, root: Path) -> Terms:
        """What ``license.txt`` says in its first line; MVTec's paper where MVTec is named."""
        licence, is_mvtec = "", False
        for folder in (root, *folders(root)):
            for path in files_in(folder):
                if path.name.lower() in {"license.txt", "readme.txt"}:
                    text = path.read_text(encoding="utf-8", errors="replace")
                    is_mvtec = is_mvtec or "MVTec" in text
                    if path.name.lower() == "license.txt" and not licence:
                        licence = next((line.strip() for line in text.splitlines() if line), "")
        return Terms(licence, REFERENCE if is_mvtec else "")


def _is_category(folder: Path) -> bool:
    """Whether it has masks, or only good pictures in train; a folder per class has neither.

    Without masks, one with a val folder is a folder per class whose train has good pictures alone.
    """
    names = {each.name.lower() for each in folders(folder)}
    return (folder / "test").is_dir() and (
        (folder / "ground_truth").is_dir()
        or (
            [each.name for each in folders(folder / "train")] == [GOOD]
            and names.isdisjoint({"val", "valid", "validation"})
        )
    )


def _list_category(category: Path, root: Path, classes: ClassNaming, listing: Listing) -> None:
    truth = category / "ground_truth"
    used: list[Path] = []
    for image in images_in(category / "train" / GOOD, root, listing.findings):
        listing.records.append(Record(image, None, source_split="train"))
    defects = 0
    for folder in folders(category / "test"):
        masks = _masks_by_stem(truth / folder.name)
        for image in images_in(folder, root, listing.findings):
            mask = masks.get(f"{image.stem}_mask") or masks.get(image.stem)
            found = () if mask is None else (mask,)
            used.extend(found)
            if folder.name == GOOD:
                listing.records.append(Record(image, None, found, "test"))
                continue
            defects += 1
            if mask is None:
                expected = truth / folder.name / f"{image.stem}_mask.png"
                listing.findings.append(image_without_mask(image, root, expected))
                continue
            label = _class_name(category.name, folder.name, classes)
            listing.records.append(Record(image, label, found, "test"))
    all_masks = [
        mask for folder in folders(truth) for mask in images_in(folder, root, listing.findings)
    ]
    listing.findings.extend(orphan_masks(all_masks, used, root))
    if not defects:
        listing.findings.append(
            Finding(
                "warning",
                "no-defects",
                relative(category, root) if category != root else category.name,
                "has no picture of a defect below test/",
                "only its good pictures are used",
            )
        )


def _masks_by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in files_in(folder) if path.suffix.lower() in IMAGE_SUFFIXES}


def _class_name(category: str, defect: str, classes: ClassNaming) -> str:
    if classes == "single":
        return "defect"
    return f"{category}-{defect}" if classes == "category-defect" else defect
