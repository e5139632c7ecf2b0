"""Starter weights: small models pretrained on procedural pictures alone, part of the package.

A file is safetensors in half precision with the parameter names of its architecture; what is needed
to build the model again lies in its metadata as JSON. Beside each lies its card: data, recipe,
seed, figures and licence. The package works without the files: then there is only ``none``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from converters.errors import InputError
from converters.files import write_bytes
from toolkit.runs import ADAPT, is_run_of

STARTER = "starter"
"""What ``--weights`` takes for them."""

Name: TypeAlias = Literal["yolo_world_n", "sam_nano", "resnet18"]

FOLDER = Path(__file__).parent


def starter_path(name: Name) -> Path:
    """Where a starter's file lies.

    Raises:
        InputError: this installation came without it.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(
            f"{path}: this installation has no starter weights: give --weights none, "
            "or the run folder of a `toolkit pretrain` of yours"
        )
    return path


def is_pretrained(weights: str, command: str) -> bool:
    """Whether weights have most still to learn: the starter, or a run of ``command`` or ``adapt``.

    The former have seen procedural pictures alone; the latter have been moved to other pictures
    without the task.
    """
    return weights == STARTER or any(is_run_of(Path(weights), each) for each in (command, ADAPT))


def read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a packed model, in single precision, and its description.

    Raises:
        InputError: the file is damaged or no packed model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["description"])
            names = list(file.keys())
            tensors = {name: _widened(file.get_tensor(name)) for name in names}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged or no packed model: install again") from error
    return tensors, description


def write_packed(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write a model in half precision, in one step."""
    packed = {name: _narrowed(tensor.detach().cpu()) for name, tensor in tensors.items()}
    write_bytes(path, save(packed, metadata={"description": json.dumps(description)}))


def _narrowed(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
