"""Points that somebody marked objects with: a CSV file.

::

    file_name,prompt,x,y,label,category
    a/000.png,1,120.5,88,1,scratch
    a/000.png,1,131,60,0,scratch
    a/000.png,2,14,17.5,1,spot

Rows of the same picture and ``prompt`` (any text) mark one object. ``x`` and ``y`` are in pixels
from the top left corner of the picture; ``label`` is 1 inside the object and 0 outside, and 1
everywhere where there is no such column; ``category`` may be left out too.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters.dataset import Image
from converters.errors import InputError

OBJECT = "object"
"""Category on pictures, of what nobody has named."""

NEEDED = ("file_name", "prompt", "x", "y")
KNOWN = (*NEEDED, "label", "category")


@dataclass(frozen=True)
class Mark:
    """The points that mark one object.

    Attributes:
        file_name: of the picture, as its dataset or its folder calls it.
        prompt: what tells it from the others on the picture.
        category: of the object; None where the file does not say.
        points: x and y in pixels of the picture, float64, shape (k, 2).
        labels: what they say, int64, shape (k,): 1 inside the object, at least one; 0 outside.
        lines: of the points in the file, from 1.
    """

    file_name: str
    prompt: str
    category: str | None
    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Marks:
    """All marks of a file.

    Attributes:
        path: of the file.
        marks: in the order of their first points.
    """

    path: Path
    marks: tuple[Mark, ...]

    def on(self, file_name: str) -> list[Mark]:
        """Those on one picture."""
        return self._by_name.get(file_name, [])

    @cached_property
    def _by_name(self) -> dict[str, list[Mark]]:
        found: dict[str, list[Mark]] = {}
        for mark in self.marks:
            found.setdefault(mark.file_name, []).append(mark)
        return found

    def categories(self) -> tuple[str, ...]:
        """What the marks are called, in the order of the file."""
        return tuple(dict.fromkeys(mark.category or OBJECT for mark in self.marks))

    def check(self, images: Mapping[str, Image], where: str) -> None:
        """Refuse marks that are on no picture.

        Args:
            images: the pictures by name.
            where: what they are, for the message.

        Raises:
            InputError: a picture is not there, or a point lies outside of it.
        """
        for mark in self.marks:
            image = images.get(mark.file_name)
            if image is None:
                raise InputError(
                    f"{self.path}:{mark.lines[0]}: {mark.file_name!r} is not in {where}: "
                    f"{_hint(mark.file_name, list(images))}"
                )
            for (x, y), line in zip(mark.points.tolist(), mark.lines, strict=True):
                if not (0 <= x <= image.width and 0 <= y <= image.height):
                    raise InputError(
                        f"{self.path}:{line}: the point ({x:g}, {y:g}) lies outside of "
                        f"{mark.file_name}, which has {image.width} x {image.height} pixels: "
                        "correct it"
                    )

    def of_categories(self, known: Sequence[str]) -> Marks:
        """The same marks, each of one of these categories.

        Raises:
            InputError: a mark is of another one, or the file does not say which of several.
        """
        for mark in self.marks:
            if mark.category is None and len(known) != 1:
                raise InputError(
                    f"{self.path}: does not say which of {len(known)} categories its points mark: "
                    f"add a column category ({', '.join(known)})"
                )
            if mark.category is not None and mark.category not in known:
                raise InputError(
                    f"{self.path}:{mark.lines[0]}: the dataset has no category "
                    f"{mark.category!r}: {_hint(mark.category, known)}"
                )
        return replace(
            self, marks=tuple(replace(m, category=m.category or known[0]) for m in self.marks)
        )


def read_marks(path: Path) -> Marks:
    """Read a file of points.

    Raises:
        InputError: it is missing, is no CSV, lacks a column, has an unknown one or no row, or a row
            holds something else than the header says; a prompt is of several categories, or has no
            point inside.
    """
    rows: dict[tuple[str, str], list[_Row]] = {}
    for row in _rows(path):
        rows.setdefault((row.file_name, row.prompt), []).append(row)
    if not rows:
        raise InputError(f"{path}: holds no points: give a row for each, below the header")
    return Marks(path, tuple(_mark(path, points) for points in rows.values()))


@dataclass(frozen=True)
class _Row:
    line: int
    file_name: str
    prompt: str
    x: float
    y: float
    label: int
    category: str | None


def _mark(path: Path, rows: Sequence[_Row]) -> Mark:
    first = rows[0]
    for row in rows:
        if row.category != first.category:
            raise InputError(
                f"{path}:{row.line}: prompt {row.prompt!r} on {row.file_name} is "
                f"{row.category!r} here and {first.category!r} in line {first.line}: "
                "give another prompt, or the same category"
            )
    if not any(row.label for row in rows):
        raise InputError(
            f"{path}:{first.line}: prompt {first.prompt!r} on {first.file_name} has no point "
            "inside the object: add one with label 1"
        )
    return Mark(
        first.file_name,
        first.prompt,
        first.category,
        np.array([(row.x, row.y) for row in rows], np.float64),
        np.array([row.label for row in rows], np.int64),
        tuple(row.line for row in rows),
    )


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a mark
            table = csv.reader(file)
            header = [name.strip() for name in next(table, [])]
            _check_header(path, header)
            for cells in table:
                if cells:
                    yield _row(f"{path}:{table.line_num}", table.line_num, header, cells)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of points") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is not readable CSV ({error}): write it in UTF-8") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in NEEDED if name not in header]
    unknown = [name for name in header if name not in KNOWN]
    twice = [name for name in header if header.count(name) > 1]
    if missing or unknown or twice:
        problem = (
            f"lacks {', '.join(missing)}"
            if missing
            else f"has an unknown column {unknown[0]!r}"
            if unknown
            else f"has {twice[0]} twice"
        )
        raise InputError(
            f"{path}:1: the header {problem}: it must be {','.join(NEEDED)} and, where wanted, "
            "label and category"
        )


def _row(where: str, line: int, header: Sequence[str], cells: Sequence[str]) -> _Row:
    if len(cells) != len(header):
        raise InputError(f"{where}: has {len(cells)} columns, the header {len(header)}: correct it")
    row = dict(zip(header, map(str.strip, cells), strict=True))
    label = row.get("label", "1")
    if label not in ("0", "1"):
        raise InputError(f"{where}: label is {label!r}: give 1 (inside) or 0 (outside)")
    if row.get("category") == "":
        raise InputError(f"{where}: category is empty: name one, or leave the column out")
    x, y = _number(where, "x", row["x"]), _number(where, "y", row["y"])
    return _Row(line, row["file_name"], row["prompt"], x, y, int(label), row.get("category"))


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {name} is {text!r}, not a number: give pixels")
    return value


def _hint(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"did you mean {nearest[0]!r}?" if nearest else "it has none"
