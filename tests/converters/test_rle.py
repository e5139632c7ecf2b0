"""Runs of compressed RLE, read without the C code that would trust them."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from converters.rle import run_totals


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_compressed_rles_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, 30)
    runs = [rng.integers(0, rng.choice([3, 50, 70_000]), length) for length in lengths]
    texts = [
        coco_mask.frPyObjects({"size": [1, int(each.sum())], "counts": each.tolist()}, 1, 1)[
            "counts"
        ].decode()
        for each in runs
    ]
    np.testing.assert_array_equal(run_totals(texts), [each.sum() for each in runs])


@pytest.mark.parametrize("masks", [1, 2, 3])
def test_empty_masks_add_up(masks: int) -> None:
    empty = coco_mask.encode(np.zeros((20, 30), np.uint8, order="F"))["counts"].decode()
    np.testing.assert_array_equal(run_totals([empty] * masks), [600] * masks)


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "0p",  # goes on beyond the end
        "0" + "P" * 9 + "0",  # longer than any image's runs
        "0 ",  # below the code
        "0@",  # a negative run
    ],
)
def test_text_that_is_no_runs_is_seen_among_others(counts: str) -> None:
    assert run_totals(["04", counts, "04"]) is None
