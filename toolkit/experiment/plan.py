"""From the file of an experiment to the runs that it asks for, all checked before any is started.

A run is told by its place: ``[DATA/][GRID/]VARIANT/[fold-K/]seed-S``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Any, get_args

from converters.errors import InputError
from converters.folder import DatasetFolder, fold_numbers
from toolkit import config as configs
from toolkit.commands import COMMANDS
from toolkit.config import Config, ExperimentPlan, build
from toolkit.config.experiment import Learning
from toolkit.known_weights import find

STAGES = (*get_args(Learning), "adapt")
"""Commands that a variant may run."""

_SET_HERE = ("data", "out", "fold", "seed", "resume")
_INSTEAD = {"seed": ", and give seeds", "fold": ", and give folds"}
_FREE = frozenset({"out", "device", "workers", "resume", "track", "pictures"})
"""Fields that change no figure, and so may change between two calls."""


DATA = "sha256 of data"
WEIGHTS = "sha256 of weights"


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        place: that tells it from the others, and its path under ``runs/``.
        data: name of the dataset; empty where there is only one.
        grid: values of the grid, by field; None for the field's default.
        variant: name of the variant.
        settings: its own fields, as the file has them.
        fold: of the dataset; None where it has none.
        seed: of everything random.
        command: what it runs.
        config: of the command.
        after: place of the run that it starts from; None where it starts from no other.
        contents: SHA-256 of the files that its figures follow from, by ``DATA`` and ``WEIGHTS``.
    """

    place: str
    data: str
    grid: tuple[tuple[str, Any], ...]
    variant: str
    settings: Mapping[str, Any]
    fold: int | None
    seed: int
    command: str
    config: Config
    after: str | None
    contents: Mapping[str, str]

    @property
    def scored(self) -> bool:
        """Whether it is a row of the table, and not only a stage for others."""
        return self.command in get_args(Learning)

    def identity(self) -> dict[str, Any]:
        """What its figures follow from, apart from the run that it starts from."""
        fields = self.config.model_dump(mode="json", exclude_defaults=True)
        if self.after is not None:
            fields["weights"] = f"of {self.after}"
        kept = {name: value for name, value in fields.items() if name not in _FREE}
        return {"command": self.command, **kept, **self.contents}


def digest(run: PlannedRun, runs: Mapping[str, PlannedRun]) -> str:
    """SHA-256 of what the figures of a run follow from, with all that it starts from.

    Args:
        run: one of them.
        runs: all, by place.
    """
    before = None if run.after is None else digest(runs[run.after], runs)
    content = json.dumps([run.identity(), before], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def lineage(run: PlannedRun, runs: Mapping[str, PlannedRun]) -> list[PlannedRun]:
    """The run and those that it starts from, itself first.

    Args:
        run: one of them.
        runs: all, by place.
    """
    found = [run]
    while (place := found[-1].after) is not None:
        found.append(runs[place])
    return found


def plan_runs(plan: ExperimentPlan, where: str = "experiment") -> dict[str, PlannedRun]:
    """All runs of an experiment, by place, in the order in which they are best run.

    Each comes after the run that it starts from. All variants are run with the first seed before
    any is with the second, so that a table of what is finished compares them early.

    Args:
        plan: of the experiment.
        where: its file, for error messages.

    Raises:
        InputError: a dataset or a fold is not there, or a variant cannot be run: it has a field
            that its command lacks or refuses, or starts from a variant that is not there or,
            in the end, from itself.
    """
    order = _in_order(plan, where)
    _check_baseline(plan, where)
    _check_fields(plan, where)
    _check_grid(plan, where)
    folds = {name: _folds(plan, root) for name, root in plan.data.items()}
    contents = _Contents()
    runs: dict[str, PlannedRun] = {}
    for seed, name, grid in product(plan.seeds, plan.data, _grid(plan)):
        for fold, variant in product(folds[name], order):
            run = _plan_run(plan, where, name, grid, variant, fold, seed, contents)
            if run.place in runs:
                raise InputError(
                    f"{where}: grid: two of its values are the folder {run.place}: drop one"
                )
            runs[run.place] = run
    return runs


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was meant."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _in_order(plan: ExperimentPlan, where: str) -> list[str]:
    """The variants, each after the one that it starts from, otherwise as the file has them."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for variant, fields in plan.variants.items():
        after = fields.get("after")
        if after is not None and after not in plan.variants:
            raise InputError(
                f"{where}: variant {variant!r}: after: there is no variant {after!r}: "
                f"{nearest(str(after), plan.variants)}"
            )
        sorter.add(variant, *([] if after is None else [after]))
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        circle = " after ".join(reversed(error.args[1]))
        raise InputError(f"{where}: after: goes in a circle ({circle}): break it") from error
    ranks = {variant: number for number, variant in enumerate(plan.variants)}
    depths: dict[str, int] = {}
    for variant in order:
        after = plan.variants[variant].get("after")
        depths[variant] = 0 if after is None else depths[after] + 1
    return sorted(order, key=lambda variant: (depths[variant], ranks[variant]))


def baseline_of(plan: ExperimentPlan) -> str:
    """The variant that others are compared with."""
    return next(iter(plan.variants)) if plan.baseline is None else plan.baseline


def _check_baseline(plan: ExperimentPlan, where: str) -> None:
    baseline = baseline_of(plan)
    if baseline not in plan.variants:
        raise InputError(
            f"{where}: baseline: there is no variant {baseline!r}: "
            f"{nearest(baseline, plan.variants)}"
        )
    command, _ = _command(plan, where, baseline)
    if command not in get_args(Learning):
        raise InputError(
            f"{where}: baseline: {baseline!r} runs `toolkit {command}`, which cannot be scored: "
            "name another variant"
        )


def _check_fields(plan: ExperimentPlan, where: str) -> None:
    """Refuse fields that the experiment sets, wherever the file has them."""
    given = {"base": plan.base, "grid": plan.grid}
    given |= {f"variant {name!r}": fields for name, fields in plan.variants.items()}
    for part, fields in given.items():
        for field in (*_SET_HERE, *(("weights",) if fields.get("after") else ())):
            if field in fields:
                raise InputError(
                    f"{where}: {part}: {field}: the experiment sets it: leave it out"
                    f"{_INSTEAD.get(field, '')}"
                )


def _check_grid(plan: ExperimentPlan, where: str) -> None:
    for field, values in plan.grid.items():
        if not values:
            raise InputError(f"{where}: grid: {field} has no values: give some, or leave it out")
        for variant, fields in plan.variants.items():
            if field in fields:
                raise InputError(
                    f"{where}: variant {variant!r}: {field} is in the grid, too: "
                    "leave it out of one of them"
                )


def _grid(plan: ExperimentPlan) -> Iterator[tuple[tuple[str, Any], ...]]:
    for values in product(*plan.grid.values()):
        yield tuple(zip(plan.grid, values, strict=True))


def _folds(plan: ExperimentPlan, root: Path) -> list[int | None]:
    there = fold_numbers(root)
    folds: list[int | None] = list(there if plan.folds is None else plan.folds)
    folds = folds or [None]
    for fold in folds:
        DatasetFolder.open(root, fold)
    return folds


def _plan_run(
    plan: ExperimentPlan,
    where: str,
    data: str,
    grid: tuple[tuple[str, Any], ...],
    variant: str,
    fold: int | None,
    seed: int,
    contents: _Contents,
) -> PlannedRun:
    settings = plan.variants[variant]
    command, kind = _command(plan, where, variant)
    before = settings.get("after")
    place, after = (
        None if name is None else _place(data, grid, name, fold, seed) for name in (variant, before)
    )
    assert place is not None
    shared = {**plan.base, **dict(grid)}
    if "command" in settings:  # a stage of another command takes what it knows
        shared = {name: value for name, value in shared.items() if name in kind.model_fields}
    own = {name: value for name, value in settings.items() if name not in ("after", "command")}
    given = {name: value for name, value in {**shared, **own}.items() if value is not None}
    given |= {"data": plan.data[data], "out": plan.out / "runs" / place, "seed": seed}
    if fold is not None:
        given["fold"] = fold
    if after is not None:
        given["weights"] = str(plan.out / "runs" / after)
    try:
        config = build(kind, None, given)
    except InputError as error:
        raise InputError(f"{where}: variant {variant!r}: {error}") from error
    files = {DATA: contents.of_data(plan.data[data], fold)}
    if after is None and (weights := _weights_file(given)) is not None:
        files[WEIGHTS] = contents.of_file(weights)
    return PlannedRun(
        place, data, grid, variant, settings, fold, seed, command, config, after, files
    )


def _weights_file(given: Mapping[str, Any]) -> Path | None:
    """The file of weights that a run starts from; None where it is none, or not there (yet)."""
    weights = str(given.get("weights", ""))
    path = Path(weights)
    return path if path.is_file() else find(weights)


class _Contents:
    """SHA-256 of files, each read once."""

    def __init__(self) -> None:
        self._of_file: dict[Path, str] = {}
        self._of_data: dict[tuple[Path, int | None], str] = {}

    def of_data(self, root: Path, fold: int | None) -> str:
        """Of all annotations of a fold; pictures are not read."""
        if (root, fold) not in self._of_data:
            folder = DatasetFolder.open(root, fold)
            found = [[split, self.of_file(folder.annotations(split))] for split in folder.splits()]
            content = json.dumps(found).encode()
            self._of_data[root, fold] = hashlib.sha256(content).hexdigest()
        return self._of_data[root, fold]

    def of_file(self, path: Path) -> str:
        """Of a file.

        Raises:
            InputError: it cannot be read.
        """
        if path not in self._of_file:
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
            except OSError as error:
                raise InputError(f"{path}: cannot be read: check its permissions") from error
            self._of_file[path] = digest.hexdigest()
        return self._of_file[path]


def _command(plan: ExperimentPlan, where: str, variant: str) -> tuple[str, type[Config]]:
    command = str(plan.variants[variant].get("command", plan.command))
    known = [name for name in STAGES if name in COMMANDS]
    if command not in known:
        raise InputError(
            f"{where}: variant {variant!r}: command: {command!r} cannot be part of an experiment: "
            f"{nearest(command, known)}"
        )
    return command, getattr(configs, COMMANDS[command].config)


def _place(
    data: str, grid: tuple[tuple[str, Any], ...], variant: str, fold: int | None, seed: int
) -> str:
    values = "_".join(f"{field}-{_word(value)}" for field, value in grid)
    last = f"seed-{seed}"
    return "/".join(
        part
        for part in (data, values, variant, "" if fold is None else f"fold-{fold}", last)
        if part
    )


def _word(value: Any) -> str:
    """A value of the grid as part of a folder's name."""
    if value is None:
        return "default"
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text) or "none"
