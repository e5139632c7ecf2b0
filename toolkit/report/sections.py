"""The tables of a page: headline figures, figures by class, all figures, balance of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converters.dataset import GOOD, Dataset
from toolkit.evaluate import Figure
from toolkit.report.source import Run
from toolkit.report.words import (
    BASELINES,
    HEADLINES,
    Words,
    counted,
    in_order,
    joined,
    words_for,
)


@dataclass(frozen=True)
class Row:
    """One run's line below a headline.

    Attributes:
        run: index of the run.
        figure: its figure; None where it has none.
        says: why there is none, or how the figure compares with its baseline.
        baseline: what the baseline does; empty for the run's own figure.
    """

    run: int
    figure: Figure | None
    says: str = ""
    baseline: str = ""


@dataclass(frozen=True)
class Headline:
    """A figure that matters, of every run."""

    name: str
    words: Words
    rows: Sequence[Row]


@dataclass(frozen=True)
class ClassTable:
    """Figures of every class, of one group ("box", "mask", "image").

    Attributes:
        title: what the figures are about.
        names: of the figures, without the group.
        rows: label, images, instances (None where whole images count), figures by name.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[tuple[str, int, int | None, Mapping[str, Figure]]]


@dataclass(frozen=True)
class Balance:
    """What there is to learn from and to score on.

    Attributes:
        name: of the dataset.
        runs: indices of the runs on it.
        splits: their names.
        rows: class, then images and instances of every split; None where there can be none.
        most: the highest number of images of a class in a split.
        rarest: one sentence on the class with the fewest images to learn from; empty without train.
    """

    name: str
    runs: Sequence[int]
    splits: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, int | None]]]]
    most: int
    rarest: str


def headlines(runs: Sequence[Run]) -> list[Headline]:
    """The few figures that matter for these kinds of runs, with their baselines."""
    shown = []
    for name, kinds in HEADLINES.items():
        of_kind = [run for run in runs if run.kind in kinds]
        if name.startswith("mask."):  # a detector without masks lacks nothing
            of_kind = [r for r in of_kind if r.kind != "detector" or name in r.metrics.figures]
        if not of_kind:
            continue
        rows = [row for number, run in enumerate(runs) for row in _rows(number, run, name)]
        shown.append(Headline(name, words_for(name), rows))
    return shown


def _rows(number: int, run: Run, name: str) -> list[Row]:
    figures = run.metrics.figures
    if name not in figures:
        return [Row(number, None, run.metrics.absent.get(name, _OF_OTHERS[name.split(".")[0]]))]
    baseline, what = BASELINES.get(name, ("", ""))
    if baseline not in figures:
        return [Row(number, figures[name])]
    return [
        Row(number, figures[name], compare_to_baseline(figures[name], figures[baseline], what)),
        Row(number, figures[baseline], baseline=what),
    ]


_OF_OTHERS = {
    "box": "no boxes were scored",
    "mask": "the boxes were not given, so outlines alone were not measured",
    "image": "whole pictures were not judged",
    "pixel": "there are no score maps",
}
"""Why a run lacks a figure of other kinds of runs, by group of figures."""


def compare_to_baseline(figure: Figure, baseline: Figure, what: str) -> str:
    """Whether a figure beats what costs nothing, in one sentence."""
    if figure.value <= baseline.value:
        return f"No better than {what}."
    if figure.ci95 is None or baseline.ci95 is None:
        return f"Better than {what}; there are no intervals to say how surely."
    if figure.ci95[0] > baseline.ci95[1]:
        return f"Clearly better than {what}: the intervals do not touch."
    return f"Better than {what}, but the intervals overlap."


_GROUPS = {
    "box": ("Finding, with boxes", ("AP50", "F1", "recall", "precision")),
    "mask": ("Outlining, with masks", ("instance_IoU", "IoU", "AP50", "F1")),
    "image": ("Verdicts on whole pictures", ("F1", "recall", "precision")),
}


def class_tables(run: Run) -> list[ClassTable]:
    """Figures by class, one table per group of figures."""
    tables = []
    for group, (title, wanted) in _GROUPS.items():
        per_class = {
            label: {n: figures[f"{group}.{n}"] for n in wanted if f"{group}.{n}" in figures}
            for label, figures in run.metrics.per_class.items()
        }
        names = [name for name in wanted if any(name in figures for figures in per_class.values())]
        rows = []
        for label, figures in per_class.items():
            if figures:
                widest = max(figures.values(), key=lambda figure: figure.n)
                rows.append((label, widest.n, widest.instances, figures))
        if rows:
            tables.append(ClassTable(title, names, rows))
    return tables


def all_figures(runs: Sequence[Run]) -> list[tuple[str, Words, list[Figure | None]]]:
    """Every figure of any run: name, words, and what each run has."""
    names = in_order({name for run in runs for name in run.metrics.figures})
    return [
        (name, words_for(name), [run.metrics.figures.get(name) for run in runs]) for name in names
    ]


def absent_figures(run: Run) -> list[tuple[str, list[str]]]:
    """Reasons, and the figures that are not there because of each."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in run.metrics.absent.items():
        by_reason.setdefault(reason, []).append(name)
    return [(reason, in_order(names)) for reason, names in sorted(by_reason.items())]


def balances(runs: Sequence[Run]) -> list[Balance]:
    """Images and instances per class and split, of every dataset that the runs are on."""
    places: dict[tuple[str, int | None], list[int]] = {}
    for number, run in enumerate(runs):
        places.setdefault((str(run.folder.root), run.folder.fold), []).append(number)
    return [_balance(runs[numbers[0]], numbers) for numbers in places.values()]


def _balance(run: Run, numbers: Sequence[int]) -> Balance:
    splits = run.splits
    images = {split: dataset.count_images() for split, dataset in splits.items()}
    instances = {split: dataset.count_instances() for split, dataset in splits.items()}
    rows = [
        (label, [(images[split][label], instances[split].get(label)) for split in splits])
        for label in (GOOD, *run.dataset.categories)
    ]
    most = max((count for row in rows for count, _ in row[1]), default=0)
    fold = "" if run.folder.fold is None else f", fold {run.folder.fold}"
    name = str(run.folder.card.get("name", run.folder.root.name))
    rarest = _rarest(splits["train"]) if "train" in splits else ""
    return Balance(name + fold, numbers, list(splits), rows, most, rarest)


def _rarest(train: Dataset) -> str:
    """Which classes have the fewest pictures to learn from, in one sentence."""
    images = {name: train.count_images()[name] for name in train.categories}
    least = min(images.values(), default=0)
    names = [name for name, count in images.items() if count == least]
    pictures = counted(least, "picture")
    if len(names) == len(images):
        return f"Every class has {pictures} to learn from."
    if len(names) > 3:
        return f"The rarest {len(names)} classes have {pictures} each to learn from."
    verb = "has" if len(names) == 1 else "have"
    return f"{joined(names)} {verb} the fewest pictures to learn from: {least}."


def on_same_pictures(runs: Sequence[Run]) -> bool:
    """Whether the runs were scored on the same pictures with the same truth."""
    first = runs[0].dataset

    def key(run: Run) -> list[tuple[str, int]]:
        return [(image.file_name, len(image.instances)) for image in run.dataset.images]

    return all(
        run.dataset is first
        or (run.dataset.categories == first.categories and key(run) == key(runs[0]))
        for run in runs
    )
