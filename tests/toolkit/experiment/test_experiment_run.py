"""Experiments that are run: processes, kills, locks, clusters."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converters.errors import InputError
from toolkit.cli import main
from toolkit.experiment import engines, run_plan
from toolkit.experiment.engines import Process, Submitit, cores
from toolkit.experiment.folder import ExperimentFolder, lock
from toolkit.experiment.plan import plan_runs
from toolkit.experiment.schedule import Outcome

TINY = {"image_size": 32, "batch": 4, "pictures": False, "device": "cpu", "workers": 0}
PATIENCE = 300  # seconds; other programs may need the processor, too


def _wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_and_called_again_it_goes_on(make_plan, tmp_path, capsys) -> None:
    variants = {"plain": None, "missing": {"weights": "nowhere.pth"}}
    base = {**TINY, "epochs": 3}
    plan = make_plan(base=base, variants=variants, resamples=20)
    file = tmp_path / "experiment.yaml"
    run = plan.out / "runs" / "plain" / "seed-0"
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "experiment", str(file), "--quiet"],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for(lambda: (run / "checkpoints" / "last.safetensors").is_file())
        with pytest.raises(InputError, match=f"at work in it.*{process.pid}.*choose another out"):
            run_plan(plan)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lock(plan.out / "jobs" / "plain" / "seed-0.lock", wait=True):  # its child ends, too
        assert not (run / "result.json").exists()
    with pytest.raises(SystemExit) as end:
        main(["experiment", str(file)])
    assert end.value.code == 1  # for the variant that failed
    said = capsys.readouterr()
    assert "missing/seed-0: failed: nowhere.pth: no such weights" in said.out
    assert "[2/2] missing/seed-0: failed" in said.err
    log = (plan.out / "jobs" / "plain" / "seed-0.log").read_text("utf-8")
    assert "resuming after epoch" in log and "epoch 3/3" in log
    assert log.count("epoch 1/3") == 1
    assert "| plain | - | 1 |" in said.out

    written = (run / "result.json").stat().st_mtime_ns
    again = run_plan(plan.model_copy(update={"variants": {"plain": {}}}))
    assert (run / "result.json").stat().st_mtime_ns == written
    assert again.failed == {} and again.table.finished == 1


def test_a_cluster_runs_what_it_is_given(make_plan, finish) -> None:
    plan = make_plan(
        seeds=[0, 1], cluster="local", engine="submitit", submitit={"timeout_min": 5}, resamples=20
    )
    runs = plan_runs(plan)
    folder = ExperimentFolder(plan.out)
    finish(plan, runs["plain/seed-0"])
    for run in runs.values():
        folder.write_job(run, runs, 20)
    folder.job("plain/seed-1").write_text("{", encoding="utf-8")
    cluster = Submitit(plan, folder)
    tasks = [cluster.start(place) for place in runs]
    outcomes: list[Outcome | None] = [None, None]

    def ended() -> bool:
        outcomes[:] = [task.poll() for task in tasks]
        return None not in outcomes

    _wait_for(ended)
    assert outcomes[0] == Outcome()
    assert outcomes[1] is not None and "seed-1.json: is not readable JSON" in outcomes[1].error


def test_parameters_that_a_cluster_does_not_know(make_plan) -> None:
    plan = make_plan(cluster="local", engine="submitit", submitit={"timout": 5})
    with pytest.raises(InputError, match=r"submitit: .*timout.*: correct") as error:
        run_plan(plan)
    assert "\n" not in str(error.value)


def test_without_submitit_one_line_says_so(make_plan, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    plan = make_plan(engine="submitit")
    with pytest.raises(InputError, match=r'pip install "defect-toolkit\[cluster\]"'):
        run_plan(plan)


def test_threads_are_shared_out(make_plan, monkeypatch) -> None:
    started: list[dict[str, str]] = []

    class Noted:
        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            started.append(env)

    monkeypatch.setattr(engines.subprocess, "Popen", Noted)
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = ExperimentFolder(make_plan().out)
    folder.log("plain/seed-0").parent.mkdir(parents=True)
    for jobs, given in ((3, None), (16, None), (2, "1"), (2, "6")):
        plan = make_plan(jobs=jobs)
        if given is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        start, at_once = engines.engine(plan, folder)
        start("plain/seed-0")
        assert at_once == jobs
    assert [env["OMP_NUM_THREADS"] for env in started] == ["2", "1", "1", "4"]
    assert cores() >= 1


def test_a_process_that_was_killed_says_by_what(make_plan, monkeypatch) -> None:
    folder = ExperimentFolder(make_plan().out)
    assert "SIGKILL" in engines.outcome(folder, "plain/seed-0", -signal.SIGKILL).error


def test_what_was_stopped_is_gone(make_plan, monkeypatch, tmp_path) -> None:
    folder = ExperimentFolder(make_plan().out)
    folder.log("plain/seed-0").parent.mkdir(parents=True)
    python, count = tmp_path / "python", tmp_path / "count"
    python.write_text(  # neither it nor what it starts listens to SIGTERM
        "#!/bin/sh\ntrap '' TERM\n"
        f"(while sleep 0.02; do echo >> {count}; done) &\nwhile :; do wait; done\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    monkeypatch.setattr(engines.sys, "executable", str(python))
    monkeypatch.setattr(engines, "_GRACE", 0.2)
    task = Process(folder, "plain/seed-0", 1)
    _wait_for(count.exists)
    assert task.poll() is None
    task.stop()
    counted = count.stat().st_size
    time.sleep(0.2)
    assert count.stat().st_size == counted


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; "
            "from toolkit.experiment.folder import lock\n"
            "with lock(Path(sys.argv[1]), wait=False): print('held', flush=True); time.sleep(600)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"process {holder.pid}"),
            lock(tmp_path / ".lock", wait=False),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with lock(tmp_path / ".lock", wait=False):
        pass
