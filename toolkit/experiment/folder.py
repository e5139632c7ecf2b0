"""The folder of an experiment.

::

    OUT/
      experiment.yaml      what was asked for
      runs/PLACE/          a run folder each, and in it, written last, result.json
      jobs/PLACE.json      what the process of a run is told, and when it began
      jobs/PLACE.yaml      the configuration of its command
      jobs/PLACE.log       what it said
      table.md table.csv table.html results.json
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import InputError
from converters.files import read_json, write_json, write_text
from toolkit.config import to_yaml
from toolkit.experiment.plan import DATA, WEIGHTS, PlannedRun, digest

RESULT = "result.json"

_CONTENTS = {DATA: "data", WEIGHTS: "weights"}


@dataclass(frozen=True)
class ExperimentFolder:
    """An experiment on disk.

    Attributes:
        root: the folder.
    """

    root: Path

    def run(self, place: str) -> Path:
        """The run folder."""
        return self.root / "runs" / place

    def job(self, place: str) -> Path:
        """The file that the process of a run is told by; its log lies beside it."""
        return self.root / "jobs" / f"{place}.json"

    def log(self, place: str) -> Path:
        """What the process of a run said."""
        return self.root / "jobs" / f"{place}.log"

    def result(self, place: str) -> dict[str, Any] | None:
        """The record of a finished run; None where it is not finished."""
        path = self.run(place) / RESULT
        if not path.is_file():
            return None
        content: dict[str, Any] = read_json(path)
        return content

    def finished(self, place: str) -> bool:
        """Whether a run is finished."""
        return (self.run(place) / RESULT).is_file()

    def write_job(self, run: PlannedRun, runs: Mapping[str, PlannedRun], resamples: int) -> None:
        """Write what the process of a run is told."""
        path = self.job(run.place)
        settings = path.with_suffix(".yaml")
        write_text(settings, to_yaml(run.config, given_only=True))
        write_json(
            path,
            {
                "command": run.command,
                "config": str(settings),
                "run": str(self.run(run.place)),
                "data": str(run.config.model_dump()["data"]),
                "fold": run.fold,
                "scored": run.scored,
                "resamples": resamples,
                "identity": run.identity(),
                "digest": digest(run, runs),
            },
            indent=2,
        )

    def check(self, runs: Mapping[str, PlannedRun]) -> None:
        """Refuse runs that were begun under another configuration.

        Raises:
            InputError: there is one.
        """
        for run in runs.values():
            job, folder = self.job(run.place), self.run(run.place)
            begun = self.result(run.place)
            if begun is None and job.is_file() and folder.exists():
                begun = read_json(job)
            if begun is None or begun["digest"] == digest(run, runs):
                continue
            raise InputError(
                f"{folder}: was begun {_difference(begun['identity'], run.identity())}: "
                "choose another out, or remove this run folder to run it again"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other experiments out of the folder; a killed one keeps nobody out.

        Raises:
            InputError: another one is at work in it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with lock(self.root / ".lock", wait=False):
            yield


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock, which goes with the process that holds it, however that ends.

    Args:
        path: file to lock; made where it is not there.
        wait: for who holds it, instead of raising.

    Raises:
        InputError: another process holds it.
    """
    import fcntl  # POSIX alone

    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"{path.parent}: another `toolkit experiment` is at work in it "
                f"(process {file.read().strip() or 'unknown'}): wait for it, or choose another out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _difference(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """How two configurations differ, in words."""
    for name in (*wanted, *begun):
        old, new = (values.get(name, "the default") for values in (begun, wanted))
        if old != new and name in _CONTENTS:
            return f"with other {_CONTENTS[name]}"
        if old != new:
            return f"with {name} {old}, not {new}"
    return "from a run that had another configuration"
