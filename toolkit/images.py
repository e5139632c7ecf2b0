"""Reading pictures for models and for people: one way, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias, cast

import cv2
import numpy as np
import numpy.typing as npt

from converters.errors import InputError

RgbImage: TypeAlias = npt.NDArray[np.uint8]
"""Array of shape (height, width, 3), RGB, 0 to 255."""


def read_image(path: Path) -> RgbImage:
    """Read a picture as 8-bit RGB; grey becomes three equal channels, 16 bits are scaled to 8.

    Raises:
        InputError: the file is missing, not a picture, or larger than OpenCV or memory allows.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)  # cv2.imread fails on unicode on Windows
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
        if image is not None:
            return cast(RgbImage, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    except cv2.error as error:  # a picture that is damaged gives None instead
        raise InputError(
            f"{path}: has more pixels than can be read (2^30), or than memory holds: cut it into "
            "smaller pictures"
        ) from error
    raise InputError(f"{path}: is not a readable picture: replace or remove it")
