"""The one training loop that the learning commands share.

A ``Task`` says what is learnt; ``fit`` does the rest: learning-rate schedule, mixed precision,
gradient clipping, log, best checkpoint, early stop, and a state from which a killed run goes on
to the very weights of the run that was never killed.

That needs no saved random generator: whatever is random derives from (seed, epoch, step). The
state is one safetensors file, replaced in one step, so a kill at any moment leaves the state of
the last whole epoch.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from converters.errors import InputError
from converters.files import write_bytes, write_text
from toolkit.config import Config
from toolkit.console import note
from toolkit.devices import has_bfloat16
from toolkit.runs import RunFolder

GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm, over all parameters together."""

WARMUP_SHARE = 0.05
"""Share of the steps over which the learning rate rises to its peak."""

B = TypeVar("B")


class Task(Protocol[B]):
    """What is learnt. Parameters with ``requires_grad`` learn; the others are left alone."""

    @property
    def model(self) -> nn.Module:
        """The model, on its device."""

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""

    def batches(self, epoch: int) -> Iterator[B]:
        """The batches of an epoch, from 0: ``steps`` of them, the same ones at every call."""

    def losses(self, batch: B) -> dict[str, Tensor]:
        """Scalars to log; ``loss`` is the one that is minimised."""

    def validate(self) -> dict[str, float]:
        """Metrics on val, to log; called without gradients."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        epochs: passes over the training data.
        learning_rate: peak of a linear warm-up and a cosine decay to zero.
        weight_decay: of AdamW; vectors (biases, norms) are spared.
        patience: epochs without a better score before stopping early.
        score: metric of ``Task.validate`` that chooses the best checkpoint; higher is better.
        seed: of everything random inside the steps.
        average: decay per step of a moving average of the weights, which is then what is validated
            and kept; None keeps the weights themselves.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    patience: int
    score: str
    seed: int
    average: float | None = None

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, from 0, out of ``steps``."""
        warmup = max(1, round(WARMUP_SHARE * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: whole epochs done.
        best_score, best_epoch: the best validation so far; epochs count from 1, 0 is before any.
    """

    epoch: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0


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
            finite; a tracker cannot start; memory is too small.
    """
    optimizer = _optimizer(task.model, schedule, rate_factors or {})
    state = run.checkpoints / "last.safetensors"
    progress = Progress()
    average = None if schedule.average is None else Average(task.model, schedule.average)
    if resume and state.is_file():
        progress = _load_state(state, task.model, optimizer, average)
        note(f"resuming after epoch {progress.epoch} of {schedule.epochs}")
    trim_log(run, progress.epoch)
    device = next(task.model.parameters()).device
    with run.tracked(progress.epoch), memory_told(device):
        return _epochs(task, schedule, run, optimizer, average, progress, kept)


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


def _epochs(
    task: Task[B],
    schedule: Schedule,
    run: RunFolder,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    progress: Progress,
    kept: Callable[[nn.Module], Mapping[str, bytes]],
) -> Progress:
    """The epochs that are left."""
    state = run.checkpoints / "last.safetensors"
    while progress.epoch < schedule.epochs:
        if progress.epoch - progress.best_epoch >= schedule.patience:
            note(f"no better {schedule.score} for {schedule.patience} epochs: stopping")
            break
        started = time.monotonic()
        losses = _train_epoch(task, schedule, optimizer, progress.epoch, average)
        progress = replace(progress, epoch=progress.epoch + 1)
        with torch.no_grad(), average.held_by(task.model) if average else nullcontext():
            metrics = task.validate()
            score = metrics[schedule.score]
            if score > progress.best_score:
                progress = replace(progress, best_score=score, best_epoch=progress.epoch)
                for name, content in kept(task.model).items():
                    write_bytes(run.checkpoints / name, content)
        seconds = time.monotonic() - started
        rate = max(group["lr"] for group in optimizer.param_groups)
        _report(run, schedule, progress, {**losses, **metrics}, rate, seconds, task.steps)
        write_bytes(state, _pack_state(task.model, optimizer, average, progress))
    return progress


def _train_epoch(
    task: Task[B],
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    average: Average | None,
) -> dict[str, float]:
    """One pass over the batches; the mean of every loss."""
    device = next(task.model.parameters()).device
    learnt = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sums: dict[str, Tensor] = {}
    for step, batch in enumerate(task.batches(epoch), start=epoch * task.steps):
        torch.manual_seed(schedule.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            rate = schedule.rate(step, schedule.epochs * task.steps)
            group["lr"] = rate * group["rate_factor"]
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            losses = task.losses(batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learnt, GRADIENT_NORM)
        optimizer.step()
        if average is not None:
            average.update(task.model, step)
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
    means = {name: (total / task.steps).item() for name, total in sums.items()}
    if not math.isfinite(means["loss"]):
        raise InputError(
            f"epoch {epoch + 1}: the loss is no longer finite: lower the learning rate"
        )
    return means


def _optimizer(
    model: nn.Module, schedule: Schedule, rate_factors: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW, with a group for each factor of the rate, of matrices and of vectors."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = parameter.ndim <= 1, rate_factors.get(name, 1.0)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": groups[vectors, factor],
                "weight_decay": 0.0 if vectors else schedule.weight_decay,
                "rate_factor": factor,
            }
            for vectors, factor in sorted(groups)
        ],
        lr=schedule.learning_rate,
    )


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
    fields = type(config).model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()}


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
    for name, value in config.model_dump(mode="json").items():
        if isinstance(getattr(config, name), Path):
            value = Path(os.path.relpath(value, run.root)).as_posix()
        if name not in free and recorded.get(name) != value:
            raise InputError(
                f"{run.root}: was started with {name} {recorded.get(name)!r}, not {value!r}: "
                "resume with the same, or choose another run folder"
            )
