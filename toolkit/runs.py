"""The run folder: everything needed to repeat, resume or compare a run, nothing machine-bound.

::

    RUN/
      config.yaml       the command's configuration; paths relative to the run folder
      log.jsonl         one JSON object per epoch
      checkpoints/      best.safetensors, last.safetensors (+ state to resume), model.json
      predictions/      val.json, test.json (of a classifier {val,test}_images.csv), card.yaml
      pictures/         of a classifier: what it sees
      metrics.json      written by `toolkit evaluate`

and what trackers write: see ``toolkit.trackers``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from converters.errors import InputError
from converters.files import write_json, write_text
from converters.folder import DatasetFolder, fold_numbers, shared_pictures
from toolkit.config import AdaptConfig, Config
from toolkit.trackers import Trackers

WERE_TEXT = ("weights", "source", "outliers")
"""Fields that older runs record as they were given, not relative to the run folder."""

_NAMES = ("none", "starter")
"""What weights may be that is no path."""

ADAPT = "adapt"
"""The command whose runs are starting points of any kind of model."""


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        root: the folder.
        trackers: what else is told of every record of the log.
    """

    root: Path
    trackers: Trackers = field(default_factory=Trackers, repr=False, compare=False)

    @classmethod
    def create(cls, root: Path, command: str, config: Config, *, resume: bool = False) -> RunFolder:
        """Make a run folder and write its configuration.

        Raises:
            InputError: it exists and holds a run already (and ``resume`` is not set), it cannot be
                written to, or a tracker is not installed.
        """
        run = cls(root, Trackers(getattr(config, "track", ())))
        if (root / "config.yaml").exists() and resume:
            return run
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            raise InputError(f"{root}: exists and is not empty: choose another run folder")
        values = {"command": command, **recorded_values(config, root)}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_text(root / "config.yaml", text)
        return run

    @classmethod
    def open(cls, root: Path, *commands: str) -> RunFolder:
        """Open a finished run of one of some commands ("finetune yolo", "pretrain yolo").

        Raises:
            InputError: it is no run of these, or it has no whole checkpoint.
        """
        path = root / "config.yaml"
        wanted = " or ".join(f"`toolkit {command}`" for command in commands)
        if not path.is_file():
            raise InputError(f"{root}: is not a run folder: give the --out of {wanted}")
        found = yaml.safe_load(path.read_text(encoding="utf-8")).get("command")
        if found not in commands:
            raise InputError(f"{root}: is a run of `toolkit {found}`, not of {wanted}")
        run = cls(root)
        if not (run.checkpoints / "best.safetensors").is_file():
            raise InputError(f"{root}: has no checkpoint: finish `toolkit {found}` first")
        return run

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Folder of predictions."""
        return self.root / "predictions"

    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with, paths relative to the run folder."""
        content: dict[str, Any] = yaml.safe_load((self.root / "config.yaml").read_text("utf-8"))
        return content

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to ``log.jsonl``, and pass it on while the run is ``tracked``."""
        with (self.root / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.trackers.log(record)

    def tracked(self, epochs: int) -> AbstractContextManager[None]:
        """Pass on what is logged inside to the trackers; ``epochs`` are done already."""
        config = self.config() if (self.root / "config.yaml").is_file() else {}
        return self.trackers.follow(self.root, config, epochs)

    def write_model(self, description: dict[str, Any]) -> None:
        """Write ``checkpoints/model.json``: what is needed to build the model again."""
        write_json(self.checkpoints / "model.json", description, indent=2)


def recorded_values(config: Config, root: Path) -> dict[str, Any]:
    """A configuration as the run at ``root`` records it: paths relative to the run folder."""
    values = config.model_dump(mode="json")
    for name, value in values.items():
        is_path = isinstance(getattr(config, name), Path)
        if is_path or (name == "weights" and _is_place(str(value))):
            values[name] = Path(os.path.relpath(value, root)).as_posix()
    return values


def recorded_path(root: Path, value: str) -> Path:
    """What a path that the run at ``root`` recorded means now.

    Older runs have some (``WERE_TEXT``) as they were given, relative to the working directory.
    """
    inside = root / value
    return Path(value) if not inside.exists() and Path(value).exists() else inside


def _is_place(weights: str) -> bool:
    """Whether weights are a file or a folder, and no name of some."""
    return weights not in _NAMES and Path(weights).exists()


def fold_of_outliers(root: Path) -> int | None:
    """The fold of a dataset folder whose train pictures are taken as outliers."""
    return 0 if not (root / "train.json").is_file() and fold_numbers(root) else None


@dataclass(frozen=True)
class Learnt:
    """A dataset folder that weights have learnt from.

    Attributes:
        root: of the dataset.
        fold: of it.
        labels: of each class that were used at most, drawn by the seed; None for all.
        seed: of the run.
    """

    root: Path
    fold: int | None
    labels: int | None
    seed: int | None


def learnt_by(weights: str) -> Iterator[Learnt]:
    """The dataset folders that weights have learnt from, in any run that they came from.

    Args:
        weights: what training starts from; a run folder, a checkpoint in one, or anything else.
    """
    seen: set[Path] = set()
    while _is_place(weights):
        place = Path(weights)
        run = place.parent.parent if place.parent.name == "checkpoints" else place
        if run.resolve() in seen or not (run / "config.yaml").is_file():
            return
        seen.add(run.resolve())
        settings = RunFolder(run).config()
        yield from _learnt_in(run, settings)
        weights = str(settings.get("weights") or "none")
        weights = str(recorded_path(run, weights)) if weights not in _NAMES else weights


def _learnt_in(run: Path, settings: Mapping[str, Any]) -> Iterator[Learnt]:
    """The dataset folders that one run, with these settings, has learnt from."""
    seed = settings.get("seed")
    for name in ("data", "source", "outliers"):
        value = settings.get(name)
        if value is None or value == "synth":
            continue
        root = recorded_path(run, str(value))
        if name == "data":
            yield Learnt(root, settings.get("fold"), settings.get("labels"), seed)
        elif name == "source":
            yield Learnt(root, settings.get("source_fold"), None, seed)
        else:
            yield Learnt(root, fold_of_outliers(root), 0, seed)


def refuse_other_fold(weights: str, data: Path, fold: int | None) -> None:
    """Refuse to start from a run that has learnt what is held out now.

    Args:
        weights: what training starts from; a run folder, or anything else.
        data: dataset folder to train on.
        fold: of it.

    Raises:
        InputError: it, or a run that it started from, has learnt from another fold of the same
            data, or from windows or another split of the same pictures.
    """
    for learnt in learnt_by(weights):
        if learnt.root.resolve() == data.resolve():
            if learnt.fold != fold:
                raise InputError(
                    f"{weights}: has learnt from fold {learnt.fold} of {data}, and so from "
                    f"pictures that fold {fold} holds out: start from other weights"
                )
        elif shared := _shared(learnt, data, fold, ("val", "test")):
            raise InputError(
                f"{weights}: has learnt from {learnt.root}, which shows {shared} pictures that "
                f"{data} holds out: start from other weights"
            )


def refuse_more_labels(weights: str, config: AdaptConfig) -> None:
    """Refuse to start from a run that has learnt from labels that may not be used now.

    Args:
        weights: what training starts from; a run folder, or anything else.
        config: of the adaptation, with the target and how many of its labels may be used.

    Raises:
        InputError: it, or a run that it started from, has used more labels of the target, or others
            (as another seed draws them).
    """
    if config.labels is None:
        return
    for learnt in learnt_by(weights):
        fewer = learnt.labels is not None and learnt.labels <= config.labels
        if learnt.labels == 0 or (fewer and learnt.seed == config.seed):
            continue
        same = learnt.root.resolve() == config.data.resolve()
        if same or _shared(learnt, config.data, config.fold, ("train",)):
            used = "all labels" if learnt.labels is None else f"{learnt.labels} labels per class"
            raise InputError(
                f"{weights}: has learnt from {used} of {learnt.root} (seed {learnt.seed}), and "
                f"labels {config.labels} (seed {config.seed}) allows no others: start from other "
                "weights, or allow as many labels"
            )


def _shared(learnt: Learnt, data: Path, fold: int | None, splits: Sequence[str]) -> int:
    """How many pictures were learnt from that are in other splits, too; 0 where data is gone."""
    with suppress(InputError):
        target = DatasetFolder.open(data, fold)
        return shared_pictures(DatasetFolder.open(learnt.root, learnt.fold), target, splits)
    return 0


def is_run_of(root: Path, command: str) -> bool:
    """Whether a folder is a run of a command ("pretrain sam")."""
    path = root / "config.yaml"
    return path.is_file() and yaml.safe_load(path.read_text("utf-8")).get("command") == command
