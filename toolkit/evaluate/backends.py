"""Who matches detections to ground truth: ours, or pycocotools, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

from converters.dataset import Dataset
from toolkit.evaluate import matching
from toolkit.evaluate.matching import MAX_DETECTIONS, Kind, Matches
from toolkit.predictions import Result

Backend: TypeAlias = Literal["arrays", "pycocotools"]
"""Array operations over all images, or a call of ``COCOeval``, which takes many times as long."""

Matcher: TypeAlias = Callable[[Dataset, Sequence[Result], Kind], list[Matches]]
"""Matches by category of results on a split."""


def matcher(
    backend: Backend = "arrays", *, iou: float = 0.5, max_detections: int = MAX_DETECTIONS
) -> Matcher:
    """Somebody who matches.

    Args:
        backend: who.
        iou: IoU from which a detection counts as found in F1, above 0 and below 1.
        max_detections: that count per image and category, the surest.
    """
    match = matching.match
    if backend == "pycocotools":
        from toolkit.evaluate.reference import match  # brings COCOeval, which takes its time
    return partial(match, iou=iou, max_detections=max_detections)
