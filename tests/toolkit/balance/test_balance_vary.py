"""Pictures that are listed again, a little different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.dataset import Image, Instance
from converters.geometry import region_from_mask
from toolkit.balance.vary import Variation, vary


def picture(tmp_path: Path, mask: np.ndarray, dtype: type = np.uint8, channels: int = 0) -> Image:
    """Dark noise, bright where the mask is."""
    rng = np.random.default_rng(0)
    unit = np.iinfo(dtype).max / 255
    shape = mask.shape + ((channels,) if channels else ())
    grey = np.where(mask.reshape(mask.shape + (1,) * bool(channels)), 220, 60)
    pixels = ((grey + rng.integers(0, 8, shape)) * unit).astype(dtype)
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), pixels)
    box, crop = region_from_mask(mask)
    height, width = mask.shape
    return Image(path.name, path, width, height, (Instance("spot", box, crop, 1),), id=1)


def blob(row: int, column: int, height: int = 80, width: int = 120) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    return ((rows - row) / 7) ** 2 + ((columns - column) / 12) ** 2 <= 1


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 0), (np.uint8, 3), (np.uint16, 0)])
def test_the_mask_goes_where_the_defect_goes(tmp_path, dtype, channels) -> None:
    image = picture(tmp_path, blob(30, 50), dtype, channels)
    for number in range(12):
        target = tmp_path / f"{number}.png"
        (instance,) = vary(Variation(number, image, target), seed=0)
        pixels = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == dtype and pixels.ndim == (3 if channels else 2)
        grey = pixels if not channels else pixels[..., 0]
        bright = grey > 140 * (np.iinfo(dtype).max / 255)
        mask = instance.to_mask(80, 120)
        assert (mask & bright).sum() / (mask | bright).sum() > 0.85
        assert instance.box == region_from_mask(mask)[0]


@pytest.mark.parametrize("place", [(3, 50), (76, 4), (40, 116), (30, 50), (12, 14)])
def test_no_defect_is_cut_off_or_doubled(tmp_path, place) -> None:
    mask = blob(*place)
    image = picture(tmp_path, mask)
    for number in range(25):
        (instance,) = vary(Variation(number, image, tmp_path / "new.png"), seed=1)
        assert 0.95 * mask.sum() <= instance.area <= 1.4 * mask.sum() + 10
        parts, _ = cv2.connectedComponents(instance.to_mask(80, 120).astype(np.uint8))
        assert parts == 2


def test_variations_differ_and_come_again(tmp_path) -> None:
    image = picture(tmp_path, blob(30, 50))

    def make(number: int, seed: int) -> bytes:
        target = tmp_path / "new.png"
        vary(Variation(number, image, target), seed)
        return target.read_bytes()

    assert make(0, 0) == make(0, 0)
    assert len({make(0, 0), make(1, 0), make(0, 1)}) == 3


def test_a_box_without_a_mask_stays_a_box(tmp_path) -> None:
    image = picture(tmp_path, blob(30, 50))
    bare = replace(image, instances=(replace(image.instances[0], mask=None),))
    (instance,) = vary(Variation(0, bare, tmp_path / "new.png"), seed=0)
    assert instance.mask is None
    assert instance.box[2] >= 20 and instance.box[3] >= 12
