"""State dicts on disk: read without running what is in them, and laid into a model whole."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from converters.errors import InputError


def read_state(path: Path, origin: str, inside: str | None = None) -> Mapping[str, Tensor]:
    """Tensors by name, from a safetensors file or from a pickled state dict.

    Args:
        path: safetensors where its name ends so, else a pickle, of which only tensors are taken.
        origin: where files of this kind come from, for the message ("torchvision").
        inside: what some authors put the state dict under in their pickles ("model"); a pickle
            without it is the state dict itself.

    Raises:
        InputError: it is damaged, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is damaged or no safetensors file: get it again") from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is damaged, or holds more than tensors: give a file of {origin}"
        ) from error
    except Exception as error:  # bytes that are no pickle make an unpickler raise nearly anything
        raise InputError(f"{path}: is damaged or no PyTorch file: get it again") from error
    if inside is not None and isinstance(state, Mapping):
        state = state.get(inside, state)
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{path}: is not a state_dict: give a file of {origin}")
    return state


def fill(path: Path, name: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state into a model of the architecture ``name``; every name and shape must fit.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or not finite.
    """
    expected = model.state_dict()
    problems = [f"lacks {key}" for key in expected if key not in state]
    problems += [f"has unknown {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems += [
        f"{key} has values that are not finite"
        for key, tensor in state.items()
        if key in expected and tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(f"{path}: looks like {name} but {problems[0]}{more}: get a whole file")
    model.load_state_dict(state)
