"""Honest figures for predictions on held-out pictures: ``evaluate`` for files, ``score`` for data.

::

    metrics = evaluate(EvaluateConfig(data="dataset", predictions="runs/yolo"))
    print_metrics(metrics)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from converters.errors import InputError
from converters.files import write_json
from converters.folder import DatasetFolder
from toolkit.config import EvaluateConfig
from toolkit.evaluate.metrics import Figure, Metrics, Protocol, Threshold
from toolkit.evaluate.scoring import score, score_probabilities
from toolkit.evaluate.table import print_metrics
from toolkit.predictions import (
    PredictionCard,
    images_file,
    read_card,
    read_probabilities,
    read_results,
)

__all__ = [
    "Figure",
    "Metrics",
    "Protocol",
    "Threshold",
    "evaluate",
    "print_metrics",
    "score",
    "score_probabilities",
]


def evaluate(config: EvaluateConfig) -> Metrics:
    """Score predictions on a split of a dataset folder and write the metrics file.

    Thresholds are chosen on val, where val was predicted too (``predictions/val.json``), so that
    the split that is scored is only scored.

    Raises:
        InputError: the dataset or the predictions are missing or cannot be scored, or the metrics
            file cannot be written.
    """
    files = _Files.of(config)
    folder = DatasetFolder.open(config.data, config.fold)
    judged = files.results.suffix == ".csv"
    metrics = (_score_judged if judged else _score_detected)(config, folder, files)
    name = str(folder.card.get("name", config.data.name))
    metrics = replace(metrics, protocol=replace(metrics.protocol, dataset=name, fold=config.fold))
    write_json(files.metrics, metrics.to_json(), indent=2)
    return metrics


def _score_detected(config: EvaluateConfig, folder: DatasetFolder, files: _Files) -> Metrics:
    """Score detections or outlines."""
    val = None
    if files.val is not None and "val" in folder.splits():
        val = folder.read("val"), read_results(files.val)
    return score(
        folder.read(config.split),
        read_results(files.results),
        val=val,
        card=files.card,
        threshold=config.threshold,
        iou=config.iou,
        max_detections=config.max_detections,
        backend=config.backend,
        resamples=config.resamples,
        seed=config.seed,
        split=config.split,
        sources=(str(files.results), str(files.val)),
    )


def _score_judged(config: EvaluateConfig, folder: DatasetFolder, files: _Files) -> Metrics:
    """Score the probabilities of whole images."""
    if config.threshold is not None:
        raise InputError(
            f"{files.results}: the most probable class is the verdict: leave --threshold out"
        )
    return score_probabilities(
        folder.read(config.split),
        read_probabilities(files.results),
        resamples=config.resamples,
        seed=config.seed,
        split=config.split,
        source=str(files.results),
    )


@dataclass(frozen=True)
class _Files:
    """Where predictions lie and metrics go.

    Attributes:
        results: predictions on the split that is scored.
        val: predictions on val; None where there are none.
        card: what made them; None where it is not known.
        metrics: the file to write.
    """

    results: Path
    val: Path | None
    card: PredictionCard | None
    metrics: Path

    @classmethod
    def of(cls, config: EvaluateConfig) -> _Files:
        """Find the files of a run folder, or those beside one results file."""
        given = config.predictions
        results = _in_run(given, config.split) if given.is_dir() else given
        if not results.is_file():
            predict = f"run `toolkit predict` on {config.split}"
            if results.suffix == ".csv":
                predict = "`toolkit finetune classifier` leaves them for val and test"
            raise InputError(
                f"{results}: no such predictions: {predict}, "
                "or give the run folder or results file that has them"
            )
        name = "metrics.json" if config.split == "test" else f"metrics_{config.split}.json"
        metrics = config.out or (given if given.is_dir() else given.parent) / name
        if results.name != f"{config.split}.json":  # what lies beside it may be of another run
            return cls(results, None, None, metrics)
        val = results.with_name("val.json")
        return cls(results, val if val.is_file() else None, read_card(results.parent), metrics)


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
