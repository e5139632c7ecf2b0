"""A contact sheet of grown features: the pictures behind them, because they are none themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.classify.data import Pictures
from toolkit.classify.generate.base import Grown
from toolkit.classify.generate.features import FeatureArray
from toolkit.images import RgbImage

CELL = 112
"""Pixels of one cell."""

_SAMPLES, _PARENTS, _NEIGHBOURS = 4, 3, 5
_CAPTION, _GAP = 16, 24
_WIDTH = (_PARENTS + _NEIGHBOURS) * CELL + _GAP
_RED = (200, 30, 30)


def draw_sheet(
    grown: Grown, values: FeatureArray, train: Pictures, classes: Sequence[str]
) -> bytes:
    """Some samples of every class, a row each: what it was made from, and what it is like.

    On the left are the train pictures that it was made from, on the right those whose features are
    nearest to it, the nearest first, with their class, in red where that is another one.

    Args:
        grown: the samples.
        values: features of the train pictures, shape (n, d).
        train: the pictures.
        classes: "good", then the categories.

    Returns:
        a PNG.
    """
    head = [_text(f"left: made from (at most {_PARENTS} shown); right: nearest in train", 24)]
    rows = [*head, *_rows(grown, values, train, classes)]
    _, png = cv2.imencode(".png", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    return png.tobytes()


def _rows(
    grown: Grown, values: FeatureArray, train: Pictures, classes: Sequence[str]
) -> Iterator[RgbImage]:
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(values))).fit(values)
    for label in np.unique(grown.labels):
        numbers = np.flatnonzero(grown.labels == label)
        yield _text(f"{classes[label]}: {len(numbers)} samples", 28)
        some = numbers[np.linspace(0, len(numbers) - 1, _SAMPLES).round().astype(int)]
        for number in np.unique(some):
            nearest = near.kneighbors(grown.values[[number]], return_distance=False)[0]
            yield _row(grown.parents[number][:_PARENTS], nearest, int(label), train, classes)


def _row(
    parents: Sequence[int],
    nearest: npt.NDArray[np.int64],
    label: int,
    train: Pictures,
    classes: Sequence[str],
) -> RgbImage:
    row = np.full((CELL + _CAPTION, _WIDTH, 3), 255, np.uint8)
    places = [(place, index) for place, index in enumerate(parents)]
    places += [(_PARENTS + place, int(index)) for place, index in enumerate(nearest)]
    for place, index in places:
        left = place * CELL + (_GAP if place >= _PARENTS else 0)
        picture = cv2.resize(
            train.pixels[index], (CELL - 4, CELL - 4), interpolation=cv2.INTER_AREA
        )
        row[2 : CELL - 2, left + 2 : left + CELL - 2] = picture
        colour = (0, 0, 0) if train.labels[index] == label else _RED
        where = (left + 2, CELL + _CAPTION - 6)
        _write(row, classes[train.labels[index]][:16], where, colour)
    return row


def _text(text: str, height: int) -> RgbImage:
    line = np.full((height, _WIDTH, 3), 255, np.uint8)
    _write(line, text, (4, height - 8), (0, 0, 0))
    return line


def _write(
    image: RgbImage, text: str, where: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
