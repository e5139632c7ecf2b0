"""Weights of SAM's losses by name, as text (focal=20,dice=1) or as a mapping.

The losses themselves are in ``toolkit.segment.losses``; here are their names, so that a command
knows them without torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

MASK_LOSS_NAMES = ("focal", "dice", "bce", "boundary")
"""Losses of a mask."""

LOSS_NAMES = (*MASK_LOSS_NAMES, "iou")
"""All losses: those of a mask, and that of the estimate of its IoU."""

PRESETS = {
    "sam": {"focal": 20.0, "dice": 1.0, "iou": 1.0},
    "medsam": {"dice": 1.0, "bce": 1.0, "iou": 1.0},
}
"""Weights that have a name.

SAM's: arXiv 2304.02643, appendix A ("Losses"). MedSAM's: arXiv 2304.12306, methods ("Loss
function"), beside SAM's loss of the estimates.
"""


def read_losses(value: object) -> dict[str, float]:
    """Weights of losses, in the order of ``LOSS_NAMES`` whatever the order that they were given in.

    Args:
        value: name of a preset, pairs ("focal=20,dice=1"), or a mapping of names to numbers. A
            loss of weight 0 is measured, but nothing learns from it.

    Raises:
        ValueError: an unknown or repeated name, a weight that is no finite number from 0, or none
            above 0 for the mask; in one line that begins with "loss: ".
    """
    weights: dict[str, float] = {}
    for name, number in _pairs(value):
        if name not in LOSS_NAMES:
            raise ValueError(f"loss: no loss is called {name!r}: {_hint(name, LOSS_NAMES)}")
        if name in weights:
            raise ValueError(f"loss: {name} comes twice: give it one weight")
        weights[name] = _weight(name, number)
    if not any(weights.get(name, 0) > 0 for name in MASK_LOSS_NAMES):
        raise ValueError(
            f"loss: nothing tells masks what is right: "
            f"give one of {', '.join(MASK_LOSS_NAMES)} a weight above 0"
        )
    return {name: weights[name] for name in LOSS_NAMES if name in weights}


LossWeights = Annotated[dict[str, float], BeforeValidator(read_losses)]
"""Type of a field that takes what ``read_losses`` takes."""


def _pairs(value: object) -> Iterable[tuple[str, Any]]:
    """Names and weights, none of which has been looked at."""
    if isinstance(value, Mapping):
        return [(str(name), number) for name, number in value.items()]
    if not isinstance(value, str):
        raise ValueError(f"loss: {value!r} gives no weights by name: write focal=20,dice=1,iou=1")
    words = [word.strip() for word in value.split(",") if word.strip()]
    if len(words) == 1 and "=" not in words[0] and words[0] not in LOSS_NAMES:
        if words[0] in PRESETS:
            return PRESETS[words[0]].items()
        near = _hint(words[0], (*PRESETS, *LOSS_NAMES))
        raise ValueError(f"loss: {words[0]!r} is no preset and has no weight: {near}")
    for word in words:
        if "=" not in word:
            raise ValueError(f"loss: {word!r} has no weight: write {word}=1")
    return [(name.strip(), number.strip()) for name, _, number in (w.partition("=") for w in words)]


def _weight(name: str, number: Any) -> float:
    try:
        weight = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"loss: weight {number!r} of {name} is no finite number: write {name}=1")
    if weight < 0:
        raise ValueError(f"loss: weight {number!r} of {name} is negative: give 0 or more")
    return weight


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
