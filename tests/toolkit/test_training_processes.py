"""Gradient accumulation, and training in two processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from converters.errors import InputError
from toolkit import processes, training
from toolkit.classify import finetune as classify_finetune
from toolkit.classify import finetune_classifier
from toolkit.classify.pretrain import pretrain_classifier
from toolkit.config import (
    FinetuneClassifierConfig,
    FinetuneSamConfig,
    PretrainClassifierConfig,
    PretrainSamConfig,
    PretrainYoloConfig,
)
from toolkit.detect.pretrain import pretrain_yolo
from toolkit.pretraining import new_pictures, share_of
from toolkit.processes import Place, own_device
from toolkit.runs import RunFolder
from toolkit.segment import finetune_sam
from toolkit.segment.model import ARCHITECTURES, Architecture, build_sam
from toolkit.segment.pretrain import pretrain_sam
from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain
from toolkit.training import Schedule, fit, turns

MakeDataset = Callable[..., Path]
ROOT = Path(__file__).parents[2]


class MeanTask:
    """Fit a line to 20 points, with a mean loss; not all weights take part in every batch."""

    def __init__(self, batch: int, *, noisy: bool = False) -> None:
        torch.manual_seed(7)
        layers: list[nn.Module] = [nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)]
        if noisy:  # what a state must hold, and what differs between processes
            layers[1:1] = [nn.BatchNorm1d(8), nn.Dropout(0.3)]
        self.model = nn.ModuleDict({"net": nn.Sequential(*layers)})
        self.model["seldom"], self.model["never"] = nn.Linear(2, 1), nn.Linear(2, 1)
        self.batch = batch
        self.steps = -(-20 // batch)

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Tensor]:
        points = torch.randn(20, 2, generator=torch.Generator().manual_seed(epoch))
        parts = points.split(self.batch)
        yield from (parts[n] for n in (range(self.steps) if numbers is None else numbers))

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        self.model.train()
        found = self.model["net"](batch)
        if (batch[:, 0] > 1).any():
            found = found + self.model["seldom"](batch) * (batch[:, :1] > 1)
        error = (found - batch.sum(1, keepdim=True)).square().mean()
        return {"loss": error, "half": error.detach() / 2}

    def validate(self) -> dict[str, float]:
        self.model.eval()
        points = torch.randn(20, 2, generator=torch.Generator().manual_seed(99))
        error = self.model["net"](points) - points.sum(1, keepdim=True)
        return {"score": -error.square().mean().item()}


def _schedule(**options: Any) -> Schedule:
    values = {"epochs": 4, "learning_rate": 0.02, "weight_decay": 0.01, "patience": 10}
    return Schedule(**{**values, "score": "score", "seed": 3, **options})


def _fit(path: Path, task: MeanTask, *, resume: bool = False, **options: Any) -> RunFolder:
    path.mkdir(exist_ok=resume)
    run = RunFolder(path)
    fit(task, _schedule(**options), run, resume=resume)
    return run


def _log(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _state(path: Path, name: str = "last") -> dict[str, Tensor]:
    return load_file(path / "checkpoints" / f"{name}.safetensors")


def _farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Single precision everywhere; threads only slow down models so small."""
    monkeypatch.setattr(training, "has_bfloat16", lambda device: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("batches", [1, 2, 5, 12])
def test_every_batch_counts_once_and_all_of_a_step_alike(
    batches: int, accumulate: int, world: int
) -> None:
    ranks = [turns(batches, accumulate, Place(rank, world, rank, world)) for rank in range(world)]
    assert len({tuple((t.step, t.last) for t in own) for own in ranks}) == 1  # all exchange at once
    counted = [turn for own in ranks for turn in own if turn.weight]
    assert sorted(turn.number for turn in counted) == list(range(batches))
    for step in range(-(-batches // (accumulate * world))):
        of_step = [turn for turn in counted if turn.step == step]
        assert all(turn.weight / world == pytest.approx(1 / len(of_step)) for turn in of_step)
        assert min(turn.number for turn in of_step) == step * accumulate * world
    assert all(0 <= turn.number < batches for own in ranks for turn in own)


def test_two_batches_accumulated_are_one_of_twice_the_size(tmp_path: Path) -> None:
    once = _fit(tmp_path / "once", MeanTask(8))
    twice = _fit(tmp_path / "twice", MeanTask(4), accumulate=2)
    other = _fit(tmp_path / "other", MeanTask(4))
    assert _farthest(_state(once.root), _state(twice.root)) < 1e-6
    assert _farthest(_state(once.root), _state(other.root)) > 1e-2
    assert [r["step"] for r in _log(twice)] == [r["step"] for r in _log(once)] == [3, 6, 9, 12]
    for a, b in zip(_log(once), _log(twice), strict=True):
        assert a["learning_rate"] == b["learning_rate"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


class Killed(Exception):
    pass


def _stop_before(epoch: int, patch: pytest.MonkeyPatch) -> None:
    train_epoch = training._train_epoch

    def stop(learner: Any, schedule: Schedule, average: Any, number: int) -> dict[str, float]:
        if number == epoch:
            raise Killed
        return train_epoch(learner, schedule, average, number)

    patch.setattr(training, "_train_epoch", stop)


def test_a_run_that_accumulates_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"accumulate": 2, "average": 0.9}
    whole = _fit(tmp_path / "whole", MeanTask(4, noisy=True), **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _stop_before(2, patch)
        _fit(tmp_path / "killed", MeanTask(4, noisy=True), **options)
    killed = _fit(tmp_path / "killed", MeanTask(4, noisy=True), resume=True, **options)
    for name in ("last", "best"):
        assert _farthest(_state(whole.root, name), _state(killed.root, name)) == 0


TINY = (64, 8, 32, 2, 2, (1,), 4, 32, 64)
"""A nano that trains in seconds."""

PROGRAM = """
import json, sys
from pathlib import Path
import pytest
import torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[2])
import test_training_processes as t
from toolkit import cli, training
from toolkit.processes import joined, place
from toolkit.segment.pretrain import pretrain_sam
from toolkit.segment.model import ARCHITECTURES, Architecture

torch.set_num_threads(1)
training.has_bfloat16 = lambda device: False
ARCHITECTURES["nano"] = Architecture(*t.TINY, dense_boxes=True, zoom=2.0)
root, rank = Path(sys.argv[1]), place().rank

def refuse():
    raise AssertionError("the first process validates")

def fit(name, task, **options):
    if rank:
        task.validate = refuse
    with joined(torch.device("cpu")) as here:
        with here.in_turn():
            if here.leads:
                (root / name).mkdir(exist_ok=True)
                (root / name / "config.yaml").touch()
        t._fit(root / name, task, **{"resume": True, **options})
    save_file(task.model.state_dict(), root / f"{name}-{rank}.safetensors")

fit("plain", t.MeanTask(4))
fit("accumulated", t.MeanTask(2), accumulate=2)
noisy = {"accumulate": 2, "average": 0.9}
fit("whole", t.MeanTask(4, noisy=True), **noisy)
with pytest.MonkeyPatch.context() as patch, pytest.raises(t.Killed):
    t._stop_before(2, patch)
    fit("killed", t.MeanTask(4, noisy=True), **noisy)
fit("killed", t.MeanTask(4, noisy=True), **noisy)
fit("stopped", t.MeanTask(4), patience=1, learning_rate=1e-30)
for words in json.loads(sys.argv[3]):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
"""
"""What each of two processes does under torchrun; what it comes to, it writes."""


@pytest.fixture
def zoomed(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Architecture(*TINY, dense_boxes=True, zoom=2.0)
    monkeypatch.setitem(ARCHITECTURES, "nano", tiny)


def _environment() -> dict[str, str]:
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [sys.executable, *torchrun, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        timeout=300,
    )


def test_two_processes_come_to_what_one_comes_to(
    make_dataset: MakeDataset, tmp_path: Path, zoomed: None
) -> None:
    """One test for what takes one start of torchrun."""
    data = make_dataset(good=4, per_kind=4)  # 12 pictures, eight prompts: batches of four
    torch.manual_seed(5)
    torch.save(build_sam("nano").state_dict(), tmp_path / "nano.pth")
    # Without noise on boxes, and without random views, which batches draw for themselves.
    options = {"weights": str(tmp_path / "nano.pth"), "box_jitter": 0.0, "epochs": 2, "batch": 4}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    sam = ["finetune", "sam", f"--data={data}", f"--out={tmp_path / 'sam'}", *flags]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # The head alone learns from pictures as they are: batch normalisation has no part in it.
    start = finetune_classifier(_classifier(data, tmp_path / "start", epochs=1))
    head = {**HEAD, "weights": str(start.root)}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in head.items()]
    flags += ["--epochs=2", "--image-size=32", "--no-augment", "--no-class-weights"]
    classifier = ["finetune", "classifier", f"--data={data}", f"--out={tmp_path / 'two'}", *flags]
    words = json.dumps([[*c, "--device=cpu", "--workers=0"] for c in (sam, classifier)])
    done = _torchrun(str(program), str(tmp_path), str(Path(__file__).parent), words)
    assert done.returncode == 0, done.stderr
    assert "distributed_backend" not in done.stdout + done.stderr  # Fabric's own words

    # Batches of four in each of two, or twice two: the steps of one process with batches of eight.
    one = _fit(tmp_path / "one", MeanTask(8))
    for name in ("plain", "accumulated"):
        assert _farthest(_state(tmp_path / name), _state(one.root)) < 1e-5
        for a, b in zip(_log(one), _log(RunFolder(tmp_path / name)), strict=True):
            assert [a[n] for n in ("epoch", "step", "learning_rate")] == [
                b[n] for n in ("epoch", "step", "learning_rate")
            ]
            assert a["score"] == pytest.approx(b["score"], abs=1e-4)
            assert b["half"] == pytest.approx(b["loss"] / 2)

    # Losses are means over the batches of all processes.
    four = _log(_fit(tmp_path / "four", MeanTask(4), learning_rate=1e-30))
    assert _log(RunFolder(tmp_path / "stopped"))[0]["loss"] == pytest.approx(four[0]["loss"])

    # All processes end with the same model, the one that is saved, under its own names.
    for name in ("plain", "accumulated", "whole", "killed"):
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert _farthest(first, second) == 0
        saved = _state(tmp_path / name)
        kept = {n.removeprefix("model."): t for n, t in saved.items() if n.startswith("model.")}
        assert _farthest(kept, first) == 0

    # A run of two processes that was killed goes on to the weights of the one that was not.
    for name in ("last", "best"):
        assert _farthest(_state(tmp_path / "whole", name), _state(tmp_path / "killed", name)) == 0
    assert [r["epoch"] for r in _log(RunFolder(tmp_path / "killed"))] == [1, 2, 3, 4]
    assert len(_log(RunFolder(tmp_path / "stopped"))) < 4  # the first one says so to the other

    # One process goes on with what two have done.
    for name in ("plain", "one"):
        _fit(tmp_path / name, MeanTask(8), epochs=6, resume=True)
    assert _farthest(_state(tmp_path / "plain"), _state(one.root)) < 1e-5
    assert len(_log(one)) == 6

    # The command, with a batch that the two share, is that of one process.
    run = finetune_sam(
        FinetuneSamConfig(data=data, out=tmp_path / "alone", device="cpu", workers=0, **options)
    )
    start = torch.load(tmp_path / "nano.pth")
    alone, shared = _state(run.root, "best"), _state(tmp_path / "sam", "best")
    moved = max((alone[name] - start[name]).abs().max().item() for name in start)
    assert _farthest(alone, shared) < 1e-5 < 1e-4 < moved
    plain = {"augment": (), "class_weights": "none"}
    run = finetune_classifier(_classifier(data, tmp_path / "single", **head, **plain))
    before, alone, shared = (_state(tmp_path / n, "best") for n in ("start", "single", "two"))
    assert _farthest(alone, shared) < 1e-5 < 1e-4 < _farthest(before, alone)
    assert [r["step"] for r in _log(run)] == [2, 4]

    assert done.stderr.count("epoch 2/2") == 2
    assert (tmp_path / "two/predictions/test_images.csv").is_file()
    for split in ("val", "test"):
        assert (tmp_path / "sam/predictions" / f"{split}.json").is_file()


@pytest.mark.parametrize(
    ("train", "config"),
    [
        (finetune_sam, FinetuneSamConfig(data=Path("d"), out=Path("r"), device="cpu,cpu")),
        (
            finetune_classifier,
            FinetuneClassifierConfig(data=Path("d"), out=Path("r"), device="cpu,cpu"),
        ),
        (pretrain_sam, PretrainSamConfig(out=Path("r"), device="cpu,cpu")),
        (pretrain_classifier, PretrainClassifierConfig(out=Path("r"), device="cpu,cpu")),
        (pretrain_yolo, PretrainYoloConfig(out=Path("r"), device="cpu,cpu")),
    ],
)
def test_each_device_that_is_named_gets_a_process_that_does_the_same(
    monkeypatch: pytest.MonkeyPatch, train: Callable[[Any], RunFolder], config: Any
) -> None:
    started: list[tuple[str, Any, Sequence[str]]] = []
    monkeypatch.setattr(processes, "launch", lambda *arguments: started.append(arguments))
    assert train(config).root == Path("r")
    [(function, given, devices)] = started
    module, name = function.split(":")
    assert getattr(import_module(module), name) is train
    assert given is config and list(devices) == ["cpu", "cpu"]


HEAD: dict[str, Any] = {"train": "head", "accumulate": 2, "batch": 4}


def _classifier(data: Path, out: Path, **options: Any) -> FinetuneClassifierConfig:
    values = {"image_size": 32, "batch": 4, "epochs": 2, "device": "cpu", "workers": 0, **options}
    return FinetuneClassifierConfig(data=data, out=out, **values)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    config = FinetuneSamConfig(data=tmp_path, out=tmp_path / "run", batch=5, device="cpu,cpu")
    with pytest.raises(InputError, match=r"batch: 5 prompts .* by 2 processes: give 4 or 6"):
        finetune_sam(config)
    assert not (tmp_path / "run").exists()


def test_a_picture_for_each_process_is_too_few_for_batch_normalisation(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    config = _classifier(make_dataset(), tmp_path / "run", batch=2)
    with pytest.raises(InputError, match=r"batch: 2 pictures .* of 2 processes, .* give 4 or more"):
        classify_finetune._finetune(config, torch.device("cpu"), Place(0, 2, 0, 2))
    assert not (tmp_path / "run").exists()


def test_more_processes_than_devices_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cuda"):
        said = f"^device {device}: 3 processes [^\n]* sees 2 CUDA devices: start 2 [^\n]*$"
        with pytest.raises(InputError, match=said):
            own_device(device)


def _pictures(samples: Sequence[Sample], _: int) -> list[np.ndarray]:
    return [sample.image for sample in samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_pretraining_processes_see_together_what_one_would_see(
    tmp_path: Path, workers: int
) -> None:
    config = PretrainSamConfig(out=tmp_path, batch=8, piece=3, workers=workers)
    domain = SourceDomain(32)
    whole = list(new_pictures(domain, _pictures, config, 1))
    shared = share_of(config, Place(0, 2, 0, 2))
    ranks = []
    for rank in (0, 1):
        own = [turn.number for turn in turns(shared.piece, 1, Place(rank, 2, rank, 2))]
        ranks.append(list(new_pictures(domain, _pictures, shared, 1, own)))
    together = [first + second for first, second in zip(*ranks, strict=True)]
    assert len(whole) == len(together) == 3
    assert np.array_equal(np.array(whole), np.array(together))


def test_what_does_not_train_does_not_wait_for_fabric() -> None:
    code = "import sys, toolkit.training; assert 'lightning_fabric' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())
