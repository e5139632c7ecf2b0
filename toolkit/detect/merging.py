"""Finding defects window by window, and making one of what several windows show of a defect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import supervision as sv

from toolkit.detect.tiles import Tiling
from toolkit.images import RgbImage
from toolkit.regions import Frame

_AT_ONCE = 16
"""Windows that go through the network together, or as many as there are pictures, if more."""
_AGREEMENT = 0.5
"""Overlap, within what two windows share, from which two boxes are of one defect."""
_SLACK = 1 / 32
"""Distance to the edge of a window, as a share of its side, at which a box counts as cut by it."""
_PARTNER = 0.25
"""Share of the best score that another part must have to widen the box."""

_Boxes = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]
_Match = tuple[int, bool]


def find_in_tiles(
    find: Callable[[Sequence[RgbImage]], list[sv.Detections]],
    images: Sequence[RgbImage],
    tiling: Tiling,
    *,
    iou: float,
    max_detections: int,
) -> list[sv.Detections]:
    """Find defects in the windows of pictures; a picture of one window gets what ``find`` gives.

    Args:
        find: finds boxes on pictures, best first.
        images: pictures of any sizes.
        tiling: how they are cut.
        iou: overlap from which the weaker of two boxes of one class goes.
        max_detections: most boxes per picture.

    Returns:
        for each picture its boxes in pixels of the picture, best first.
    """
    frames = [tiling.frames(image.shape[1], image.shape[0]) for image in images]
    places = [(index, frame) for index, own in enumerate(frames) for frame in own]
    found: list[list[sv.Detections]] = [[] for _ in images]
    at_once = max(_AT_ONCE, len(images))
    for start in range(0, len(places), at_once):
        part = places[start : start + at_once]
        boxes = find([images[i][y : y + h, x : x + w] for i, (x, y, w, h) in part])
        for (index, _), detections in zip(part, boxes, strict=True):
            found[index].append(detections)
    return [
        each[0] if len(each) == 1 else merge(each, own, iou=iou, max_detections=max_detections)
        for each, own in zip(found, frames, strict=True)
    ]


def merge(
    found: Sequence[sv.Detections],
    frames: Sequence[Frame],
    *,
    iou: float = 0.7,
    max_detections: int = 100,
) -> sv.Detections:
    """Boxes of a picture from those of its windows.

    Two boxes of one class from two windows are of one defect if, within what both windows show,
    they agree: by half of their union (IoU) where both windows show the defect whole; by half of
    the part (IoS) where the edge of a window cuts it off and the other box goes on beyond that
    edge. A box that is not cut is thus never swallowed by a larger one, which merging by IoS over
    the whole picture would do, and boxes of one window are left to one another.

    From the best box on, others of the same defect go; where one reaches beyond the window of the
    better, and scores a quarter as much, the better is widened by it, and what it then covers goes
    as it does within a window. Scores stay. A long defect that runs aslant may remain in pieces, as
    its pieces need not agree; so does every cut one where windows do not overlap.

    Args:
        found: boxes of each window in its pixels, with ``confidence`` and ``class_id``.
        frames: the windows, in the same order.
        iou: overlap from which the weaker of two boxes of one class goes.
        max_detections: most boxes that are kept.

    Returns:
        boxes in pixels of the picture, best first.
    """
    filled = [(each, frame) for each, frame in zip(found, frames, strict=True) if len(each)]
    if not filled:
        return found[0]
    lengths = [len(each) for each, _ in filled]
    edges = np.array([(x, y, x + w, y + h) for _, (x, y, w, h) in filled], np.float32)
    tile_of = np.repeat(np.arange(len(filled)), lengths)
    together = sv.Detections.merge([each for each, _ in filled])
    scores, classes = together.confidence, together.class_id
    assert scores is not None and classes is not None, "of a detector"
    boxes = together.xyxy.astype(np.float32) + np.tile(edges[tile_of, :2], 2)
    kept, widened = _group(boxes, scores, classes, tile_of, edges)
    changed = np.flatnonzero((widened != boxes[kept]).any(axis=1))
    best = _without_doubles(widened, classes[kept], changed, iou)[:max_detections]
    chosen = kept[best]
    return sv.Detections(
        xyxy=widened[best],
        confidence=scores[chosen],
        class_id=classes[chosen],
        data={name: np.asarray(values)[chosen] for name, values in together.data.items()},
    )


def _group(
    boxes: _Boxes, scores: _Array, classes: _Array, tile_of: _Array, edges: _Boxes
) -> tuple[npt.NDArray[np.int64], _Boxes]:
    """Which boxes remain, best first, and how far each reaches, (n, 4)."""
    matches: defaultdict[int, list[_Match]] = defaultdict(list)
    for first, second, second_beyond, first_beyond in _pairs(boxes, classes, tile_of, edges):
        matches[first].append((second, second_beyond))
        matches[second].append((first, first_beyond))
    free = np.ones(len(boxes), dtype=bool)
    kept, widened = [], []
    for best in np.argsort(-scores, kind="stable").tolist():
        if not free[best]:
            continue
        free[best] = False
        box = boxes[best].copy()
        answered = {int(tile_of[best])}
        members = [best]
        for member in members:  # grows
            for other, beyond in sorted(matches[member], key=lambda match: -scores[match[0]]):
                tile = int(tile_of[other])
                if not free[other]:
                    continue
                if beyond and (tile in answered or scores[other] < _PARTNER * scores[best]):
                    continue
                free[other] = False
                answered.add(tile)  # the best match of a window is what it says of this defect
                if beyond:
                    members.append(other)
                    box[:2] = np.minimum(box[:2], boxes[other][:2])
                    box[2:] = np.maximum(box[2:], boxes[other][2:])
        kept.append(best)
        widened.append(box)
    return np.array(kept), np.stack(widened)


def _without_doubles(
    boxes: _Boxes, classes: _Array, changed: _Array, iou: float
) -> npt.NDArray[np.int64]:
    """Positions of boxes, best first, without the weaker of each two of which one has changed."""
    stays = np.ones(len(boxes), dtype=bool)
    for index in changed:
        if not stays[index]:
            continue
        overlaps = sv.box_iou_batch(boxes[index : index + 1], boxes)[0]
        double = (overlaps > iou) & (classes == classes[index]) & stays
        if double[:index].any():
            stays[index] = False
        else:
            stays[index + 1 :] &= ~double[index + 1 :]
    return np.flatnonzero(stays)


def _pairs(
    boxes: _Boxes, classes: _Array, tile_of: _Array, edges: _Boxes
) -> Iterator[tuple[int, int, bool, bool]]:
    """Pairs of boxes that are of one defect.

    Yields:
        both, whether the second reaches beyond the window of the first, and the first beyond that
        of the second.
    """
    low = np.maximum(edges[:, None, :2], edges[None, :, :2])
    high = np.minimum(edges[:, None, 2:], edges[None, :, 2:])
    for a, b in np.argwhere(np.triu((low < high).all(axis=2), 1)).tolist():
        shared = np.concatenate([low[a, b], high[a, b]])
        ours, theirs = np.flatnonzero(tile_of == a), np.flatnonzero(tile_of == b)
        same, beyond, back = _agree(boxes[ours], boxes[theirs], edges[a], edges[b], shared)
        same &= classes[ours][:, None] == classes[theirs][None]
        for i, j in zip(*np.nonzero(same), strict=True):
            yield int(ours[i]), int(theirs[j]), bool(beyond[j]), bool(back[i])


def _agree(
    ours: _Boxes, theirs: _Boxes, our_edge: _Boxes, their_edge: _Boxes, shared: _Boxes
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which boxes (n, 4) of a window are of one defect with which (m, 4) of another.

    Returns:
        shape (n, m); whether each of theirs reaches beyond our window (m,), and ours beyond theirs
        (n,).
    """
    slack = _SLACK * max(our_edge[2:] - our_edge[:2])
    # Signs with which all four sides are "the larger, the further out".
    out = np.array([-1, -1, 1, 1], np.float32)
    theirs_out = (theirs - our_edge) * out > slack  # (m, 4)
    ours_out = (ours - their_edge) * out > slack
    ours_cut = (ours - our_edge) * out > -slack
    theirs_cut = (theirs - their_edge) * out > -slack
    goes_on = (~theirs_out[None] | ours_cut[:, None]) & (~ours_out[:, None] | theirs_cut[None])
    our_parts, their_parts = _clip(ours, shared), _clip(theirs, shared)
    low = np.maximum(our_parts[:, None, :2], their_parts[None, :, :2])
    high = np.minimum(our_parts[:, None, 2:], their_parts[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    our_area, their_area = _area(our_parts)[:, None], _area(their_parts)[None]
    beyond, back = theirs_out.any(axis=1), ours_out.any(axis=1)
    # What is cut off is held against the whole; of two that are cut, the smaller.
    of_whole = np.where(
        beyond[None] & back[:, None],
        np.minimum(our_area, their_area),
        np.where(beyond[None], our_area, their_area),
    )
    union = our_area + their_area - common
    size = np.where(beyond[None] | back[:, None], of_whole, union)
    return goes_on.all(axis=2) & (common >= _AGREEMENT * size) & (common > 0), beyond, back


def _clip(boxes: _Boxes, frame: _Boxes) -> _Boxes:
    low = np.clip(boxes[:, :2], frame[:2], frame[2:])
    return np.concatenate([low, np.clip(boxes[:, 2:], frame[:2], frame[2:])], axis=1)


def _area(boxes: _Boxes) -> npt.NDArray[np.float32]:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), np.float32)
