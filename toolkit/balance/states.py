"""Classes that are states of the whole part, which cannot be copied onto another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from converters.dataset import BinaryMask, Instance
from toolkit.regions import region_of

LARGE = 0.25
"""Share of the part from which the typical instance of a class is a state of it."""

BESIDE = 0.5
"""Share on the background from which it shows where something is missing or should not be."""


@dataclass(frozen=True)
class Seen:
    """How an instance lies on its part.

    Attributes:
        category: its class.
        share: its area as a share of the part's.
        beside: share of it that lies beside the part.
    """

    category: str
    share: float
    beside: float


def look_at(instance: Instance, part: BinaryMask) -> Seen:
    """Compare an instance that has a mask with the part, shape (height, width), on its picture."""
    (x, y, w, h), mask = region_of(instance)
    area, of_part = int(np.count_nonzero(mask)), int(np.count_nonzero(part))
    on_part = int(np.count_nonzero(part[y : y + h, x : x + w] & mask))
    return Seen(instance.category, area / max(1, of_part), 1 - on_part / max(1, area))


def find_states(categories: Sequence[str], seen: Iterable[Seen]) -> dict[str, str]:
    """Classes that must not be pasted, with the reason.

    Args:
        categories: names.
        seen: every instance with a mask in train.
    """
    shares: defaultdict[str, list[float]] = defaultdict(list)
    beside: defaultdict[str, list[float]] = defaultdict(list)
    for each in seen:
        shares[each.category].append(each.share)
        beside[each.category].append(each.beside)
    states = {}
    for name in categories:
        if not shares[name]:
            continue
        share, off = float(np.median(shares[name])), float(np.median(beside[name]))
        if share > LARGE:
            states[name] = f"it covers {share:.0%} of the part"
        elif off > BESIDE:
            states[name] = f"{off:.0%} of it lies beside the part"
    return states
