"""What training sees of a dataset: pictures or windows of them, and how often."""

from __future__ import annotations

from dataclasses import dataclass, replace

from converters.dataset import Dataset
from toolkit.config import FinetuneYoloConfig
from toolkit.detect.open_vocabulary import Replay
from toolkit.detect.tiles import Tiling, tile_dataset, window_factors
from toolkit.sampling import epoch_length, picture_factors


@dataclass(frozen=True)
class Material:
    """What training sees: pictures, or windows of them.

    Attributes:
        train, val: of both splits.
        own_factors: how often an epoch shows each of train, on average.
        tiling: how pictures were cut; None where they were not.
        replay: pictures of other classes, shown in between; None for none.
    """

    train: Dataset
    val: Dataset
    own_factors: list[float]
    tiling: Tiling | None
    replay: Replay | None

    @property
    def factors(self) -> list[float]:
        """The same, then those of the replay."""
        return self.own_factors if self.replay is None else self.replay.factors(self.own_factors)

    def repeated(self, times: int) -> Material:
        """The same, with everything of train that many times in an epoch."""
        train = self.train.subset(self.train.images * times)
        return replace(self, train=train, own_factors=self.own_factors * times)

    def lasting(self, pictures: int) -> Material:
        """The same, with epochs that show so many pictures (with a replay one less)."""
        ratio = (pictures - (self.replay is not None)) / sum(self.factors)
        return replace(self, own_factors=[factor * ratio for factor in self.own_factors])

    def summary(self) -> str:
        """What an epoch is made of."""
        images = self.train.images
        empty = sum(f for f, image in zip(self.own_factors, images, strict=True) if image.is_good)
        total = epoch_length(self.own_factors)
        return (
            f"pictures {self.tiling}: an epoch shows {total} of {len(images)} windows, "
            f"{round(total - empty)} of them with defects; val has {len(self.val.images)}"
        )


def training_material(
    splits: dict[str, Dataset], config: FinetuneYoloConfig, replay: Replay | None
) -> Material:
    """What training sees of a dataset, shown once in an epoch.

    Args:
        splits: "train" and "val".
        config: how pictures are cut, and which are shown more often.
        replay: pictures of other classes; None for none.
    """
    train, val, tiling = splits["train"], splits["val"], _tiling(config)
    if tiling is None:
        return Material(train, val, picture_factors(train, config.sampling), None, replay)
    train, val = tile_dataset(train, tiling), tile_dataset(val, tiling)
    factors = window_factors(train, config.sampling, config.tile_background)
    return Material(train, val, factors, tiling, replay)


def _tiling(config: FinetuneYoloConfig) -> Tiling | None:
    return None if config.tile is None else Tiling(config.tile, config.tile_overlap)
