"""Honest figures for predictions on held-out pictures: ``evaluate`` for files, ``score`` for data.

::

    metrics = evaluate(EvaluateConfig(data="dataset", predictions=["runs/yolo"]))
    print_metrics(metrics)

``evaluate`` also takes a data set in memory and predictions on it::

    metrics = evaluate(dataset, {"000.png": detections, …})   # of supervision
    metrics = evaluate(dataset, results)                      # COCO results
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from converters.collector import uncollected
from converters.dataset import Dataset
from converters.errors import InputError
from converters.files import write_json
from converters.folder import DatasetFolder
from toolkit.config import CompareConfig, EvaluateConfig, ScoringConfig
from toolkit.console import note
from toolkit.evaluate.checks import count_duplicates
from toolkit.evaluate.compare import Comparison, compare_sheets
from toolkit.evaluate.foreign import results_from_supervision
from toolkit.evaluate.judging import score_judged, score_probabilities, score_suspicion
from toolkit.evaluate.maps import add_maps
from toolkit.evaluate.metrics import Figure, Metrics, Protocol, Threshold
from toolkit.evaluate.rules import Rules
from toolkit.evaluate.scoring import Part, open_for_maps, score, score_maps, score_parts
from toolkit.evaluate.seeds import mean_difference, mean_figure
from toolkit.evaluate.sheet import Sheet
from toolkit.evaluate.sources import Source, read_detected
from toolkit.evaluate.table import print_metrics
from toolkit.evaluate.thresholds import Goal
from toolkit.predictions import (
    ImageProbabilities,
    ImageSuspicion,
    Result,
    read_judgements,
)

if TYPE_CHECKING:
    import supervision as sv

__all__ = [
    "Comparison",
    "Figure",
    "Goal",
    "Metrics",
    "Protocol",
    "Rules",
    "Threshold",
    "compare",
    "evaluate",
    "mean_difference",
    "mean_figure",
    "print_metrics",
    "score",
    "score_maps",
    "score_probabilities",
    "sheet_of",
]


@overload
def evaluate(given: EvaluateConfig) -> Metrics: ...
@overload
def evaluate(
    given: Dataset, predictions: Sequence[Result] | Mapping[str, sv.Detections], **options: Any
) -> Metrics: ...


def evaluate(
    given: EvaluateConfig | Dataset,
    predictions: Sequence[Result] | Mapping[str, sv.Detections] = (),
    **options: Any,
) -> Metrics:
    """Score predictions on a split, of files or in memory.

    From a configuration, the metrics file is written. Thresholds are chosen on val, where val was
    predicted too (``predictions/val.json``), so that the split that is scored is only scored. Of
    several runs, each is scored on the fold that it was made on, with thresholds of its own, and
    figures are taken over all their images as if they were one split. Score maps are scored beside
    predictions, or alone.

    Args:
        given: what to score, or the ground truth of a split.
        predictions: on that split: COCO results, or supervision's detections by ``file_name``.
        options: as of ``score``.

    Raises:
        InputError: the dataset or the predictions are missing or cannot be scored, or the metrics
            file cannot be written.
    """
    if isinstance(given, Dataset):
        if isinstance(predictions, Mapping):
            predictions = results_from_supervision(given, predictions)
        return score(given, predictions, **options)
    sources = [Source.of(path, given.split) for path in given.predictions]
    sheet = _sheet(given, given.fold, sources) if sources else _without_predictions(given)
    if given.maps is not None:
        add_maps(sheet, given.maps, given.fpr_limit)
    metrics = sheet.metrics()
    write_json(_metrics_file(given, sources), metrics.to_json(), indent=2)
    return metrics


def compare(config: CompareConfig) -> Comparison:
    """Score two runs on the same images and say whether one is better.

    Raises:
        InputError: as of ``evaluate``, or they are not on the same images.
    """
    sheets = [sheet_of(config, paths) for paths in (config.first, config.second)]
    first, second = (
        "+".join(path.name or str(path) for path in paths)
        for paths in (config.first, config.second)
    )
    comparison = compare_sheets((first, second), *sheets)
    if config.out is not None:
        write_json(config.out, comparison.to_json(), indent=2)
    return comparison


def sheet_of(config: ScoringConfig, predictions: Sequence[Path]) -> Sheet:
    """Score predictions as ``evaluate`` does, and keep the figures of every resample.

    Args:
        config: how to score.
        predictions: run folders or files, as of ``EvaluateConfig``; of several, each is scored on
            its own fold, and figures are pooled.

    Returns:
        the sheet: ``samples`` of two sheets on the same images are on the same resamples.

    Raises:
        InputError: as of ``evaluate``.
    """
    return _sheet(config, config.fold, [Source.of(path, config.split) for path in predictions])


@uncollected()
def _sheet(config: ScoringConfig, fold: int | None, sources: Sequence[Source]) -> Sheet:
    """Score what lies at some sources, each on its own fold."""
    if len({source.judged for source in sources}) > 1:
        raise InputError(
            f"{sources[0].results} and others: some hold detections and some probabilities of "
            "images: score them apart"
        )
    folds = [source.fold if fold is None else fold for source in sources]
    folders = [DatasetFolder.open(config.data, number) for number in folds]
    judge = _judged if sources[0].judged else _detected
    sheet = judge(config, folders, sources)
    numbers = tuple(number for number in folds if number is not None)
    sheet.protocol = replace(
        sheet.protocol,
        dataset=_name(folders[0]),
        fold=numbers if len(numbers) > 1 else next(iter(numbers), None),
    )
    return sheet


def _without_predictions(config: EvaluateConfig) -> Sheet:
    """An empty sheet for score maps."""
    folder = DatasetFolder.open(config.data, config.fold)
    sheet = open_for_maps(folder.read(config.split), _rules(config))
    sheet.protocol = replace(sheet.protocol, dataset=_name(folder), fold=config.fold)
    return sheet


def _name(folder: DatasetFolder) -> str:
    return str(folder.card.get("name", folder.root.name))


def _detected(
    config: ScoringConfig, folders: Sequence[DatasetFolder], sources: Sequence[Source]
) -> Sheet:
    """Score detections or outlines."""
    parts = []
    for folder, source in zip(folders, sources, strict=True):
        folder.require_places("scoring boxes")
        val = None
        if source.val is not None and "val" in folder.splits():
            truth = folder.read("val")
            val = truth, read_detected(source.val, truth)
        dataset = folder.read(config.split)
        results = read_detected(source.results, dataset)
        parts.append(Part(dataset, results, val, (str(source.results), str(source.val))))
        if again := count_duplicates(results):
            note(f"{source.results}: {again} results are there twice: they count as false alarms")
    return score_parts(parts, _rules(config), sources[0].card)


def _judged(
    config: ScoringConfig, folders: Sequence[DatasetFolder], sources: Sequence[Source]
) -> Sheet:
    """Score what a classifier says about whole images: probabilities, or one score each."""
    if config.threshold is not None:
        raise InputError(
            f"{sources[0].results}: the most probable class is the verdict: leave --threshold out"
        )
    judged: list[tuple[Dataset, ImageProbabilities, str]] = []
    suspected: list[tuple[Dataset, ImageSuspicion, str]] = []
    for folder, source in zip(folders, sources, strict=True):
        dataset, judgements = folder.read(config.split), read_judgements(source.results)
        if isinstance(judgements, ImageSuspicion):
            suspected.append((dataset, judgements, str(source.results)))
        else:
            judged.append((dataset, judgements, str(source.results)))
    if judged and suspected:
        raise InputError(
            f"{suspected[0][2]}: holds scores, {judged[0][2]} probabilities: score them apart"
        )
    rules = _rules(config)
    return score_judged(judged, rules) if judged else score_suspicion(suspected, rules)


def _rules(config: ScoringConfig) -> Rules:
    return Rules(
        threshold=config.threshold,
        goal=Goal(
            config.goal,
            config.recall_floor,
            config.miss_cost,
            config.alarm_cost,
            config.per_class,
        ),
        iou=config.iou,
        max_detections=config.max_detections,
        backend=config.backend,
        boundary_tolerance=config.boundary_tolerance,
        resamples=config.resamples,
        seed=config.seed,
        split=config.split,
    )


def _metrics_file(config: EvaluateConfig, sources: Sequence[Source]) -> Path:
    if config.out is not None:
        return config.out
    if len(sources) > 1:
        raise InputError("several runs have no folder in common: name the metrics file with --out")
    name = "metrics.json" if config.split == "test" else f"metrics_{config.split}.json"
    home = sources[0].home if sources else config.maps
    assert home is not None, "a configuration has predictions or maps"
    return home / name
