"""Weights of SAM on disk: random, an official file, or a run of ours.

Checkpoints of ours hold the official parameter names, so that a ``vit_b`` run opens in plain
segment-anything::

    from safetensors.torch import load_file
    from segment_anything import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    sam.load_state_dict(load_file("RUN/checkpoints/best.safetensors"))

a ``vit_t`` run in the same way in ``mobile_sam``, and a ``sam2.1_t`` run in ``sam2``, in what
``build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml")`` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

from torch import Tensor

from converters.errors import InputError
from converters.files import read_json
from toolkit.known_weights import located
from toolkit.outlines import without_outlines
from toolkit.runs import ADAPT, RunFolder
from toolkit.segment.model import ARCHITECTURES, ArchitectureName, build_sam
from toolkit.segment.sam import Sam
from toolkit.starter import STARTER, read_packed, starter_path
from toolkit.weights import fill, read_state

COMMAND = "finetune sam"
PRETRAIN = "pretrain sam"

Loaded: TypeAlias = tuple[Sam, ArchitectureName]

_POSITIONS = ("image_encoder.pos_embed", "image_encoder.trunk.pos_embed")
"""Learnt positions of SAM and of SAM 2; MobileSAM has none."""


def load_sam(weights: str | Path) -> Loaded:
    """Build the SAM that a file or a run holds.

    Args:
        weights: "starter", a run folder of ``finetune sam``, ``pretrain sam`` or ``adapt``, or a
            file in an official format: the pickled state_dict that segment-anything
            (``sam_vit_b_01ec64.pth``) and MobileSAM (``mobile_sam.pt``) publish, or SAM 2's, which
            is under "model" (``sam2.1_hiera_tiny.pt``).

    Raises:
        InputError: there is no such thing, it is damaged, or it is not a SAM of a known
            architecture.
    """
    if str(weights) == STARTER:
        return _load_starter(starter_path("sam_nano"))
    source = located(str(weights))
    if not source.exists():
        raise InputError(
            f"{source}: no such weights: give an official file (sam_vit_b_01ec64.pth), "
            "a run folder of `toolkit finetune sam`, starter, or none"
        )
    if source.is_dir():
        return _load_run(source)
    state = read_state(source, "segment-anything, MobileSAM or SAM 2", inside="model")
    return _fill(source, _recognise(source, state), state)


def _load_starter(path: Path) -> Loaded:
    state, description = read_packed(path)
    name = description.get("architecture")
    if name not in ARCHITECTURES:
        raise InputError(f"{path}: names no known architecture: install again")
    return _fill(path, cast(ArchitectureName, name), state)


def _load_run(root: Path) -> Loaded:
    run = RunFolder.open(root, COMMAND, PRETRAIN, ADAPT)
    description = run.checkpoints / "model.json"
    content = read_json(description)
    name = content.get("architecture") if isinstance(content, dict) else None
    if name not in ARCHITECTURES:
        raise InputError(f"{description}: names no known architecture: fine-tune again")
    path = run.checkpoints / "best.safetensors"
    state = without_outlines(read_state(path, "the toolkit"))
    return _fill(path, cast(ArchitectureName, name), state)


def _recognise(path: Path, state: Mapping[str, Tensor]) -> ArchitectureName:
    """The architecture that a state looks like."""
    for name, a in ARCHITECTURES.items():
        if a.recognises(state):
            return name
    positions = next((each for each in _POSITIONS if each in state), None)
    if positions is None:
        raise InputError(f"{path}: is not a SAM (no {_POSITIONS[0]}): give an official SAM file")
    raise InputError(
        f"{path}: is a SAM of no known architecture ({positions} "
        f"{list(state[positions].shape)}): give one of {', '.join(ARCHITECTURES)}"
    )


def _fill(path: Path, name: ArchitectureName, state: Mapping[str, Tensor]) -> Loaded:
    sam = build_sam(name)
    fill(path, name, sam, state)
    return sam, name
