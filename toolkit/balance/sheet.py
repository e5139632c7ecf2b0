"""A contact sheet: defects as a camera saw them, and as they were pasted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from converters.dataset import Dataset, Image, Instance
from converters.files import write_bytes
from toolkit.images import RgbImage, read_image

CELL = 120
"""Pixels of one cell."""

_EACH = 8
_ROOM = 34


def write_sheet(path: Path, train: Dataset, images: Path) -> None:
    """Draw up to eight real and eight pasted instances of every class side by side.

    Args:
        path: PNG to write.
        train: with instances of both kinds; classes without a pasted one are left out.
        images: folder of the pictures.
    """
    rows = []
    for name in train.categories:
        pairs = [
            (image, i) for image in train.images for i in image.instances if i.category == name
        ]
        real = [pair for pair in pairs if pair[1].pasted is None and not pair[0].copy_of]
        pasted = [pair for pair in pairs if pair[1].pasted is not None]
        if pasted:
            strip = [_crop(images, *pair) for pair in (*_some(real), *_some(pasted))]
            rows.append(_row(name, len(_some(real)), strip))
    if not rows:
        return
    head = _label(f"real: the first {_EACH} cells   pasted: the others", rows[0].shape[1], 24)
    _, png = cv2.imencode(".png", cv2.cvtColor(np.concatenate([head, *rows]), cv2.COLOR_RGB2BGR))
    write_bytes(path, png.tobytes())


def _some(pairs: list[tuple[Image, Instance]]) -> list[tuple[Image, Instance]]:
    if len(pairs) <= _EACH:
        return pairs
    return [pairs[index * len(pairs) // _EACH] for index in range(_EACH)]


def _crop(images: Path, image: Image, instance: Instance) -> RgbImage:
    """A square around an instance, twice as large as it."""
    pixels = read_image(images / image.file_name)
    x, y, w, h = instance.box
    side = int(max(32.0, 2 * max(w, h)))
    left, top = int(x + w / 2 - side / 2), int(y + h / 2 - side / 2)
    padded = cv2.copyMakeBorder(
        pixels, side, side, side, side, cv2.BORDER_CONSTANT, value=(60,) * 3
    )
    window = padded[top + side : top + 2 * side, left + side : left + 2 * side]
    resized = cv2.resize(window, (CELL - 4, CELL - 4), interpolation=cv2.INTER_AREA)
    return np.pad(resized, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def _row(name: str, real: int, cells: list[RgbImage]) -> RgbImage:
    sheet = np.full((CELL, 2 * _EACH * CELL + 12, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        place = index if index < real else _EACH + index - real
        left = place * CELL + (12 if place >= _EACH else 0)
        sheet[:, left : left + CELL] = cell
    return np.concatenate([_label(name, sheet.shape[1], _ROOM), sheet])


def _label(text: str, width: int, height: int) -> RgbImage:
    label = np.full((height, width, 3), 255, np.uint8)
    cv2.putText(
        label, text, (6, height - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA
    )
    return label
