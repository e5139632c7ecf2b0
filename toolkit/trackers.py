"""Experiment trackers beside ``log.jsonl``: TensorBoard, MLflow and Weights & Biases.

They get what the log gets, a record per epoch, and follow it: a run that goes on is the same run
there, and no epoch comes twice. Nothing leaves the machine and nothing is written outside the run
folder, unless the user's environment says so (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``).

::

    RUN/
      trackers.json     per tracker: by which name it knows the run, and the last epoch it was given
      tensorboard/      event files
      mlruns/           mlflow.db (SQLite), where no MLFLOW_TRACKING_URI is set
      wandb/            offline runs, where no WANDB_MODE is set
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from converters.errors import InputError
from converters.files import read_json, write_json
from toolkit.console import note

PROJECT = "defect-toolkit"
"""Experiment (MLflow) or project (W&B) where the user's environment names none."""


class Tracker(Protocol):
    """One tool that records runs. Making one imports its package.

    Attributes:
        rewinds: whether epochs after the one that a run goes on from are taken back by ``start``.
        hint: after ``start``, how to look at the run.
    """

    rewinds: bool
    hint: str

    def start(self, root: Path, config: dict[str, Any], name: str | None, done: int) -> str:
        """Begin, or go on.

        Args:
            root: the run folder.
            config: what the run was started with.
            name: by which the tracker knows the run; None for one that it does not know yet.
            done: epochs that are done.

        Returns:
            the name by which it knows the run from now on.
        """

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record what an epoch, from 1, came to."""

    def finish(self, failed: bool) -> None:
        """Close the run."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    rewinds = True
    hint = ""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Any = SummaryWriter

    def start(self, root: Path, config: dict[str, Any], name: str | None, done: int) -> str:
        """Open another event file; older ones count up to ``done``."""
        folder = root / "tensorboard"
        self.hint = f"tensorboard --logdir {folder}"
        self._writer = self._open(str(folder), purge_step=done + 1)
        if name is None:
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            self._writer.add_text("config", f"```\n{text}```", 0)
        return folder.name

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """One scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, failed: bool) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """A run in RUN/mlruns/mlflow.db, or on the server that MLFLOW_TRACKING_URI names.

    Its client is used, not ``mlflow.log_metric`` and the like, which would share a current run with
    the rest of the program.
    """

    rewinds = False
    hint = ""

    def __init__(self) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # By default a server that is down would hold up training for minutes, every epoch.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        self._mlflow: Any = mlflow

    def start(self, root: Path, config: dict[str, Any], name: str | None, done: int) -> str:
        """Make a run and give it the configuration, or open the known one again."""
        folder = (root / "mlruns").absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.as_posix()}/mlflow.db"
        local = uri.startswith(f"sqlite:///{folder.as_posix()}/")
        if local:
            folder.mkdir(exist_ok=True)
        self.hint = f"mlflow ui --backend-store-uri {uri}" if local else f"MLflow at {uri}"
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        if name is not None:
            self._run: str = name
            self._client.update_run(name, status="RUNNING")
            return name
        artifacts = (folder / "artifacts").as_uri() if local else None
        experiment = self._experiment(artifacts)
        self._run = self._client.create_run(experiment, run_name=root.name).info.run_id
        for field, value in config.items():
            self._client.log_param(self._run, field, value)
        return self._run

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """All values in one request."""
        moment = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        metrics = [metric(name, value, moment, epoch) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, failed: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _experiment(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts))


class WandB:
    """A run of Weights & Biases: offline in RUN/wandb, or as WANDB_MODE says.

    It gets the configuration and the records; no code, no git state, no figures of the machine.
    """

    rewinds = False
    hint = ""

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to the vendor
        import wandb

        self._wandb: Any = wandb

    def start(self, root: Path, config: dict[str, Any], name: str | None, done: int) -> str:
        """Make a run, or one more part of the known one."""
        mode = os.environ.get("WANDB_MODE")
        if mode is None:  # otherwise its settings may well lie in the user's home
            for kind in ("CACHE", "CONFIG", "DATA"):
                folder = root.absolute() / "wandb" / f".{kind.lower()}"
                os.environ.setdefault(f"WANDB_{kind}_DIR", str(folder))
        name = name or uuid.uuid4().hex[:8]
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=name,
            name=root.name,
            dir=os.environ.get("WANDB_DIR") or str(root),
            mode=mode or "offline",
            resume="allow",
            config=config,
            settings=self._wandb.Settings(
                save_code=False,
                disable_git=True,
                disable_job_creation=True,
                console="off",
                silent=mode is None,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )
        online = mode is not None and mode != "offline"
        self.hint = self._run.url if online else f"wandb sync {root}/wandb/offline-run-*"
        return name

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """One step of its history."""
        self._run.log(dict(values), step=epoch)

    def finish(self, failed: bool) -> None:
        """Close the run."""
        self._run.finish(exit_code=1 if failed else 0)


KINDS: dict[str, type[TensorBoard] | type[MLflow] | type[WandB]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}
"""Trackers by the name in ``--track``, which is also that of the extra that installs them."""


class Trackers:
    """The trackers of one run.

    Args:
        names: of ``KINDS``.

    Raises:
        InputError: a tracker's package is not installed.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._trackers: dict[str, Tracker] = {name: _made(name) for name in names}
        self._running: dict[str, Tracker] = {}
        self._known: dict[str, dict[str, Any]] = {}

    @contextmanager
    def follow(self, root: Path, config: dict[str, Any], done: int) -> Iterator[None]:
        """Pass on what is logged inside.

        Args:
            root: the run folder.
            config: what the run was started with.
            done: epochs that are done; what a tracker was told of later ones is told again, or left
                as it is where it keeps everything.

        Raises:
            InputError: a tracker cannot start.
        """
        if not self._trackers:
            yield
            return
        self._file = root / "trackers.json"
        self._known = read_json(self._file) if self._file.is_file() else {}
        failed = True
        try:
            for name, tracker in self._trackers.items():
                self._start(name, tracker, root, config, done)
            yield
            failed = False
        finally:
            for name, tracker in self._running.items():
                with _told(name, "was not closed"):
                    tracker.finish(failed)
            self._running = {}

    def log(self, record: Mapping[str, Any]) -> None:
        """Pass on a record of ``log.jsonl``: "epoch", from 1, and numbers.

        Training goes on where a tracker fails; the user is told.
        """
        epoch = record["epoch"]
        values = {name: value for name, value in record.items() if name != "epoch"}
        for name, tracker in self._running.items():
            if epoch <= self._known[name]["epoch"]:
                continue
            # First: a kill in between loses an epoch there, where the other order would double it.
            self._known[name]["epoch"] = epoch
            write_json(self._file, self._known, indent=2)
            with _told(name, f"epoch {epoch} was not recorded"):
                tracker.log(epoch, values)

    def _start(
        self, name: str, tracker: Tracker, root: Path, config: dict[str, Any], done: int
    ) -> None:
        known = self._known.get(name, {"name": None, "epoch": 0})
        # An epoch is logged before its state is kept, so one may be ahead. More: trained anew.
        if known["epoch"] > done + 1:
            known = {"name": None, "epoch": 0}
        if tracker.rewinds:
            known["epoch"] = min(known["epoch"], done)
        try:
            known["name"] = tracker.start(root, config, known["name"], done)
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(
                f"--track {name}: cannot start ({reason}): set it up, or leave it out, and give "
                "--resume: the run folder is there"
            ) from error
        self._running[name] = tracker
        self._known[name] = known
        write_json(self._file, self._known, indent=2)
        note(f"{name}: {tracker.hint}")


def _made(name: str) -> Tracker:
    try:
        return KINDS[name]()
    except Exception as error:  # a broken installation raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f'--track {name}: cannot be imported ({reason}): pip install "defect-toolkit[{name}]", '
            "or leave it out"
        ) from error


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    """Tell of an error and go on: a run of hours is worth more than a record of it."""
    try:
        yield
    except Exception as error:
        note(f"{name}: {what}: {' '.join(str(error).split())[:300] or type(error).__name__}")
