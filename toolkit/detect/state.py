"""The state of a training of ultralytics in one file, from which it goes on to the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from ultralytics.utils.torch_utils import ModelEMA

from converters.errors import InputError


@dataclass(frozen=True)
class State:
    """What was kept after an epoch.

    Attributes:
        path: file that it was read from.
        tensors: of the model, its moving average and the optimiser.
        progress: numbers, by name.
    """

    path: Path
    tensors: dict[str, Tensor]
    progress: dict[str, Any]

    @property
    def epochs(self) -> int:
        """Whole epochs done."""
        return int(self.progress["epochs"])

    def restore(
        self, model: nn.Module, average: ModelEMA, optimizer: torch.optim.Optimizer
    ) -> None:
        """Put everything back in place.

        Raises:
            InputError: it is the state of another model.
        """
        try:
            model.load_state_dict(self._part("model."))
            average.ema.load_state_dict(self._part("average."))
        except RuntimeError as error:
            raise InputError(
                f"{self.path}: is the state of another model: choose another run folder"
            ) from error
        average.updates = int(self.progress["updates"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._part("optimizer.").items():
            number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
        own = optimizer.state_dict()["param_groups"]
        groups = [{**g, **kept} for g, kept in zip(own, self.progress["groups"], strict=True)]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def pack_state(
    model: nn.Module,
    average: ModelEMA,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
) -> bytes:
    """Everything in one safetensors file, so that its parts cannot disagree.

    Args:
        model: as it learns.
        average: moving average of its weights.
        optimizer: of its parameters.
        progress: numbers to keep beside, "epochs" and "stopped" among them.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.ema.state_dict().items()}
    content = optimizer.state_dict()
    for number, moments in content["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
    groups = [
        {name: value for name, value in group.items() if name in ("lr", "momentum", "initial_lr")}
        for group in content["param_groups"]
    ]
    metadata = {"progress": json.dumps({**progress, "updates": average.updates, "groups": groups})}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(kept, metadata)


def read_state(path: Path) -> State:
    """Read what ``pack_state`` made.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged: remove it to start again") from error
    return State(path, tensors, progress)
