"""Predictions on disk: results per split, and a card that says where they come from.

::

    RUN/predictions/
      val.json test.json                COCO results: image_id, category_id, bbox, score
                                        [, segmentation, predicted_iou]
      val_images.csv test_images.csv    of a classifier: file_name, then one probability per
                                        class, "good" first
      scores/{msp,uniform}/             of a classifier: file_name, score; how far from all that
        val_images.csv test_images.csv  it knows
      card.yaml                         what prompted and what predicted

``segmentation`` is compressed RLE. What a SAM outlined carries ``predicted_iou``, its own estimate
of the mask's IoU with the truth, 0 to 1, which no figure rests on. A result whose box came from the
ground truth carries the ``annotation_id`` that it answers.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import yaml

from converters.dataset import GOOD
from converters.errors import InputError
from converters.files import read_json, write_json, write_text
from converters.rle import Rle

_FILE_NAME = "file_name"
_SCORE = "score"

_NEEDED = ("image_id", "category_id", "bbox", "score")

Boxes: TypeAlias = Literal["detector", "ground truth", "points", "everything", "none"]
"""Where boxes come from; see ``PredictionCard``."""

_ROUNDING = 1e-3
"""How far from 1 a row of probabilities may add up to: somebody may have written three digits."""


class _Required(TypedDict):
    image_id: int
    category_id: int
    bbox: list[float]
    score: float


class Result(_Required, total=False):
    """One detection in the form of COCO results; ``bbox`` is ``[x, y, width, height]``."""

    segmentation: Rle
    predicted_iou: float
    annotation_id: int


@dataclass(frozen=True)
class PredictionCard:
    """Where predictions come from.

    Attributes:
        boxes: "detector"; "ground truth" where the right boxes were given as prompts, so that
            only the outlines were predicted; "points" where points marked what to outline;
            "everything" where a segmenter outlined all that it saw; "none" where whole images were
            judged.
        masks: whether results carry masks.
        detector, segmenter, classifier: one line each on the models; empty where there was none.
    """

    boxes: Boxes
    masks: bool
    detector: str = ""
    segmenter: str = ""
    classifier: str = ""


@dataclass(frozen=True)
class ImageProbabilities:
    """What a classifier says about whole images.

    Attributes:
        classes: "good", then the categories.
        file_names: of the images, each once.
        values: float64, shape (images, classes), 0 to 1; rows add up to 1.
    """

    classes: tuple[str, ...]
    file_names: tuple[str, ...]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageSuspicion:
    """How suspicious whole images are, without a word on what is wrong with them.

    Attributes:
        file_names: of the images, each once.
        values: float64, shape (images,); the higher, the more suspicious, on any scale.
    """

    file_names: tuple[str, ...]
    values: npt.NDArray[np.float64]


def write_predictions(folder: Path, results: dict[str, list[Result]], card: PredictionCard) -> None:
    """Write results by split, and their card, into ``folder`` (RUN/predictions)."""
    for split, found in results.items():
        write_json(folder / f"{split}.json", found)
    _write_card(folder, card)


def write_probabilities(
    folder: Path, probabilities: dict[str, ImageProbabilities], card: PredictionCard
) -> None:
    """Write image-level probabilities by split, and their card, into ``folder``.

    Every digit is written, so that reading gives the same numbers.
    """
    for split, found in probabilities.items():
        path = folder / images_file(split)
        _write_table(path, found.classes, found.file_names, found.values)
    _write_card(folder, card)


def write_suspicion(
    folder: Path, suspicion: dict[str, ImageSuspicion], card: PredictionCard
) -> None:
    """Write one score per image, by split, and their card, into ``folder``; as probabilities."""
    for split, found in suspicion.items():
        path = folder / images_file(split)
        _write_table(path, (_SCORE,), found.file_names, found.values[:, None])
    _write_card(folder, card)


def _write_table(
    path: Path,
    columns: Sequence[str],
    file_names: Sequence[str],
    values: npt.NDArray[np.float64],
) -> None:
    """Numbers of images, shape (images, columns)."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((_FILE_NAME, *columns))
    for name, row in zip(file_names, values.tolist(), strict=True):
        table.writerow((name, *map(repr, row)))
    write_text(path, text.getvalue())


def images_file(split: str) -> str:
    """Name of the file of image-level probabilities of a split."""
    return f"{split}_images.csv"


def _write_card(folder: Path, card: PredictionCard) -> None:
    write_text(folder / "card.yaml", yaml.safe_dump(asdict(card), sort_keys=False))


def read_results(path: Path) -> list[Result]:
    """Read one COCO results file.

    Raises:
        InputError: it is not a list of results.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: is not COCO results: it must be a list")
    try:
        deque(map(itemgetter(*_NEEDED), content), maxlen=0)
    except (KeyError, TypeError):
        for number, entry in enumerate(content):
            missing = set(_NEEDED).difference(entry if isinstance(entry, dict) else ())
            if missing:
                raise InputError(
                    f"{path}: result {number} lacks {', '.join(sorted(missing))}"
                ) from None
    return content


def boxes_of(results: Sequence[Result]) -> npt.NDArray[np.float64]:
    """Boxes of results that have four numbers each, shape (results, 4)."""
    numbers = chain.from_iterable(map(itemgetter("bbox"), results))
    return np.fromiter(numbers, np.float64, 4 * len(results)).reshape(-1, 4)


def read_judgements(path: Path) -> ImageProbabilities | ImageSuspicion:
    """Read one file on whole images: probabilities of classes, or one score each.

    Its header is ``file_name,good,`` and every category, or ``file_name,score``.

    Raises:
        InputError: it is missing, its header is neither, a row is too short or too long, an image
            comes twice, or a row holds no probabilities that add up to 1, or no number.
    """
    rows = _rows(path)
    header = rows[0] if rows else []
    if header == [_FILE_NAME, _SCORE]:
        values = [_numbers(path, header, row, "a finite number")[0] for row in rows[1:]]
        return ImageSuspicion(_names(path, rows[1:]), np.array(values, np.float64))
    if header[:2] != [_FILE_NAME, GOOD] or len(header) < 3 or len(set(header)) < len(header):
        raise InputError(
            f"{path}: its header is {','.join(header) or 'missing'}: it must be "
            f"{_FILE_NAME},{GOOD} and then every category once, or {_FILE_NAME},{_SCORE}"
        )
    probabilities = np.empty((len(rows) - 1, len(header) - 1))
    for index, row in enumerate(rows[1:]):
        probabilities[index] = _probabilities(path, header, row)
    return ImageProbabilities(tuple(header[1:]), _names(path, rows[1:]), probabilities)


def read_probabilities(path: Path) -> ImageProbabilities:
    """Read one file of image-level probabilities.

    Raises:
        InputError: as of ``read_judgements``, or it holds scores.
    """
    judgements = read_judgements(path)
    if isinstance(judgements, ImageSuspicion):
        raise InputError(f"{path}: holds scores, not the probabilities of classes: predict again")
    return judgements


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a mark
            return [row for row in csv.reader(file) if row]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: is not readable CSV ({error}): predict again") from error


def _names(path: Path, rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    names = tuple(row[0] for row in rows)
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{path}: {name} comes {count} times: keep one of its rows")
    return names


def _numbers(path: Path, header: Sequence[str], row: Sequence[str], what: str) -> list[float]:
    """The finite numbers of a row, as many as the header has columns for."""
    if len(row) != len(header):
        raise InputError(
            f"{path}: {row[0]}: has {len(row)} columns, the header {len(header)}: predict again"
        )
    values = []
    for name, text in zip(header[1:], row[1:], strict=True):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not math.isfinite(value):
            raise InputError(f"{path}: {row[0]}: {name} is {text!r}, not {what}: correct it")
        values.append(value)
    return values


def _probabilities(path: Path, header: Sequence[str], row: Sequence[str]) -> list[float]:
    """The numbers of a row, checked."""
    what = "a probability from 0 to 1"
    values = _numbers(path, header, row, what)
    for name, value, text in zip(header[1:], values, row[1:], strict=True):
        if not 0 <= value <= 1:
            raise InputError(f"{path}: {row[0]}: {name} is {text!r}, not {what}: correct it")
    if abs(sum(values) - 1) > _ROUNDING:
        raise InputError(
            f"{path}: {row[0]}: the probabilities add up to {sum(values):.4g}, not to 1: "
            "correct them"
        )
    return values


def read_card(folder: Path) -> PredictionCard | None:
    """The card in a predictions folder; None where there is none (somebody else's predictions)."""
    path = folder / "card.yaml"
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PredictionCard(**content)
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is not a card of predictions: predict again") from error
