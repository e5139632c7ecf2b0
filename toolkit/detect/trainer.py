"""ultralytics' trainers, with every call that needs CLIP or a network answered here.

The places, in ultralytics 8.4:

- ``WorldTrainer.get_model`` registers a callback that asks CLIP for the embeddings with which
  validation runs: training starts from a model whose classes are set, so it is never called.
- ``WorldTrainer.build_dataset`` asks CLIP for the training embeddings and caches them beside the
  pictures: replaced, the embeddings are handed in.
- ``get_dataset`` checks ``data.yaml`` and fetches a font: replaced.
- mixed precision is probed with a model that is downloaded, unless it is bfloat16: so it is that.
- several processes are known to ultralytics by its own launcher only: each is given one device, and
  finds the others in ``_build_train_pipeline``.
- integrations (analytics, the vendor's platform, experiment trackers) are callbacks: none is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.world import WorldTrainer
from ultralytics.nn.tasks import DetectionModel, WorldModel
from ultralytics.utils.torch_utils import unwrap_model

from converters.dataset import Dataset
from converters.errors import InputError
from converters.files import write_bytes
from toolkit.detect.data import DefectImages, EpochDraws, data_description, prompt_name
from toolkit.detect.embeddings import ClassEmbeddings
from toolkit.detect.modes import Mode
from toolkit.detect.state import pack_state, read_state
from toolkit.detect.tiled_data import TiledImages, is_tiled
from toolkit.processes import mean_of_all, place, wrapped


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 1.
        losses: mean training loss by name (box_loss, cls_loss, dfl_loss).
        val_ap50, val_ap: ultralytics' AP on val at IoU 0.5 and over 0.5 to 0.95, 0 to 1.
        learning_rate: at the end of the epoch.
    """

    number: int
    losses: dict[str, float]
    val_ap50: float
    val_ap: float
    learning_rate: float


class _Offline(DetectionTrainer):  # type: ignore[misc]
    """What all trainers share: datasets in memory, our log and our checkpoints.

    Args:
        overrides: training arguments of ultralytics.
        model: to train, in place.
        splits: "train" and "val"; pictures, or windows of them.
        factors: how often an epoch shows each picture of train, on average.
        state: file that is written after every epoch, and gone on from where it is there.
        on_epoch: called after every epoch.
        on_best: called with the weights (moving average) whenever AP on val is the best so far.
    """

    fixed_classes = True
    """Whether the model's classes stand in their order, rather than in each picture's own."""
    squares = False
    """Whether pictures are stretched to squares."""

    loss: torch.Tensor
    tloss: dict[str, torch.Tensor]

    def __init__(
        self,
        overrides: dict[str, Any],
        model: DetectionModel,
        splits: dict[str, Dataset],
        factors: Sequence[float],
        state: Path,
        on_epoch: Callable[[Epoch], None],
        on_best: Callable[[dict[str, torch.Tensor]], None],
    ) -> None:
        self.splits = splits
        self.factors = factors
        self.state = state
        self.asked_batch: int = overrides["batch"]
        self.on_epoch = on_epoch
        self.on_best = on_best
        threads = torch.get_num_threads()
        # A name that ultralytics takes for a detector; nothing is built or looked up by it.
        super().__init__(overrides={"model": "yolov8n.yaml", **overrides})
        torch.set_num_threads(threads)  # on a CPU ultralytics leaves one core idle, of two one
        self.model = model

    def get_dataset(self) -> dict[str, Any]:
        """The splits, as ultralytics describes datasets."""
        return data_description(self.splits)

    def build_dataset(
        self, img_path: Dataset, mode: Literal["train", "val"] = "train", batch: int | None = None
    ) -> DefectImages:
        """Wrap one split; ``img_path`` is what ``get_dataset`` gave for it."""
        kind = TiledImages if is_tiled(img_path) else DefectImages
        return kind(
            img_path,
            mode,
            self.args,
            self.data,
            batch or 1,
            fixed_classes=self.fixed_classes,
            factors=self.factors if mode == "train" else None,
            squares=self.squares,
        )

    def get_dataloader(
        self,
        dataset_path: Dataset,
        batch_size: int = 16,
        rank: int = 0,
        mode: Literal["train", "val"] = "train",
    ) -> InfiniteDataLoader:
        """Load one split; of train every picture as often as it shall be shown."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode == "train":
            # Around it lies the loader's own sampler, which starts it again after each pass.
            here = place()
            self.draws = EpochDraws(self.factors, self.args.seed, rank=here.rank, world=here.world)
            loader.batch_sampler.sampler.sampler = self.draws
        return loader

    def _build_train_pipeline(self) -> None:
        """Build loaders and optimiser; again only where ultralytics found memory too small.

        It would go on with half of the batch and not say so.

        Raises:
            InputError: a batch does not fit into memory.
        """
        if self.batch_size < self.asked_batch:
            raise InputError(
                f"a batch of {self.asked_batch} pictures of {self.args.imgsz} pixels does not fit "
                f"into the memory of {self.device}: give --batch {self.batch_size}"
            )
        if place().world > 1:
            self.world_size = place().world
            self.model = wrapped(self.model, self.device)
        super()._build_train_pipeline()

    def _close_dataloader_mosaic(self) -> None:
        """Go on without mosaic: the loader starts anew, with the epoch that it is in."""
        super()._close_dataloader_mosaic()
        self.draws.epoch = self.epoch

    def resume_training(self, ckpt: None) -> None:
        """Go on from the state of the last whole epoch, where there is one."""
        if not self.state.is_file():
            return
        found = read_state(self.state)
        found.restore(unwrap_model(self.model), self.ema, self.optimizer)
        self.best_fitness = found.progress["best_fitness"]
        self.stopper.best_fitness = found.progress["stopper_best"]
        self.stopper.best_epoch = found.progress["best_epoch"]
        self.start_epoch = self.draws.epoch = found.epochs
        model = unwrap_model(self.model)
        if getattr(model.model[-1], "one2one_cv2", None) is not None:
            # The loss of detectors with two heads shifts its weight from epoch to epoch.
            model.criterion = model.init_criterion()
            model.criterion.updates = found.epochs - 1
            model.criterion.update()

    def _model_train(self) -> None:
        """Begin an epoch: what a model draws while it learns (RT-DETR's noise) depends on it."""
        super()._model_train()
        torch.manual_seed((self.args.seed * 1_000_003 + self.epoch) * 1024 + place().rank)

    def run_callbacks(self, event: str) -> None:
        """Run none: what is to happen after an epoch is a method below."""

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Measure AP on val.

        Raises:
            InputError: the training loss is not a number any more.
        """
        self.loss = mean_of_all(self.loss)
        self.tloss = {name: mean_of_all(value) for name, value in self.tloss.items()}
        if not torch.isfinite(self.loss):
            raise InputError(
                f"training diverged in epoch {self.epoch + 1}: the loss is not a number: "
                "lower learning_rate"
            )
        metrics, fitness = super().validate()
        return metrics, fitness

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Report the epoch, in place of writing results.csv."""
        self.on_epoch(
            Epoch(
                number=self.epoch + 1,
                losses={name: float(metrics[f"train/{name}"]) for name in self.loss_names},
                val_ap50=float(metrics["metrics/mAP50(B)"]),
                val_ap=float(metrics["metrics/mAP50-95(B)"]),
                learning_rate=float(metrics["lr/pg0"]),
            )
        )

    def save_model(self) -> bool:
        """Hand over the weights if they are the best so far, and keep the state; no pickles."""
        if self.fitness == self.best_fitness:
            self.on_best(self.ema.ema.state_dict())
        progress = {
            "epochs": self.epoch + 1,
            "stopped": bool(self.stop),
            "best_fitness": float(self.best_fitness),
            "stopper_best": float(self.stopper.best_fitness),
            "best_epoch": self.stopper.best_epoch,
        }
        model = unwrap_model(self.model)
        write_bytes(self.state, pack_state(model, self.ema, self.optimizer, progress))
        return True

    def final_eval(self) -> None:
        """Leave out validating the best epoch once more."""


class OfflinePlainTrainer(_Offline):
    """Train a plain YOLO."""


class OfflineTransformerTrainer(_Offline, RTDETRTrainer):  # type: ignore[misc]
    """Train RT-DETR."""

    squares = True


class OfflineWorldTrainer(_Offline, WorldTrainer):  # type: ignore[misc]
    """Train YOLO-World.

    Args:
        overrides: training arguments of ultralytics.
        model: whose classes are set to ``embeddings``; for mode "prompt" it has them as
            ``prompts``.
        embeddings: of the classes.
        mode: what learns.
        rest: as of the other trainers.
    """

    def __init__(
        self,
        overrides: dict[str, Any],
        model: WorldModel,
        embeddings: ClassEmbeddings,
        mode: Mode,
        **rest: Any,
    ) -> None:
        self.mode = mode
        self.fixed_classes = mode == "reparam"
        super().__init__(overrides, model, **rest)
        self.text_embeddings = {
            prompt_name(index): vector for index, vector in enumerate(embeddings.vectors)
        }

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add what the classes of the batch are asked for with."""
        if self.mode == "reparam":
            batch = super(WorldTrainer, self).preprocess_batch(batch)
            batch["txt_feats"] = unwrap_model(self.model).txt_feats.to(self.device)
            return batch
        if self.mode == "prompt":
            unit = torch.nn.functional.normalize(unwrap_model(self.model).prompts, dim=-1)
            self.text_embeddings = {prompt_name(i): vector for i, vector in enumerate(unit)}
        prepared: dict[str, Any] = super().preprocess_batch(batch)
        return prepared

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Measure AP on val, with the class embeddings as far as they have learnt."""
        if self.mode == "prompt":
            average = self.ema.ema
            average.txt_feats = torch.nn.functional.normalize(average.prompts.detach(), dim=-1)[
                None
            ]
        return super().validate()
