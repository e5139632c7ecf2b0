"""Weights of SAM on disk: random, an official file, or a run of ours.

Checkpoints of ours hold the official parameter names, so that a ``vit_b`` run opens in plain
segment-anything::

    from safetensors.torch import load_file
    from segment_anything import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    sam.load_state_dict(load_file("RUN/checkpoints/best.safetensors"))
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

from converters.errors import InputError
from converters.files import read_json
from toolkit.outlines import without_outlines
from toolkit.runs import RunFolder
from toolkit.segment.model import ARCHITECTURES, ArchitectureName, build_sam
from toolkit.starter import STARTER, read_packed, starter_path

COMMAND = "finetune sam"
PRETRAIN = "pretrain sam"

_POSITIONS = "image_encoder.pos_embed"


def load_sam(weights: str | Path) -> tuple[Sam, ArchitectureName]:
    """Build the SAM that a file or a run holds.

    Args:
        weights: "starter", a run folder of ``finetune sam`` or ``pretrain sam``, or a file in the
            official format: the pickled state_dict that segment-anything publishes
            (``sam_vit_b_01ec64.pth``).

    Raises:
        InputError: there is no such thing, it is damaged, or it is not a SAM of a known
            architecture.
    """
    if str(weights) == STARTER:
        return _load_starter(starter_path("sam_nano"))
    source = Path(weights)
    if not source.exists():
        raise InputError(
            f"{source}: no such weights: give an official file (sam_vit_b_01ec64.pth), "
            "a run folder of `toolkit finetune sam`, starter, or none"
        )
    if source.is_dir():
        return _load_run(source)
    state = _read_pickle(source)
    return _fill(source, _recognise(source, state), state)


def _load_starter(path: Path) -> tuple[Sam, ArchitectureName]:
    state, description = read_packed(path)
    name = description.get("architecture")
    if name not in ARCHITECTURES:
        raise InputError(f"{path}: names no known architecture: install again")
    return _fill(path, cast(ArchitectureName, name), state)


def _load_run(root: Path) -> tuple[Sam, ArchitectureName]:
    run = RunFolder.open(root, COMMAND, PRETRAIN)
    description = run.checkpoints / "model.json"
    content = read_json(description)
    name = content.get("architecture") if isinstance(content, dict) else None
    if name not in ARCHITECTURES:
        raise InputError(f"{description}: names no known architecture: fine-tune again")
    path = run.checkpoints / "best.safetensors"
    try:
        state = without_outlines(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is damaged: copy it or fine-tune again") from error
    return _fill(path, cast(ArchitectureName, name), state)


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: is damaged, or holds more than tensors: give an official SAM file"
        ) from error
    except Exception as error:  # bytes that are no pickle make an unpickler raise nearly anything
        raise InputError(f"{path}: is damaged or no PyTorch file: download it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{path}: is not a state_dict: give an official SAM file")
    return state


def _recognise(path: Path, state: Mapping[str, Tensor]) -> ArchitectureName:
    """The architecture whose position embedding has the shape of the file's."""
    if _POSITIONS not in state:
        raise InputError(f"{path}: is not a SAM (no {_POSITIONS}): give an official SAM file")
    shape = tuple(state[_POSITIONS].shape)
    for name, a in ARCHITECTURES.items():
        if shape == (1, a.grid, a.grid, a.width):
            return name
    raise InputError(
        f"{path}: is a SAM of no known architecture ({_POSITIONS} {list(shape)}): "
        f"give one of {', '.join(ARCHITECTURES)}"
    )


def _fill(path: Path, name: ArchitectureName, state: Mapping[str, Tensor]) -> tuple[Sam, Any]:
    """Load a state into its architecture; every name and shape must fit."""
    sam = build_sam(name)
    expected = sam.state_dict()
    problems = [f"lacks {key}" for key in expected if key not in state]
    problems += [f"has unknown {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(f"{path}: looks like {name} but {problems[0]}{more}: get a whole file")
    sam.load_state_dict(state)
    return sam, name
