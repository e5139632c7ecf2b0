"""Masks to instances, polygons, RLE and boxes, and back: exact in both directions.

A polygon runs along pixel *edges*, as COCO means it: pixel ``(x, y)`` covers the square from
``(x, y)`` to ``(x + 1, y + 1)``. ``cv2.findContours`` returns pixel *centres*; written as COCO
polygons its vertices lose half a pixel on every side, which is all of a one-pixel scratch
(cocodataset/cocoapi#659).
"""

from __future__ import annotations

from typing import TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from converters.dataset import BinaryMask, Box, Instance
from converters.rle import Rle

Polygons: TypeAlias = list[list[float]]
"""COCO polygons: one flat list ``[x0, y0, x1, y1, …]`` per part."""

Segmentation: TypeAlias = Polygons | Rle

Region: TypeAlias = tuple[Box, BinaryMask]
"""A tight box and the mask inside it."""


def connected_regions(mask: BinaryMask) -> list[Region]:
    """8-connected components of a mask, ordered by their top-left corner (row, then column).

    Args:
        mask: shape (height, width).
    """
    outer = _tight(mask)
    if outer is None:
        return []
    (x0, y0, _, _), window = outer
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        window.view(np.uint8), connectivity=8
    )
    regions = []
    for label in range(1, count):
        x, y, w, h = (int(value) for value in stats[label, :4])
        crop = labels[y : y + h, x : x + w] == label
        regions.append(((x0 + x, y0 + y, w, h), crop))
    return sorted(regions, key=lambda region: (region[0][1], region[0][0]))


def whole_region(mask: BinaryMask) -> list[Region]:
    """Everything on the mask as one region of possibly many parts; empty for an empty mask."""
    region = _tight(mask)
    return [] if region is None else [region]


def merge_regions(regions: list[Region], distance: float) -> list[Region]:
    """Join regions whose gap is at most ``distance``, transitively.

    Args:
        regions: as ``connected_regions`` gives them.
        distance: pixels between the nearest pixel edges; two regions with one empty pixel between
            them are 1 apart.
    """
    if distance <= 0 or len(regions) < 2:
        return regions
    import shapely  # here, because few conversions need it and it takes a while to import

    # Distances between disjoint regions are distances between their outlines, holes included.
    shapes = [
        shapely.multilinestrings([shapely.linearrings(ring) for ring in _edge_rings(region)[0]])
        for region in regions
    ]
    pairs = shapely.STRtree(shapes).query(shapes, predicate="dwithin", distance=distance)
    group = list(range(len(regions)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for a, b in pairs.T.tolist():
        first, second = sorted((root(a), root(b)))
        group[second] = first
    members: dict[int, list[Region]] = {}
    for index, region in enumerate(regions):
        members.setdefault(root(index), []).append(region)
    return [_union(parts) for parts in members.values()]


def polygons_from_region(region: Region) -> Polygons | None:
    """The region's outline along pixel edges, one polygon per part; None where it has a hole."""
    rings, has_hole = _edge_rings(region)
    if has_hole:
        return None
    polygons = [cast(list[float], ring.ravel().tolist()) for ring in rings]
    return sorted(polygons, key=lambda polygon: (polygon[1], polygon[0]))


def rle_from_region(region: Region, height: int, width: int) -> Rle:
    """Exact compressed RLE of a region in an image of the given size, encoded from its crop."""
    (x, y, w, h), crop = region
    x, y, w, h = int(x), int(y), int(w), int(h)
    # Only the crop is looked at. A row of nothing below it ends every column, unless the crop is as
    # high as the image: then a run may go on at the top of the next column.
    below = int(h < height)
    columns = np.zeros((w, h + below), dtype=np.bool_)
    columns[:, :h] = crop.T
    flat = np.concatenate([[False], columns.ravel(), [False]])
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), h + below)
    bounds = np.concatenate([[0], (column + x) * height + row + y])
    if bounds[-1] < height * width:
        bounds = np.append(bounds, height * width)
    counts = np.diff(bounds).tolist()
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def segmentation_from_region(region: Region, height: int, width: int) -> Segmentation:
    """Polygons where they give the region back exactly, RLE otherwise (holes, mostly)."""
    rle = rle_from_region(region, height, width)
    polygons = polygons_from_region(region)
    if polygons is None or _rle_from_polygons(polygons, height, width) != rle["counts"]:
        return rle
    return polygons


def mask_from_segmentation(segmentation: Segmentation, height: int, width: int) -> BinaryMask:
    """Rasterise COCO polygons, uncompressed or compressed RLE with pycocotools.

    Returns:
        shape (height, width).

    Raises:
        ValueError: the RLE's size is not that of the image, or the segmentation is of no known
            form.
    """
    rle = rle_from_segmentation(segmentation, height, width)
    return cast(BinaryMask, coco_mask.decode(rle).astype(np.bool_))


def rle_from_segmentation(segmentation: Segmentation, height: int, width: int) -> Rle:
    """Compressed RLE of COCO polygons, uncompressed or compressed RLE.

    Raises:
        ValueError: as ``mask_from_segmentation``.
    """
    if isinstance(segmentation, list):
        parts = [part for part in segmentation if len(part) >= 6]
        if not parts:
            raise ValueError("no polygon of at least three points")
        rle = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    elif isinstance(segmentation, dict) and "counts" in segmentation:
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"RLE of size {segmentation.get('size')}, image {[height, width]}")
        rle = segmentation
        if isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        raise ValueError("neither polygons nor RLE")
    counts = rle["counts"]
    return {
        "size": [height, width],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }


def rle_from_instance(instance: Instance, height: int, width: int) -> Rle:
    """Compressed RLE of an instance's mask in an image of the given size.

    Raises:
        ValueError: the instance has no mask.
    """
    if isinstance(instance.mask, dict):
        return instance.mask
    if instance.mask is None:
        raise ValueError("a box-only instance has no mask")
    return rle_from_region((instance.box, instance.mask), height, width)


def region_from_mask(mask: BinaryMask) -> Region:
    """Tight box and crop of a mask.

    Raises:
        ValueError: the mask is empty.
    """
    region = _tight(mask)
    if region is None:
        raise ValueError("empty mask")
    return region


def rle_from_mask(mask: BinaryMask) -> Rle:
    """Compressed RLE of a whole mask, empty ones included."""
    rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def _tight(mask: BinaryMask) -> Region | None:
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    crop = np.ascontiguousarray(mask[top:bottom, left:right])
    return (left, top, right - left, bottom - top), crop


def _union(regions: list[Region]) -> Region:
    if len(regions) == 1:
        return regions[0]
    x0 = min(int(box[0]) for box, _ in regions)
    y0 = min(int(box[1]) for box, _ in regions)
    x1 = max(int(box[0] + box[2]) for box, _ in regions)
    y1 = max(int(box[1] + box[3]) for box, _ in regions)
    union = np.zeros((y1 - y0, x1 - x0), dtype=np.bool_)
    for (x, y, w, h), crop in regions:
        left, top = int(x) - x0, int(y) - y0
        union[top : top + int(h), left : left + int(w)] |= crop
    return (x0, y0, x1 - x0, y1 - y0), union


def _edge_rings(region: Region) -> tuple[list[npt.NDArray[np.int64]], bool]:
    """Closed outlines of a region along pixel edges, and whether one of them is a hole's.

    The crop is enlarged twofold, so that ``cv2.findContours`` walks on distinct pixels on both
    sides of every edge, and the walk is mapped back to edges.
    """
    (x, y, _, _), crop = region
    double = crop.view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    offset = np.array([int(x), int(y)])
    rings = []
    for contour in contours:
        vertices = (contour.reshape(-1, 2).astype(np.int64) + 1) // 2
        rings.append(_without_redundant(vertices) + offset)
    has_hole = bool(np.any(np.asarray(hierarchy).reshape(-1, 4)[:, 3] >= 0))
    return rings, has_hole


def _without_redundant(vertices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Drop repeated vertices, then those in the middle of a straight line."""
    vertices = vertices[np.any(vertices != np.roll(vertices, 1, axis=0), axis=1)]
    before = vertices - np.roll(vertices, 1, axis=0)
    after = np.roll(vertices, -1, axis=0) - vertices
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return cast(npt.NDArray[np.int64], vertices[turns])


def _rle_from_polygons(polygons: Polygons, height: int, width: int) -> str:
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return cast(str, rle["counts"].decode("ascii"))
