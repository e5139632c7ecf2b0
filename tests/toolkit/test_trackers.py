"""What trackers are told, by runs that go through and by runs that are stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from converters.errors import InputError
from toolkit.config import FinetuneSamConfig
from toolkit.runs import RunFolder
from toolkit.training import Schedule, fit

Events = list[tuple[Any, ...]]


class Stopped(Exception):
    """As if the process had been stopped."""


class TinyTask:
    """Fit a line; stops in the validation of one epoch where asked to."""

    steps = 2

    def __init__(self, stop_in: int = 0) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.stop_in = stop_in
        self.epoch = 0

    def batches(self, epoch: int) -> Iterator[torch.Tensor]:
        self.epoch = epoch + 1
        generator = torch.Generator().manual_seed(epoch)
        return iter([torch.randn(4, 2, generator=generator) for _ in range(self.steps)])

    def losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()}

    def validate(self) -> dict[str, float]:
        if self.epoch == self.stop_in:
            raise Stopped
        return {"score": self.epoch / 8}


SCHEDULE = Schedule(4, 0.01, 0.0, patience=9, score="score", seed=0)


def _train(root: Path, *track: str, resume: bool = False, stop_in: int = 0) -> RunFolder:
    config = FinetuneSamConfig(data=root.parent / "data", out=root, track=track, resume=resume)
    run = RunFolder.create(root, "finetune sam", config, resume=resume)
    fit(TinyTask(stop_in), SCHEDULE, run, resume=resume)
    return run


def _logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _kill_before_the_state(root: Path, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let the state of an epoch that was logged not be kept."""
    from toolkit import training

    plain = training.write_bytes

    def write(path: Path, content: bytes) -> None:
        if path.name == "last.safetensors" and len(_logged(root)) == epoch:
            raise Stopped
        plain(path, content)

    monkeypatch.setattr(training, "write_bytes", write)


def _scalars(root: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_holds_what_the_log_holds(tmp_path: Path) -> None:
    run = _train(tmp_path / "run", "tensorboard")
    log = _logged(run.root)
    scalars = _scalars(run.root)
    assert set(scalars) == set(log[0]) - {"epoch"}
    for name, points in scalars.items():
        expected = [(record["epoch"], pytest.approx(record[name])) for record in log]
        assert points == expected


@pytest.mark.parametrize("logged", [False, True])
def test_a_resumed_run_has_every_epoch_once_in_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: bool
) -> None:
    root = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        if logged:  # the third epoch comes again after it was logged
            _kill_before_the_state(root, patch, 3)
        _train(root, "tensorboard", stop_in=0 if logged else 3)
    assert [step for step, _ in _scalars(root)["score"]] == ([1, 2, 3] if logged else [1, 2])
    _train(root, "tensorboard", resume=True)
    assert _scalars(root)["score"] == [(epoch, epoch / 8) for epoch in (1, 2, 3, 4)]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Stands where the package would be, and records what it is asked for."""
    events: Events = []
    names: dict[str, str] = {}

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            events.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id=names[name]) if name in names else None

        def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
            names[name] = f"experiment {len(names)}"
            events.append(("experiment", name, artifact_location))
            return names[name]

        def create_run(self, experiment_id: str, run_name: str) -> Any:
            run_id = f"run {sum(event[0] == 'create' for event in events)}"
            events.append(("create", experiment_id, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

        def update_run(self, run_id: str, status: str) -> None:
            events.append(("again", run_id, status))

        def log_param(self, run_id: str, key: str, value: Any) -> None:
            events.append(("param", run_id, key, value))

        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            values = {metric.key: metric.value for metric in metrics}
            events.append(("log", run_id, {metric.step for metric in metrics}, values))

        def set_terminated(self, run_id: str, status: str) -> None:
            events.append(("end", run_id, status))

    module: Any = ModuleType("mlflow")
    module.MlflowClient = Client
    module.entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    return events


def _of(events: Events, *kinds: str) -> Events:
    return [event for event in events if event[0] in kinds]


def test_mlflow_gets_the_configuration_and_every_epoch(tmp_path: Path, mlflow: Events) -> None:
    run = _train(tmp_path / "run", "mlflow")
    assert mlflow[0] == ("uri", f"sqlite:///{run.root}/mlruns/mlflow.db")
    assert _of(mlflow, "create") == [("create", "experiment 0", "run")]
    assert {event[2]: event[3] for event in _of(mlflow, "param")} == run.config()
    assert _of(mlflow, "log") == [
        ("log", "run 0", {record.pop("epoch")}, record) for record in _logged(run.root)
    ]
    assert mlflow[-1] == ("end", "run 0", "FINISHED")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_goes_on_with_the_same_run(
    tmp_path: Path, mlflow: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _kill_before_the_state(root, patch, 3)
        _train(root, "mlflow")
    assert mlflow[-1] == ("end", "run 0", "FAILED")
    _train(root, "mlflow", resume=True)
    assert _of(mlflow, "create", "again") == [
        ("create", "experiment 0", "run"),
        ("again", "run 0", "RUNNING"),
    ]
    assert [event[2] for event in _of(mlflow, "log")] == [{1}, {2}, {3}, {4}]
    assert mlflow[-1] == ("end", "run 0", "FINISHED")


def test_a_run_that_begins_anew_is_another_one(tmp_path: Path, mlflow: Events) -> None:
    run = _train(tmp_path / "run", "mlflow")
    (run.checkpoints / "last.safetensors").unlink()
    _train(run.root, "mlflow", resume=True)
    assert len(_of(mlflow, "create")) == 2
    assert [event[1:3] for event in _of(mlflow, "log")][4:] == [
        ("run 1", {epoch}) for epoch in (1, 2, 3, 4)
    ]


def test_mlflow_goes_where_the_environment_says(
    tmp_path: Path, mlflow: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "line 3")
    run = _train(tmp_path / "run", "mlflow")
    assert mlflow[0] == ("uri", "http://tracking:5000")
    assert _of(mlflow, "experiment") == [("experiment", "line 3", None)]
    assert not (run.root / "mlruns").exists()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Stands where the package would be, and records what it is asked for."""
    events: Events = []

    def init(**options: Any) -> Any:
        events.append(("init", options))
        return SimpleNamespace(
            url=None,
            log=lambda values, step: events.append(("log", step, values)),
            finish=lambda exit_code: events.append(("finish", exit_code)),
        )

    module: Any = ModuleType("wandb")
    module.init, module.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for kind in ("ERROR_REPORTING", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{kind}", "")  # so that it is taken back afterwards
        monkeypatch.delenv(f"WANDB_{kind}")
    return events


def test_wandb_is_offline_in_the_run_folder_and_resumes(tmp_path: Path, wandb: Events) -> None:
    root = tmp_path / "run"
    with pytest.raises(Stopped):
        _train(root, "wandb", stop_in=3)
    run = _train(root, "wandb", resume=True)
    first, second = (event[1] for event in _of(wandb, "init"))
    assert first["mode"] == "offline" and first["dir"] == str(root)
    assert first["config"] == run.config()
    assert first["id"] == second["id"] and second["resume"] == "allow"
    quiet = {"save_code": False, "disable_git": True, "x_disable_stats": True}
    assert quiet.items() <= first["settings"].items()
    log = _logged(root)
    assert _of(wandb, "log") == [("log", record.pop("epoch"), record) for record in log]
    assert _of(wandb, "finish") == [("finish", 1), ("finish", 0)]
    for kind in ("CACHE", "CONFIG", "DATA"):
        assert Path(os.environ[f"WANDB_{kind}_DIR"]).is_relative_to(root)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_wandb_goes_where_the_environment_says(
    tmp_path: Path, wandb: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "line 3")
    _train(tmp_path / "run", "wandb")
    options = wandb[0][1]
    assert (options["mode"], options["project"]) == ("online", "line 3")
    assert "WANDB_CONFIG_DIR" not in os.environ  # where the user may have said more


def test_training_goes_on_where_a_tracker_fails(
    tmp_path: Path, wandb: Events, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: Any) -> Any:
        def log(values: Any, step: int) -> None:
            if step == 2:
                raise ConnectionError("no route")

        return SimpleNamespace(url=None, log=log, finish=lambda exit_code: None)

    sys.modules["wandb"].init = fail  # type: ignore[attr-defined]
    run = _train(tmp_path / "run", "wandb")
    assert len(_logged(run.root)) == 4
    told = [line for line in capsys.readouterr().err.splitlines() if "not recorded" in line]
    assert told == ["wandb: epoch 2 was not recorded: no route"]


def test_a_tracker_that_cannot_start_is_said_before_training(tmp_path: Path, wandb: Events) -> None:
    def refuse(**options: Any) -> Any:
        raise RuntimeError("api_key not\nconfigured")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"wandb: cannot start \(api_key not configured\): set it"):
        _train(tmp_path / "run", "wandb")
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf'{name}: .* pip install "defect-toolkit\[{name}\]"'):
        _train(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_an_unknown_tracker(tmp_path: Path) -> None:
    words = ["finetune", "sam", "--data", "d", "--out", str(tmp_path / "o"), "--track", "neptune"]
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "tensorboard" in done.stderr and "neptune" in done.stderr
    assert len(done.stderr.splitlines()) == 1
