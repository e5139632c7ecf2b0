"""`toolkit adapt`: from a rich source and a poor target to weights for the target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from toolkit.adapt.data import Batches, Material, read_material
from toolkit.adapt.encoders import Channels, open_encoder
from toolkit.adapt.task import Adaptation, TwoDomains
from toolkit.classify.data import count_batches
from toolkit.config import AdaptConfig
from toolkit.console import note
from toolkit.processes import Place, check_batch, check_batch_norm, train_in_processes
from toolkit.runs import ADAPT, RunFolder, refuse_more_labels, refuse_other_fold
from toolkit.training import Schedule, fit, packed, shared_run

FREE_ON_RESUME = ("device", "workers", "resume", "track")
"""Fields that may differ when a run goes on. More epochs may not: the reversal's strength depends
on how far the training is."""


def adapt_classifier(config: AdaptConfig) -> RunFolder:
    """Teach an encoder a poor target by a rich source, whose classes may be others.

    After Li, Bertino, Wu and Wu (2023, wafer maps), arXiv 2306.00202, whose layer sizes and weights
    are not public. Both domains pass one encoder of which a part is private (see
    ``encoders.Encoder``); linear classifiers learn from the labels of both; and features are made
    alike, either by a discriminator of domains behind a gradient reversal ("adversarial", Ganin and
    Lempitsky, ICML 2015), or by their maximum mean discrepancy and pseudo labels that several views
    of a picture vote for ("mmd").

    Returns:
        the run: ``checkpoints/best.safetensors`` is the plain network of the target at the epoch
        with the best val score, or at the last one where ``labels`` is 0. It serves as ``weights``
        of ``finetune classifier``, of ``finetune sam`` or ``finetune yolo`` where it is theirs.

    Raises:
        InputError: source or target cannot be used, the source holds pictures of the target, the
            weights cannot be used or have learnt from another fold or more labels, the device is
            not there, the run folder is taken, or a process of several was killed.
    """
    return train_in_processes("toolkit.adapt:adapt_classifier", config, adapt_within)


def adapt_within(config: AdaptConfig, device: torch.device, here: Place) -> RunFolder:
    """As ``adapt_classifier``, in processes that run already; all of them call this.

    Args:
        config: of the adaptation.
        device: of this process.
        here: which process it is.
    """
    return prepare(config, here).run(device, here)


@dataclass(frozen=True)
class Prepared:
    """An adaptation that can begin: everything that a user can get wrong was checked.

    Attributes:
        config: of it.
        material: pictures of both domains.
    """

    config: AdaptConfig
    material: Material

    def run(self, device: torch.device, here: Place) -> RunFolder:
        """Adapt; all processes call this, each with its device."""
        return _adapt(self.config, self.material, device, here)


def prepare(config: AdaptConfig, here: Place) -> Prepared:
    """Check a configuration and read its pictures, before anything is written.

    Raises:
        InputError: as of ``adapt_classifier``, but for what a run folder can be wrong about.
    """
    check_batch(config.batch, here.world)
    check_batch_norm(config.batch, here.world)
    refuse_other_fold(config.weights, config.data, config.fold)
    refuse_more_labels(config.weights, config)
    return Prepared(config, read_material(config))


def _adapt(config: AdaptConfig, material: Material, device: torch.device, here: Place) -> RunFolder:
    source, target = material.source, material.target
    channels: Channels = {"source": source.channels, "target": target.channels}
    encoder, head = open_encoder(config, target.classes, channels)
    model = TwoDomains(
        encoder,
        head,
        source.classes,
        target.classes,
        discriminates=config.method == "adversarial",
    )
    config = config.model_copy(update={"model": encoder.model})
    run = shared_run(here, config.out, ADAPT, config, FREE_ON_RESUME, resume=config.resume)
    if here.leads:
        encoder.describe(run, target.classes, config.image_size)
    batch, views = config.batch // here.world, config.views if config.method == "mmd" else 0
    steps = count_batches(len(target.labels), batch)
    schedule = _plan(config, steps)
    batches = Batches(material, batch=batch, views=views, epochs=schedule.epochs, seed=config.seed)
    task = Adaptation(model.to(device), material, batches, config)
    progress = fit(task, schedule, run, resume=config.resume, kept=_network_of_target)
    if material.val is None:
        note("no label of the target was used: the last epoch is kept")
    else:
        note(f"best: epoch {progress.best_epoch}, val score {progress.best_score:.4f}")
    return run


def _plan(config: AdaptConfig, steps: int) -> Schedule:
    """How fast and how long to learn; nothing stops it early."""
    epochs = config.epochs if config.steps is None else math.ceil(config.steps / steps)
    rate = config.learning_rate or {"SGD": 0.01, "AdamW": 3e-4}[config.optimizer]
    return Schedule(
        epochs=epochs,
        learning_rate=rate,
        weight_decay=config.weight_decay,
        patience=epochs,
        score="val_score",
        seed=config.seed,
        optimizer=config.optimizer,
    )


def _network_of_target(model: nn.Module) -> dict[str, bytes]:
    """The plain network of the target as ``best.safetensors``, by its own names."""
    assert isinstance(model, TwoDomains)
    return {"best.safetensors": packed(model.result())}
