"""Compressed RLE of COCO: area, tight box and pixels of a mask, without the whole picture."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

Rle: TypeAlias = dict[str, Any]
"""COCO compressed RLE: ``{"size": [height, width], "counts": str}``."""


def area(rle: Rle) -> float:
    """Number of mask pixels."""
    return float(coco_mask.area(rle))


def tight_box(rle: Rle) -> tuple[int, int, int, int]:
    """Tight box ``(x, y, width, height)``.

    Raises:
        ValueError: the mask is empty.
    """
    x, y, w, h = (int(value) for value in coco_mask.toBbox(rle))
    if w == 0 or h == 0:
        raise ValueError("empty mask")
    return x, y, w, h


def crop(rle: Rle, box: tuple[float, float, float, float]) -> npt.NDArray[np.bool_]:
    """The mask inside a box of whole pixels, shape (box height, box width).

    ``decode`` of pycocotools makes the whole picture, of which a small defect is nothing.
    """
    x, y, w, h = (int(value) for value in box)
    height = int(rle["size"][0])
    flat = np.zeros(w * height, dtype=np.bool_)
    start = -x * height
    for index, run in enumerate(_runs(rle["counts"])):
        if index % 2:
            flat[max(0, start) : max(0, start + run)] = True
        start += run
    return np.ascontiguousarray(flat.reshape(w, height).T[y : y + h])


def _runs(counts: str | bytes) -> list[int]:
    """Run lengths, as ``rleFrString`` of pycocotools reads them.

    Numbers of 5 bits per character, the sixth says "goes on"; signed; from the fourth one on the
    difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode() if isinstance(counts, str) else counts:
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
