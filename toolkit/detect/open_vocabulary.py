"""Fine-tuning that keeps YOLO-World's vocabulary open: new classes can be asked for afterwards.

Two things close a vocabulary. What compares pictures with class embeddings bends towards the few
that it is trained with, and the features forget whatever else had a name. Against the first,
everything that reads an embedding, or weighs a comparison with one, is frozen: in each block of
attention the projection of the embeddings (``gl``) and the offset of their similarity (``bias``),
in each contrastive head ``logit_scale`` and ``bias``. The image side learns, to speak the language
that is there. Against the second, pictures of other classes are shown between the new ones
(replay, as YOLO-World's own fine-tuning mixes in GQA; arXiv 2401.17270, section 4).

A picture is asked for the classes of its own dataset alone: nobody has said whether a defect of
the other set is on it. Mosaics are therefore of one set, and where one set has fewer classes, its
embeddings are repeated (which changes nothing for attention, a maximum over classes) and the
scores of the repeats are left out of the loss.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from ultralytics.models.yolo.world import WorldTrainer
from ultralytics.nn.modules import C2fAttn
from ultralytics.nn.tasks import WorldModel
from ultralytics.utils.torch_utils import unwrap_model

from converters.dataset import Dataset
from converters.errors import InputError
from converters.files import read_json
from converters.folder import DatasetFolder, fold_numbers
from toolkit.config import FinetuneYoloConfig
from toolkit.detect.data import DefectImages, Draw, data_description, labels_of
from toolkit.detect.embeddings import MAX_CLASSES, ClassEmbeddings
from toolkit.detect.prompts import choose_embeddings
from toolkit.detect.trainer import OfflineWorldTrainer
from toolkit.detect.weights import PRETRAIN, StartingPoint
from toolkit.known_weights import located
from toolkit.runs import RunFolder, is_run_of
from toolkit.starter import STARTER

_NEVER = -1e4
"""Logit of a score that no loss sees: its cross-entropy with 0, and the gradient, are 0."""


@dataclass(frozen=True)
class Replay:
    """Pictures of other classes that training shows between the new ones.

    Attributes:
        train: the pictures.
        share: of the pictures of an epoch that are of it, above 0 and below 1.
        embeddings: of its classes, in order.
    """

    train: Dataset
    share: float
    embeddings: ClassEmbeddings

    def factors(self, own: Sequence[float]) -> list[float]:
        """How often an epoch shows each picture on average: the new ones, then these.

        Args:
            own: the same for the new ones alone.
        """
        count = max(1, round(sum(own) * self.share / (1 - self.share)))
        return [*own, *[count / len(self.train.images)] * len(self.train.images)]


def choose_vocabulary(
    config: FinetuneYoloConfig, splits: dict[str, Dataset], start: StartingPoint
) -> tuple[ClassEmbeddings, Replay | None]:
    """Embeddings of the dataset's classes, and the replay where the vocabulary stays open.

    A class that both sets have is one class, with one embedding.

    Raises:
        InputError: the weights' vocabulary is closed; the replay cannot be used, shows pictures
            that are held out, or has a class that the weights know nothing of; or there are more
            classes than ultralytics trains.
    """
    own = splits["train"].categories
    if not config.open_vocabulary:
        return choose_embeddings(own, config, start.embeddings), None
    if start.embeddings is None or not _has_open_vocabulary(config.weights):
        raise InputError(
            f"{config.weights}: has no open vocabulary to keep: start from a file of YOLO-World "
            'v2, "starter", or a run with --open-vocabulary'
        )
    assert config.replay is not None, "refused by the configuration"
    train = _read_replay(config.replay)
    _check_not_held_out(config.replay, train, splits)
    union = (*own, *(name for name in train.categories if name not in own))
    if len(union) > MAX_CLASSES:
        raise InputError(
            f"{config.replay}: with its classes there are {len(union)}: YOLO-World in ultralytics "
            f"trains at most {MAX_CLASSES}: give a replay of fewer classes"
        )
    if union == own:
        raise InputError(
            f"{config.replay}: has no class that {config.data} lacks: give a replay of others"
        )
    every = choose_embeddings(union, config, start.embeddings)
    for name in train.categories:
        if config.embeddings is None and name not in start.embeddings.names and name not in own:
            raise InputError(
                f"{config.replay}: {config.weights} has no embedding for class {name!r}, and a "
                "made one would keep nothing that it knows: give --embeddings with one"
            )
    replay = Replay(train, config.replay_share, every.only(train.categories))
    return every.only(own), replay


def stays_open(config: FinetuneYoloConfig, start: StartingPoint) -> bool:
    """Whether other classes can be asked for after fine-tuning.

    They can if the vocabulary was kept open, or if nothing but class embeddings learnt (mode
    "prompt") of weights whose vocabulary was open.
    """
    if config.open_vocabulary:
        return True
    known = start.embeddings is not None and _has_open_vocabulary(config.weights)
    return config.mode == "prompt" and known


def text_tensors(model: WorldModel) -> list[str]:
    """Names of the parameters that read class embeddings, or weigh a comparison with them."""
    names: list[str] = []
    for number, layer in enumerate(model.model):
        if isinstance(layer, C2fAttn):
            names += [f"model.{number}.attn.{each}" for each in ("gl.weight", "gl.bias", "bias")]
    head = len(model.model) - 1
    for number in range(len(model.model[head].cv4)):
        names += [f"model.{head}.cv4.{number}.{each}" for each in ("logit_scale", "bias")]
    return names


def is_open(root: Path) -> bool:
    """Whether the vocabulary of a run of ``toolkit finetune yolo`` stayed open."""
    return bool(read_json(RunFolder(root).checkpoints / "model.json").get("open_vocabulary"))


class OpenVocabularyTrainer(OfflineWorldTrainer):
    """Train on pictures of two sets, each with its own classes; what reads classes is frozen.

    Args:
        replay: the other pictures; ``factors`` has theirs after those of train.
        overrides: as of ``OfflineWorldTrainer``, like all the others.
    """

    def __init__(self, replay: Replay, overrides: dict[str, Any], **named: Any) -> None:
        super().__init__(overrides, **named)
        self._replay = replay
        own = torch.stack(list(self.text_embeddings.values()))
        vocabularies = own, replay.embeddings.vectors
        self._width = max(map(len, vocabularies))
        places = torch.arange(self._width)
        self._texts = torch.stack([each[places % len(each)] for each in vocabularies])
        self._repeats = torch.stack([places >= len(each) for each in vocabularies])

    def build_dataset(
        self, img_path: Dataset, mode: Literal["train", "val"] = "train", batch: int | None = None
    ) -> DefectImages:
        """Wrap one split; train together with the replay."""
        if mode == "val":
            return super().build_dataset(img_path, mode, batch)
        return TwoSets(img_path, self._replay.train, self.args, batch or 1, self.factors)

    def _build_train_pipeline(self) -> None:
        """Freeze what reads classes before the optimiser is built."""
        for name in text_tensors(self.model):
            self.model.get_parameter(name).requires_grad_(False)
        super()._build_train_pipeline()

    def resume_training(self, ckpt: None) -> None:
        """Let the model that learns, not its average, have scores for the larger set of classes."""
        super().resume_training(ckpt)
        model = unwrap_model(self.model)
        model.model[-1].nc = self._width
        model.criterion = _OwnClasses(model.init_criterion())

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add what each picture is asked for, and which scores are of repeats."""
        prepared: dict[str, Any] = super(WorldTrainer, self).preprocess_batch(batch)
        chosen = torch.tensor(prepared["vocabulary"])
        prepared["txt_feats"] = self._texts[chosen].to(self.device)
        prepared["repeats"] = self._repeats[chosen].to(self.device)
        return prepared


class TwoSets(DefectImages):
    """Pictures of two sets to train on, never on one mosaic; ``cls`` counts in a picture's own set.

    An item's ``vocabulary`` says which set it is of: 0 or 1.

    Args:
        first, second: the sets.
        args: training arguments of ultralytics.
        batch: pictures per batch.
        factors: how often a mosaic takes each picture of the first, then of the second set,
            relative to the others of its set.
    """

    def __init__(
        self,
        first: Dataset,
        second: Dataset,
        args: SimpleNamespace,
        batch: int,
        factors: Sequence[float],
    ) -> None:
        self._sets = first, second
        self._start = len(first.images)
        self._set_marks = [
            list(accumulate(each)) for each in (factors[: self._start], factors[self._start :])
        ]
        self._current = 0
        larger = max(self._sets, key=lambda each: len(each.categories))
        super().__init__(
            first.subset(first.images + second.images),
            "train",
            args,
            data_description({"train": larger}),
            batch,
            fixed_classes=True,  # as they stand in their set
            factors=factors,
        )

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        """As of ``DefectImages``, with its ``vocabulary``."""
        picture = index.picture if isinstance(index, Draw) else index
        self._current = int(picture >= self._start)
        return {**super().__getitem__(index), "vocabulary": self._current}

    def get_labels(self) -> list[dict[str, Any]]:
        """Boxes of every picture, with classes as they stand in its set."""
        return [label for each in self._sets for label in labels_of(each)]

    def _draw_others(self) -> list[int]:
        """Three more pictures of the same set for a mosaic."""
        marks = self._set_marks[self._current]
        start = self._start if self._current else 0
        return [start + n for n in random.choices(range(len(marks)), cum_weights=marks, k=3)]


class _OwnClasses:
    """ultralytics' loss without the scores of repeated classes.

    Args:
        criterion: the loss.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion

    def __call__(self, preds: Any, batch: dict[str, Any]) -> Any:
        """As of the loss; ``batch["repeats"]``, shape (B, classes), says what is left out."""
        found: dict[str, Tensor] = self._criterion.parse_output(preds)
        scores = found["scores"].masked_fill(batch["repeats"][:, :, None], _NEVER)
        return self._criterion({**found, "scores": scores}, batch)


def _has_open_vocabulary(weights: str) -> bool:
    path = located(weights)
    if weights == STARTER or not path.is_dir() or is_run_of(path, PRETRAIN):
        return True
    return is_open(path)


def _read_replay(root: Path) -> Dataset:
    if fold_numbers(root) and not (root / "train.json").is_file():
        raise InputError(f"{root}: has folds: give a replay dataset that is split once")
    folder = DatasetFolder.open(root)
    folder.require_places("a replay")
    train = folder.read("train")
    if not any(image.instances for image in train.images):
        raise InputError(f"{root}: train has no defects to replay: give another dataset")
    return train


def _check_not_held_out(root: Path, train: Dataset, splits: dict[str, Dataset]) -> None:
    """Refuse a replay with a picture, byte for byte, that the run is measured on."""
    held_out = {
        (image.path.stat().st_size, _digest(image.path)): split
        for split, dataset in splits.items()
        if split != "train"
        for image in dataset.images
    }
    sizes = {size for size, _ in held_out}
    for image in train.images:
        size = image.path.stat().st_size
        split = held_out.get((size, _digest(image.path))) if size in sizes else None
        if split is not None:
            raise InputError(
                f"{root}: its train has {image.file_name}, which the {split} split of the data "
                "holds out: give a replay of other pictures"
            )


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
