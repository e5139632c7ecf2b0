"""Which detection finds which defect: COCO's greedy matching, of all images at once.

``match`` is what ``COCOeval.evaluate`` of pycocotools does, in a few array operations for all
images and categories together instead of a Python loop over every detection; overlaps of masks are
still those of pycocotools. ``toolkit.evaluate.reference`` gives the same from ``COCOeval`` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from converters.dataset import Dataset, areas
from converters.geometry import rle_from_instance
from converters.rle import Rle
from toolkit.predictions import Result, boxes_of

Kind: TypeAlias = Literal["box", "mask"]
"""What overlaps: boxes or masks."""

IOUS: npt.NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""IoU thresholds that AP is the mean over; AP50 is the first."""

SIZES: dict[str, tuple[float, float]] = {
    "all": (0, 1e10),
    "small": (0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""COCO's areas in square pixels, of the instances that count, both ends included."""

MAX_DETECTIONS = 100
"""Detections that count per image and category, as COCO has it."""

_CLOSEST = 1 - 1e-10  # pycocotools' most that an overlap must reach
_CELLS = 1 << 22  # of one array of (detections, instances): 32 MiB


@dataclass(frozen=True)
class Matches:
    """Detections of one category over all images, the surest first.

    Attributes:
        scores: shape (D,), descending; equal scores in the order of pycocotools.
        image: shape (D,), index into ``Dataset.images``.
        rank: shape (D,), how many detections of the category are surer on the same image.
        found: shape (A, T, D), whether an instance that counts was found, for each of ``SIZES``,
            at each IoU threshold.
        ignored: shape (A, T, D), whether the detection is neither right nor wrong, because what it
            found, or itself where it found nothing, is of another size.
        result: shape (D,), index of each among the results.
        taken_at_iou: shape (D,), the instance that was found at the IoU that F1 is asked for,
            counted over the images in their order; -1 for none.
        instances: shape (A, images), instances that count.
    """

    scores: npt.NDArray[np.float64]
    image: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    found: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    result: npt.NDArray[np.int64]
    taken_at_iou: npt.NDArray[np.int64]
    instances: npt.NDArray[np.int64]

    @property
    def found_at_iou(self) -> npt.NDArray[np.bool_]:
        """Shape (D,), whether an instance was found at the IoU that F1 is asked for."""
        return self.taken_at_iou >= 0


@dataclass(frozen=True)
class Shapes:
    """Boxes, and masks where they are asked for, of one split in columns.

    Attributes:
        image: shape (N,), index into ``Dataset.images``.
        category: shape (N,), index into ``Dataset.categories``.
        box: shape (N, 4), ``x, y, width, height`` in pixels.
        area: shape (N,), in square pixels.
        score: shape (N,); zeros for ground truth.
        rles: N masks, or none.
    """

    image: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    box: npt.NDArray[np.float64]
    area: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    rles: Sequence[Rle]

    def take(self, order: npt.NDArray[np.int64]) -> Shapes:
        """Some of them, in that order."""
        rles = [self.rles[index] for index in order.tolist()] if self.rles else []
        return Shapes(
            self.image[order],
            self.category[order],
            self.box[order],
            self.area[order],
            self.score[order],
            rles,
        )


def match(
    dataset: Dataset,
    results: Sequence[Result],
    kind: Kind,
    *,
    iou: float = 0.5,
    max_detections: int = MAX_DETECTIONS,
) -> list[Matches]:
    """Match detections to ground truth of the same image and category.

    A detection takes the free instance that it overlaps most, the surest detection first; hence
    detections below a score never change what those above it found.

    Args:
        dataset: ground truth; its ids of annotations play no part, so 0 is as good as any.
        results: checked detections.
        kind: overlap of boxes or of masks.
        iou: IoU that F1 is asked for.
        max_detections: that count per image and category, the surest.

    Returns:
        one per category, in their order.
    """
    truth, found = truth_in_columns(dataset, kind), results_in_columns(dataset, results, kind)
    number = np.argsort(np.argsort([image.id for image in dataset.images]))
    chosen, rank = _surest(found, number, max_detections)
    found = found.take(chosen)
    thresholds = np.append(IOUS, iou)
    outside = _outside_of_sizes(found.area)[:, None]
    is_found = np.zeros((len(SIZES), thresholds.size, found.score.size), np.bool_)
    is_ignored = np.repeat(outside, thresholds.size, axis=1)
    taken_at_iou = np.full(found.score.size, -1)
    for crowd in _crowds(truth, found):
        rows = crowd.rows
        taken_from = np.minimum(thresholds, _CLOSEST)
        taken, ignored = _match_crowd(crowd, rank[rows], taken_from)
        hit = taken >= 0
        is_ignored[:, :, rows] = ignored | (is_ignored[:, :, rows] & ~hit)
        is_found[:, :, rows] = hit & ~ignored
        (finders,) = np.nonzero(is_found[0, -1, rows])
        taken_at_iou[rows[finders]] = crowd.instances[finders, taken[0, -1, finders]]
    by_score = np.lexsort((-found.score, found.category))  # stable: ties stay by image, then rank
    bounds = np.searchsorted(found.category[by_score], np.arange(len(dataset.categories) + 1))
    instances = _count_instances(dataset, truth)
    return [
        Matches(
            scores=found.score[rows],
            image=found.image[rows],
            rank=rank[rows],
            found=is_found[:, :-1, rows],
            ignored=is_ignored[:, :-1, rows],
            result=chosen[rows],
            taken_at_iou=taken_at_iou[rows],
            instances=instances[category],
        )
        for category, rows in enumerate(by_score[start:end] for start, end in pairwise(bounds))
    ]


def truth_in_columns(dataset: Dataset, kind: Kind) -> Shapes:
    """Ground truth of a split, with masks for the kind that needs them."""
    pairs = [
        (row, image, instance)
        for row, image in enumerate(dataset.images)
        for instance in image.instances
    ]
    number = {name: index for index, name in enumerate(dataset.categories)}
    rles: list[Rle] = []
    if kind == "mask":
        rles = [
            rle_from_instance(instance, image.height, image.width) for _, image, instance in pairs
        ]
    return Shapes(
        np.array([row for row, _, _ in pairs], np.int64),
        np.array([number[instance.category] for _, _, instance in pairs], np.int64),
        np.array([instance.box for _, _, instance in pairs], np.float64).reshape(-1, 4),
        np.array(areas([instance for _, _, instance in pairs]), np.float64),
        np.zeros(len(pairs)),
        rles,
    )


def results_in_columns(dataset: Dataset, results: Sequence[Result], kind: Kind) -> Shapes:
    """Detections, with masks for the kind that needs them; their areas are those of their boxes."""
    row = {image.id: index for index, image in enumerate(dataset.images)}
    box = boxes_of(results)
    return Shapes(
        np.array([row[result["image_id"]] for result in results], np.int64),
        np.array([result["category_id"] for result in results], np.int64) - 1,
        box,
        box[:, 2] * box[:, 3],
        np.array([result["score"] for result in results], np.float64),
        [result["segmentation"] for result in results] if kind == "mask" else [],
    )


def _surest(
    found: Shapes, number: npt.NDArray[np.int64], most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Detections by category, image and descending score, and their rank within category and image.

    Equal scores keep their order; what is beyond the ``most`` of an image is left out.

    Args:
        found: all of them.
        number: of each image in the order of pycocotools.
        most: per category and image.
    """
    order = np.lexsort((-found.score, number[found.image], found.category))
    image, category = found.image[order], found.category[order]
    starts = np.flatnonzero(
        np.concatenate([[True], (np.diff(image) != 0) | (np.diff(category) != 0)])[: image.size]
    )
    rank = np.arange(image.size) - np.repeat(starts, np.diff(np.append(starts, image.size)))
    kept = rank < most
    return order[kept], rank[kept]


def _outside_of_sizes(area: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Shape (A, N): whether an area is none of each of the sizes."""
    return np.stack([(area < low) | (area > high) for low, high in SIZES.values()])


@dataclass(frozen=True)
class _Crowd:
    """Detections on images with about as many instances of their category.

    Attributes:
        rows: shape (n,), of the detections.
        instances: shape (n, G), those of their image and category; where there are fewer, any.
        overlaps: shape (n, G), -1 where there are fewer.
        other_size: shape (A, n, G), whether instances are of another size.
    """

    rows: npt.NDArray[np.int64]
    instances: npt.NDArray[np.int64]
    overlaps: npt.NDArray[np.float64]
    other_size: npt.NDArray[np.bool_]


def _crowds(truth: Shapes, found: Shapes) -> list[_Crowd]:
    """Detections on images with instances of their category, those with about as many together."""
    cells = truth.category * (1 + found.image.max(initial=0)) + truth.image
    wanted = found.category * (1 + found.image.max(initial=0)) + found.image
    by_cell = np.argsort(cells, kind="stable")
    first = np.searchsorted(cells[by_cell], wanted, side="left")
    count = np.searchsorted(cells[by_cell], wanted, side="right") - first
    other_size = _outside_of_sizes(truth.area)
    crowds: list[_Crowd] = []
    size = 1
    while size < 2 * count.max(initial=0):
        (rows,) = np.nonzero((count > size // 2) & (count <= size))
        size *= 2
        crowds += [
            _crowd(part, truth, found, by_cell, first, count, other_size)
            for part in _parts(rows, wanted, size // 2)
        ]
    return crowds


def _parts(
    rows: npt.NDArray[np.int64], cells: npt.NDArray[np.int64], width: int
) -> list[npt.NDArray[np.int64]]:
    """Rows in parts that fit into memory, none of which ends within a cell."""
    if not rows.size:
        return []
    step = max(1, _CELLS // width)
    ends = np.flatnonzero(np.append(np.diff(cells[rows]) != 0, True)) + 1
    cuts = [0]
    while cuts[-1] < rows.size:
        fitting = ends[ends <= cuts[-1] + step]
        later = fitting[fitting > cuts[-1]]
        cuts.append(int(later[-1] if later.size else ends[ends > cuts[-1]][0]))
    return [rows[start:end] for start, end in pairwise(cuts)]


def _crowd(
    rows: npt.NDArray[np.int64],
    truth: Shapes,
    found: Shapes,
    by_cell: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    other_size: npt.NDArray[np.bool_],
) -> _Crowd:
    width = int(count[rows].max())
    place = np.arange(width)
    there = place < count[rows, None]
    instances = by_cell[np.where(there, first[rows, None] + place, 0)]
    if found.rles:
        overlaps = _mask_overlaps(rows, instances, count, truth, found)
    else:
        overlaps = _box_overlaps(found.box[rows, None], truth.box[instances])
    return _Crowd(rows, instances, np.where(there, overlaps, -1.0), other_size[:, instances])


def _box_overlaps(
    found: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """IoU of boxes, operation by operation as ``bbIou`` of pycocotools computes it."""
    width = np.minimum(found[..., 2] + found[..., 0], truth[..., 2] + truth[..., 0])
    width = width - np.maximum(found[..., 0], truth[..., 0])
    height = np.minimum(found[..., 3] + found[..., 1], truth[..., 3] + truth[..., 1])
    height = height - np.maximum(found[..., 1], truth[..., 1])
    both = np.where((width > 0) & (height > 0), width * height, 0.0)
    union = found[..., 2] * found[..., 3] + truth[..., 2] * truth[..., 3] - both
    return np.divide(both, union, out=np.zeros_like(both), where=both > 0)


def _mask_overlaps(
    rows: npt.NDArray[np.int64],
    instances: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    truth: Shapes,
    found: Shapes,
) -> npt.NDArray[np.float64]:
    """IoU of masks; the rows of an image and category lie side by side."""
    overlaps = np.zeros(instances.shape)
    # pycocotools decodes every mask that it is given: only those are whose boxes touch.
    boxes = coco_mask.toBbox([found.rles[row] for row in rows.tolist()])
    touching = _box_overlaps(boxes[:, None], truth.box[instances]) > 0
    (near,) = np.nonzero(touching.any(axis=1))
    ends = np.flatnonzero(np.append(np.diff(instances[near, 0]) != 0, True)) + 1
    start = 0
    for end in ends.tolist() if near.size else ():
        mine = near[start:end]
        there = int(count[rows[mine[0]]])
        overlaps[mine, :there] = coco_mask.iou(
            [found.rles[row] for row in rows[mine].tolist()],
            [truth.rles[index] for index in instances[mine[0], :there].tolist()],
            [0] * there,
        )
        start = end
    return overlaps


def _match_crowd(
    crowd: _Crowd, rank: npt.NDArray[np.int64], thresholds: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Let the surest detection of every image and category choose, then the next of each.

    Args:
        crowd: detections and instances; those of an image and category lie side by side.
        rank: shape (n,), from 0 up within each image and category.
        thresholds: shape (T,), least overlap.

    Returns:
        which of its G instances each took, -1 for none, and whether that was one of another size,
        shape (A, T, n).
    """
    overlaps, other_size = crowd.overlaps, crowd.other_size
    group = np.cumsum(rank == 0) - 1
    sizes, steps, width = len(other_size), thresholds.size, overlaps.shape[1]
    free = np.ones((sizes, steps, int(group[-1]) + 1, width), np.bool_)
    taken = np.full((sizes, steps, rank.size), -1)
    ignored = np.zeros(taken.shape, np.bool_)
    order = np.argsort(rank, kind="stable")
    bounds = np.searchsorted(rank[order], np.arange(int(rank.max()) + 2))
    for start, end in pairwise(bounds):
        rows = order[start:end]
        near = overlaps[rows] >= thresholds[:, None, None]
        open_to = near & free[:, :, group[rows]]
        ignore = other_size[:, None, rows]
        # An instance of another size is second choice, however well it overlaps.
        appeal = np.where(open_to, np.where(ignore, overlaps[rows] - 4.0, overlaps[rows]), -9.0)
        best = width - 1 - np.argmax(appeal[..., ::-1], axis=-1)  # of equal ones, the last
        found = np.take_along_axis(appeal, best[..., None], -1)[..., 0]
        taken[:, :, rows] = np.where(found > -9.0, best, -1)
        ignored[:, :, rows] = (found > -9.0) & (found < -1.0)
        area, step, column = np.nonzero(found > -9.0)
        free[area, step, group[rows][column], best[area, step, column]] = False
    return taken, ignored


def _count_instances(dataset: Dataset, truth: Shapes) -> npt.NDArray[np.int64]:
    """Instances of each category, size and image, shape (categories, A, images)."""
    images = len(dataset.images)
    cell = truth.category * images + truth.image
    counts = [
        np.bincount(cell[~outside], minlength=len(dataset.categories) * images)
        for outside in _outside_of_sizes(truth.area)
    ]
    by_size = np.stack(counts).reshape(len(counts), len(dataset.categories), images)
    return np.ascontiguousarray(by_size.transpose(1, 0, 2))
