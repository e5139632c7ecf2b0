from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from converters.errors import InputError
from toolkit import training
from toolkit.config import FinetuneSamConfig
from toolkit.devices import resolve_device
from toolkit.runs import RunFolder
from toolkit.training import Progress, Schedule, check_resumable, fit, memory_told


class LineTask:
    """Fit a line with a network that has all that a state must hold: dropout and running means."""

    steps = 5

    def __init__(self, scores=None):
        torch.manual_seed(7)
        self.model = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.model[0].bias.requires_grad_(False)
        self.scores = scores
        self.validations = 0

    def batches(self, epoch):
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps):
            x = torch.randn(16, 2, generator=generator)
            yield x, x.sum(1, keepdim=True)

    def losses(self, batch):
        self.model.train()
        error = (self.model(batch[0]) - batch[1]).square().mean()
        return {"loss": error, "half": error / 2}

    def validate(self):
        self.validations += 1
        if self.scores is not None:
            return {"score": self.scores[self.validations - 1]}
        self.model.eval()
        return {"score": -self.losses(next(self.batches(99)))["loss"].item()}


def _schedule(**options):
    values = {"epochs": 4, "learning_rate": 0.05, "weight_decay": 0.01, "patience": 10}
    return Schedule(**{**values, "score": "score", "seed": 3, **options})


def _run(path):
    path.mkdir()
    return RunFolder(path)


def _log(run):
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    pass


FACTORS = {"0.weight": 0.1, "4.bias": 0.5}


@pytest.mark.parametrize(("average", "factors"), [(None, None), (0.9, None), (0.9, FACTORS)])
@pytest.mark.parametrize("write", range(1, 8))
def test_a_run_killed_at_any_write_goes_on_to_the_same_weights(
    tmp_path, monkeypatch, write, average, factors
):
    whole, killed = _run(tmp_path / "whole"), _run(tmp_path / "killed")
    scores = [0.1, 0.3, 0.2, 0.4]  # best.safetensors is written in epochs 1, 2 and 4
    task = LineTask(scores)
    fit(task, _schedule(average=average), whole, rate_factors=factors)

    count = 0
    write_bytes = training.write_bytes

    def kill(path, content):
        nonlocal count
        count += 1
        if count == write:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.partial").write_bytes(content[: len(content) // 2])
            raise Killed
        write_bytes(path, content)

    monkeypatch.setattr(training, "write_bytes", kill)
    with pytest.raises(Killed):
        fit(LineTask(scores), _schedule(average=average), killed, rate_factors=factors)
    monkeypatch.undo()

    whole_epochs = [0, 0, 1, 1, 2, 3, 3][write - 1]
    again = LineTask(scores[whole_epochs:])
    schedule = _schedule(average=average)
    progress = fit(again, schedule, killed, resume=True, rate_factors=factors)
    assert progress == Progress(epoch=4, best_score=0.4, best_epoch=4)
    assert _same(again.model.state_dict(), task.model.state_dict())
    for name in ("best", "last"):
        file = f"checkpoints/{name}.safetensors"
        assert _same(load_file(whole.root / file), load_file(killed.root / file))
    timeless = [[{**r, "seconds": 0} for r in _log(run)] for run in (whole, killed)]
    assert timeless[0] == timeless[1]


def test_the_average_of_the_weights_is_validated_and_kept_while_the_weights_go_on(tmp_path):
    plain, averaged = _run(tmp_path / "plain"), _run(tmp_path / "averaged")
    task, other = LineTask([0.1, 0.2]), LineTask([0.1, 0.2])
    seen = []
    validate = other.validate

    def look():
        seen.append(other.model[0].weight.detach().clone())
        return validate()

    other.validate = look
    fit(task, _schedule(epochs=2), plain)
    fit(other, _schedule(epochs=2, average=0.5), averaged)

    assert _same(task.model.state_dict(), other.model.state_dict())
    kept = load_file(averaged.root / "checkpoints/best.safetensors")
    assert torch.equal(kept["0.weight"], seen[-1])
    assert not torch.equal(kept["0.weight"], other.model[0].weight)
    assert torch.allclose(kept["0.weight"], other.model[0].weight, atol=0.1)
    assert torch.equal(kept["1.num_batches_tracked"], other.model[1].num_batches_tracked)


def test_the_average_is_of_every_step_and_of_what_learns_alone(tmp_path):
    run, task = _run(tmp_path / "run"), LineTask([0.1, 0.2])
    seen = []
    losses = task.losses

    def look(batch):
        seen.append(task.model[0].weight.detach().clone())
        return losses(batch)

    task.losses = look
    fit(task, _schedule(epochs=2, average=0.5), run)
    weights = [*seen[1:], task.model[0].weight.detach()]  # after each of the ten steps
    average = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    state = load_file(run.checkpoints / "last.safetensors")
    assert torch.allclose(state["average.0.weight"], average, atol=1e-6)
    assert "average.0.bias" not in state


def test_a_state_without_its_average_is_refused(tmp_path):
    run = _run(tmp_path / "run")
    fit(LineTask(), _schedule(epochs=1), run)
    with pytest.raises(InputError, match="another model"):
        fit(LineTask(), _schedule(average=0.9), run, resume=True)


def test_parameters_learn_at_their_share_of_the_rate(tmp_path):
    tasks = [LineTask([0.1]), LineTask([0.1])]
    before = {name: t.clone() for name, t in tasks[0].model.state_dict().items()}
    for task, factors in zip(tasks, ({}, {"0.weight": 0.01, "4.bias": 1e-9}), strict=True):
        task.steps = 1  # the first step of Adam moves everything by the rate
        run = _run(tmp_path / str(len(factors)))
        fit(task, _schedule(epochs=1, weight_decay=0.0), run, rate_factors=factors)
        assert _log(run)[0]["learning_rate"] == 0.05  # the peak
    plain, slow = (
        {name: (t - before[name]).abs().max().item() for name, t in task.model.state_dict().items()}
        for task in tasks
    )
    assert slow["0.weight"] == pytest.approx(0.01 * plain["0.weight"], rel=1e-3)
    assert slow["4.bias"] < 1e-6 < plain["4.bias"]
    assert slow["4.weight"] == plain["4.weight"] == pytest.approx(0.05, rel=1e-3)


def test_what_is_kept_of_the_best_model_may_be_several_files(tmp_path):
    run, task = _run(tmp_path / "run"), LineTask([0.1, 0.9, 0.5])
    seen = []

    def kept(model):
        seen.append(model)
        return {"best.safetensors": b"best", "more.txt": str(len(seen)).encode()}

    fit(task, _schedule(epochs=3), run, kept=kept)
    assert seen == [task.model, task.model]  # once for each better score
    assert (run.checkpoints / "best.safetensors").read_bytes() == b"best"
    assert (run.checkpoints / "more.txt").read_bytes() == b"2"


def test_training_learns_and_logs_every_epoch(tmp_path):
    run = _run(tmp_path / "run")
    fit(LineTask(), _schedule(epochs=8, patience=99), run)
    log = _log(run)
    assert [record["epoch"] for record in log] == list(range(1, 9))
    assert log[-1]["step"] == 40
    assert log[-1]["score"] > log[0]["score"]
    assert log[-1]["half"] == pytest.approx(log[-1]["loss"] / 2)
    assert {"learning_rate", "seconds"} <= log[0].keys()


def test_the_best_checkpoint_is_whole_and_of_the_best_epoch(tmp_path):
    run = _run(tmp_path / "run")
    task = LineTask([0.1, 0.9, 0.5, 0.9])
    seen = []
    validate = task.validate

    def remember():
        seen.append({name: t.clone() for name, t in task.model.state_dict().items()})
        return validate()

    task.validate = remember
    fit(task, _schedule(), run)
    assert _same(load_file(run.checkpoints / "best.safetensors"), seen[1])


def test_it_stops_when_val_stops_improving_also_after_a_resume(tmp_path):
    run = _run(tmp_path / "run")
    task = LineTask([0.5, 0.4, 0.4, 0.9])
    assert fit(task, _schedule(patience=2), run) == Progress(3, 0.5, 1)
    again = LineTask([])
    assert fit(again, _schedule(patience=2), run, resume=True) == Progress(3, 0.5, 1)
    assert again.validations == 0


def test_frozen_parameters_stay_and_are_not_in_the_state(tmp_path):
    run = _run(tmp_path / "run")
    task = LineTask()
    before = task.model[0].bias.clone()
    fit(task, _schedule(), run)
    assert torch.equal(task.model[0].bias, before)
    state = load_file(run.checkpoints / "last.safetensors")
    assert "model.0.weight" in state
    assert "model.0.bias" not in state


def test_the_rate_rises_then_falls_to_zero():
    schedule = _schedule(learning_rate=1.0)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 1e-3


def test_the_rate_may_stay_at_its_peak():
    schedule = _schedule(learning_rate=1.0, decay="constant")
    assert schedule.rate(0, 100) == pytest.approx(0.2)
    assert {schedule.rate(step, 100) for step in range(4, 100)} == {1.0}


PLATEAUS = [0.5, 0.4, 0.3, 0.6, 0.1, 0.2, 0.3, 0.6, 0.5]
CUTS = [0, 0, 1, 1, 1, 2, 2, 3, 3]
"""With two epochs of patience: cuts after each epoch."""


def test_on_a_plateau_the_rate_is_cut_to_a_tenth_again_and_again(tmp_path):
    run = _run(tmp_path / "run")
    schedule = _schedule(epochs=9, learning_rate=1e-3, decay="plateau", patience=6)
    progress = fit(LineTask(PLATEAUS), schedule, run)
    assert progress == Progress(9, 0.6, 4, cuts=3)
    rates = [record["learning_rate"] for record in _log(run)]
    assert rates == pytest.approx([1e-3 * 0.1**cuts for cuts in [0, *CUTS[:-1]]])


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("epochs", [2, 3, 6])
def test_every_optimiser_resumes_to_the_same_weights_on_a_plateau(tmp_path, optimizer, epochs):
    whole, stopped = _run(tmp_path / "whole"), _run(tmp_path / "stopped")
    options = {"decay": "plateau", "patience": 6, "optimizer": optimizer, "learning_rate": 0.01}
    task = LineTask(PLATEAUS)
    fit(task, _schedule(epochs=9, **options), whole)

    class Stopped(LineTask):
        def batches(self, epoch):
            if epoch == epochs:
                raise Killed
            return super().batches(epoch)

    with pytest.raises(Killed):
        fit(Stopped(PLATEAUS), _schedule(epochs=9, **options), stopped)
    again = LineTask(PLATEAUS[epochs:])
    progress = fit(again, _schedule(epochs=9, **options), stopped, resume=True)
    assert progress.cuts == CUTS[-1]
    assert _same(again.model.state_dict(), task.model.state_dict())
    file = "checkpoints/last.safetensors"
    assert _same(load_file(whole.root / file), load_file(stopped.root / file))


@pytest.mark.parametrize(
    ("optimizer", "moved"),
    [
        # Where the loss is flat, AdamW shrinks a matrix by rate * decay; Adam's gradient is the
        # decay alone, whose size it does not see; SGD's is decay * weight.
        ("AdamW", lambda weight: 0.1 * 0.5 * weight),
        ("Adam", lambda weight: 0.1 * weight.sign()),
        ("SGD", lambda weight: 0.1 * 0.5 * weight),
    ],
)
def test_weight_decay_is_that_of_the_optimiser_and_spares_vectors(tmp_path, optimizer, moved):
    task = LineTask([0.1])
    task.steps = 1
    task.losses = lambda batch: {"loss": 0 * task.model(batch[0]).sum()}
    weight, bias = task.model[4].weight.detach().clone(), task.model[4].bias.detach().clone()
    schedule = _schedule(epochs=1, learning_rate=0.1, weight_decay=0.5, optimizer=optimizer)
    fit(task, schedule, _run(tmp_path / "run"))
    assert torch.allclose(weight - task.model[4].weight, moved(weight), atol=1e-5)
    assert torch.equal(task.model[4].bias, bias)


def test_sgd_has_momentum(tmp_path):
    task = LineTask([0.1])
    task.steps = 2
    slope = torch.full((1, 8), 0.01)
    task.losses = lambda batch: {"loss": (task.model[4].weight * slope).sum()}
    before = task.model[4].weight.detach().clone()
    schedule = _schedule(
        epochs=1, learning_rate=1.0, weight_decay=0.0, optimizer="SGD", decay="constant"
    )
    fit(task, schedule, _run(tmp_path / "run"))
    assert torch.allclose(before - task.model[4].weight, slope * (1 + 1 + 0.9), atol=1e-6)


def test_a_loss_that_explodes_is_an_error(tmp_path):
    task = LineTask()
    task.losses = lambda batch: {"loss": task.model(batch[0]).sum() * float("inf")}
    with pytest.raises(InputError, match="lower the learning rate"):
        fit(task, _schedule(), _run(tmp_path / "run"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_state_is_named(tmp_path, damage):
    run = _run(tmp_path / "run")
    fit(LineTask(), _schedule(epochs=1), run)
    path = run.checkpoints / "last.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"last\.safetensors: is damaged"):
        fit(LineTask(), _schedule(), run, resume=True)


def test_the_state_of_another_model_is_refused(tmp_path):
    run = _run(tmp_path / "run")
    fit(LineTask(), _schedule(epochs=1), run)
    other = LineTask()
    other.model[4] = nn.Linear(8, 2)
    with pytest.raises(InputError, match="another model"):
        fit(other, _schedule(), run, resume=True)


FREE = ("epochs", "resume")


class TestCheckResumable:
    def _config(self, tmp_path, **options):
        return FinetuneSamConfig(data=tmp_path / "data", out=tmp_path / "run", **options)

    def test_free_fields_may_change(self, tmp_path):
        config = self._config(tmp_path)
        run = RunFolder.create(config.out, "finetune sam", config)
        check_resumable(run, "finetune sam", self._config(tmp_path, epochs=9, resume=True), FREE)

    def test_others_may_not(self, tmp_path):
        config = self._config(tmp_path)
        run = RunFolder.create(config.out, "finetune sam", config)
        with pytest.raises(InputError, match="was started with batch 16, not 8: resume"):
            check_resumable(run, "finetune sam", self._config(tmp_path, batch=8), FREE)

    def test_a_run_of_another_command_is_refused(self, tmp_path):
        config = self._config(tmp_path)
        run = RunFolder.create(config.out, "finetune yolo", config)
        with pytest.raises(InputError, match="is a run of `toolkit finetune yolo`, not of"):
            check_resumable(run, "finetune sam", config, FREE)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match="device cuda:99: PyTorch sees"):
        resolve_device("cuda:99")
    with pytest.raises(InputError, match="is unknown"):
        resolve_device("toaster")


def test_memory_that_is_too_small_is_one_line() -> None:
    device = torch.device("cpu")
    said = "cpu: out of memory: give a smaller --batch, and another --out"
    with pytest.raises(InputError, match=said), memory_told(device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_told(device):
        raise RuntimeError("shapes cannot be multiplied")


def test_one_process_in_a_job_of_slurm_trains_alone(tmp_path, monkeypatch):
    for name, value in {"NTASKS": "4", "JOB_NAME": "job", "JOB_ID": "1", "PROCID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert fit(LineTask([0.1] * 4), _schedule(), _run(tmp_path / "run")).epoch == 4
