"""What fine-tuning of a detector starts from: nothing, a starter, a run, or an official file."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import DetectionModel, WorldModel, torch_safe_load

from converters.errors import InputError
from toolkit.architectures import WORLD, scale_of
from toolkit.detect.embeddings import ANCHOR, EMBEDDING_SIZE, ClassEmbeddings
from toolkit.detect.models import (
    Scale,
    backbone_layers,
    build_model,
    build_plain,
    lower_scores,
    prepare_to_learn,
)
from toolkit.detect.weights import Origin, RunModel, StartingPoint, load_trained
from toolkit.known_weights import located
from toolkit.starter import STARTER

_STEM_CHANNELS: dict[int, Scale] = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}
_ENOUGH_SHARED = 0.95  # the same architecture of another ultralytics shares all; v1 shares 0.55
_ROWS = re.compile(r"\.(one2one_)?cv3\.\d+\.2\.(weight|bias)$|score_head|class_embed")
_CLASS_LAYERS = (".cv3.", ".one2one_cv3.", "score_head", "class_embed")
"""What depends on the number of classes in plain detectors."""


def load_starting_point(weights: str, scale: Scale, seed: int, trust: bool) -> StartingPoint:
    """Load what fine-tuning YOLO-World starts from.

    Args:
        weights: "none", "starter", an official ``.pt`` file, or one of our run folders. Those of a
            plain YOLOv8 give their backbone, which YOLO-World shares; the rest is random then.
        scale: of the model that "none" builds; any other weights have their own.
        seed: of random weights.
        trust: load a ``.pt`` file that holds more than ultralytics' and torch's own classes, which
            can run any code.

    Raises:
        InputError: the weights are missing, damaged, not to be trusted, or of another architecture.
    """
    if weights == "none":
        model = build_model(scale, seed)
        prepare_to_learn(model)
        lower_scores(model)
        return StartingPoint(model, scale, None, "random weights", "random")
    found = _open(weights, trust)
    if isinstance(found, RunModel):
        if found.arch != WORLD:
            return _from_plain(weights, found.model, seed)
        if found.pretrained:
            prepare_to_learn(found.model)
        return StartingPoint(
            found.model,
            found.scale,
            found.embeddings,
            _name(weights),
            "procedural" if found.pretrained else "photographs",
        )
    if isinstance(found, WorldModel):
        return _from_world(weights, found)
    return _from_plain(weights, found, seed)


def load_plain_start(
    arch: str, classes: tuple[str, ...], weights: str, seed: int, trust: bool
) -> StartingPoint:
    """Load what fine-tuning a plain detector starts from.

    Tensors are taken by name and shape, as ultralytics does, and the rows of a class by its name:
    those of classes that the weights do not know are random, and so are layers whose width depends
    on another number of classes.

    Args:
        arch: one of ``toolkit.architectures.PLAIN``.
        classes: in order.
        weights: as of ``load_starting_point``; of the same architecture, or of one with the same
            backbone, which is all that is taken then.
        seed: of random weights.
        trust: as of ``load_starting_point``.

    Raises:
        InputError: the weights are missing, damaged, not to be trusted, or of another architecture.
    """
    model = build_plain(arch, classes, seed)
    scale = scale_of(arch)
    if weights == "none":
        prepare_to_learn(model)
        return StartingPoint(model, scale, None, "random weights", "random", arch)
    found = _open(weights, trust)
    pretrained = isinstance(found, RunModel) and found.pretrained
    source = found.model if isinstance(found, RunModel) else found
    state, own = source.state_dict(), model.state_dict()
    rows = _class_rows(model)
    shared = {
        k: v for k, v in state.items() if k in own and v.shape == own[k].shape and k not in rows
    }
    needed = [k for k in own if not any(part in k for part in _CLASS_LAYERS)]
    if sum(k in shared for k in needed) < _ENOUGH_SHARED * len(needed):
        _take_backbone(model, state, weights, f"{arch} or of its backbone")
        prepare_to_learn(model)
        line = f"the backbone of {_name(weights)}"
        return StartingPoint(model, scale, None, line, "random", arch)
    known = _known_classes(source, classes)
    for name in rows & state.keys():
        if known and state[name].shape[1:] == own[name].shape[1:]:
            shared[name] = own[name].clone()
            for row, theirs in known.items():
                shared[name][row] = state[name][theirs]
    model.load_state_dict(shared, strict=False)
    if pretrained:
        prepare_to_learn(model)
    line = (
        f"{_name(weights)} ({len(shared)} of {len(own)} tensors, "
        f"{len(known)} of {len(classes)} classes)"
    )
    origin: Origin = "procedural" if pretrained else "photographs"
    return StartingPoint(model, scale, None, line, origin, arch)


def _class_rows(model: DetectionModel) -> set[str]:
    """Names of the tensors that have a row for each class."""
    head = f"model.{len(model.model) - 1}."
    return {name for name in model.state_dict() if name.startswith(head) and _ROWS.search(name)}


def _known_classes(source: DetectionModel, classes: tuple[str, ...]) -> dict[int, int]:
    """Which rows of other weights are for which of ours, by the names of the classes.

    What was found as "defect" is a start for every kind. The rows of YOLO-World are for no class.
    """
    if isinstance(source, WorldModel):
        return {}
    theirs = {name: index for index, name in enumerate(_class_names(source))}
    if tuple(theirs) == (ANCHOR,):
        return dict.fromkeys(range(len(classes)), 0)
    return {row: theirs[name] for row, name in enumerate(classes) if name in theirs}


def _class_names(model: DetectionModel) -> tuple[str, ...]:
    """What a checkpoint calls its classes, in order: a dictionary, of old ones a list."""
    names = getattr(model, "names", None)
    return tuple(map(str, names.values() if isinstance(names, dict) else names or ()))


def _name(weights: str) -> str:
    """Weights in a word."""
    path = located(weights)
    if weights == STARTER:
        return STARTER
    return f"run {path.name}" if path.is_dir() else path.name


def _open(weights: str, trust: bool) -> RunModel | DetectionModel:
    """One of our models, or the one that an official file holds."""
    path = located(weights)
    if weights == STARTER or path.is_dir():
        return load_trained(path)
    if path.suffix != ".pt":
        raise InputError(
            f'{weights}: is neither "none" nor "starter", nor a run folder, '
            "nor a .pt file of ultralytics"
        )
    if not path.is_file():
        raise InputError(
            f"{path}: no such file: download it from "
            f"https://github.com/ultralytics/assets/releases and put it there"
        )
    checkpoint = _read_checkpoint(path, trust)
    model = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(model, DetectionModel):
        raise InputError(
            f"{path}: holds a {type(model).__name__}, not a detector: give a file of YOLO-World v2 "
            "or of a plain detector"
        )
    return model.float()


def _read_checkpoint(path: Path, trust: bool) -> dict[str, Any]:
    """Unpickle a checkpoint of ultralytics, restricted to known classes unless it is trusted."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is damaged or not a PyTorch checkpoint: download it again")
    try:
        if trust:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            # By its full path: a damaged file of a bare name would be deleted and downloaded anew.
            content, _ = torch_safe_load(path.resolve(), safe_only=True)
    except (TypeError, ImportError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: holds more than ultralytics' own classes, so loading it could run any code: "
            "use an official file, or give --trust if you know where it is from"
        ) from error
    except (RuntimeError, EOFError, AttributeError) as error:
        raise InputError(
            f"{path}: is damaged or of an unknown ultralytics: download it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a checkpoint of ultralytics: give an official file")
    return content


def _take_backbone(
    model: DetectionModel, state: dict[str, torch.Tensor], weights: str, wanted: str
) -> None:
    """Load the backbone of other weights.

    Raises:
        InputError: it is another one.
    """
    layers = backbone_layers(model)
    own = {k: v for k, v in model.state_dict().items() if int(k.split(".")[1]) < layers}
    backbone = {k: state[k] for k, v in own.items() if k in state and state[k].shape == v.shape}
    if len(backbone) < len(own):
        raise InputError(
            f"{located(weights)}: only {len(backbone)} of {len(own)} tensors of its backbone fit: "
            f"give weights of {wanted}"
        )
    model.load_state_dict(backbone, strict=False)


def _from_plain(weights: str, source: DetectionModel, seed: int) -> StartingPoint:
    """The backbone of a plain YOLOv8, which YOLO-World shares; the rest is random."""
    state = source.state_dict()
    scale = _scale(state) or "n"
    model = build_model(scale, seed)
    _take_backbone(model, state, weights, f"{WORLD}, or of a plain YOLOv8 for its backbone")
    prepare_to_learn(model)
    lower_scores(model)
    return StartingPoint(model, scale, None, f"the backbone of {_name(weights)}", "random")


def _scale(state: dict[str, torch.Tensor]) -> Scale | None:
    """Scale of a YOLOv8 by the channels of its first layer."""
    stem = state.get("model.0.conv.weight")
    return None if stem is None else _STEM_CHANNELS.get(stem.shape[0])


def _from_world(weights: str, source: WorldModel) -> StartingPoint:
    """Transfer the weights of an official file by name and shape."""
    path = located(weights)
    state = source.state_dict()
    scale = _scale(state)
    if scale is None:
        raise InputError(f"{path}: is of no known scale: give a YOLO-World v2 file")
    model = build_model(scale)
    own = model.state_dict()
    shared = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if len(shared) < _ENOUGH_SHARED * len(own):
        raise InputError(
            f"{path}: only {len(shared)} of {len(own)} tensors fit {WORLD}: "
            "give a file of version 2 (…-worldv2.pt), not fused"
        )
    model.load_state_dict(shared, strict=False)
    line = f"{path.name} ({len(shared)} of {len(own)} tensors)"
    return StartingPoint(model, scale, _embeddings_of(source, path.name), line, "photographs")


def _embeddings_of(model: WorldModel, file_name: str) -> ClassEmbeddings | None:
    """Class embeddings that lie in a checkpoint; None where they do not match its class names."""
    vectors, names = getattr(model, "txt_feats", None), _class_names(model)
    if not isinstance(vectors, torch.Tensor) or vectors.shape != (1, len(names), EMBEDDING_SIZE):
        return None
    unit = torch.nn.functional.normalize(vectors[0].float(), dim=-1)
    return ClassEmbeddings(names, unit, (f"from {file_name}",) * len(names))
