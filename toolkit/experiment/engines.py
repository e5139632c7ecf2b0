"""Who runs the runs: processes on this machine, or a cluster through submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from converters.errors import InputError
from toolkit.config import ExperimentPlan
from toolkit.experiment.folder import ExperimentFolder
from toolkit.experiment.schedule import Outcome, Task

_GRACE = 5.0
"""Seconds that a process has to end in by itself."""


def engine(plan: ExperimentPlan, folder: ExperimentFolder) -> tuple[Callable[[str], Task], int]:
    """What starts the run of a place, and how many may go on at a time.

    Raises:
        InputError: submitit is not installed, or does not know its parameters.
    """
    if plan.engine == "submitit":
        return Submitit(plan, folder).start, plan.jobs or sys.maxsize
    jobs = plan.jobs or 1
    threads = max(1, cores() // jobs)
    return lambda place: Process(folder, place, threads), jobs


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def begin(job: Path, log: Path, threads: int | None) -> subprocess.Popen[bytes]:
    """Start the process of a run, in a group of its own that ends with the process that calls.

    Args:
        job: as of ``ExperimentFolder.job``.
        log: file that what it says is appended to.
        threads: for its numerics; None leaves that to the environment.
    """
    package = str(Path(__file__).absolute().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    if threads is not None:
        given = environment.get("OMP_NUM_THREADS", "")
        asked = int(given) if given.isdigit() and int(given) else threads
        environment["OMP_NUM_THREADS"] = str(min(asked, threads))
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "toolkit.experiment.job", str(job)],
            env=environment,
            stdin=subprocess.PIPE,  # closed when this process is no more
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Process:
    """A run in a process on this machine; a ``Task``."""

    def __init__(self, folder: ExperimentFolder, place: str, threads: int) -> None:
        """Start it."""
        self._folder, self._place = folder, place
        self._process = begin(folder.job(place), folder.log(place), threads)

    def poll(self) -> Outcome | None:
        """How it ended; None while it goes on."""
        code = self._process.poll()
        if code is None:
            return None
        self._close()
        return outcome(self._folder, self._place, code)

    def stop(self) -> None:
        """End it and what it started."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


class Submitit:
    """A cluster, or this machine as if it were one."""

    def __init__(self, plan: ExperimentPlan, folder: ExperimentFolder) -> None:
        """Open it.

        Raises:
            InputError: submitit is not installed, or does not know its parameters.
        """
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise InputError(
                'engine submitit: is not installed: pip install "defect-toolkit[cluster]"'
            ) from error
        self._folder = folder
        try:
            self._executor: Any = submitit.AutoExecutor(
                folder.root / "cluster", cluster=plan.cluster
            )
            self._executor.update_parameters(**plan.submitit)
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"submitit: {reason}: correct its parameters or cluster") from error

    def start(self, place: str) -> Task:
        """Submit the run of a place."""
        job = self._executor.submit(OnCluster(self._folder.job(place), self._folder.log(place)))
        return _Submitted(self._folder, place, job)


class OnCluster:
    """What a job of the cluster does; one that ran out of time is submitted again, and goes on."""

    def __init__(self, job: Path, log: Path) -> None:
        """As of ``begin``."""
        self._job, self._log = job, log

    def __call__(self) -> int:
        """Run the process of a run; its exit code."""
        return begin(self._job, self._log, None).wait()

    def checkpoint(self) -> Any:
        """What submitit submits instead, when the time is over."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Submitted:
    """A job of submitit; a ``Task``."""

    def __init__(self, folder: ExperimentFolder, place: str, job: Any) -> None:
        self._folder, self._place, self._job = folder, place, job

    def poll(self) -> Outcome | None:
        if not self._job.done():
            return None
        error = self._job.exception()
        if error is None:
            return outcome(self._folder, self._place, self._job.result())
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Outcome(lines[-1])

    def stop(self) -> None:
        self._job.cancel()


def outcome(folder: ExperimentFolder, place: str, code: int) -> Outcome:
    """How the process of a run ended.

    Args:
        folder: of the experiment.
        place: of the run.
        code: exit code of its process.
    """
    if code == 0 and folder.finished(place):
        return Outcome()
    if code < 0:
        name = signal.Signals(-code).name
        return Outcome(f"was ended by {name}: where nobody did that, memory was too small")
    said = folder.log(place).read_text("utf-8", errors="replace").strip().splitlines()
    return Outcome(said[-1].removeprefix("error: ") if said else f"ended with code {code}")
