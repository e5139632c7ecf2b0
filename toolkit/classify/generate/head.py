"""The last layer, learnt once more from features: those of train, and those that were grown.

::

    RUN/
      checkpoints/trained.safetensors    the network as it was trained
      checkpoints/best.safetensors       the same with the new head
      generated/grown.safetensors        values (n, d), labels (n,), parents (n, p): rows of train,
                                         then -1 where a sample has fewer than another
      generated/grown.csv                number, class and the names of the parents of each sample
      generated/sheet.png                what some of them were made from, and what they are like
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet

from converters.dataset import Dataset
from converters.errors import InputError
from converters.files import write_bytes, write_text
from toolkit.classify.data import Labels, Pictures
from toolkit.classify.generate import make_generator
from toolkit.classify.generate.base import Generator, Grown, grow
from toolkit.classify.generate.ecrt import REAL_WEIGHT, Ecrt, SourceHead
from toolkit.classify.generate.features import FeatureArray, Features, pooled_features
from toolkit.classify.generate.sheet_features import draw_sheet
from toolkit.classify.losses import LARGEST_WEIGHT
from toolkit.classify.model import build_resnet
from toolkit.classify.weights import TRAINED, Description
from toolkit.config import FinetuneClassifierConfig
from toolkit.console import note
from toolkit.runs import RunFolder
from toolkit.training import packed
from toolkit.weights import fill, read_state

SHRINKAGE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the squared coefficients, of which val chooses."""


@dataclass(frozen=True)
class Score:
    """How good a head is on some features.

    Attributes:
        balanced_accuracy: mean over the classes that are there.
        loss: cross-entropy, the same mean.
    """

    balanced_accuracy: float
    loss: float

    @classmethod
    def of(cls, head: nn.Module, features: Features) -> Score:
        """Score a head that takes features as they are."""
        with torch.no_grad():
            logits = head(torch.from_numpy(features.values))
        labels = torch.from_numpy(features.labels)
        losses = F.cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(dim=1) == labels).float()
        own = [labels == label for label in torch.unique(labels)]
        return cls(
            float(torch.stack([right[one].mean() for one in own]).mean()),
            float(torch.stack([losses[one].mean() for one in own]).mean()),
        )


def grow_head(
    config: FinetuneClassifierConfig,
    run: RunFolder,
    description: Description,
    dataset: Dataset,
    pictures: Mapping[str, Pictures],
    device: torch.device,
) -> Description:
    """Give the network that a run has trained a head that has also seen grown features.

    The generator learns from train alone; val chooses how far the head's coefficients are shrunk.
    The new head is kept also where val finds it worse, because it is what was asked for.

    Args:
        config: of the run, with a generator of features.
        run: with ``TRAINED``.
        description: of the network.
        dataset: train.
        pictures: of the splits; those of train in the order of ``dataset``.
        device: to compute features on.

    Returns:
        the description of the network with its new head.

    Raises:
        InputError: no rare class has pictures enough, or the checkpoint is damaged.
    """
    assert config.generate is not None
    model = _trained(run, description).to(device)
    train, val = (pooled_features(model, pictures[split]) for split in ("train", "val"))
    model.cpu()
    before = Score.of(model.fc, val)
    generator = make_generator(config.generate, config.seed)
    share = config.generate_to
    grown = grow(generator, train.values, train.labels, description.classes, share, device)
    weighted = config.class_weights != "none"
    head = learn_head(generator, train, grown, val, len(description.classes), weighted=weighted)
    _tell(before, Score.of(head, val), len(grown.labels))
    _write_grown(run, grown, description.classes, [image.file_name for image in dataset.images])
    sheet = draw_sheet(grown, train.values, pictures["train"], description.classes)
    write_bytes(run.root / "generated" / "sheet.png", sheet)
    model.fc = head
    write_bytes(run.checkpoints / "best.safetensors", packed(model.state_dict()))
    if isinstance(head, SourceHead):
        description = replace(
            description, head={"kind": "ecrt", "sources": head.linear.in_features}
        )
    return description


def build_head(head: Mapping[str, Any], features: int, classes: int) -> nn.Module:
    """What ``Description.head`` describes, for a file to fill.

    Args:
        head: kind and sizes.
        features: width of the features.
        classes: number of outputs.

    Raises:
        InputError: there is no such head.
    """
    sources = head.get("sources")
    if head.get("kind") != "ecrt" or not isinstance(sources, int) or sources < 1:
        raise InputError("model.json: describes no known head: fine-tune again")
    return SourceHead(features, sources, classes)


def learn_head(
    generator: Generator,
    train: Features,
    grown: Grown,
    val: Features,
    classes: int,
    *,
    weighted: bool = True,
) -> nn.Module:
    """The linear head that learns from real and grown features, in the generator's own space.

    Args:
        generator: that made the grown ones.
        train: what it was fitted on.
        grown: what it made; may be empty.
        val: to choose the shrinkage by.
        classes: number of outputs.
        weighted: whether classes that are still unequal count alike.

    Returns:
        a module from features, shape (n, d), to logits, shape (n, classes).
    """
    values = np.concatenate([train.values, grown.values])
    labels = np.concatenate([train.labels, grown.labels])
    weights = np.ones(len(labels))
    if not isinstance(generator, Ecrt) or not len(grown.labels):
        return choose_linear(values, labels, _balanced(labels, weights, weighted), val, classes)
    real = np.arange(len(labels)) < len(train.labels)
    rare = np.isin(labels, grown.labels)
    weights[rare] = np.where(real[rare], REAL_WEIGHT, 1 - REAL_WEIGHT)
    head = SourceHead(values.shape[1], generator.sources.matrix.shape[1], classes)
    head.sources = generator.sources
    with torch.no_grad():
        of_all, of_val = (
            head.sources(torch.from_numpy(part)).numpy() for part in (values, val.values)
        )
    weights = _balanced(labels, weights, weighted)
    head.linear = choose_linear(of_all, labels, weights, Features(of_val, val.labels), classes)
    return head


def choose_linear(
    values: FeatureArray,
    labels: Labels,
    weights: npt.NDArray[np.float64],
    val: Features,
    classes: int,
) -> nn.Linear:
    """The softmax regression whose shrinkage val likes best: by balanced accuracy, then loss."""
    heads = [fit_linear(values, labels, weights, classes, shrinkage) for shrinkage in SHRINKAGE]
    scores = [Score.of(head, val) for head in heads]
    order = [(-score.balanced_accuracy, score.loss) for score in scores]
    return heads[order.index(min(order))]


def fit_linear(
    values: FeatureArray,
    labels: Labels,
    weights: npt.NDArray[np.float64],
    classes: int,
    shrinkage: float,
) -> nn.Linear:
    """Softmax regression of standardised features; the layer takes them as they are.

    Args:
        values: shape (n, d).
        labels: of each.
        weights: of each, in the mean of the cross-entropy.
        classes: number of outputs.
        shrinkage: weight of half the squared coefficients beside that mean.
    """
    exact = torch.from_numpy(values).double()
    targets, shares = torch.from_numpy(labels), torch.from_numpy(weights / weights.sum())
    mean, deviation = exact.mean(dim=0), exact.std(dim=0, unbiased=False)
    deviation[deviation < 1e-9] = 1
    standard = (exact - mean) / deviation
    slopes = torch.zeros(classes, values.shape[1], dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slopes, offsets], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        errors = F.cross_entropy(standard @ slopes.T + offsets, targets, reduction="none")
        total = shares @ errors + shrinkage / 2 * slopes.square().sum()
        torch.autograd.backward(total)
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    layer = nn.Linear(values.shape[1], classes)
    with torch.no_grad():
        layer.weight.copy_(slopes / deviation)
        layer.bias.copy_(offsets - (slopes / deviation) @ mean)
    return layer


def _balanced(
    labels: Labels, weights: npt.NDArray[np.float64], weighted: bool
) -> npt.NDArray[np.float64]:
    """Weights with which classes count alike, as far as ``LARGEST_WEIGHT`` lets them."""
    if not weighted:
        return weights
    totals = np.bincount(labels, weights)
    factors = np.minimum(totals.max() / np.maximum(totals, 1e-9), LARGEST_WEIGHT)
    return np.asarray(weights * factors[labels], np.float64)


def _trained(run: RunFolder, description: Description) -> ResNet:
    path = run.checkpoints / TRAINED
    model = build_resnet(description.architecture, len(description.classes))
    fill(path, description.architecture, model, read_state(path, "torchvision"))
    return model.eval()


def _tell(before: Score, after: Score, grown: int) -> None:
    worse = after.balanced_accuracy < before.balanced_accuracy
    note(
        f"head: val balanced accuracy {after.balanced_accuracy:.4f} with {grown} grown samples, "
        f"{before.balanced_accuracy:.4f} as trained"
        + (": worse, but kept, because it was asked for" if worse else "")
    )


def _write_grown(
    run: RunFolder, grown: Grown, classes: Sequence[str], names: Sequence[str]
) -> None:
    folder = run.root / "generated"
    most = max((len(parents) for parents in grown.parents), default=1)
    parents = np.full((len(grown.labels), most), -1, np.int64)
    for row, of_one in zip(parents, grown.parents, strict=True):
        row[: len(of_one)] = of_one
    arrays = {"values": grown.values, "labels": grown.labels, "parents": parents}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_bytes(folder / "grown.safetensors", packed(tensors))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "class", "parents"])
    for number, (label, of_one) in enumerate(zip(grown.labels, grown.parents, strict=True)):
        writer.writerow([number, classes[label], ";".join(names[row] for row in of_one)])
    write_text(folder / "grown.csv", text.getvalue())
