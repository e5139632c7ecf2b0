"""A contact sheet: real pictures of rare classes, made ones, and what these resemble most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from converters.files import write_bytes
from toolkit.classify.data import Labels, Pictures
from toolkit.classify.generate.base import Grown
from toolkit.images import RgbImage

CELL = 128
"""Pixels of one cell."""

_EACH = 10
_GAP = 2
_ROOM = 22
_COMPARED = 32


def write_sheet(path: Path, train: Pictures, made: Grown, classes: Sequence[str]) -> None:
    """Draw ten real and ten made pictures of every class that was grown, or fewer.

    Under each made one lies the train picture, of any class, that is nearest to it: what is the
    same twice is a copy.

    Args:
        path: PNG to write.
        train: the pictures that the others were made from.
        made: these.
        classes: names of the labels.
    """
    rows = [_heading("of each class: real; made; the real one nearest to each made one", 30)]
    compared = _shrunk(train.pixels)
    for label in np.unique(made.labels):
        name = classes[label]
        real = train.pixels[_some(train.labels, label)]
        new = made.values[_some(made.labels, label)]
        nearest = train.pixels[[_nearest(picture, compared) for picture in _shrunk(new)]]
        for words, pictures in (
            (f"{name}: real", real),
            (f"{name}: made", new),
            (f"{name}: nearest real", nearest),
        ):
            rows += [_heading(words, _ROOM), _strip(pictures)]
    sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    write_bytes(path, cv2.imencode(".png", sheet)[1].tobytes())


def _some(labels: Labels, label: int) -> Labels:
    """Rows of up to ten pictures of a class, evenly spread."""
    own = np.flatnonzero(labels == label)
    chosen: Labels = own[np.linspace(0, len(own) - 1, min(_EACH, len(own))).round().astype(int)]
    return chosen


def _shrunk(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pictures as rows of numbers, to compare them."""
    size = (_COMPARED, _COMPARED)
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pixels]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


def _nearest(picture: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> int:
    return int(np.square(others - picture).mean(axis=1).argmin())


def _strip(pictures: npt.NDArray[np.uint8]) -> RgbImage:
    strip = np.full((CELL, _EACH * CELL, 3), 255, np.uint8)
    side = CELL - _GAP
    smooth = cv2.INTER_AREA if pictures.shape[1] > side else cv2.INTER_NEAREST
    for number, picture in enumerate(pictures):
        cell = cv2.resize(picture, (side, side), interpolation=smooth)
        strip[:side, number * CELL : number * CELL + side] = cell
    return strip


def _heading(text: str, height: int) -> RgbImage:
    heading = np.full((height, _EACH * CELL, 3), 255, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(heading, text, (6, height - 7), font, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return heading
