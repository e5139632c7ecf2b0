"""Trained detectors: saved with a run, or as a starter, and loaded again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from ultralytics.nn.tasks import DetectionModel

from converters.errors import InputError
from converters.files import read_json, write_bytes
from toolkit.architectures import PLAIN, WORLD, scale_of
from toolkit.detect.embeddings import ANCHOR, ClassEmbeddings, read_embeddings
from toolkit.detect.models import Scale, build_model, build_plain, set_classes
from toolkit.detect.modes import is_reparameterised, reparameterise
from toolkit.detect.tiles import Tiling
from toolkit.outlines import without_outlines
from toolkit.runs import ADAPT, RunFolder
from toolkit.starter import STARTER, is_pretrained, read_packed, starter_path, write_packed

Origin = Literal["random", "procedural", "photographs"]
"""What weights have seen: nothing, procedural pictures alone, or photographs."""

COMMAND = "finetune yolo"
PRETRAIN = "pretrain yolo"
_SCALES = ("n", "s", "m", "l", "x")
_EMBEDDING = "embedding."


@dataclass(frozen=True)
class StartingPoint:
    """What fine-tuning starts from.

    Attributes:
        model: the network, on the CPU.
        scale: its size.
        embeddings: class embeddings that came along; None with random weights and plain detectors.
        source: one line on where the weights come from.
        origin: what they have seen.
        arch: ``WORLD``, or the name of a plain detector.
    """

    model: DetectionModel
    scale: str
    embeddings: ClassEmbeddings | None
    source: str
    origin: Origin
    arch: str = WORLD


@dataclass(frozen=True)
class RunModel:
    """A trained model of one of our runs.

    Attributes:
        model: the network with its classes set, on the CPU.
        scale: its size.
        embeddings: of its classes, in order; None of a plain detector.
        image_size: pixels of the longer side that it was trained on.
        source: one line on where its training started.
        pretrained: whether it has seen procedural pictures alone.
        arch: ``WORLD``, or the name of a plain detector.
        tile: how its training pictures were cut; None where they were not.
        open_vocabulary: whether it can look for other classes after fine-tuning.
    """

    model: DetectionModel
    scale: str
    embeddings: ClassEmbeddings | None
    image_size: int
    source: str
    pretrained: bool = False
    arch: str = WORLD
    tile: Tiling | None = None
    open_vocabulary: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Its classes, in order."""
        if self.embeddings is not None:
            return self.embeddings.names
        return tuple(self.model.names.values())

    @property
    def title(self) -> str:
        """What it is, in a word."""
        return title(self.arch, self.scale)

    @property
    def description(self) -> str:
        """What it is and where it comes from."""
        cut = "" if self.tile is None else f" {self.tile}"
        return f"{self.title}, {self.image_size} px{cut}, from {self.source}"


def title(arch: str, scale: str) -> str:
    """What a detector is called: "YOLO-World v2 n", "yolo11n"."""
    return f"YOLO-World v2 {scale}" if arch == WORLD else arch


def embeddings_file(run: RunFolder) -> Path:
    """Where a run keeps its class embeddings."""
    return run.checkpoints / "embeddings.safetensors"


def save_description(run: RunFolder, trained: RunModel) -> None:
    """Write what describes a run's model besides its weights."""
    if trained.embeddings is not None:
        trained.embeddings.save(embeddings_file(run))
    run.write_model(
        {
            "architecture": trained.arch,
            "scale": trained.scale,
            "names": list(trained.names),
            "image_size": trained.image_size,
            "source": trained.source,
            "reparameterised": is_reparameterised(trained.model),
            "open_vocabulary": trained.open_vocabulary,
            **({} if trained.tile is None else {"tile": asdict(trained.tile)}),
        }
    )


def save_weights(run: RunFolder, state: dict[str, torch.Tensor]) -> None:
    """Write ``checkpoints/best.safetensors`` in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(run.checkpoints / "best.safetensors", safetensors.torch.save(tensors))


def load_trained(source: Path) -> RunModel:
    """Load the best model of a run, of ``adapt`` too, or the starter.

    Args:
        source: the run folder, or "starter".

    Raises:
        InputError: it is no such run, or a file of it is missing or damaged.
    """
    if str(source) == STARTER:
        return _load_starter(starter_path("yolo_world_n"))
    return _load_run(source)


def with_kinds_only(trained: RunModel) -> RunModel:
    """A pretrained model that looks for the kinds that it learnt.

    They answer better than the one embedding that they share; a plain detector has only them.
    """
    if trained.embeddings is None:
        return trained
    kinds = tuple(name for name in trained.names if name != ANCHOR) or (ANCHOR,)
    embeddings = trained.embeddings.only(kinds)
    set_classes(trained.model, embeddings)
    return replace(trained, embeddings=embeddings)


def _load_run(root: Path) -> RunModel:
    run = RunFolder.open(root, COMMAND, PRETRAIN, ADAPT)
    path = run.checkpoints / "model.json"
    description = read_json(path)
    try:
        arch, scale = str(description["architecture"]), str(description["scale"])
        names = tuple(str(name) for name in description["names"])
        image_size, source = int(description["image_size"]), str(description["source"])
        tile = Tiling(**description["tile"]) if "tile" in description else None
        if scale not in _SCALES if arch == WORLD else scale != scale_of(arch) or arch not in PLAIN:
            raise ValueError(arch)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: describes no detector that is known here: train again"
        ) from error
    if arch == WORLD:
        embeddings = read_embeddings(embeddings_file(run), names)
        model = build_model(cast(Scale, scale))
        set_classes(model, embeddings)
        if description.get("reparameterised"):
            reparameterise(model)
    else:
        embeddings, model = None, build_plain(arch, names)
    weights = run.checkpoints / "best.safetensors"
    try:
        model.load_state_dict(without_outlines(safetensors.torch.load_file(weights)))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(
            f"{weights}: is damaged or not a {title(arch, scale)} model: train again"
        ) from error
    model.eval()
    pretrained = is_pretrained(str(root), PRETRAIN)
    is_open = bool(description.get("open_vocabulary"))
    return RunModel(model, scale, embeddings, image_size, source, pretrained, arch, tile, is_open)


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
        raise InputError(f"{path}: is not a {WORLD} model: install again") from error
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    embeddings = ClassEmbeddings(names, unit, (STARTER,) * len(names))
    set_classes(model, embeddings)
    model.eval()
    return RunModel(model, description["scale"], embeddings, image_size, STARTER, True)
