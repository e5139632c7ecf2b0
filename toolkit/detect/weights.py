"""YOLO-World v2 models: built, started from other weights, saved with a run and loaded again.

Reference: YOLO-World (arXiv 2401.17270), in the v2 architecture of ultralytics.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from ultralytics.nn.tasks import DetectionModel, WorldModel, torch_safe_load, yaml_model_load
from ultralytics.utils import ROOT

from converters.errors import InputError
from converters.files import read_json, write_bytes
from toolkit.detect.embeddings import (
    EMBEDDING_SIZE,
    MAX_CLASSES,
    ClassEmbeddings,
    read_embeddings,
)
from toolkit.detect.modes import BACKBONE, reparameterise
from toolkit.devices import has_bfloat16
from toolkit.known_weights import located
from toolkit.outlines import without_outlines
from toolkit.runs import RunFolder, is_run_of
from toolkit.starter import STARTER, read_packed, starter_path, write_packed

Scale = Literal["n", "s", "m", "l", "x"]
Origin = Literal["random", "procedural", "photographs"]
"""What weights have seen: nothing, procedural pictures alone, or photographs."""

COMMAND = "finetune yolo"
PRETRAIN = "pretrain yolo"
ARCHITECTURE = "yolov8-worldv2"
_STEM_CHANNELS: dict[int, Scale] = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}
_SCORE_PRIOR = -7.0  # logit of 0.1 %, about the share of positions that a defect is assigned to
_EMBEDDING = "embedding."
_ENOUGH_SHARED = 0.95  # the same architecture of another ultralytics shares all; v1 shares 0.55


@dataclass(frozen=True)
class StartingPoint:
    """What fine-tuning starts from.

    Attributes:
        model: the network, on the CPU.
        scale: its size.
        embeddings: class embeddings that came along; None with random weights.
        source: one line on where the weights come from.
        origin: what they have seen.
    """

    model: WorldModel
    scale: Scale
    embeddings: ClassEmbeddings | None
    source: str
    origin: Origin


@dataclass(frozen=True)
class RunModel:
    """A trained model of one of our runs.

    Attributes:
        model: the network with its classes set, on the CPU.
        scale: its size.
        embeddings: of its classes, in order.
        image_size: pixels of the longer side that it was trained on.
        source: one line on where its training started.
        pretrained: whether it has seen procedural pictures alone.
    """

    model: WorldModel
    scale: Scale
    embeddings: ClassEmbeddings
    image_size: int
    source: str
    pretrained: bool = False


class MixedWorldModel(WorldModel):  # type: ignore[misc]
    """YOLO-World that learns in bfloat16 on processors that are made for it.

    ultralytics mixes precision on GPUs only. What losses are given is in single precision: their
    distributions over pixels need more digits than bfloat16 has.
    """

    def predict(self, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """As ``WorldModel.predict``; training on a CPU in bfloat16 where that is native."""
        mixed = self.training and x.device.type == "cpu" and has_bfloat16(x.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = super().predict(x, *arguments, **options)
        return _in_full(found) if self.training else found

    def get_text_pe(self, text: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        """Refuse: the one place where ultralytics would install CLIP and ask it for embeddings.

        Here they are handed in: see ``set_classes``, ``toolkit.detect.prompts`` for phrases, and
        ``OfflineWorldTrainer`` for those of training.
        """
        raise RuntimeError(f"ultralytics asked for CLIP: set class embeddings of {text!r} instead")


def _in_full(found: Any) -> Any:
    """Whatever a head gives, in single precision."""
    if isinstance(found, torch.Tensor):
        return found.float()
    if isinstance(found, dict):
        return {name: _in_full(value) for name, value in found.items()}
    return type(found)(_in_full(value) for value in found)


def build_model(scale: Scale, seed: int = 0) -> WorldModel:
    """YOLO-World v2 with random weights.

    It is always built for 80 classes, as the official files are, since at scale n the width of the
    head depends on that number; ``set_classes`` then sets the real ones, which changes no tensor.
    """
    architecture = yaml_model_load(ROOT / "cfg" / "models" / "v8" / f"{ARCHITECTURE}.yaml")
    architecture["scale"] = scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MixedWorldModel(architecture, nc=MAX_CLASSES, verbose=False)


def set_classes(model: WorldModel, embeddings: ClassEmbeddings) -> None:
    """Make the model look for these classes: ``WorldModel.set_classes`` without CLIP."""
    model.txt_feats = embeddings.vectors[None].clone()
    model.model[-1].nc = len(embeddings.names)
    model.nc = len(embeddings.names)
    model.names = dict(enumerate(embeddings.names))


def load_starting_point(weights: str, scale: Scale, seed: int, trust: bool) -> StartingPoint:
    """Load what fine-tuning starts from.

    Args:
        weights: "none", "starter", an official ``.pt`` file, or one of our run folders.
        scale: of the model that "none" builds; any other weights have their own.
        seed: of random weights.
        trust: load a ``.pt`` file that holds more than ultralytics' and torch's own classes, which
            can run any code.

    Raises:
        InputError: the weights are missing, damaged, not to be trusted, or of another architecture.
    """
    if weights == "none":
        model = build_model(scale, seed)
        _follow_statistics_fast(model)
        _lower_scores(model)
        return StartingPoint(model, scale, None, "random weights", "random")
    path = located(weights)
    if weights == STARTER or path.is_dir():
        found = load_trained(path)
        if found.pretrained:
            _follow_statistics_fast(found.model)
        return StartingPoint(
            found.model,
            found.scale,
            found.embeddings,
            STARTER if weights == STARTER else f"run {path.name}",
            "procedural" if found.pretrained else "photographs",
        )
    if path.suffix != ".pt":
        raise InputError(
            f'{weights}: is neither "none" nor "starter", nor a run folder, '
            "nor a .pt file of YOLO-World v2"
        )
    if not path.is_file():
        raise InputError(
            f"{path}: no such file: download it from "
            f"https://github.com/ultralytics/assets/releases and put it there"
        )
    return _from_official(path, _read_checkpoint(path, trust), seed)


def embeddings_file(run: RunFolder) -> Path:
    """Where a run keeps its class embeddings."""
    return run.checkpoints / "embeddings.safetensors"


def save_description(
    run: RunFolder,
    scale: Scale,
    embeddings: ClassEmbeddings,
    image_size: int,
    source: str,
    reparameterised: bool = False,
) -> None:
    """Write what describes a run's model besides its weights.

    Args:
        run: whose model it is.
        scale: its size.
        embeddings: of its classes.
        image_size: as of ``RunModel``.
        source: as of ``RunModel``.
        reparameterised: whether its classes are weights.
    """
    embeddings.save(embeddings_file(run))
    run.write_model(
        {
            "architecture": ARCHITECTURE,
            "scale": scale,
            "names": list(embeddings.names),
            "image_size": image_size,
            "source": source,
            "reparameterised": reparameterised,
        }
    )


def save_weights(run: RunFolder, state: dict[str, torch.Tensor]) -> None:
    """Write ``checkpoints/best.safetensors`` in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(run.checkpoints / "best.safetensors", safetensors.torch.save(tensors))


def load_trained(source: Path) -> RunModel:
    """Load the best model of a run of ``finetune yolo`` or ``pretrain yolo``, or the starter.

    Args:
        source: the run folder, or "starter".

    Raises:
        InputError: it is no such run, or a file of it is missing or damaged.
    """
    if str(source) == STARTER:
        return _load_starter(starter_path("yolo_world_n"))
    return _load_run(source)


def _load_run(root: Path) -> RunModel:
    run = RunFolder.open(root, COMMAND, PRETRAIN)
    path = run.checkpoints / "model.json"
    description = read_json(path)
    try:
        scale = cast(Scale, description["scale"])
        names = tuple(str(name) for name in description["names"])
        image_size, source = int(description["image_size"]), str(description["source"])
        if description["architecture"] != ARCHITECTURE or scale not in _STEM_CHANNELS.values():
            raise ValueError(description["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: does not describe a {ARCHITECTURE} model: train again"
        ) from error
    embeddings = read_embeddings(embeddings_file(run), names)
    model = build_model(scale)
    set_classes(model, embeddings)
    if description.get("reparameterised"):
        reparameterise(model)
    weights = run.checkpoints / "best.safetensors"
    try:
        model.load_state_dict(without_outlines(safetensors.torch.load_file(weights)))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(
            f"{weights}: is damaged or not a {ARCHITECTURE} {scale} model: train again"
        ) from error
    model.eval()
    pretrained = is_run_of(root, PRETRAIN)
    return RunModel(model, scale, embeddings, image_size, source, pretrained)


def _follow_statistics_fast(model: WorldModel) -> None:
    """Let batch statistics follow weights that are far from their goal.

    ultralytics is tuned for long training. With a few steps per epoch, its statistics (momentum
    0.03) lag so far behind random weights that AP on val stays 0 for the first hundred steps.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1


def _lower_scores(model: WorldModel) -> None:
    """Start random scores where they belong.

    AdamW moves their bias by one learning rate per step on its long way from ultralytics' -10.
    """
    for head in model.model[-1].cv4:
        torch.nn.init.constant_(head.bias, _SCORE_PRIOR)


def pack_starter(run: RunFolder, state: dict[str, torch.Tensor]) -> Path:
    """Write model and class embeddings of a run into one small file, and return its path."""
    tensors = dict(state)
    description = read_json(run.checkpoints / "model.json")
    names = tuple(description["names"])
    embeddings = read_embeddings(embeddings_file(run), names)
    for name, vector in zip(embeddings.names, embeddings.vectors, strict=True):
        tensors[_EMBEDDING + name] = vector
    path = run.checkpoints / "starter.safetensors"
    write_packed(path, tensors, description)
    return path


def _load_starter(path: Path) -> RunModel:
    tensors, description = read_packed(path)
    try:
        names = tuple(description["names"])
        vectors = torch.stack([tensors.pop(_EMBEDDING + name) for name in names])
        model = build_model(description["scale"])
        model.load_state_dict(tensors)
        image_size = int(description["image_size"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: is not a {ARCHITECTURE} model: install again") from error
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    embeddings = ClassEmbeddings(names, unit, (STARTER,) * len(names))
    set_classes(model, embeddings)
    model.eval()
    return RunModel(model, description["scale"], embeddings, image_size, STARTER, True)


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


def _from_plain(path: Path, source: DetectionModel, seed: int) -> StartingPoint:
    """The backbone of a plain YOLOv8, which YOLO-World shares; the rest is random."""
    state = source.float().state_dict()
    stem = state.get("model.0.conv.weight")
    scale = None if stem is None else _STEM_CHANNELS.get(stem.shape[0])
    model = build_model(scale or "n", seed)
    own = {k: v for k, v in model.state_dict().items() if int(k.split(".")[1]) < BACKBONE}
    backbone = {k: state[k] for k, v in own.items() if k in state and state[k].shape == v.shape}
    if scale is None or len(backbone) < len(own):
        raise InputError(
            f"{path}: only {len(backbone)} of {len(own)} tensors of its backbone fit "
            f"{ARCHITECTURE}: give a file of YOLO-World v2 or of YOLOv8"
        )
    model.load_state_dict(backbone, strict=False)
    _follow_statistics_fast(model)
    _lower_scores(model)
    return StartingPoint(model, scale, None, f"the backbone of {path.name}", "random")


def _from_official(path: Path, checkpoint: dict[str, Any], seed: int) -> StartingPoint:
    """Transfer the weights of an ultralytics checkpoint by name and shape."""
    source = checkpoint.get("ema") or checkpoint.get("model")
    if type(source) is DetectionModel:
        return _from_plain(path, source, seed)
    if not isinstance(source, WorldModel):
        kind = type(source).__name__
        raise InputError(
            f"{path}: holds a {kind}, not a WorldModel: give a YOLO-World v2 file, or one of YOLOv8"
        )
    state = source.float().state_dict()
    stem = state.get("model.0.conv.weight")
    scale = None if stem is None else _STEM_CHANNELS.get(stem.shape[0])
    if scale is None:
        raise InputError(f"{path}: is of no known scale: give a YOLO-World v2 file")
    model = build_model(scale)
    own = model.state_dict()
    shared = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if len(shared) < _ENOUGH_SHARED * len(own):
        raise InputError(
            f"{path}: only {len(shared)} of {len(own)} tensors fit {ARCHITECTURE}: "
            "give a file of version 2 (…-worldv2.pt), not fused"
        )
    model.load_state_dict(shared, strict=False)
    line = f"{path.name} ({len(shared)} of {len(own)} tensors)"
    return StartingPoint(model, scale, _embeddings_of(source, path.name), line, "photographs")


def _embeddings_of(model: WorldModel, file_name: str) -> ClassEmbeddings | None:
    """Class embeddings that lie in a checkpoint; None where they do not match its class names."""
    vectors, names = getattr(model, "txt_feats", None), getattr(model, "names", None)
    listed = list(names.values()) if isinstance(names, dict) else list(names or ())
    if not isinstance(vectors, torch.Tensor) or vectors.shape != (1, len(listed), EMBEDDING_SIZE):
        return None
    unit = torch.nn.functional.normalize(vectors[0].float(), dim=-1)
    origins = (f"from {file_name}",) * len(listed)
    return ClassEmbeddings(tuple(str(name) for name in listed), unit, origins)
