"""Where predictions lie on disk: run folders, and the files and folders of other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from converters.dataset import Dataset
from converters.errors import InputError
from toolkit.evaluate.foreign import read_yolo_folder
from toolkit.predictions import PredictionCard, Result, images_file, read_card, read_results


@dataclass(frozen=True)
class Source:
    """Predictions on a split, and what lies beside them.

    Attributes:
        results: a COCO results file, a folder of YOLO's text files, or a CSV file of images.
        val: the same for val; None where there are none.
        card: what made them; None where it is not known.
        fold: that the run was made on, as it says itself; None where it does not.
        home: folder that the metrics file goes to.
    """

    results: Path
    val: Path | None
    card: PredictionCard | None
    fold: int | None
    home: Path

    @property
    def judged(self) -> bool:
        """Whether whole images were judged."""
        return self.results.suffix == ".csv"

    @classmethod
    def of(cls, given: Path, split: str) -> Source:
        """Find the predictions of a run folder, or those beside one file or folder.

        Raises:
            InputError: there are none, or a run has two kinds of them.
        """
        results = given
        if given.is_dir() and not any(given.glob("*.txt")):
            results = _in_run(given, split)
        if not results.exists():
            predict = f"run `toolkit predict` on {split}"
            if results.suffix == ".csv":
                predict = "`toolkit finetune classifier` leaves them for val and test"
            raise InputError(
                f"{results}: no such predictions: {predict}, "
                "or give the run folder or the file that has them"
            )
        home = given if given.is_dir() else given.parent
        fold = _fold(given)
        if results.stem != split and results.name != images_file(split):
            return cls(results, None, None, fold, home)  # what lies beside may be another run's
        val = results.with_name(results.name.replace(split, "val"))
        card = read_card(results.parent)
        return cls(results, val if val.exists() else None, card, fold, home)


def read_detected(path: Path, dataset: Dataset) -> list[Result]:
    """Read detections on a split: a COCO results file, or a folder of YOLO's text files.

    Raises:
        InputError: it is neither.
    """
    return read_yolo_folder(path, dataset) if path.is_dir() else read_results(path)


def _in_run(run: Path, split: str) -> Path:
    """The predictions of a run: detections, or the probabilities of a classifier.

    Raises:
        InputError: it has both.
    """
    detected = run / "predictions" / f"{split}.json"
    judged = run / "predictions" / images_file(split)
    if detected.is_file() and judged.is_file():
        raise InputError(
            f"{run}: holds detections and image-level probabilities: "
            f"give one of them, {detected} or {judged}"
        )
    card = read_card(run / "predictions")
    return judged if judged.is_file() or (card and card.boxes == "none") else detected


def _fold(given: Path) -> int | None:
    """The fold that a run folder says it was made on."""
    path = given / "config.yaml"
    if not path.is_file():
        return None
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    fold = content.get("fold")
    return fold if isinstance(fold, int) else None
