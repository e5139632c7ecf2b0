"""Compressed RLE of COCO: area, tight box and pixels of a mask, without the whole picture.

The code is LEB128 with 6 bits per character (5 of data, 1 that says "goes on"), signed, and from
the fourth number on the difference to the one before the last (``rleFrString`` in
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

Rle: TypeAlias = dict[str, Any]
"""COCO compressed RLE: ``{"size": [height, width], "counts": str}``."""

_TOGETHER = 1 << 14  # masks whose runs are added up together
_AT_ONCE = 255  # pycocotools counts the masks whose area it is asked for in one byte
_LONGEST = 6  # characters of a run, 30 bits: no image has a longer one


def area(rle: Rle) -> float:
    """Number of mask pixels."""
    return float(coco_mask.area(rle))


def areas(rles: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Numbers of mask pixels, shape (len(rles),)."""
    parts = [coco_mask.area(list(rles[at : at + _AT_ONCE])) for at in range(0, len(rles), _AT_ONCE)]
    return np.concatenate([np.empty(0), *parts])


def tight_boxes(rles: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """Tight boxes ``x, y, width, height``, shape (len(rles), 4); zeros for an empty mask."""
    return np.asarray(coco_mask.toBbox(list(rles)), np.float64).reshape(-1, 4)


def are_filled(counts: Sequence[str], pixels: npt.NDArray[np.int64]) -> bool:
    """Whether these are ASCII texts of runs that add up to so many pixels each.

    Others make pycocotools read past them, or never return.
    """
    if not all(map(str.isascii, counts)):
        return False
    for start in range(0, len(counts), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        totals = run_totals(counts[part])
        if totals is None or not np.array_equal(totals, pixels[part]):
            return False
    return True


def run_totals(counts: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Pixels that the runs of compressed RLEs add up to, or None where one is no such text.

    Args:
        counts: ASCII texts, at least one.

    Returns:
        shape (len(counts),); None, too, where a run is negative or longer than any image.
    """
    codes = np.frombuffer("".join(counts).encode("ascii"), dtype=np.uint8) - np.uint8(48)
    sizes = np.fromiter(map(len, counts), np.int64, len(counts))
    if sizes.min() == 0 or codes.max() > 63:  # what lies below the code has wrapped around
        return None
    is_end = codes < 32
    after = np.cumsum(sizes)
    if not is_end[after - 1].all():
        return None
    values = _numbers(codes & np.uint8(31), is_end)
    if values is None:
        return None
    numbers = np.add.reduceat(is_end, after - sizes, dtype=np.int64)
    first = np.cumsum(numbers) - numbers
    totals = np.zeros(len(counts), np.int64)
    for parity in (0, 1):  # a run is a sum over every second number of its text
        changes = values[parity::2]
        if not changes.size:
            continue
        start = (first + 1 - parity) // 2
        count = (first + numbers + 1 - parity) // 2 - start
        # Sums run on over all texts: what had come up to the text's first number is taken off.
        # They may wrap around, but no step is so wide that it could pass over all negative ones.
        runs = np.cumsum(changes, dtype=np.int32)
        before = (first - parity) // 2
        runs -= np.repeat(np.where(before >= 0, runs[before], 0).astype(np.int32), count)
        leading = before[first % 2 == parity]  # the first number is a run, and of no other a part
        runs[leading] = changes[leading]
        if runs.min() < 0:
            return None
        totals[count > 0] += np.add.reduceat(runs, start[count > 0], dtype=np.int64)
    return totals


def _numbers(
    low: npt.NDArray[np.uint8], is_end: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32] | None:
    """Numbers from characters of 5 bits each, the lowest first, the highest a sign.

    Returns:
        None where one is longer than a run can be.
    """
    ends = np.flatnonzero(is_end)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _LONGEST:
        return None
    goes_on = np.concatenate([[False], ~is_end[:-1]])
    values: npt.NDArray[np.int32] = low[~goes_on].astype(np.int32)
    place = ~goes_on
    for index in range(1, int(lengths.max())):
        place = np.concatenate([[False], place[:-1]]) & goes_on
        values[lengths > index] |= low[place].astype(np.int32) << np.int32(5 * index)
    negative = (low[is_end] & 16) != 0
    values[negative] -= np.int32(1) << (5 * lengths[negative]).astype(np.int32)
    return values


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
