"""The one training loop that the learning commands share, on Lightning Fabric.

A ``Task`` says what is learnt; ``fit`` does the rest: learning-rate schedule, mixed precision,
gradient accumulation and clipping, one process or several (``toolkit.processes``), log, best
checkpoint, early stop, and a state from which a killed run goes on to the very weights of the run
that was never killed.

That needs no saved random generator: whatever is random derives from (seed, epoch, batch). The
state is one safetensors file, replaced in one step, so a kill at any moment leaves the state of
the last whole epoch.

Several processes share out the batches of an epoch; see ``turns``. The first one validates,
logs and writes, the others wait and hear what came of it; all end with the same model.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from converters.errors import InputError
from converters.files import write_bytes, write_text
from toolkit.config import Config
from toolkit.console import note
from toolkit.devices import has_bfloat16
from toolkit.processes import (
    Place,
    as_first,
    check_shared,
    check_there,
    gradient_options,
    place,
)
from toolkit.runs import WERE_TEXT, RunFolder, recorded_values

if TYPE_CHECKING:
    from lightning_fabric import Fabric

GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm, over all parameters together."""

WARMUP_SHARE = 0.05
"""Share of the steps over which the learning rate rises to its peak."""

MOMENTUM = 0.9
"""Of SGD."""

PLATEAU_FACTOR = 0.1
"""What a plateau of the score multiplies the learning rate by."""

Optimizer: TypeAlias = Literal["AdamW", "Adam", "SGD"]
"""Who follows the gradients: AdamW decouples weight decay from them (Loshchilov and Hutter, ICLR
2019), Adam and SGD add it to them."""

Decay: TypeAlias = Literal["cosine", "plateau", "constant"]
"""How the learning rate falls after its warm-up: see ``Schedule``."""

B = TypeVar("B")


class Task(Protocol[B]):
    """What is learnt. Parameters with ``requires_grad`` learn; the others are left alone."""

    @property
    def model(self) -> nn.Module:
        """The model, on its device."""

    @property
    def steps(self) -> int:
        """Batches per epoch, in all processes together."""

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[B]:
        """Batches of an epoch, both counted from 0; the same ones at every call, in any process.

        Args:
            epoch: which.
            numbers: of the batches, each below ``steps``; all of them in order where not given,
                as always in a training of one process.
        """

    def losses(self, batch: B) -> dict[str, Tensor]:
        """Scalars to log; ``loss`` is the one that is minimised."""

    def validate(self) -> dict[str, float]:
        """Metrics on val, to log; called without gradients, in the first process alone."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        epochs: passes over the training data.
        learning_rate: peak of a linear warm-up, after which it falls as ``decay`` says.
        weight_decay: vectors (biases, norms) are spared.
        patience: epochs without a better score before stopping early.
        score: metric of ``Task.validate`` that chooses the best checkpoint; higher is better.
        seed: of everything random inside the steps.
        average: decay per step of a moving average of the weights, which is then what is validated
            and kept; None keeps the weights themselves.
        accumulate: batches per process and optimiser step, which follows the mean of their
            gradients. Batches count alike, also a last one that is smaller.
        optimizer: who follows the gradients.
        decay: as a cosine to zero ("cosine"), to a tenth after every third of the patience, two
            epochs at least, without a better score ("plateau"), or never ("constant").
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    patience: int
    score: str
    seed: int
    average: float | None = None
    accumulate: int = 1
    optimizer: Optimizer = "AdamW"
    decay: Decay = "cosine"

    def rate(self, step: int, steps: int, cuts: int = 0) -> float:
        """Learning rate of a step, from 0, out of ``steps``, after so many cuts on a plateau."""
        peak = self.learning_rate * PLATEAU_FACTOR**cuts
        warmup = max(1, round(WARMUP_SHARE * steps))
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.decay != "cosine":
            return peak
        progress = (step - warmup) / max(1, steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))

    def cuts_after(self, progress: Progress) -> bool:
        """Whether the rate is cut after an epoch, because the score stands still."""
        still = progress.epoch - progress.best_epoch
        return self.decay == "plateau" and still > 0 and still % max(2, self.patience // 3) == 0


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: whole epochs done.
        best_score, best_epoch: the best validation so far; epochs count from 1, 0 is before any.
        cuts: how often the learning rate was cut on a plateau of the score.
    """

    epoch: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    cuts: int = 0


class Average:
    """A moving average of what of a model learns, that forgets its random start soon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the model; ``decay`` per step, 0 to 1."""
        self.tensors = {name: tensor.clone() for name, tensor in _learnt_state(model).items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model after a step, counted from 0 over the whole training."""
        share = 1 - min(self._decay, (1 + step) / (10 + step)) if step else 1.0
        for name, current in _learnt_state(model).items():
            mine = self.tensors[name]
            mine.copy_(mine.lerp(current, share) if mine.is_floating_point() else current)

    @contextmanager
    def held_by(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold the average for a while."""
        own = {name: tensor.clone() for name, tensor in _learnt_state(model).items()}
        model.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)


def whole_model(model: nn.Module) -> dict[str, bytes]:
    """A model as the one file ``best.safetensors``, by its name."""
    return {"best.safetensors": packed(model.state_dict())}


class Turn(NamedTuple):
    """What a process does with one batch of an epoch.

    Attributes:
        step: the optimiser step that it is for, from 0 in this epoch.
        number: of the batch, from 0 in this epoch.
        weight: of its gradient.
        last: whether the step follows.
    """

    step: int
    number: int
    weight: float
    last: bool


def turns(batches: int, accumulate: int, here: Place) -> list[Turn]:
    """Which batches of an epoch a process takes, and what they count.

    An optimiser step takes the next ``accumulate`` batches of each process in turn; the last step
    of an epoch takes what is left. Its gradient is the mean over these batches, each counting
    alike, however they fall to processes: the weights allow for the mean over the processes, which
    follows. Gradients are exchanged by all, so a process that has nothing left takes the last batch
    once more, at weight 0.

    Args:
        batches: of an epoch, in all processes together.
        accumulate: batches per process and step.
        here: the process.
    """
    found = []
    for step, start in enumerate(range(0, batches, accumulate * here.world)):
        end = min(start + accumulate * here.world, batches)
        for first in range(start, end, here.world):
            number, weight = first + here.rank, here.world / (end - start)
            if number >= end:
                number, weight = end - 1, 0.0
            found.append(Turn(step, number, weight, last=first + here.world >= end))
    return found


def fit(
    task: Task[B],
    schedule: Schedule,
    run: RunFolder,
    *,
    resume: bool = False,
    rate_factors: Mapping[str, float] | None = None,
    kept: Callable[[nn.Module], Mapping[str, bytes]] = whole_model,
) -> Progress:
    """Train; afterwards ``checkpoints/best.safetensors`` holds the whole best model.

    In a training of several processes all of them call this, each with a task of its own on its own
    device, within ``toolkit.processes.joined``.

    Args:
        task: what is learnt; its model ends with the weights of the last epoch.
        schedule: how long and how fast.
        run: where log and checkpoints go.
        resume: go on from ``checkpoints/last.safetensors``, where there is one.
        rate_factors: what the learning rate of a parameter is multiplied by, by its name in the
            model; 1 where a parameter is not named.
        kept: the files, by name, that a model is kept as in ``checkpoints/`` when it is the best so
            far.

    Raises:
        InputError: the state to resume from is damaged or of another model; the loss is no longer
            finite; a tracker cannot start; memory is too small; the run folder is not the same on
            all machines.
    """
    here = place()
    optimizer = _optimizer(task.model, schedule, rate_factors or {})
    state = run.checkpoints / "last.safetensors"
    progress = Progress()
    average = None if schedule.average is None else Average(task.model, schedule.average)
    if resume and state.is_file():
        progress = _load_state(state, task.model, optimizer, average)
        note(f"resuming after epoch {progress.epoch} of {schedule.epochs}")
    device = next(task.model.parameters()).device
    check_shared(run, progress.epoch, device)
    if here.leads:
        trim_log(run, progress.epoch)
    with run.tracked(progress.epoch) if here.leads else nullcontext(), memory_told(device):
        learner = Learner(task, optimizer, device, here)
        return _epochs(learner, schedule, run, average, progress, kept)


@contextmanager
def memory_told(device: torch.device, remedy: str = "a smaller --batch") -> Iterator[None]:
    """Say in one line that memory was too small.

    Args:
        device: whose memory.
        remedy: what to give instead.

    Raises:
        InputError: it was.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own kinds are of the first one
        told = str(error).lower()
        short = "out of memory" in told or "not enough memory" in told
        if isinstance(error, RuntimeError) and not short:
            raise
        raise InputError(
            f"{device}: out of memory: give {remedy}, and another --out (a run keeps its own)"
        ) from error


class _Given(Generic[B]):
    """A batch, closed to Fabric and DDP, which would convert the tensors that they find."""

    def __init__(self, batch: B) -> None:
        self.batch = batch


class _Losses(nn.Module, Generic[B]):
    """The losses of a task as the forward of a module, around which gradients are exchanged."""

    def __init__(self, task: Task[B]) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, given: _Given[B]) -> dict[str, Tensor]:
        return self._task.losses(given.batch)


class Learner(Generic[B]):
    """A task as Fabric runs it in this process: mixed precision, gradients, words to the others."""

    def __init__(
        self, task: Task[B], optimizer: torch.optim.Optimizer, device: torch.device, here: Place
    ) -> None:
        """Set up the task, whose model is on the device; it keeps its names and its parameters."""
        self.task, self.optimizer, self.device, self.here = task, optimizer, device, here
        self._fabric = _fabric(device, here)
        self._losses, self._stepper = self._fabric.setup(
            _Losses(task), optimizer, move_to_device=False
        )
        optimizer.zero_grad(set_to_none=True)

    def batches(self, epoch: int, turns: Sequence[Turn]) -> Iterator[B]:
        """The batches that these turns are about."""
        if self.here.world == 1:
            return self.task.batches(epoch)
        return self.task.batches(epoch, [turn.number for turn in turns])

    def backward(self, batch: B, weight: float, *, last: bool) -> dict[str, Tensor]:
        """The losses of a batch; adds its gradient, times a weight.

        Args:
            batch: one of the task's.
            weight: of its gradient.
            last: whether the step follows, for which processes exchange their gradients.
        """
        with self._fabric.no_backward_sync(self._losses, enabled=not last):
            losses: dict[str, Tensor] = self._losses(_Given(batch))
            self._fabric.backward(losses["loss"] * weight)
        return {name: value.detach() for name, value in losses.items()}

    def step(self) -> None:
        """Follow the gradients, no further than ``GRADIENT_NORM``, and forget them."""
        self._fabric.clip_gradients(
            self._losses, self._stepper, max_norm=GRADIENT_NORM, error_if_nonfinite=False
        )
        self._stepper.step()
        self.optimizer.zero_grad(set_to_none=True)

    def means(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        """Sums over what each process has seen, to means over what all have: ``count`` of it."""
        names = sorted(sums)
        total = self._fabric.all_reduce(
            torch.stack([sums[name] for name in names]), reduce_op="sum"
        )
        assert isinstance(total, Tensor)
        return dict(zip(names, (total / count).tolist(), strict=True))

    def told(self, progress: Progress) -> Progress:
        """What the first process has come to; buffers of the model (running means) are its, too."""
        as_first(self.task.model.buffers())
        return self._fabric.broadcast(progress)


def _fabric(device: torch.device, here: Place) -> Fabric:
    """Fabric on the device of this process, which the user's or our launcher has started."""
    # Here, because it takes seconds, and commands that do not train import this module too.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy
    from lightning_fabric.strategies.strategy import Strategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    strategy: Strategy = SingleDeviceStrategy(device)
    # Said, not looked for: one process in a job of SLURM is no part of a training of many.
    alone: list[Any] = [LightningEnvironment()] if here.world == 1 else []
    if here.world > 1:
        strategy = DDPStrategy(
            parallel_devices=[device] * here.local_world,
            cluster_environment=TorchElasticEnvironment(),  # variables that our launcher sets, too
            **gradient_options(),
        )
    fabric = Fabric(
        accelerator=device.type,
        strategy=strategy,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        num_nodes=here.world // here.local_world,
        precision="bf16-mixed" if has_bfloat16(device) else "32-true",
        plugins=alone,
    )
    fabric.launch()
    return fabric


def _epochs(
    learner: Learner[B],
    schedule: Schedule,
    run: RunFolder,
    average: Average | None,
    progress: Progress,
    kept: Callable[[nn.Module], Mapping[str, bytes]],
) -> Progress:
    """The epochs that are left."""
    task, optimizer = learner.task, learner.optimizer
    steps = turns(task.steps, schedule.accumulate, learner.here)[-1].step + 1
    while progress.epoch < schedule.epochs:
        if progress.epoch - progress.best_epoch >= schedule.patience:
            note(f"no better {schedule.score} for {schedule.patience} epochs: stopping")
            break
        started = time.monotonic()
        losses = _train_epoch(learner, schedule, average, progress.epoch, progress.cuts)
        progress = replace(progress, epoch=progress.epoch + 1)
        if learner.here.leads:
            with torch.no_grad(), average.held_by(task.model) if average else nullcontext():
                metrics = task.validate()
                score = metrics[schedule.score]
                if score > progress.best_score:
                    progress = replace(progress, best_score=score, best_epoch=progress.epoch)
                    for name, content in kept(task.model).items():
                        write_bytes(run.checkpoints / name, content)
            if schedule.cuts_after(progress):
                progress = replace(progress, cuts=progress.cuts + 1)
            seconds = time.monotonic() - started
            rate = max(group["lr"] for group in optimizer.param_groups)
            _report(run, schedule, progress, {**losses, **metrics}, rate, seconds, steps)
            state = _pack_state(task.model, optimizer, average, progress)
            write_bytes(run.checkpoints / "last.safetensors", state)
        progress = learner.told(progress)
    return progress


def _train_epoch(
    learner: Learner[B], schedule: Schedule, average: Average | None, epoch: int, cuts: int
) -> dict[str, float]:
    """One pass over the batches, after ``cuts`` of the rate; the mean of every loss."""
    task, optimizer = learner.task, learner.optimizer
    own = turns(task.steps, schedule.accumulate, learner.here)
    steps = own[-1].step + 1
    sums: dict[str, Tensor] = {}
    for turn, batch in zip(own, learner.batches(epoch, own), strict=True):
        torch.manual_seed(schedule.seed * 1_000_003 + epoch * task.steps + turn.number)
        losses = learner.backward(batch, turn.weight, last=turn.last)
        for name, value in losses.items():
            counted = value if turn.weight else torch.zeros_like(value)
            sums[name] = sums.get(name, torch.zeros((), device=learner.device)) + counted
        if turn.last:
            step = epoch * steps + turn.step
            for group in optimizer.param_groups:
                rate = schedule.rate(step, schedule.epochs * steps, cuts)
                group["lr"] = rate * group["rate_factor"]
            learner.step()
            if average is not None:
                average.update(task.model, step)
    means = learner.means(sums, task.steps)
    if not math.isfinite(means["loss"]):
        raise InputError(
            f"epoch {epoch + 1}: the loss is no longer finite: lower the learning rate"
        )
    return means


def _optimizer(
    model: nn.Module, schedule: Schedule, rate_factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    """The optimiser, with a group for each factor of the rate, of matrices and of vectors."""
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = parameter.ndim <= 1, rate_factors.get(name, 1.0)
            found.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": found[vectors, factor],
            "weight_decay": 0.0 if vectors else schedule.weight_decay,
            "rate_factor": factor,
        }
        for vectors, factor in sorted(found)
    ]
    if schedule.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=MOMENTUM)
    kind = torch.optim.Adam if schedule.optimizer == "Adam" else torch.optim.AdamW
    return kind(groups, lr=schedule.learning_rate)


def _report(
    run: RunFolder,
    schedule: Schedule,
    progress: Progress,
    values: dict[str, float],
    rate: float,
    seconds: float,
    steps: int,
) -> None:
    record = {"epoch": progress.epoch, "step": progress.epoch * steps, **values}
    run.log({**record, "learning_rate": rate, "seconds": round(seconds, 3)})
    best = " (best)" if progress.best_epoch == progress.epoch else ""
    note(
        f"epoch {progress.epoch}/{schedule.epochs}: loss {values['loss']:.4f}, "
        f"{schedule.score} {values[schedule.score]:.4f}{best}, {seconds:.1f} s"
    )


def packed(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors, wherever they lie, as the content of a safetensors file."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(whole, metadata=metadata)


def _learnt_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: the model's state without its frozen parameters."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def _pack_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    progress: Progress,
) -> bytes:
    """Model, optimiser and progress in one safetensors file, so that they cannot disagree."""
    tensors = {f"model.{name}": tensor for name, tensor in _learnt_state(model).items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    return packed(tensors, {"progress": json.dumps(asdict(progress))})


def _load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> Progress:
    """Put a packed state back into the model, its fresh optimiser and average."""
    damaged = f"{path}: is damaged: remove it to start again"
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(damaged) from error
    weights = _part(tensors, "model.")
    shapes = {name: tensor.shape for name, tensor in _learnt_state(model).items()}
    parts = [weights] if average is None else [weights, _part(tensors, "average.")]
    if any({name: tensor.shape for name, tensor in part.items()} != shapes for part in parts):
        raise InputError(f"{path}: is the state of another model: choose another run folder")
    model.load_state_dict(weights, strict=False)
    if average is not None:
        for name, tensor in parts[1].items():
            average.tensors[name].copy_(tensor)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return progress


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def trim_log(run: RunFolder, epochs: int) -> None:
    """Drop what was logged after the state that training goes on from."""
    path = run.root / "log.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut short
            if json.loads(line)["epoch"] <= epochs:
                kept.append(line + "\n")
    write_text(path, "".join(kept))


def _defaults(config: Config) -> dict[str, Any]:
    """As a run records them."""
    fields = type(config).model_fields.items()
    return {
        name: to_jsonable_python(field.default) for name, field in fields if not field.is_required()
    }


def shared_run(
    here: Place, root: Path, command: str, config: Config, free: Collection[str], *, resume: bool
) -> RunFolder:
    """The run folder of a training: the first process makes it, unless it is there to go on with.

    Args:
        here: this process.
        root: the folder.
        command: whose run it is ("finetune sam").
        config: of the command.
        free: fields that may differ when a run goes on.
        resume: whether to go on with a run that is there.

    Raises:
        InputError: it holds a run already, cannot be written to, is not the same on all machines,
            or cannot be gone on with (``check_resumable``).
    """
    with here.in_turn():
        run = RunFolder(root)
        if here.leads:
            run = RunFolder.create(root, command, config, resume=resume)
        check_there(run)
    check_resumable(run, command, config, free)
    return run


def check_resumable(run: RunFolder, command: str, config: Config, free: Collection[str]) -> None:
    """Refuse to go on with a run under another configuration.

    Args:
        run: an existing run.
        command: whose run it shall be ("finetune sam").
        config: what it shall go on with.
        free: fields that may differ, because they do not change what is learnt.

    Raises:
        InputError: it is a run of another command, or another field differs.
    """
    recorded = run.config()
    if recorded.get("command") != command:
        raise InputError(
            f"{run.root}: is a run of `toolkit {recorded.get('command')}`, not of "
            f"`toolkit {command}`: choose another run folder"
        )
    # A field that is younger than the run had no other value than its default then.
    recorded = {**_defaults(config), **recorded}
    values = recorded_values(config, run.root)
    for name, given in config.model_dump(mode="json").items():
        value, before = values[name], recorded.get(name)
        as_given = name in WERE_TEXT and before == given
        if name not in free and before != value and not as_given:
            raise InputError(
                f"{run.root}: was started with {name} {recorded.get(name)!r}, not {value!r}: "
                "resume with the same, or choose another run folder"
            )
