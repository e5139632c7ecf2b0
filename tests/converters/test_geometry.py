from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from converters import geometry
from converters.geometry import (
    connected_regions,
    mask_from_segmentation,
    merge_regions,
    polygons_from_region,
    region_from_mask,
    rle_from_mask,
    rle_from_region,
    segmentation_from_region,
    whole_region,
)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
MASKS = hnp.arrays(np.bool_, SHAPES, elements=st.booleans())


def in_frame(region: geometry.Region, shape: tuple[int, int]) -> np.ndarray:
    (x, y, w, h), crop = region
    mask = np.zeros(shape, bool)
    mask[y : y + h, x : x + w] = crop
    return mask


@settings(max_examples=400, deadline=None)
@given(MASKS)
def test_segmentation_gives_every_component_back_exactly(mask: np.ndarray) -> None:
    total = np.zeros(mask.shape, int)
    for region in connected_regions(mask):
        segmentation = segmentation_from_region(region, *mask.shape)
        again = mask_from_segmentation(segmentation, *mask.shape)
        assert np.array_equal(again, in_frame(region, mask.shape))
        total += again
    assert np.array_equal(total, mask.astype(int))  # nothing lost, nothing twice


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_only_regions_with_holes_are_rle(mask: np.ndarray) -> None:
    for region in connected_regions(mask):
        has_hole = _has_hole(region[1])
        assert isinstance(segmentation_from_region(region, *mask.shape), dict) == has_hole


def _has_hole(crop: np.ndarray) -> bool:
    """Whether the 4-connected background has a part that does not reach the outside."""
    import cv2

    padded = np.pad(~crop, 1, constant_values=True).astype(np.uint8)
    count, _ = cv2.connectedComponents(padded, connectivity=4)
    return count > 2


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_rle_from_crop_equals_rle_of_the_whole_mask(mask: np.ndarray) -> None:
    for region in whole_region(mask):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle_from_region(region, *mask.shape)["counts"] == expected["counts"].decode()
        assert rle_from_mask(mask)["counts"] == expected["counts"].decode()


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_boxes_are_tight_and_half_open(mask: np.ndarray) -> None:
    for (x, y, w, h), crop in connected_regions(mask):
        assert crop.shape == (h, w)
        assert crop.any(axis=0)[[0, -1]].all()
        assert crop.any(axis=1)[[0, -1]].all()
        assert np.array_equal(mask[y : y + h, x : x + w] & crop, crop)


def test_a_box_of_thirty_pixels_is_thirty_wide() -> None:
    mask = np.zeros((50, 60), bool)
    mask[10:20, 5:35] = True
    assert region_from_mask(mask)[0] == (5, 10, 30, 10)


def test_polygon_runs_along_pixel_edges() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    assert polygons_from_region(connected_regions(mask)[0]) == [[2, 1, 2, 2, 3, 2, 3, 1]]


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda m: m.__setitem__((5, slice(2, 30)), True), id="horizontal line"),
        pytest.param(lambda m: m.__setitem__((slice(0, 32), 31), True), id="line at the border"),
        pytest.param(lambda m: np.fill_diagonal(m, True), id="diagonal line"),
        pytest.param(lambda m: m.__setitem__((0, 0), True), id="one pixel in the corner"),
        pytest.param(lambda m: m.__setitem__(slice(None), True), id="whole frame"),
        pytest.param(
            lambda m: m.__setitem__(slice(None), np.indices(m.shape).sum(0) % 2 == 0),
            id="checkerboard",
        ),
    ],
)
def test_thin_and_extreme_shapes_survive(draw) -> None:
    mask = np.zeros((32, 32), bool)
    draw(mask)
    (region,) = connected_regions(mask)
    segmentation = segmentation_from_region(region, 32, 32)
    assert np.array_equal(mask_from_segmentation(segmentation, 32, 32), mask)


def test_an_instance_of_two_parts_keeps_both() -> None:
    mask = np.zeros((12, 20), bool)
    mask[2:4, 2:4] = mask[8:10, 15:18] = True
    (region,) = whole_region(mask)
    segmentation = segmentation_from_region(region, 12, 20)
    assert isinstance(segmentation, list) and len(segmentation) == 2
    assert np.array_equal(mask_from_segmentation(segmentation, 12, 20), mask)


@pytest.mark.parametrize(("distance", "count"), [(0, 3), (1.9, 3), (2, 2), (5.9, 2), (6, 1)])
def test_merging_by_gap(distance: float, count: int) -> None:
    mask = np.zeros((6, 20), bool)
    mask[2:4, 2:4] = mask[2:4, 6:8] = mask[2:4, 14:16] = True  # gaps of 2 and 6 pixels
    regions = merge_regions(connected_regions(mask), distance)
    assert len(regions) == count
    assert sum(int(crop.sum()) for _, crop in regions) == 12


def test_merging_counts_the_distance_from_inside_a_ring() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    mask[7:23, 7:23] = False
    mask[9, 9] = True  # two pixels from the ring's inner edge
    assert len(merge_regions(connected_regions(mask), 2)) == 1
    assert len(merge_regions(connected_regions(mask), 1.5)) == 2


def test_foreign_segmentations_are_read() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    counts = [13, 2, 4, 2, 4, 2, 21]
    uncompressed = {"size": [6, 8], "counts": counts}
    assert np.array_equal(mask_from_segmentation(uncompressed, 6, 8), mask)
    assert np.array_equal(mask_from_segmentation([[2, 1, 5, 1, 5, 3, 2, 3]], 6, 8), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [5, 8], "counts": [40]}, "RLE of size"),
        ([[1, 1, 2, 2]], "three points"),
        ("polygon", "neither"),
    ],
)
def test_unusable_segmentations_are_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_from_segmentation(segmentation, 6, 8)  # type: ignore[arg-type]
