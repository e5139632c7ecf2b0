"""Reading ground-truth masks as they come: binary, grey, palette, colour, 16 bits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image as PilImage

from converters.dataset import BinaryMask


@dataclass(frozen=True)
class MaskReading:
    """A mask and what was unusual about its file.

    Attributes:
        mask: shape (height, width), True is defect.
        grey: the file had more than two values, so it was cut at half of its range.
        colour: the file was not single-channel.
    """

    mask: BinaryMask
    grey: bool
    colour: bool


def read_mask(content: bytes) -> MaskReading:
    """Read a mask file of any bit depth and colour mode.

    A file with two values means it: whatever is not the background value 0 is defect, be it 1,
    128 or 255. A file with more values is a picture of a mask (anti-aliased, or saved lossily):
    defect is what lies above half of the range (127 of 255). In a palette file the index counts,
    not the colour. Alpha is ignored.

    Raises:
        OSError, ValueError: the file is damaged or no picture.
    """
    with PilImage.open(io.BytesIO(content)) as file:
        mode = file.mode
        if mode in ("LA", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"):
            pixels = np.asarray(file.convert("L" if mode == "LA" else "RGB"))
        else:
            pixels = np.asarray(file)
    if pixels.dtype == np.bool_:
        return MaskReading(cast(BinaryMask, pixels), grey=False, colour=False)
    values = pixels.max(axis=2) if pixels.ndim == 3 else pixels
    mask, grey = _binarise(values, is_index=mode == "P")
    return MaskReading(mask, grey, colour=pixels.ndim == 3 or mode == "P")


def _binarise(values: Any, *, is_index: bool) -> tuple[BinaryMask, bool]:
    """Threshold; the second value says whether there were more than two levels."""
    nonzero = values != 0
    found = values[nonzero]
    if found.size == 0 or is_index or bool((found == found[0]).all()):
        return cast(BinaryMask, nonzero), False
    half = 127 if values.dtype.itemsize == 1 else 32767
    return cast(BinaryMask, values > half), True
