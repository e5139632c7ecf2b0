"""Predictions on disk: COCO results per split, and a card that says where they come from.

::

    RUN/predictions/
      val.json test.json    COCO results: image_id, category_id, bbox, score[, segmentation]
      card.yaml             what prompted and what predicted

``segmentation`` is compressed RLE. A result whose box came from the ground truth carries the
``annotation_id`` that it answers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import yaml

from converters.errors import InputError
from converters.files import read_json, write_json, write_text
from converters.geometry import Rle


class _Required(TypedDict):
    image_id: int
    category_id: int
    bbox: list[float]
    score: float


class Result(_Required, total=False):
    """One detection in the form of COCO results; ``bbox`` is ``[x, y, width, height]``."""

    segmentation: Rle
    annotation_id: int


@dataclass(frozen=True)
class PredictionCard:
    """Where predictions come from.

    Attributes:
        boxes: "detector", or "ground truth" where the right boxes were given as prompts, so that
            only the outlines were predicted.
        masks: whether results carry masks.
        detector, segmenter: one line each on the models; empty where there was none.
    """

    boxes: Literal["detector", "ground truth"]
    masks: bool
    detector: str = ""
    segmenter: str = ""


def write_predictions(folder: Path, results: dict[str, list[Result]], card: PredictionCard) -> None:
    """Write results by split, and their card, into ``folder`` (RUN/predictions)."""
    for split, found in results.items():
        write_json(folder / f"{split}.json", found)
    write_text(folder / "card.yaml", yaml.safe_dump(asdict(card), sort_keys=False))


def read_results(path: Path) -> list[Result]:
    """Read one COCO results file.

    Raises:
        InputError: it is not a list of results.
    """
    content = read_json(path)
    needed = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(content, list):
        raise InputError(f"{path}: is not COCO results: it must be a list")
    for number, entry in enumerate(content):
        missing = needed - set(entry) if isinstance(entry, dict) else needed
        if missing:
            raise InputError(f"{path}: result {number} lacks {', '.join(sorted(missing))}")
    return content


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
