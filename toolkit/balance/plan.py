"""How many instances every class should have, and how it comes to them.

Two ways: a defect is pasted onto another picture, or a picture with it is listed again. The plan is
made before any picture is touched, and says of every class what it will have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from converters.dataset import Dataset, Image
from toolkit.sampling import repeat_factors

Target: TypeAlias = Literal["equal", "sqrt", "lvis"] | int
"""As many as the largest class; half-way to it (logarithmic); by repeat factors; at least N."""

Method: TypeAlias = Literal["paste", "oversample", "both"]
"""Pasting, listing again, or pasting first and listing again what is then missing."""


@dataclass(frozen=True)
class Limits:
    """So that one defect does not become a thousand.

    Attributes:
        per_donor: pastes of one instance.
        per_host: new pictures from one host.
        per_picture: pastes on one new picture.
        repeats: further entries of one picture.
        smallest: pixels from which a defect is pasted; specks of fewer are only seen by their
            annotation.
    """

    per_donor: int = 10
    per_host: int = 3
    per_picture: int = 2
    repeats: int = 5
    smallest: int = 10


@dataclass(frozen=True)
class ClassPlan:
    """What becomes of one class.

    Attributes:
        category: name.
        images, instances: in train before.
        wanted: instances that the target asks for.
        pasted, repeated: instances that are added, by each way.
        note: why it is not pasted, or why it stays below the target; empty where neither is so.
    """

    category: str
    images: int
    instances: int
    wanted: int
    pasted: int
    repeated: int
    note: str = ""

    @property
    def after(self) -> int:
        """Instances that it will have."""
        return self.instances + self.pasted + self.repeated


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        classes: one per category, in their order.
        repeats: further entries by position of the picture in train.
        pastes: for every new picture the position of its host, and positions of the donors as
            (picture, instance on it).
    """

    classes: tuple[ClassPlan, ...]
    repeats: Mapping[int, int]
    pastes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


def make_plan(
    train: Dataset,
    target: Target,
    *,
    method: Method,
    limits: Limits,
    never_paste: Mapping[str, str],
    seed: int,
    lvis_threshold: float | None = None,
) -> Plan:
    """Plan the balance of a train split.

    Args:
        train: ground truth with masks.
        target: how many instances every class shall have.
        method: how it comes to them.
        limits: what may not be exceeded.
        never_paste: classes that cannot be pasted, with the reason; they are listed again instead.
        seed: of who is a donor or a host when.
        lvis_threshold: as of ``repeat_factors``.
    """
    rng = np.random.default_rng(seed)
    before = train.count_instances()
    wanted = _wanted(train, target, lvis_threshold)
    missing = {name: max(0, wanted[name] - before[name]) for name in train.categories}
    pastes: list[tuple[int, tuple[tuple[int, int], ...]]] = []
    if method != "oversample":
        pasteable = {n: count for n, count in missing.items() if n not in never_paste}
        pastes = _assign_pastes(train, pasteable, limits, rng)
    added = Counter(
        train.images[picture].instances[index].category
        for _, donors in pastes
        for picture, index in donors
    )
    repeats: Counter[int] = Counter()
    if method != "paste" or never_paste:
        rest = {
            name: count - added[name]
            for name, count in missing.items()
            if method != "paste" or name in never_paste
        }
        repeats = _assign_repeats(train.images, rest, limits.repeats, rng)
    again = Counter(
        instance.category
        for position, times in repeats.items()
        for instance in train.images[position].instances
        for _ in range(times)
    )
    images = train.count_images()
    classes = []
    for name in train.categories:
        note = f"not pasted: {never_paste[name]}" if name in never_paste else ""
        total = before[name] + added[name] + again[name]
        if total < wanted[name]:
            short = "it has no instance in train" if not before[name] else "the limits are reached"
            note = f"{note}; {short}" if note else short
        classes.append(
            ClassPlan(
                name, images[name], before[name], wanted[name], added[name], again[name], note
            )
        )
    return Plan(tuple(classes), dict(repeats), tuple(pastes))


def _wanted(train: Dataset, target: Target, threshold: float | None) -> dict[str, int]:
    before = train.count_instances()
    most = max(before.values(), default=0)
    if target == "lvis":
        factors = repeat_factors(train, threshold)
        seen = dict.fromkeys(train.categories, 0.0)
        for image, factor in zip(train.images, factors, strict=True):
            for instance in image.instances:
                seen[instance.category] += factor
        return {name: round(count) for name, count in seen.items()}
    if target == "equal":
        return dict.fromkeys(train.categories, most)
    if target == "sqrt":
        return {name: round(math.sqrt(count * most)) for name, count in before.items()}
    return {name: max(count, int(target)) for name, count in before.items()}


def _assign_pastes(
    train: Dataset, missing: Mapping[str, int], limits: Limits, rng: np.random.Generator
) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """Who is pasted onto what: donors and hosts take turns; hosts are good pictures if possible.

    What was made by an earlier balance is neither.
    """
    donors = {
        name: [
            (position, index)
            for position, image in enumerate(train.images)
            for index, instance in enumerate(image.instances)
            if instance.category == name
            and not image.copy_of
            and instance.mask is not None
            and instance.area >= limits.smallest
        ]
        for name in missing
    }
    counts = {n: min(count, limits.per_donor * len(donors[n])) for n, count in missing.items()}
    queue = [
        donor for name, count in counts.items() for donor in _in_turns(donors[name], count, rng)
    ]
    queue = [queue[index] for index in rng.permutation(len(queue)).tolist()]
    pastes: list[tuple[int, tuple[tuple[int, int], ...]]] = []
    for product in sorted({product_of(image) for image in train.images}):
        of_product = [
            n
            for n, image in enumerate(train.images)
            if product_of(image) == product and not image.copy_of
        ]
        hosts = [n for n in of_product if train.images[n].is_good] or of_product
        mine = [donor for donor in queue if product_of(train.images[donor[0]]) == product]
        mine = mine[: len(hosts) * limits.per_host * limits.per_picture]
        groups = [
            tuple(mine[start : start + limits.per_picture])
            for start in range(0, len(mine), limits.per_picture)
        ]
        pastes += zip(_in_turns(hosts, len(groups), rng), groups, strict=True)
    return pastes


def product_of(image: Image) -> str:
    """What is on a picture: the category of a source that holds several, else nothing."""
    folders = image.source.split("/")[:-1]
    return folders[0] if len(folders) > 2 else ""


_Thing = TypeVar("_Thing")


def _in_turns(things: Sequence[_Thing], count: int, rng: np.random.Generator) -> list[_Thing]:
    """So many of them, each as often as any other (but for one time), in a random order."""
    drawn: list[_Thing] = []
    while len(drawn) < count:
        drawn += [things[index] for index in rng.permutation(len(things)).tolist()]
    return drawn[:count]


def _assign_repeats(
    images: Sequence[Image], missing: Mapping[str, int], most: int, rng: np.random.Generator
) -> Counter[int]:
    """Which pictures are listed again: all that help take turns.

    A picture with several classes counts for all of them; it does not help where it would add more
    of what is not missing than of what is.
    """
    left = dict(missing)
    repeats: Counter[int] = Counter()
    holds = [Counter(instance.category for instance in image.instances) for image in images]
    for _ in range(most):
        for position in rng.permutation(len(images)).tolist():
            counts = Counter[str]() if images[position].copy_of else holds[position]
            gain = sum(min(count, max(0, left.get(name, 0))) for name, count in counts.items())
            if gain and 2 * gain >= counts.total():
                repeats[position] += 1
                for name, count in counts.items():
                    left[name] = left.get(name, 0) - count
    return repeats
