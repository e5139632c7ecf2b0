"""Decoding pictures to compare them: one way, so that two looks at a file see the same."""

from __future__ import annotations

import io
import warnings
from typing import cast

import cv2
import numpy as np
from PIL import Image as PilImage

from converters.duplicates import GreyImage

UNREADABLE = (OSError, ValueError, SyntaxError, ImportError, PilImage.DecompressionBombError)
"""What a damaged picture raises; ImportError where another library hooked a decoder that it lacks
into Pillow, as ultralytics does."""

_REDUCED = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

SIXTEEN_BIT = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
"""Pillow's modes of more than 8 bits."""


def decode_grey(
    content: bytes, scale: float | None
) -> tuple[GreyImage | None, tuple[int, int], str, float]:
    """Check that a picture is whole, and decode it in grey where a scale is wanted.

    A PNG's checksums tell that it is whole without decoding it, and OpenCV decodes it faster than
    Pillow does, at once to half, a quarter or an eighth where no more is needed.

    Returns:
        grey pixels or None, (width, height) and mode of the file, and the scale that is left.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PilImage.DecompressionBombWarning)
        file = PilImage.open(io.BytesIO(content))
        size, mode = file.size, file.mode
        if file.format == "PNG":
            file.verify()
            if scale is None:
                return None, size, mode, 1.0
            reduction = next((r for r in (8, 4, 2) if scale * r <= 1), 1)
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[reduction])
            if pixels is None:
                raise ValueError("its pixels cannot be decoded")
            return cast(GreyImage, pixels), size, mode, scale * reduction
        if mode in SIXTEEN_BIT:
            values = np.asarray(file, dtype=np.float64)
            top = 65535 if values.max(initial=0) > 255 else 255
            return (values * (255 / top)).astype(np.uint8), size, mode, scale or 1.0
        return cast(GreyImage, np.asarray(file.convert("L"))), size, mode, scale or 1.0
