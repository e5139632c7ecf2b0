"""Splits that leak nothing and come out the same on every machine.

Pictures are ordered by a hash of the seed and their name, so that neither the order of directory
entries nor a library's random generator plays a part, and so that a picture added later moves no
other one's place in the order. What shows one photograph (a group) goes to one side as a whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from converters.dataset import GOOD, SPLITS, Image
from converters.errors import InputError
from converters.findings import Finding

Protocol = Literal["stratified", "folds", "general", "hard", "source"]

Assignment: TypeAlias = dict[str, tuple[Image, ...]]
"""Images by split ("train", "val", "test"), each sorted by file name."""

_Group: TypeAlias = tuple[Image, ...]

_SEEN = ("train", "val")  # splits that a model's choice rests on


@dataclass(frozen=True)
class SplitOptions:
    """How images are split.

    Attributes:
        protocol: "stratified" deals every class out by fractions; "folds" makes ``folds`` splits
            in which every image is tested once; "general" knows ``shots`` defect images of all
            types, all others are test (DRA, Ding et al., CVPR 2022); "hard" knows one type only;
            "source" leaves images where the source has them, and takes val out of train where the
            source has none.
        fractions: shares of train, val and test; of what is known, train and val only.
        folds: number of folds, at least 3.
        shots: number of known defect images, train and val together.
        known: the known type.
        seed: of the order.
    """

    protocol: Protocol = "stratified"
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    folds: int = 5
    shots: int = 10
    known: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class SplitResult:
    """The splits, one for each fold or a single one, and what there is to say about them."""

    assignments: tuple[Assignment, ...]
    findings: tuple[Finding, ...] = ()


def split(images: Sequence[Image], group_of: Sequence[int], options: SplitOptions) -> SplitResult:
    """Split images by a protocol.

    Args:
        images: sorted by file name.
        group_of: for every image the number of its group.
        options: the protocol and its numbers.

    Raises:
        InputError: a class has too few photographs for the protocol, or is unknown, or the source
            has no splits.
    """
    ordered = _groups(images, group_of, options.seed)
    if options.protocol == "stratified":
        return SplitResult((_stratified(ordered, options),))
    if options.protocol == "folds":
        return SplitResult(_folds(ordered, options.folds))
    if options.protocol == "source":
        return _as_sourced(ordered, options)
    if options.protocol == "general":
        return _few_shot(ordered, options, _draw_from_all_types(ordered, options.shots))
    names = {label for image in images for label in image.labels} - {GOOD}
    if options.known not in names:
        raise InputError(f"known type {options.known!r}: no such class: {', '.join(sorted(names))}")
    known = [group for group in ordered if _labels(group) == {options.known}]
    return _few_shot(ordered, options, known)


def _groups(images: Sequence[Image], group_of: Sequence[int], seed: int) -> list[_Group]:
    members: dict[int, list[Image]] = defaultdict(list)
    for image, group in zip(images, group_of, strict=True):
        members[group].append(image)
    groups = [tuple(sorted(group, key=lambda image: image.file_name)) for group in members.values()]

    def place(group: _Group) -> bytes:
        return hashlib.sha256(f"{seed}:{group[0].file_name}".encode()).digest()

    return sorted(groups, key=place)


def _labels(group: _Group) -> set[str]:
    """Categories on any of the pictures; empty where all are good."""
    return {label for image in group for label in image.labels} - {GOOD}


def _strata(groups: Sequence[_Group]) -> dict[str, list[_Group]]:
    """Groups by label; one with several goes with its rarest, which needs it most."""
    frequency = Counter(label for group in groups for label in (_labels(group) or {GOOD}))
    strata: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        labels = _labels(group) or {GOOD}
        strata[min(labels, key=lambda label: (frequency[label], label))].append(group)
    return dict(sorted(strata.items()))


def _deal(
    groups: Sequence[_Group], shares: Sequence[float], totals: list[int] | None = None
) -> list[list[_Group]]:
    """Deal groups to parts so that the parts' image counts follow the shares.

    The next group goes to the part that is furthest behind its share (Sainte-Laguë's rule for
    seats in a parliament); the last groups go to parts that would stay empty. Ties go to the part
    that has least in all, then to the last one (test).
    """
    parts: list[list[_Group]] = [[] for _ in shares]
    counts = [0] * len(shares)
    totals = totals if totals is not None else [0] * len(shares)
    open_parts = [index for index, share in enumerate(shares) if share > 0]

    def behind(part: int, size: int) -> tuple[float, float, int]:
        quotient = (counts[part] + size / 2) / shares[part]
        return round(quotient, 9), round(totals[part] / shares[part], 9), -part

    for number, group in enumerate(groups):
        empty = [part for part in open_parts if not parts[part]]
        candidates = empty if empty and len(groups) - number <= len(empty) else open_parts
        part = min(candidates, key=lambda part: behind(part, len(group)))
        parts[part].append(group)
        counts[part] += len(group)
        totals[part] += len(group)
    return parts


def _require(label: str, groups: Sequence[_Group], parts: int, what: str) -> None:
    if label == GOOD or len(groups) >= parts:
        return
    images = sum(len(group) for group in groups)
    same = f" of {len(groups)} photograph" + ("" if len(groups) == 1 else "s")
    photographs = "" if images == len(groups) else same
    noun = "image" if images == 1 else "images"
    raise InputError(
        f"class {label!r} has {images} {noun}{photographs}, and {what} needs {parts}: "
        "add pictures, leave the class out, or set other fractions"
    )


def _stratified(groups: Sequence[_Group], options: SplitOptions) -> Assignment:
    wanted = sum(share > 0 for share in options.fractions)
    parts: list[list[_Group]] = [[], [], []]
    for label, members in _strata(groups).items():
        _require(label, members, wanted, f"a stratified split into {wanted} parts")
        for part, dealt in zip(parts, _deal(members, options.fractions), strict=True):
            part.extend(dealt)
    return _assignment(parts)


def _folds(groups: Sequence[_Group], count: int) -> tuple[Assignment, ...]:
    parts: list[list[_Group]] = [[] for _ in range(count)]
    totals = [0] * count
    for label, members in _strata(groups).items():
        _require(label, members, 3, "cross-validation with train, val and test")
        for part, dealt in zip(parts, _deal(members, [1.0] * count, totals), strict=True):
            part.extend(dealt)
    folds = []
    for test in range(count):
        val = (test + 1) % count
        train = [g for index in range(count) if index not in (test, val) for g in parts[index]]
        folds.append(_assignment([train, parts[val], parts[test]]))
    return tuple(folds)


def _as_sourced(groups: Sequence[_Group], options: SplitOptions) -> SplitResult:
    """Every image where the source has it; val is a share of train where the source has none."""
    images = [image for group in groups for image in group]
    missing = next((image for image in images if image.source_split not in SPLITS), None)
    if missing is not None:
        raise InputError(
            f"{missing.source}: is in no split of the source: choose --split stratified or folds"
        )
    parts: list[list[_Group]] = [
        [(image,) for image in images if image.source_split == split] for split in SPLITS
    ]
    if not parts[1]:
        train_share, val_share, _ = options.fractions
        within = [tuple(i for i in group if i.source_split == "train") for group in groups]
        parts[0] = []
        for members in _strata([group for group in within if group]).values():
            for part, dealt in zip(
                parts, _deal(members, [train_share, val_share, 0.0]), strict=True
            ):
                part.extend(dealt)
    findings = []
    for group in groups:
        sides = sorted({str(image.source_split) for image in group}, key=SPLITS.index)
        if len(sides) > 1:
            message = f"shows one photograph with others, and the source has it in {sides}"
            remedy = "another --split keeps them on one side"
            findings.append(Finding("warning", "source-leak", group[0].source, message, remedy))
    return SplitResult((_assignment(parts),), tuple(findings))


def _draw_from_all_types(groups: Sequence[_Group], shots: int) -> list[_Group]:
    """Defect groups of about ``shots`` images, one type after the other in turn."""
    strata = _strata([group for group in groups if _labels(group)])
    queues = [list(members) for members in strata.values()]
    drawn: list[_Group] = []
    left = shots
    while left > 0 and any(queues):
        for queue in queues:
            while queue:
                group = queue.pop(0)
                if len(group) <= left:
                    drawn.append(group)
                    left -= len(group)
                    break
    return drawn


def _few_shot(
    groups: Sequence[_Group], options: SplitOptions, known: Sequence[_Group]
) -> SplitResult:
    """Known defects to train and val, all others to test; good images where the source has them.

    A good image that the source calls "train" or "val" is either, one that it calls "test" is test;
    where the source says nothing, good images are dealt out by the fractions.
    """
    train_share, val_share, _ = options.fractions
    known_parts = _deal(known, [train_share, val_share, 0.0])
    good = [group for group in groups if not _labels(group)]
    drawn = {id(group) for group in known}
    unknown = [group for group in groups if _labels(group) and id(group) not in drawn]
    sourced = [group for group in good if any(image.source_split for image in group)]
    training = [group for group in sourced if any(i.source_split in _SEEN for i in group)]
    testing = [group for group in sourced if all(i.source_split not in _SEEN for i in group)]
    unsourced = [group for group in good if not any(image.source_split for image in group)]
    dealt = _deal(training, [train_share, val_share, 0.0])
    others = _deal(unsourced, options.fractions)
    parts = [a + b + c for a, b, c in zip(known_parts, dealt, others, strict=True)]
    parts[2] += testing + unknown
    findings = []
    count = sum(len(group) for group in known)
    if options.protocol == "general" and count < options.shots:
        message = f"{count} of {options.shots} known defects could be drawn without a leak"
        findings.append(Finding("warning", "fewer-shots", "", message))
    if not known_parts[1]:
        message = "val has no defect, so no threshold can be chosen on it"
        findings.append(Finding("warning", "no-val-defects", "", message, "raise --shots"))
    return SplitResult((_assignment(parts),), tuple(findings))


def _assignment(parts: Sequence[Sequence[_Group]]) -> Assignment:
    return {
        name: tuple(sorted((i for group in part for i in group), key=lambda i: i.file_name))
        for name, part in zip(SPLITS, parts, strict=True)
    }
