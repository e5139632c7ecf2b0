"""Reading a source: every picture's header, every mask once, everything odd as a finding."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image as PilImage

from converters.dataset import Dataset, Image, Instance
from converters.duplicates import (
    Fingerprint,
    common_scale,
    fingerprint,
    groups,
    near_duplicate_pairs,
)
from converters.findings import Finding, ordered
from converters.geometry import Region, connected_regions, merge_regions, whole_region
from converters.layouts import ClassNaming, Labels, Layout, Record
from converters.layouts.base import relative
from converters.masks import read_mask
from converters.pictures import SIXTEEN_BIT, UNREADABLE, decode_grey

InstanceRule = Literal["component", "image"]
Track = Callable[[Iterable["_Loaded"], int], Iterable["_Loaded"]]


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    Attributes:
        classes: how classes are named.
        instances: one per 8-connected component, or one per mask.
        merge_distance: components whose gap is at most this many pixels are one.
        near_duplicates: look for pictures of one photograph.
        workers: threads; 0 means one per core.
    """

    classes: ClassNaming = "defect"
    instances: InstanceRule = "component"
    merge_distance: float = 0
    near_duplicates: bool = True
    workers: int = 0


@dataclass(frozen=True)
class Source:
    """What a source holds.

    Attributes:
        dataset: usable images, sorted by file name, numbered from 1, pictures of one photograph
            bound where they were looked for.
        findings: everything odd, errors first.
        excluded: source paths of pictures that are not in the dataset, with the reason.
        sha256: digest over the names and contents of all pictures and masks.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    excluded: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class _Loaded:
    """One record after its files were read."""

    image: Image | None
    fingerprint: Fingerprint | None
    digests: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]


def read_source(
    root: Path, layout: Layout, options: ReadOptions, track: Track | None = None
) -> Source:
    """Read pictures and masks of a source.

    Nothing is refused here: a file that cannot be used is a finding of severity "error" and its
    picture is excluded. The result depends on names and contents alone, not on the order of
    directory entries nor on the number of threads.

    Args:
        root: folder of the source.
        layout: how it lies there.
        options: how to read it.
        track: wraps the iteration over the pictures, given their number; for progress bars.
    """
    listing = layout.list(root, options.classes)
    names = _file_names([relative(record.image, root) for record in listing.records])
    scale = common_scale(_longer_sides(listing.records)) if options.near_duplicates else None

    def load(index: int) -> _Loaded:
        return _load(root, listing.records[index], names[index], layout.labels, options, scale)

    count = len(listing.records)
    with ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
        results: Iterable[_Loaded] = pool.map(load, range(count))
        loaded = list(results if track is None else track(results, count))
    findings = listing.findings + [f for entry in loaded for f in entry.findings]
    excluded = {
        relative(record.image, root): entry.findings[-1].message  # the last one stopped it
        for record, entry in zip(listing.records, loaded, strict=True)
        if entry.image is None
    }
    excluded.update({f.file: f.message for f in listing.findings if f.code == "image-without-mask"})
    usable = sorted(
        ((entry.image, entry.fingerprint) for entry in loaded if entry.image is not None),
        key=lambda pair: pair[0].file_name,
    )
    images = tuple(_numbered(image for image, _ in usable))
    if options.near_duplicates:
        prints = [print_ for _, print_ in usable if print_ is not None]
        first = groups(len(images), near_duplicate_pairs(prints, options.workers))
        images = tuple(
            replace(image, photograph=images[index].id)
            for image, index in zip(images, first, strict=True)
        )
    categories = tuple(sorted({i.category for image in images for i in image.instances}))
    digest = hashlib.sha256()
    for name, content in sorted(pair for entry in loaded for pair in entry.digests):
        digest.update(f"{content}  {name}\n".encode())
    return Source(
        dataset=Dataset(root.resolve().name, categories, images),
        findings=tuple(ordered(findings)),
        excluded=dict(sorted(excluded.items())),
        sha256=digest.hexdigest(),
    )


def _file_names(sources: list[str]) -> list[str]:
    """Names unique in one folder, the source path still readable in them.

    Stems are unique too, and in any case of letters, because label files and other systems'
    folders tell pictures apart by no more than that.
    """
    names = ["__".join(source.split("/")) for source in sources]
    stems = [Path(name).stem.casefold() for name in names]
    times = Counter(stems)
    unique = []
    for source, name, stem in zip(sources, names, stems, strict=True):
        if times[stem] > 1:
            path = Path(name)
            mark = hashlib.sha256(source.encode()).hexdigest()[:8]
            name = f"{path.stem}-{mark}{path.suffix}"
        unique.append(name)
    return unique


def _longer_sides(records: list[Record]) -> list[int]:
    sides = []
    for record in records:
        # A file that cannot be opened is reported when it is loaded.
        with (
            suppress(*UNREADABLE),
            PilImage.open(record.image) as file,
        ):
            sides.append(max(file.size))
    return sides


def _numbered(images: Iterable[Image]) -> Iterator[Image]:
    annotation = 0
    for image_id, image in enumerate(images, start=1):
        instances = []
        for instance in image.instances:
            annotation += 1
            instances.append(replace(instance, id=annotation))
        yield replace(image, id=image_id, instances=tuple(instances))


def _load(
    root: Path,
    record: Record,
    file_name: str,
    labels: Labels,
    options: ReadOptions,
    scale: float | None,
) -> _Loaded:
    name = relative(record.image, root)
    findings: list[Finding] = []
    digests = []
    try:
        content = record.image.read_bytes()
        digests.append((name, hashlib.sha256(content).hexdigest()))
        grey, size, mode, left = decode_grey(content, scale)
    except UNREADABLE as error:
        findings.append(_unreadable(name, "image", error))
        return _Loaded(None, None, tuple(digests), tuple(findings))
    if mode in SIXTEEN_BIT:
        findings.append(
            Finding("info", "16-bit", name, f"has {mode} pixels", "models see it scaled to 8 bits")
        )
    instances: list[Instance] = []
    for path in record.masks:
        regions = _regions(root, record, path, size, options, findings, digests)
        if regions is None:
            return _Loaded(None, None, tuple(digests), tuple(findings))
        label = record.label or "defect"
        instances.extend(Instance(label, box, crop) for box, crop in regions)
    if labels == "image" and record.label is not None:
        instances.append(Instance(record.label, (0, 0, *size), None))
    if not _label_agrees(name, record, bool(instances), findings):
        return _Loaded(None, None, tuple(digests), tuple(findings))
    image = Image(
        file_name=file_name,
        path=record.image,
        width=size[0],
        height=size[1],
        instances=tuple(instances),
        source=name,
        source_split=record.source_split,
    )
    print_ = None if scale is None or grey is None else fingerprint(grey, left, record.capture)
    return _Loaded(image, print_, tuple(digests), tuple(findings))


def _regions(
    root: Path,
    record: Record,
    path: Path,
    size: tuple[int, int],
    options: ReadOptions,
    findings: list[Finding],
    digests: list[tuple[str, str]],
) -> list[Region] | None:
    """Instances on a mask; None where it cannot be used."""
    name = relative(path, root)
    try:
        content = path.read_bytes()
        digests.append((name, hashlib.sha256(content).hexdigest()))
        reading = read_mask(content)
    except UNREADABLE as error:
        findings.append(_unreadable(name, "mask", error))
        return None
    height, width = reading.mask.shape
    if (width, height) != size:
        message = f"is {width}x{height} pixels, its image {size[0]}x{size[1]}"
        remedy = "export the mask at the image's size"
        findings.append(Finding("error", "size-mismatch", name, message, remedy))
        return None
    if reading.grey:
        message = "has grey values"
        findings.append(Finding("info", "grey-mask", name, message, "above 127 of 255 is defect"))
    if reading.colour:
        message = "is a colour or palette picture"
        findings.append(Finding("info", "colour-mask", name, message, "non-black is defect"))
    if options.instances == "image":
        return whole_region(reading.mask)
    return merge_regions(connected_regions(reading.mask), options.merge_distance)


def _label_agrees(name: str, record: Record, has_defect: bool, findings: list[Finding]) -> bool:
    """Whether what the folder says and what the mask shows go together."""
    if record.label is not None and not has_defect:
        message = f"is called {record.label!r}, but its mask is empty"
        remedy = "it is left out: it is neither good nor outlined"
        findings.append(Finding("warning", "empty-mask", name, message, remedy))
        return False
    if record.label is None and has_defect:
        message = "is called good, but its mask shows a defect"
        remedy = "move the image to a defect folder or empty the mask"
        findings.append(Finding("error", "good-with-defect", name, message, remedy))
        return False
    return True


def _unreadable(name: str, what: str, error: Exception) -> Finding:
    reason = " ".join(str(error).split()) or type(error).__name__
    message = f"cannot be read as {what} ({reason[:80]})"
    return Finding("error", f"unreadable-{what}", name, message, "replace or remove it")
