"""A contact sheet: defects as a camera saw them, and as they were pasted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from converters.dataset import Dataset, Image, Instance
from converters.files import write_bytes
from toolkit.images import RgbImage, read_image

CELL = 120
"""Pixels of one cell."""

_EACH = 8
_ROOM = 34

_Thing = TypeVar("_Thing")


def write_sheet(path: Path, train: Dataset, images: Path, workers: int) -> None:
    """Draw up to eight real and eight pasted instances of every class side by side.

    Below them lie some pictures before anything was pasted onto them, and after.

    Args:
        path: PNG to write.
        train: with instances of both kinds; classes without a pasted one are left out.
        images: folder of the pictures.
        workers: threads that read them.
    """
    with ThreadPoolExecutor(workers) as pool:
        rows = list(_class_rows(pool, train, images))
        if not rows:
            return
        rows.append(_pictures_row(pool, train, images))
    head = _label(f"real: the first {_EACH} cells   pasted: the others", rows[0].shape[1], 24)
    _, png = cv2.imencode(".png", cv2.cvtColor(np.concatenate([head, *rows]), cv2.COLOR_RGB2BGR))
    write_bytes(path, png.tobytes())


def _class_rows(pool: Executor, train: Dataset, images: Path) -> Iterator[RgbImage]:
    for name in train.categories:
        pairs = [
            (image, i) for image in train.images for i in image.instances if i.category == name
        ]
        real = [pair for pair in pairs if pair[1].pasted is None and not pair[0].copy_of]
        pasted = [pair for pair in pairs if pair[1].pasted is not None]
        if pasted:
            strip = pool.map(lambda p: _crop(images, *p), (*_some(real), *_some(pasted)))
            yield _row(name, len(_some(real)), list(strip))


def _pictures_row(pool: Executor, train: Dataset, images: Path) -> RgbImage:
    hosts = {image.id: image for image in train.images}
    made = [i for i in train.images if any(instance.pasted for instance in i.instances)]
    chosen = _some([image for image in made if image.copy_of in hosts])
    before = list(pool.map(lambda image: _whole(images, hosts[image.copy_of]), chosen))
    after = list(pool.map(lambda image: _whole(images, image), chosen))
    return _row("the same pictures before and after", len(before), [*before, *after])


def _some(things: list[_Thing]) -> list[_Thing]:
    if len(things) <= _EACH:
        return things
    return [things[index * len(things) // _EACH] for index in range(_EACH)]


def _whole(images: Path, image: Image) -> RgbImage:
    """A picture, shrunk into a cell."""
    pixels = read_image(images / image.file_name)
    shrink = (CELL - 4) / max(pixels.shape[:2])
    size = max(1, round(shrink * pixels.shape[1])), max(1, round(shrink * pixels.shape[0]))
    cell = np.full((CELL, CELL, 3), 255, np.uint8)
    left, top = (CELL - size[0]) // 2, (CELL - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = cv2.resize(
        pixels, size, interpolation=cv2.INTER_AREA
    )
    return cell


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
