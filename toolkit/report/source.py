"""What a report is made from: a run folder, its dataset and its metrics, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from converters.dataset import GOOD, SPLITS, Dataset
from converters.errors import InputError
from converters.files import read_json
from converters.folder import DatasetFolder
from toolkit.config import EvaluateConfig, ReportConfig
from toolkit.console import note
from toolkit.evaluate import Figure, Metrics, Protocol, Threshold, evaluate
from toolkit.evaluate.checks import check_answers, check_probabilities, check_results
from toolkit.predictions import (
    ImageProbabilities,
    PredictionCard,
    Result,
    images_file,
    read_card,
    read_probabilities,
    read_results,
)

_NO_FIGURES = ("per_class", "absent", "confusion", "thresholds", "protocol")

Record = Mapping[str, float]
"""One epoch of ``log.jsonl``: numbers by name, "epoch" among them."""


@dataclass(frozen=True)
class Run:
    """A run, and what it was scored on.

    Attributes:
        root: the folder.
        name: that tells it from the other runs of the report.
        settings: content of ``config.yaml``; empty where there is none.
        model: content of ``checkpoints/model.json``; empty where there is none.
        card: where the predictions come from; None where it is not known.
        folder: the dataset folder.
        splits: all splits of it.
        split: name of the one that was scored.
        metrics: its figures.
        results: detections or outlines on it; empty where there are none.
        probabilities: of its images; None where there are detections.
        log: one record per epoch; empty where there is none.
    """

    root: Path
    name: str
    settings: dict[str, Any]
    model: dict[str, Any]
    card: PredictionCard | None
    folder: DatasetFolder
    splits: dict[str, Dataset]
    split: str
    metrics: Metrics
    results: Sequence[Result]
    probabilities: ImageProbabilities | None
    log: Sequence[Record]

    @property
    def dataset(self) -> Dataset:
        """Ground truth of the split that was scored."""
        return self.splits[self.split]

    @property
    def kind(self) -> str:
        """What it does: "detector", "outlines" in given boxes, "classifier" or "maps"."""
        kinds = {"ground truth": "outlines", "none": "classifier", "maps": "maps"}
        return kinds.get(self.metrics.protocol.boxes, "detector")


def read_runs(config: ReportConfig) -> list[Run]:
    """Read the runs of a report; what was not scored yet is scored now.

    Raises:
        InputError: no run was given, one is given twice, or one cannot be read.
    """
    if not config.runs:
        raise InputError("no run: give one run folder or several")
    for root in config.runs:  # before anything is evaluated, which takes a while
        if not root.is_dir():
            raise InputError(
                f"{root}: no such run folder: give the --out of a command that predicts"
            )
        if [other.resolve() for other in config.runs].count(root.resolve()) > 1:
            raise InputError(f"{root}: is given twice: give every run once")
    names = distinct_names(config.runs)
    read: dict[tuple[Path, int | None], tuple[DatasetFolder, dict[str, Dataset]]] = {}
    return [
        _read_run(root, name, config, read) for root, name in zip(config.runs, names, strict=True)
    ]


def distinct_names(roots: Sequence[Path]) -> list[str]:
    """Short names of folders: as many of the last parts of their paths as tell them apart."""
    parts = [root.resolve().parts for root in roots]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def read_metrics(path: Path) -> Metrics:
    """Read what ``toolkit evaluate`` wrote.

    Raises:
        InputError: it is no such file.
    """
    content = read_json(path)
    try:
        known = {field.name for field in fields(Protocol)}
        protocol = {name: value for name, value in content["protocol"].items() if name in known}
        return Metrics(
            figures={
                name: _figure(value) for name, value in content.items() if name not in _NO_FIGURES
            },
            per_class={
                label: {name: _figure(value) for name, value in figures.items()}
                for label, figures in content["per_class"].items()
            },
            absent=dict(content["absent"]),
            thresholds={n: Threshold(**value) for n, value in content["thresholds"].items()},
            protocol=Protocol(**protocol),
            confusion=dict(content.get("confusion", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: is not what `toolkit evaluate` writes ({error!r}): evaluate again"
        ) from error


def _figure(content: Mapping[str, Any]) -> Figure:
    low_high = content["ci95"]
    interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return Figure(float(content["value"]), interval, int(content["n"]), content.get("instances"))


def _read_run(
    root: Path,
    name: str,
    config: ReportConfig,
    read: dict[tuple[Path, int | None], tuple[DatasetFolder, dict[str, Dataset]]],
) -> Run:
    settings = _read_settings(root)
    fold = settings.get("fold") if config.fold is None else config.fold
    place = _data(root, settings, config), fold
    if place not in read:
        folder = DatasetFolder.open(*place)
        read[place] = folder, {split: folder.read(split) for split in _splits(folder, config)}
    folder, splits = read[place]
    metrics = _read_or_make_metrics(root, folder, splits[config.split], config)
    run = Run(
        root=root,
        name=name,
        settings=settings,
        model=_read_model(root),
        card=read_card(root / "predictions"),
        folder=folder,
        splits=splits,
        split=config.split,
        metrics=metrics,
        results=(),
        probabilities=None,
        log=read_log(root / "log.jsonl"),
    )
    return _with_predictions(run)


def _splits(folder: DatasetFolder, config: ReportConfig) -> list[str]:
    folder.annotations(config.split)  # refused here where it is not there
    return [split for split in SPLITS if split in folder.splits()]


def _read_settings(root: Path) -> dict[str, Any]:
    path = root / "config.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is not readable YAML: restore or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must map field names to values: restore or remove it")
    return content


def _read_model(root: Path) -> dict[str, Any]:
    path = root / "checkpoints" / "model.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _data(root: Path, settings: Mapping[str, Any], config: ReportConfig) -> Path:
    """The dataset folder: the given one, or the one that the run names."""
    if config.data is not None:
        return config.data
    if "data" not in settings:
        raise InputError(f"{root}: does not say what it was made on: give --data DATASET")
    data = Path(os.path.normpath(root / str(settings["data"])))
    if not data.is_dir():
        raise InputError(
            f"{root / 'config.yaml'}: names the dataset {data}, which is not there: "
            "give --data DATASET"
        )
    return data


def _read_or_make_metrics(
    root: Path, folder: DatasetFolder, dataset: Dataset, config: ReportConfig
) -> Metrics:
    path = root / ("metrics.json" if config.split == "test" else f"metrics_{config.split}.json")
    if not path.is_file():
        note(f"{root}: has no {path.name}: evaluating")
        evaluate(
            EvaluateConfig(
                data=folder.root, predictions=(root,), fold=folder.fold, split=config.split
            )
        )
    metrics = _in_order(read_metrics(path), dataset)
    protocol = metrics.protocol
    scored = (protocol.split, protocol.fold, protocol.images, protocol.instances)
    there = (
        config.split,
        folder.fold,
        len(dataset.images),
        sum(dataset.count_instances().values()),
    )
    if scored != there:
        raise InputError(
            f"{path}: was made on {_counts(*scored)}, the dataset {folder.root} has "
            f"{_counts(*there)}: run `toolkit evaluate` again, or give the right --data or --fold"
        )
    return metrics


def _in_order(metrics: Metrics, dataset: Dataset) -> Metrics:
    """With classes in the order of the dataset; in the file they are sorted by name."""
    labels = (GOOD, *dataset.categories)
    confusion = metrics.confusion
    return replace(
        metrics,
        per_class={n: metrics.per_class[n] for n in labels if n in metrics.per_class},
        confusion={n: {m: confusion[n].get(m, 0) for m in labels} for n in labels if confusion},
    )


def _counts(split: str, fold: object, images: int, instances: int) -> str:
    of = "" if fold is None else f" of fold {fold}"
    return f"{split}{of} with {images} images and {instances} instances"


def _with_predictions(run: Run) -> Run:
    """The run with its predictions, checked against the ground truth."""
    if run.kind == "maps":
        return run
    judged = run.kind == "classifier"
    path = run.root / "predictions" / (images_file(run.split) if judged else f"{run.split}.json")
    if not path.is_file():
        raise InputError(f"{path}: no such predictions: restore them, or predict again")
    if judged:
        probabilities = read_probabilities(path)
        check_probabilities(run.dataset, probabilities, str(path))
        return replace(run, probabilities=probabilities)
    results = read_results(path)
    check_results(run.dataset, results, str(path))
    if run.kind == "outlines":
        check_answers(run.dataset, results, str(path))
    return replace(run, results=results)


def read_log(path: Path) -> list[Record]:
    """The epochs of a training log, the last record of each; cut lines are left out."""
    records: dict[float, Record] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                content = json.loads(line)
                numbers = {n: v for n, v in content.items() if isinstance(v, int | float)}
                records[float(content["epoch"])] = numbers
    return [records[epoch] for epoch in sorted(records)]
