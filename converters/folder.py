"""The dataset folder: the contract between conversion and everything that learns or measures.

::

    DATASET/
      dataset.yaml                     the card
      images/                          the pictures
      train.json val.json test.json    COCO instances
      folds/0/ folds/1/ …              the same three files per fold, where folds were asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from converters.dataset import SPLITS, Dataset
from converters.errors import InputError
from converters.formats.coco import read_coco
from converters.layouts import recognised

CARD = "dataset.yaml"

WINDOW = "#xywh="
"""What parts, in the source of a picture that was cut out, the whole one's name from the place."""

CROPS = "-crops"
"""What the name of a dataset ends with whose pictures were cut out of those of another."""

# Cards list files: libyaml reads a long one several times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def fold_numbers(root: Path) -> list[int]:
    """Numbers of the folds of a dataset folder, sorted; empty where there is one split only."""
    names = (path.name for path in (root / "folds").glob("*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdigit())


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset on disk, one fold of it where it has folds.

    Attributes:
        root: the folder.
        fold: number of the fold, from 0; None for the one split.
        card: content of ``dataset.yaml``.
    """

    root: Path
    fold: int | None
    card: dict[str, Any]

    @classmethod
    def open(cls, root: Path, fold: int | None = None) -> DatasetFolder:
        """Open a dataset folder.

        Raises:
            InputError: it is not one, or the fold is missing, or it has folds and none was named.
        """
        card_path = root / CARD
        if not card_path.is_file():
            layout = recognised(root)
            if layout is None:
                remedy = "make one with `toolkit convert`"
            else:
                remedy = f"make one with `toolkit convert {root} DEST` (layout {layout.name})"
            raise InputError(f"{root}: is not a dataset folder (no {CARD}): {remedy}")
        try:
            card = yaml.load(card_path.read_text(encoding="utf-8"), Loader=_LOADER)
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{card_path}: is not readable YAML: convert again") from error
        if not isinstance(card, dict):
            raise InputError(f"{card_path}: is not a dataset card: convert again")
        folds = fold_numbers(root)
        if fold is None and folds and not (root / "test.json").is_file():
            raise InputError(f"{root}: has folds 0 to {len(folds) - 1}: name one with --fold")
        if fold is not None and fold not in folds:
            has = f"folds 0 to {len(folds) - 1}" if folds else "no folds"
            raise InputError(f"{root}: has {has}: fold {fold} is not there")
        return cls(root, fold, card)

    @property
    def has_image_labels(self) -> bool:
        """Whether labels are of whole pictures: every box is its picture and there is no mask."""
        return self.card.get("labels") == "image"

    def require_places(self, what: str) -> None:
        """Refuse a dataset that does not say where defects are.

        Args:
            what: is refused, for the message.

        Raises:
            InputError: its labels are of whole pictures.
        """
        if self.has_image_labels:
            raise InputError(
                f"{self.root}: has labels of whole pictures, and {what} needs to know where "
                "defects are: convert masks, or use `toolkit finetune classifier`"
            )

    @property
    def images(self) -> Path:
        """The folder of pictures."""
        return self.root / "images"

    def annotations(self, split: str) -> Path:
        """The COCO file of a split.

        Raises:
            InputError: there is none.
        """
        base = self.root if self.fold is None else self.root / "folds" / str(self.fold)
        path = base / f"{split}.json"
        if not path.is_file():
            raise InputError(f"{path}: no such split: convert with a split that has it")
        return path

    def splits(self) -> list[str]:
        """The splits that are there, in the order train, val, test."""
        base = self.root if self.fold is None else self.root / "folds" / str(self.fold)
        return [split for split in SPLITS if (base / f"{split}.json").is_file()]

    def read(self, split: str) -> Dataset:
        """Read the ground truth of one split."""
        return read_coco(self.annotations(split), self.images)


def shared_pictures(learnt: DatasetFolder, other: DatasetFolder, splits: Sequence[str]) -> int:
    """How many pictures the train split of one folder shows that some splits of another have.

    Folders share pictures where they were made of the same files: one may be split in another way,
    or hold windows that were cut out (``converters.crops``). By what a picture looks like see
    ``converters.duplicates``.

    Args:
        learnt: whose train split is looked at.
        other: whose other splits are.
        splits: of them; those that are not there have no pictures.

    Returns:
        number of photographs, 0 where the folders were not made of the same files.
    """
    if not _same_files(learnt.card, other.card):
        return 0
    there = [split for split in splits if split in other.splits()]
    held_out = {name for split in there for name in _photographs(other.read(split))}
    return len(held_out & _photographs(learnt.read("train")))


def _same_files(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    digests = [_digest(card) for card in (one, two)]
    if None not in digests:
        return digests[0] == digests[1]
    names = [str(card.get("name", "")) for card in (one, two)]
    return names[0] == names[1] + CROPS or names[1] == names[0] + CROPS


def _digest(card: Mapping[str, Any]) -> object:
    source = card.get("source")
    return source.get("files_sha256") if isinstance(source, dict) else None


def _photographs(dataset: Dataset) -> set[str]:
    """The names of the source's files that pictures are, or were cut out of."""
    return {(image.source or image.file_name).partition(WINDOW)[0] for image in dataset.images}
