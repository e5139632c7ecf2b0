"""The table of an experiment, of whatever is finished.

A figure of a row is taken over the pictures of all its folds as if they were one split, and
averaged over its seeds; its interval holds both (``toolkit.evaluate.seeds``). Where not all runs of
a row are finished, seeds count that have all folds; where no seed has, those with the most. The
difference to the baseline is taken in the same way over the runs that both have. Every row says how
many seeds and folds that leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from converters.errors import InputError
from converters.files import read_json
from toolkit.config import ExperimentPlan, ScoringConfig
from toolkit.evaluate import Figure, mean_difference, mean_figure, sheet_of
from toolkit.evaluate.image_level import CALIBRATION, RANKING, VERDICT
from toolkit.evaluate.matching import SIZES
from toolkit.evaluate.names import BOX, MASK_FOUND, MASK_PIXELS
from toolkit.evaluate.sheet import Sheet
from toolkit.experiment.folder import ExperimentFolder
from toolkit.experiment.plan import PlannedRun, baseline_of, lineage, nearest
from toolkit.report.source import Record, read_log

DEFAULT_FIGURES = {
    "finetune classifier": ("image.accuracy", "image.balanced_accuracy", "image.macro_F1"),
    "finetune yolo": ("box.AP50", "box.F1", "image.AUROC"),
    "finetune sam": ("mask.instance_IoU",),
}

SPLITS = ("train", "val", "test")

_OF_SIZE = tuple(
    f"{kind}.{of}_{size}" for kind in ("box", "mask") for of in ("AP", "AR") for size in SIZES
)
_KNOWN = (
    *BOX,
    *MASK_FOUND,
    *MASK_PIXELS,
    "mask.instance_IoU",
    *VERDICT,
    *RANKING,
    CALIBRATION,
    *_OF_SIZE,
)


@dataclass(frozen=True)
class Extent:
    """How much figures rest on.

    Attributes:
        seeds, folds: that they are taken over; a dataset without folds counts as one.
        planned_seeds, planned_folds: that they are to be taken over.
        lacks: what is missing, in words ("1 of 2 seeds"); empty where nothing is.
    """

    seeds: int
    folds: int
    planned_seeds: int
    planned_folds: int
    lacks: str

    @classmethod
    def of(cls, chosen: _Chosen, planned: Sequence[PlannedRun]) -> Extent:
        """The extent of what was chosen from planned runs."""
        seeds, folds = len(chosen.seeds), len(chosen.folds)
        all_seeds, all_folds = (
            len({run.seed for run in planned}),
            len({run.fold for run in planned}),
        )
        parts = [f"{seeds} of {all_seeds} seeds"] if seeds < all_seeds else []
        parts += [f"{folds} of {all_folds} folds"] if folds < all_folds else []
        return cls(seeds, folds, all_seeds, all_folds, ", ".join(parts) if seeds else "no run")


@dataclass(frozen=True)
class _Chosen:
    """Seeds, in order, and folds that each of them has."""

    seeds: tuple[int, ...] = ()
    folds: frozenset[int | None] = frozenset()


@dataclass(frozen=True)
class Row:
    """A variant, on one dataset and with one choice from the grid.

    Attributes:
        variant: its name.
        settings: its own fields, in words.
        finished, planned: runs.
        model, weights, augment, batch, optimizer, learning_rate: of the training; "default" where
            the command chooses, None where it has no such field.
        epochs: whole epochs of a run, mean; None where no log says.
        epochs_asked: most that a run could have had, or its optimiser steps ("1000 steps").
        accuracy, loss: of a classifier by split, means over the finished runs. Of train as the log
            has them: at the best epoch, the loss as it was minimised; of val and test the loss is
            the mean of -log of the probability of the true class.
        figures: by name; None where it cannot be had.
        extent: how much they rest on.
        differences: the same, to the baseline; empty for the baseline itself.
        difference_extent: how much these rest on; None for the baseline itself.
        seconds: of a run and of those that it starts from, mean; None before the first.
    """

    variant: str
    settings: str
    finished: int
    planned: int
    model: str | None
    weights: str | None
    augment: str | None
    epochs: float | None
    epochs_asked: str
    batch: str | None
    optimizer: str | None
    learning_rate: str | None
    accuracy: dict[str, float]
    loss: dict[str, float]
    figures: dict[str, Figure | None]
    extent: Extent
    differences: dict[str, Figure | None]
    difference_extent: Extent | None
    seconds: float | None


@dataclass(frozen=True)
class Group:
    """The rows that can be compared: one dataset, one choice from the grid.

    Attributes:
        title: in words; empty where there is only one group.
        data: name of the dataset; empty where there is only one.
        grid: values of the grid, by field; None for the field's default.
        rows: the baseline first, then as the file has them.
    """

    title: str
    data: str
    grid: dict[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """All groups of an experiment.

    Attributes:
        command: of the experiment.
        baseline: variant that the others are compared with.
        figures: columns.
        groups: one per dataset and choice from the grid.
        finished, planned: runs, stages among them.
    """

    command: str
    baseline: str
    figures: tuple[str, ...]
    groups: tuple[Group, ...]
    finished: int
    planned: int


def wanted_figures(plan: ExperimentPlan, where: str) -> tuple[str, ...]:
    """The figures that the table shows.

    Raises:
        InputError: there is no such figure.
    """
    figures = plan.figures if plan.figures is not None else DEFAULT_FIGURES[plan.command]
    for name in figures:
        if name not in _KNOWN:
            raise InputError(f"{where}: figures: unknown {name!r}: {nearest(name, _KNOWN)}")
    return figures


def make_table(
    plan: ExperimentPlan, runs: Mapping[str, PlannedRun], folder: ExperimentFolder
) -> Table:
    """The table of what is finished.

    Args:
        plan: of the experiment.
        runs: all of them, by place.
        folder: where they are.

    Raises:
        InputError: as of ``sheet_of``.
    """
    figures = wanted_figures(plan, str(folder.root))
    baseline = baseline_of(plan)
    order = {name: number for number, name in enumerate(plan.variants)}
    members: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs.values():
        if run.scored:
            members.setdefault((run.data, repr(run.grid)), []).append(run)
    groups = []
    for (data, _), unsorted in members.items():
        of_group = sorted(unsorted, key=lambda run: (run.variant != baseline, order[run.variant]))
        first: _Scored | None = None
        rows = []
        for _, own in groupby(of_group, key=lambda run: run.variant):
            scored = _Scored(plan, folder, list(own), runs)
            rows.append(scored.row(first, figures))
            first = first or scored  # others are let go: their resamples take memory
        groups.append(Group(_title(plan, of_group[0]), data, dict(of_group[0].grid), tuple(rows)))
    finished = sum(folder.finished(place) for place in runs)
    return Table(plan.command, baseline, figures, tuple(groups), finished, len(runs))


def _title(plan: ExperimentPlan, run: PlannedRun) -> str:
    parts = [run.data] if len(plan.data) > 1 else []
    parts += [f"{name} {_text(value)}" for name, value in run.grid]
    return ", ".join(parts)


class _Scored:
    """The runs of a row, and what is known of them."""

    def __init__(
        self,
        plan: ExperimentPlan,
        folder: ExperimentFolder,
        planned: Sequence[PlannedRun],
        runs: Mapping[str, PlannedRun],
    ) -> None:
        self._plan, self._folder, self._planned, self._runs = plan, folder, planned, runs
        self._results = {
            run.place: result for run in planned if (result := folder.result(run.place)) is not None
        }
        self._finished = [run for run in planned if run.place in self._results]
        self._sheets: dict[tuple[int, frozenset[int | None]], Sheet] = {}

    @cached_property
    def pairs(self) -> frozenset[tuple[int, int | None]]:
        """Seed and fold of every finished run."""
        return frozenset((run.seed, run.fold) for run in self._finished)

    def sheets(self, chosen: _Chosen) -> list[Sheet]:
        """Of each seed, a sheet of the pictures of these folds."""
        return [self._sheet(seed, chosen.folds) for seed in chosen.seeds]

    def _sheet(self, seed: int, folds: frozenset[int | None]) -> Sheet:
        if (seed, folds) not in self._sheets:
            chosen = sorted(
                (run for run in self._finished if run.seed == seed and run.fold in folds),
                key=lambda run: -1 if run.fold is None else run.fold,
            )
            config = ScoringConfig(
                data=self._plan.data[chosen[0].data], resamples=self._plan.resamples
            )
            paths = [self._folder.run(run.place) for run in chosen]
            self._sheets[seed, folds] = sheet_of(config, paths)
        return self._sheets[seed, folds]

    def row(self, baseline: _Scored | None, names: Sequence[str]) -> Row:
        """The row of the table, compared with that of the baseline; None for the baseline's."""
        own = _choose(self.pairs)
        sheets = self.sheets(own)
        differences: dict[str, Figure | None] = {}
        shared: Extent | None = None
        if baseline is not None:
            both = _choose(self.pairs & baseline.pairs)
            pair = baseline.sheets(both), self.sheets(both)
            differences = {name: mean_difference(*pair, name) for name in names}
            shared = Extent.of(both, self._planned)
        return Row(
            variant=self._planned[0].variant,
            settings=_settings(self._planned[0].settings),
            finished=len(self._finished),
            planned=len(self._planned),
            **self._training(),
            accuracy=self._means("accuracy"),
            loss=self._means("loss"),
            figures={name: mean_figure(sheets, name) for name in names},
            extent=Extent.of(own, self._planned),
            differences=differences,
            difference_extent=shared,
            seconds=self._seconds(),
        )

    def _training(self) -> dict[str, Any]:
        """The columns on how it was trained."""
        first = self._planned[0]
        values = {
            name: _text(value) if value is not None else "default"
            for name, value in first.config.model_dump().items()
        }
        after = first.settings.get("after")
        steps = values.get("steps", "default")
        logs = [log for run in self._finished if (log := self._log(run))]
        return {
            "model": self._model() or values.get("model", values.get("arch")),
            "weights": values.get("weights") if after is None else f"of {after}",
            "augment": values.get("augment"),
            "epochs": fmean(log[-1]["epoch"] for log in logs) if logs else None,
            "epochs_asked": values["epochs"] if steps == "default" else f"{steps} steps",
            "batch": values.get("batch"),
            "optimizer": values.get("optimizer"),
            "learning_rate": values.get("learning_rate"),
        }

    def _model(self) -> str | None:
        """The architecture, where a finished run says it."""
        for run in self._finished:
            path = self._folder.run(run.place) / "checkpoints" / "model.json"
            if path.is_file() and "architecture" in (content := read_json(path)):
                return str(content["architecture"])
        return None

    def _log(self, run: PlannedRun) -> list[Record]:
        return read_log(self._folder.run(run.place) / "log.jsonl")

    def _means(self, what: str) -> dict[str, float]:
        """Accuracy or loss by split, over the finished runs that have it."""
        found: dict[str, list[float]] = {split: [] for split in SPLITS}
        for run in self._finished:
            scores = self._results[run.place]["scores"]
            if "val" not in scores:
                continue
            for split, values in scores.items():
                found[split].append(values[what])
            best = max(self._log(run), key=lambda record: record.get("val_score", 0), default={})
            at_best = {"accuracy": "train_accuracy", "loss": "loss"}[what]
            if "train" not in scores and at_best in best:
                found["train"].append(best[at_best])
        return {split: fmean(values) for split, values in found.items() if values}

    def _seconds(self) -> float | None:
        spent = []
        for run in self._finished:
            results = [self._folder.result(each.place) for each in lineage(run, self._runs)]
            spent.append(sum(result["seconds"] for result in results if result is not None))
        return fmean(spent) if spent else None


def _choose(pairs: Collection[tuple[int, int | None]]) -> _Chosen:
    """Of finished runs, as many folds as a seed has, and all seeds that have these.

    Args:
        pairs: seed and fold of each.
    """
    of_seed = {
        seed: frozenset(fold for other, fold in pairs if other == seed)
        for seed in sorted({seed for seed, _ in pairs})
    }
    choices = [
        _Chosen(tuple(seed for seed, has in of_seed.items() if has >= folds), folds)
        for folds in of_seed.values()
    ]
    return max(choices, key=lambda each: (len(each.folds), len(each.seeds)), default=_Chosen())


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in settings.items())


def _text(value: Any) -> str:
    """A value of a configuration in a cell."""
    if value is None:
        return "default"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Path):
        return value.as_posix()
    return str(value)
