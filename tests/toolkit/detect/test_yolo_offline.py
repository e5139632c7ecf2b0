"""ultralytics outside of pytest, where it does send analytics and write into the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]

SCRIPT = """
import os, socket, subprocess, sys
import torch  # looks for the loader's library in a process of its own
attempts = []
def refuse(*args, **kwargs):
    attempts.append(str(args))
    raise OSError("switched off")
socket.socket.connect = socket.getaddrinfo = subprocess.Popen._execute_child = refuse
sys.modules["clip"] = None
cores = torch.get_num_threads()
from toolkit.config import FinetuneYoloConfig
from toolkit.detect import finetune_yolo
finetune_yolo(FinetuneYoloConfig(
    data=sys.argv[1], out=sys.argv[2], epochs=1, image_size=64, batch=4, device="cpu"
))
from ultralytics.utils import SETTINGS_FILE, TESTS_RUNNING
from ultralytics.utils.events import events
assert not TESTS_RUNNING
assert not events.enabled and not events.events
assert torch.get_num_threads() == cores and "OMP_NUM_THREADS" not in os.environ
assert not attempts, attempts
print(SETTINGS_FILE.parent.parent)
"""


def test_nothing_is_sent_and_nothing_is_written_outside_the_run(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_dataset(good=1, per_kind=1)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    unset = ("OMP_NUM_THREADS", "YOLO_", "XDG_", "PYTEST_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unset)}
    environment.update(HOME=str(home), USERPROFILE=str(home), PYTHONPATH=str(REPOSITORY))
    environment["MPLCONFIGDIR"] = str(tmp_path / "matplotlib")  # its font list is its own affair

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), str(tmp_path / "run")],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == [] and list(work.rglob("*")) == []
    assert not Path(done.stdout.strip()).exists()  # the settings went with the process
    lines = done.stderr.splitlines()
    assert len(lines) == 2, lines  # what it starts from, and one line per epoch
    assert lines[1].startswith("epoch 1/1: box_loss ")


def test_other_libraries_open_pictures_as_before() -> None:
    import PIL.Image

    import toolkit.detect  # noqa: F401

    assert PIL.Image.open.__module__ == "PIL.Image"
