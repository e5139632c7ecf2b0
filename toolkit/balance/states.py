"""Classes that are states of the whole part, which cannot be copied onto another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from converters.dataset import BinaryMask, Instance

LARGE = 0.25
"""Share of the part from which the typical instance of a class is a state of it."""

BESIDE = 0.5
"""Share on the background from which it shows where something is missing or should not be."""


def find_states(
    categories: Sequence[str], seen: Iterable[tuple[Instance, BinaryMask]]
) -> dict[str, str]:
    """Classes that must not be pasted, with the reason.

    Args:
        categories: names.
        seen: every instance with a mask in train, and where the part is on its picture, shape
            (height, width).
    """
    shares: defaultdict[str, list[float]] = defaultdict(list)
    beside: defaultdict[str, list[float]] = defaultdict(list)
    for instance, part in seen:
        mask = instance.to_mask(*part.shape)
        shares[instance.category].append(float(mask.sum()) / max(1.0, float(part.sum())))
        beside[instance.category].append(1 - float(part[mask].mean()))
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
