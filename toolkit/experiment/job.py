"""The process of one run: its command, then its scores, then its record; not for users.

It ends with the process that started it, which closes its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.files import read_json, write_json
from toolkit.experiment.folder import RESULT, lock


def do(path: Path) -> int:
    """Do what a file says (``ExperimentFolder.write_job``), unless it is done.

    Returns:
        the exit code: that of the command, or of scoring.
    """
    job = read_json(path)
    run = Path(job["run"])
    with lock(path.with_suffix(".lock"), wait=True):
        if (run / RESULT).is_file():
            return 0
        _remove_untouched(run)
        clock = _Clock(path.with_suffix(".clock"), run)
        code = _command([*job["command"].split(), "--config", job["config"], "--resume"])
        if code:
            return code
        scores = {}
        if job["scored"]:
            from toolkit.experiment.scores import score_run

            scores = score_run(run, Path(job["data"]), job["fold"], job["resamples"])
        record = {
            "command": job["command"],
            "digest": job["digest"],
            "identity": job["identity"],
            "exit_code": code,
            "seconds": round(clock.seconds(), 1),
            "scores": scores,
        }
        write_json(run / RESULT, record, indent=2)
    return 0


class _Clock:
    """Seconds spent on a run: those of this process, and of killed ones until what they left."""

    def __init__(self, path: Path, run: Path) -> None:
        before: Mapping[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        self._before = float(before.get("seconds", 0.0))
        log = run / "log.jsonl"
        if before and log.is_file():
            self._before += max(0.0, log.stat().st_mtime - before["began"])
        self._began = time.monotonic()
        write_json(path, {"began": time.time(), "seconds": self._before})

    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._began


def _remove_untouched(run: Path) -> None:
    """Remove what a process left that was killed before it had written its configuration."""
    if not run.is_dir() or (run / "config.yaml").exists():
        return
    for partial in run.glob(".*.partial"):
        partial.unlink()
    if not any(run.iterdir()):
        run.rmdir()


def _command(words: list[str]) -> int:
    """Run a command as the terminal does; its exit code."""
    from toolkit.cli import main

    try:
        main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _end_with_parent() -> None:
    """End this process and all that it started when its input is closed."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Run the job that the command line names."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from converters.errors import InputError

    try:
        code = do(Path(sys.argv[1]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
