"""Weights of the classifier on disk: random, torchvision's own files, or a run of ours.

Checkpoints of ours hold torchvision's parameter names, so that a run opens in plain torchvision::

    from safetensors.torch import load_file
    from torchvision.models import resnet18

    model = resnet18(num_classes=3)
    model.load_state_dict(load_file("RUN/checkpoints/best.safetensors"))

But for a head on sources (``--generate ecrt``), which torchvision does not know. The temperature
that logits are divided by stands in ``model.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models import ResNet

from converters.errors import InputError
from converters.files import read_json
from toolkit.classify.model import ARCHITECTURES, Architecture, build_resnet
from toolkit.known_weights import located
from toolkit.outlines import without_outlines
from toolkit.runs import ADAPT, RunFolder
from toolkit.starter import STARTER, starter_path
from toolkit.weights import fill, read_state

COMMAND = "finetune classifier"
PRETRAIN = "pretrain classifier"

TRAINED = "trained.safetensors"
"""The network as it was trained, in ``checkpoints/``, where its head is then made anew."""

_BLOCKS: dict[tuple[int, int], Architecture] = {
    (0, 2): "resnet18",
    (0, 6): "resnet34",
    (64, 6): "resnet50",
    (128, 6): "wide_resnet50_2",
    (128, 23): "wide_resnet101_2",
}
"""Architecture by the width of its bottlenecks in layer 1, 0 where its blocks are none, and by how
many blocks there are in layer 3."""


@dataclass(frozen=True)
class Description:
    """What ``checkpoints/model.json`` says.

    Attributes:
        architecture: of the network.
        classes: of its outputs, "good" first.
        image_size: side of the square that it sees, in pixels.
        temperature: that its logits are divided by.
        head: what stands in the place of the last linear layer, as
            ``toolkit.classify.generate.head.build_head`` takes it; None for that layer itself.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    image_size: int
    temperature: float = 1.0
    head: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return asdict(self)


def load_backbone(
    source: str, architecture: Architecture | None, classes: Sequence[str]
) -> tuple[ResNet, Architecture]:
    """The network to start from: its head is random unless the source has these very classes.

    Args:
        source: "starter", a run folder of ``finetune classifier``, ``pretrain classifier`` or
            ``adapt``, a ``.safetensors`` file with torchvision's parameter names, or a state_dict
            that torchvision publishes.
        architecture: what it has to be; None takes what it is.
        classes: what the head shall tell apart, "good" first.

    Raises:
        InputError: there is no such thing, it is damaged, or it is not a ResNet of a known depth,
            or of another one than asked for.
    """
    path, same_classes = _resolve(source, classes)
    state = without_outlines(read_state(path, "torchvision"))
    found = _recognise(path, state)
    if architecture is not None and found != architecture:
        raise InputError(f"{source}: is {found}, not {architecture}: leave model out")
    model = build_resnet(found, len(classes))
    if not same_classes or "fc.weight" not in state:  # adaptation without labels has no head
        head = {name: t for name, t in model.state_dict().items() if name.startswith("fc.")}
        state = {name: t for name, t in state.items() if not name.startswith("fc.")} | head
    _fill(path, found, model, state)
    return model, found


def load_run(root: Path) -> tuple[ResNet, Description]:
    """The best network of a run, and what it is.

    Raises:
        InputError: it is no finished run of ``finetune classifier``, or it is damaged.
    """
    run = RunFolder.open(root, COMMAND)
    description = _read_description(run)
    return load_best(run, description), description


def load_best(run: RunFolder, description: Description) -> ResNet:
    """The best network of a run that is known to be of a description.

    Raises:
        InputError: it is damaged, or of another one.
    """
    path = run.checkpoints / "best.safetensors"
    model = build_model(description)
    _fill(path, description.architecture, model, read_state(path, "torchvision"))
    return model


def build_model(description: Description) -> ResNet:
    """The network that a description is of, with random weights.

    Its parameters are torchvision's, but for those of a head of its own, which stands in the place
    of ``fc`` and takes what the last pooling gives, shape (n, features), to logits (n, classes).
    """
    model = build_resnet(description.architecture, len(description.classes))
    if description.head is not None:
        from toolkit.classify.generate.head import build_head

        features, classes = model.fc.in_features, len(description.classes)
        model.register_module("fc", build_head(description.head, features, classes))
    return model


def _resolve(source: str, classes: Sequence[str]) -> tuple[Path, bool]:
    """The file that a source means, and whether its last layer tells these very classes apart."""
    if source == STARTER:
        return starter_path("resnet18"), False
    path = located(source)
    if not path.exists():
        raise InputError(
            f"{source}: no such weights: give an official file (resnet18-f37072fd.pth), a "
            ".safetensors file, a run folder of `toolkit finetune classifier`, `toolkit pretrain "
            "classifier` or `toolkit adapt`, starter, or none"
        )
    if path.is_dir():
        run = RunFolder.open(path, COMMAND, PRETRAIN, ADAPT)
        description = _read_description(run)
        same_classes = description.head is None and description.classes == tuple(classes)
        return run.checkpoints / "best.safetensors", same_classes
    return path, False


def _read_description(run: RunFolder) -> Description:
    path = run.checkpoints / "model.json"
    content = read_json(path)
    try:
        description = Description(
            content["architecture"],
            tuple(content["classes"]),
            int(content["image_size"]),
            float(content.get("temperature", 1.0)),
            content.get("head"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: does not describe a classifier: fine-tune again") from error
    if description.architecture not in ARCHITECTURES:
        raise InputError(f"{path}: names no known architecture: fine-tune again")
    return description


def _recognise(path: Path, state: Mapping[str, Tensor]) -> Architecture:
    """The architecture whose blocks the file's names count up."""
    if "layer3.0.conv1.weight" not in state:
        raise InputError(
            f"{path}: is not a ResNet (no layer3.0.conv1.weight): give a file of torchvision"
        )
    blocks = {name.split(".")[1] for name in state if name.startswith("layer3.")}
    last = state.get("layer1.0.conv3.weight")
    width = last.shape[1] if last is not None and last.ndim == 4 else 0
    found = _BLOCKS.get((width, len(blocks)))
    if found is None:
        raise InputError(
            f"{path}: is a ResNet of no known depth or width ({len(blocks)} blocks in layer3): "
            f"give one of {', '.join(ARCHITECTURES)}"
        )
    return found


def _fill(path: Path, name: Architecture, model: ResNet, state: Mapping[str, Tensor]) -> None:
    # torchvision's files are older than these counters, which nothing that is used depends on.
    counters = {k: t for k, t in model.state_dict().items() if k.endswith(".num_batches_tracked")}
    fill(path, name, model, {**counters, **state})
