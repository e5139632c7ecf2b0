"""Training in two processes on the CPU, started by torchrun and by us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from toolkit.config import FinetuneYoloConfig
from toolkit.detect import finetune_yolo
from toolkit.detect.data import DefectImages, Draw, EpochDraws
from toolkit.processes import launch, own_device, place

MakeDataset = Callable[..., Path]
ROOT = Path(__file__).parents[3]


def _options(data: Path, out: str, **more: Any) -> dict[str, Any]:
    options = {"epochs": 2, "image_size": 64, "batch": 8, "workers": 0, "weights": "starter"}
    return {"data": str(data), "out": str(data.parent / out), "device": "cpu", **options, **more}


def _environment(**more: str) -> dict[str, str]:
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


@pytest.mark.parametrize(("pictures", "world"), [(16, 2), (15, 2), (16, 3), (1, 4)])
def test_processes_take_turns_in_the_same_epoch(pictures: int, world: int) -> None:
    factors = [1.0] * pictures
    for epoch in (0, 5):
        whole = list(EpochDraws(factors, 3, epoch))
        ranks = [EpochDraws(factors, 3, epoch, rank=rank, world=world) for rank in range(world)]
        parts = [list(draws) for draws in ranks]
        assert {len(draws) for draws in ranks} == {len(part) for part in parts}
        assert len(parts[0]) == -(-pictures // world)
        together = [draw for step in zip(*parts, strict=True) for draw in step]
        assert together[:pictures] == whole  # step by step the batches of one process
        assert set(together) == set(whole)


PROGRAM = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from toolkit.config import FinetuneYoloConfig
from toolkit.detect import finetune_yolo
from toolkit.detect.data import DefectImages, Draw
from toolkit.detect.trainer import OfflineWorldTrainer, unwrap_model
from toolkit.processes import place

class Stopped(Exception):
    pass

def record(self, index):
    if isinstance(index, Draw):
        shown.append(list(index))
    return item(self, index)

def stop(self):
    found = validate(self)
    if stops and self.epoch == 1:
        raise Stopped
    return found

def keep(self):
    train(self)
    kept.update({f"model.{n}": t for n, t in unwrap_model(self.model).named_parameters()})
    kept.update({f"average.{n}": t for n, t in self.ema.ema.state_dict().items()})

item, validate = DefectImages.__getitem__, OfflineWorldTrainer.validate
train = OfflineWorldTrainer.train
DefectImages.__getitem__ = record
OfflineWorldTrainer.validate, OfflineWorldTrainer.train = stop, keep
for options, stops in json.loads(sys.argv[1]):
    shown, kept = [], {}
    config = FinetuneYoloConfig(**options)
    name = f"{config.out}-{place().rank}"
    try:
        finetune_yolo(config)
    except Stopped:
        Path(f"{name}.json").write_text(json.dumps(shown))
    else:
        weights = {n: t.detach().clone().contiguous() for n, t in kept.items()}
        save_file(weights, f"{name}.safetensors")
"""
"""Fine-tunes several times, and writes what each process was shown and came to."""


def test_two_processes_train_one_model(
    make_dataset: MakeDataset,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One test for what takes one long run: under torchrun, stopped in epoch 2 and resumed."""
    data = make_dataset(good=2, per_kind=3)  # one batch per epoch
    program = data.parent / "program.py"
    program.write_text(PROGRAM)
    runs = [
        (_options(data, "part"), True),
        (_options(data, "part", resume=True), False),
        (_options(data, "prompt", mode="prompt", epochs=1), False),
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(program), json.dumps(runs)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/2") == done.stderr.count("epoch 2/2") == 1  # one speaks
    part = data.parent / "part"
    log = [json.loads(line) for line in (part / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]

    # Both have the same weights in the end; statistics of batch normalisation are their own.
    for run, learnt in {"part": "model.model.0.conv.weight", "prompt": "model.prompts"}.items():
        first, second = (load_file(data.parent / f"{run}-{rank}.safetensors") for rank in (0, 1))
        shared = {name for name in first if "running_" not in name}
        assert all(torch.equal(first[name], second[name]) for name in shared)
        state = load_file(data.parent / run / "checkpoints" / "last.safetensors")
        assert torch.equal(first[learnt], state[learnt])

    # Together they saw what one process sees, batch by batch.
    shown: list[list[int]] = []
    plain = DefectImages.__getitem__

    def record(self: DefectImages, index: int | Draw) -> Any:
        if isinstance(index, Draw):
            shown.append(list(index))
        return plain(self, index)

    monkeypatch.setattr(DefectImages, "__getitem__", record)
    finetune_yolo(FinetuneYoloConfig(**_options(data, "single")))
    parts = [json.loads((data.parent / f"part-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(shown) == 16
    assert [draw for step in zip(*parts, strict=True) for draw in step] == shown

    # A run that nobody stopped, in processes that we start, comes to the very weights.
    options = _options(data, "whole", device="cpu,cpu", track=["tensorboard"])
    capfd.readouterr()
    run = finetune_yolo(FinetuneYoloConfig(**options))
    assert capfd.readouterr().err.count("epoch 2/2") == 1
    whole, resumed = (load_file(r / "checkpoints/best.safetensors") for r in (run.root, part))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert run.config()["device"] == "cpu,cpu"
    assert len(list((run.root / "tensorboard").iterdir())) == 1
    assert (run.predictions / "test.json").is_file()

    # What goes wrong in them is raised here, once.
    with pytest.raises(InputError, match=r"^[^\n]*whole: exists and is not empty: choose another"):
        finetune_yolo(FinetuneYoloConfig(**options))
    assert capfd.readouterr().err == ""


def test_what_several_processes_cannot_do_is_refused(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    with pytest.raises(
        InputError, match=r"batch: 9 pictures cannot be shared by 2 .* give 8 or 10"
    ):
        finetune_yolo(FinetuneYoloConfig(**_options(data, "run", device="cpu,cpu", batch=9)))
    with pytest.raises(InputError, match="names cuda:1 twice"):
        finetune_yolo(FinetuneYoloConfig(**_options(data, "run", device="cuda:1,cuda:1")))
    if torch.cuda.device_count() < 100:
        with pytest.raises(InputError, match="device cuda:99: PyTorch sees"):
            finetune_yolo(FinetuneYoloConfig(**_options(data, "run", device="cuda:99,cuda:100")))
    assert not (data.parent / "run").exists()
    here = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    assert place().rank == 3 and not place().leads
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [own_device(name) for name in ("cpu", "cuda", "auto", "cuda:4,cuda:6")] == [
        "cpu",
        "cuda:1",
        "cuda:1",
        "cuda:6",
    ]
    with pytest.raises(InputError, match="device cuda:0: 2 processes on this machine cannot share"):
        own_device("cuda:0")
    with pytest.raises(InputError, match="device cuda:8: PyTorch sees 8"):  # of the other process
        own_device("cuda:8,cuda:1")


FUNCTIONS = """
import os, signal, time
from pathlib import Path
from converters.errors import InputError
from toolkit.processes import joined, mean_of_all, place

def other(config):
    rank = place().rank
    Path(config.out, f"pid-{rank}").write_text(str(os.getpid()))
    if rank == 0:
        time.sleep(60)
    return rank == 1

def refuses(config):
    if other(config):
        raise InputError("DATA: has no defects")

def fails(config):
    if other(config):
        raise ValueError("a bug")

def dies(config):
    import torch
    with joined(torch.device("cpu")):
        if place().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        mean_of_all(torch.ones(3))

def waits(config):
    Path(config.out, f"pid-{place().rank}").write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinetuneYoloConfig:
    """Put the functions where the processes find them."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return FinetuneYoloConfig(data=tmp_path, out=tmp_path)


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("refuses", InputError, "^DATA: has no defects$"),
        ("fails", RuntimeError, "(?s)a process of this training failed:.*ValueError: a bug"),
        ("dies", InputError, "process 1 of 2 was ended by SIGKILL: .* smaller --batch"),
    ],
)
def test_one_process_that_fails_ends_all(
    functions: FinetuneYoloConfig,
    capfd: pytest.CaptureFixture[str],
    function: str,
    kind: type[Exception],
    message: str,
) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=message):
        launch(f"functions:{function}", functions, ["cpu", "cpu"])
    assert time.monotonic() - began < 45
    assert "Traceback" not in capfd.readouterr().err
    for path in functions.out.glob("pid-*"):
        assert not _alive(int(path.read_text()))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux who lives")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(
    functions: FinetuneYoloConfig, end: signal.Signals
) -> None:
    code = (
        # A shell starts what runs in the background with SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from toolkit.config import FinetuneYoloConfig as C; "
        "from toolkit.processes import launch; "
        "launch('functions:waits', C(data=sys.argv[1], out=sys.argv[1]), ['cpu', 'cpu'])"
    )
    environment = _environment(PYTHONPATH=f"{ROOT}{os.pathsep}{functions.out}")
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(functions.out)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    files = [functions.out / f"pid-{rank}" for rank in (0, 1)]
    _until(lambda: all(file.is_file() and file.read_text() for file in files))
    parent.send_signal(end)
    parent.wait(20)
    _until(lambda: not any(_alive(int(file.read_text())) for file in files))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
