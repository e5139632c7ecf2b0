from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PilImage

from converters.masks import read_mask

EXPECTED = np.zeros((6, 8), bool)
EXPECTED[2:4, 3:6] = True


def encoded(image: PilImage.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def levels(low: int, high: int, dtype: type = np.uint8) -> np.ndarray:
    return np.where(EXPECTED, high, low).astype(dtype)


def palette() -> PilImage.Image:
    image = PilImage.fromarray(levels(0, 2), mode="L").convert("P")
    image.putpalette([255, 255, 255, 9, 9, 9, 0, 0, 0])  # index 0 is white, the defect black
    image.putdata(levels(0, 2).ravel().tolist())
    return image


@pytest.mark.parametrize(
    ("image", "grey", "colour"),
    [
        pytest.param(PilImage.fromarray(levels(0, 255)), False, False, id="0 and 255"),
        pytest.param(PilImage.fromarray(levels(0, 1)), False, False, id="index mask of 0 and 1"),
        pytest.param(PilImage.fromarray(EXPECTED), False, False, id="one bit"),
        pytest.param(PilImage.fromarray(levels(0, 65535, np.uint16)), False, False, id="16 bits"),
        pytest.param(PilImage.fromarray(levels(7, 201)), True, False, id="lossy grey"),
        pytest.param(PilImage.fromarray(levels(0, 255)).convert("RGB"), False, True, id="RGB"),
        pytest.param(PilImage.fromarray(levels(0, 255)).convert("RGBA"), False, True, id="RGBA"),
        pytest.param(palette(), False, True, id="palette: the index counts, not the colour"),
    ],
)
def test_every_kind_of_mask_file_gives_the_same_mask(
    image: PilImage.Image, grey: bool, colour: bool
) -> None:
    reading = read_mask(encoded(image))
    assert np.array_equal(reading.mask, EXPECTED)
    assert (reading.grey, reading.colour) == (grey, colour)


def test_one_strong_channel_is_enough() -> None:
    red = np.zeros((6, 8, 3), np.uint8)
    red[EXPECTED] = (200, 0, 0)
    assert np.array_equal(read_mask(encoded(PilImage.fromarray(red))).mask, EXPECTED)


def test_grey_is_cut_at_half_of_the_range() -> None:
    values = np.array([[0, 127, 128, 255]], np.uint8)
    assert read_mask(encoded(PilImage.fromarray(values))).mask.tolist() == [
        [False, False, True, True]
    ]


def test_empty_mask_is_empty() -> None:
    assert not read_mask(encoded(PilImage.fromarray(np.zeros((6, 8), np.uint8)))).mask.any()


def test_damaged_file_raises() -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    with pytest.raises(OSError):
        read_mask(encoded(PilImage.fromarray(noisy))[:300])
