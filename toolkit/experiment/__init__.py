"""A baseline and its variants, over folds and seeds, from one file to one table.

::

    result = experiment(ExperimentConfig(experiment="configs/experiments/transistor.yaml"))
    print(result.to_markdown())
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters.files import write_text
from toolkit.config import ExperimentConfig, ExperimentPlan, build, to_yaml
from toolkit.console import note

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from toolkit.experiment.folder import ExperimentFolder
    from toolkit.experiment.plan import PlannedRun
    from toolkit.experiment.schedule import Outcome
    from toolkit.experiment.table import Table

__all__ = ["Experiment", "experiment", "run_plan"]


@dataclass(frozen=True)
class Experiment:
    """What came of an experiment.

    Attributes:
        root: its folder.
        table: of what is finished.
        failed: what went wrong, one line each, by the place of the run.
    """

    root: Path
    table: Table
    failed: dict[str, str]

    def to_markdown(self) -> str:
        """The table to paste."""
        from toolkit.experiment.render import to_markdown

        return to_markdown(self.table)

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        from toolkit.experiment.render import to_json

        return {"out": str(self.root), **to_json(self.table), "failed": self.failed}


def experiment(config: ExperimentConfig) -> Experiment:
    """Run what an experiment still lacks, and write its table.

    Every run is a run folder and a process of its own: one that fails does not end the others. What
    is finished is never run again; what was stopped half-way goes on; what failed is tried again.

    Returns:
        the experiment: ``table.md``, ``table.csv``, ``table.html`` and ``results.json`` lie in its
        folder.

    Raises:
        InputError: the file cannot be used, a variant cannot be run, a run was begun under another
            configuration, or another experiment is at work in the folder.
    """
    given = config.model_dump(include={"out", "folds", "seeds", "jobs", "engine"})
    flags = {name: value for name, value in given.items() if value not in (None, ())}
    plan = build(ExperimentPlan, config.experiment, flags)
    return run_plan(plan, where=str(config.experiment), table_only=config.table)


def run_plan(
    plan: ExperimentPlan, *, where: str = "experiment", table_only: bool = False
) -> Experiment:
    """As ``experiment``, from what its file says.

    Args:
        plan: of the experiment.
        where: its file, for error messages.
        table_only: run nothing.

    Raises:
        InputError: as of ``experiment``.
    """
    from toolkit.experiment.folder import ExperimentFolder
    from toolkit.experiment.plan import plan_runs
    from toolkit.experiment.render import write_table
    from toolkit.experiment.table import make_table, wanted_figures

    wanted_figures(plan, where)
    runs = plan_runs(plan, where)
    folder = ExperimentFolder(plan.out)
    failed: dict[str, str] = {}
    if table_only:
        folder.check(runs)
    else:
        with folder.locked():
            folder.check(runs)
            write_text(folder.root / "experiment.yaml", to_yaml(plan))
            failed = _run_all(plan, runs, folder)
    table = make_table(plan, runs, folder)
    write_table(table, folder.root)
    return Experiment(folder.root, table, failed)


def _run_all(
    plan: ExperimentPlan, runs: Mapping[str, PlannedRun], folder: ExperimentFolder
) -> dict[str, str]:
    """Run what is not finished; what went wrong, by place."""
    from toolkit.experiment.engines import engine
    from toolkit.experiment.schedule import work_off

    todo = {place: run.after for place, run in runs.items() if not folder.finished(place)}
    if len(todo) < len(runs):
        note(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    if not todo:
        return {}
    for place in todo:
        folder.write_job(runs[place], runs, plan.resamples)
    start, at_once = engine(plan, folder)
    teller = _Teller(folder, len(todo))
    work_off(todo, start, at_once=at_once, ended=teller.ended)
    return teller.failed


class _Teller:
    """Says how far an experiment has come, a line per run."""

    def __init__(self, folder: ExperimentFolder, todo: int) -> None:
        self.failed: dict[str, str] = {}
        self._folder, self._todo, self._done = folder, todo, 0
        self._began = time.monotonic()

    def ended(self, place: str, outcome: Outcome) -> None:
        """A run has ended."""
        self._done += 1
        if outcome.error:
            self.failed[place] = outcome.error
        result = self._folder.result(place)
        what = f"failed: {outcome.error}" if result is None else f"{result['seconds']:.0f} s"
        note(f"[{self._done}/{self._todo}] {place}: {what}{self._left()}")

    def _left(self) -> str:
        left = self._todo - self._done
        if not left:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * left
        return f"; {left} left, about {_duration(seconds)}"


def _duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
