"""`toolkit finetune classifier`: from a dataset folder to a run folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torchvision.models import ResNet

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.classify.data import Pictures, Sampler, count_batches, read_pictures, suited
from toolkit.classify.finish import finish
from toolkit.classify.generate import FEATURE_GENERATORS, classes_to_grow, make_generator
from toolkit.classify.labels import labelled_part
from toolkit.classify.losses import ClassifierLoss, balance
from toolkit.classify.model import build_resnet
from toolkit.classify.task import ClassifierTask
from toolkit.classify.weights import (
    COMMAND,
    PRETRAIN,
    TRAINED,
    Description,
    load_backbone,
)
from toolkit.config import AdaptConfig, FinetuneClassifierConfig
from toolkit.console import note
from toolkit.processes import Place, check_batch_norm, train_in_processes
from toolkit.runs import RunFolder, refuse_other_fold
from toolkit.sampling import class_factors, epoch_length, picture_factors
from toolkit.starter import is_pretrained
from toolkit.training import Schedule, fit, packed, shared_run, whole_model

if TYPE_CHECKING:
    from toolkit.adapt import Prepared

FREE_ON_RESUME = ("epochs", "steps", "patience", "device", "workers", "resume", "track", "pictures")

ADAPTED = "adapted"
"""Folder in a run of the run that adapted its weights first."""

STEPS_PER_EPOCH = 20
"""Fewest steps between looks at val where the length of training is given in steps."""


def finetune_classifier(config: FinetuneClassifierConfig) -> RunFolder:
    """Fine-tune a ResNet to say "good" or which defect, and predict val and test.

    A picture with several kinds of defect is of the one that covers most of it. Several devices
    share each batch, a process each; so do the processes that ``torchrun`` started.

    Returns:
        the run: ``checkpoints/best.safetensors`` is the model of the epoch with the best val
        score, ``predictions/`` its probabilities.

    Raises:
        InputError: there is nothing to tell apart in train, val or test has a class that train
            lacks, a picture or the weights cannot be used, the device is not there, the run folder
            is taken, or a process of several was killed.
    """
    return train_in_processes("toolkit.classify:finetune_classifier", config, _finetune)


def _finetune(config: FinetuneClassifierConfig, device: torch.device, here: Place) -> RunFolder:
    check_batch_norm(config.batch, here.world)
    folder = DatasetFolder.open(config.data, config.fold)
    refuse_other_fold(config.weights, config.data, config.fold)
    whole = datasets = _read_splits(folder)
    if config.labels is not None:
        labelled = labelled_part(whole["train"], config.labels, config.seed)
        datasets = {**whole, "train": labelled}
    classes = (GOOD, *datasets["train"].categories)
    model, config = _starting_point(config, classes)
    pictures = {
        split: read_pictures(
            dataset, classes, config.image_size, workers=config.workers, name=split
        )
        for split, dataset in datasets.items()
    }
    if config.generate is not None:
        generator = make_generator(config.generate, config.seed)
        classes_to_grow(generator, pictures["train"].labels, classes, config.generate_to)
    outliers = _outliers(config, whole)
    adaptation = _adaptation(config, here)
    run = shared_run(here, config.out, COMMAND, config, FREE_ON_RESUME, resume=config.resume)
    _check_unit(config, run)
    if adaptation is not None:
        adapted = adaptation.run(device, here)
        model, architecture = load_backbone(str(adapted.root), None, classes)
        config = config.model_copy(update={"model": architecture})
    description = Description(config.model, classes, config.image_size)
    if here.leads:
        run.write_model(description.to_json())
    train = _grown(config, run, pictures["train"], datasets["train"], classes, device, here)
    factors = _factors(config, datasets["train"], train)
    config = _lasting(config, factors, here)
    shared = config.model_copy(update={"batch": config.batch // here.world})
    task = _task(shared, model.to(device), train, pictures["val"], factors, outliers)
    on_features = config.generate in FEATURE_GENERATORS
    kept = trained_encoder if on_features else whole_model
    progress = fit(task, _plan(config), run, resume=config.resume, kept=kept)
    note(f"best: epoch {progress.best_epoch}, val score {progress.best_score:.4f}")
    if here.leads:
        if on_features:
            from toolkit.classify.generate.head import grow_head

            description = grow_head(config, run, description, datasets["train"], pictures, device)
        finish(config, run, description, datasets, pictures, device)
    return run


def _outliers(config: FinetuneClassifierConfig, datasets: Mapping[str, Dataset]) -> Pictures | None:
    """Pictures of anything else, none of them of the dataset."""
    if config.outliers is None:
        return None
    from toolkit.classify.outliers import read_outliers

    return read_outliers(
        config.outliers, datasets, config.image_size, workers=config.workers, seed=config.seed
    )


def _adaptation(config: FinetuneClassifierConfig, here: Place) -> Prepared | None:
    """What adapting from the source first takes, read and checked; None where it is not asked for.

    It has the batch of fine-tuning, as far as processes can share it.
    """
    if config.adapt is None:
        return None
    from toolkit.adapt import prepare

    assert config.source is not None
    values = {
        "data": config.data,
        "source": config.source,
        "out": config.out / ADAPTED,
        "method": config.adapt,
        "fold": config.fold,
        "source_fold": config.source_fold,
        "labels": config.labels,
        "weights": config.weights,
        "image_size": config.image_size,
        "batch": max(4, config.batch // here.world * here.world),
        "resume": True,
        "device": config.device,
        "workers": config.workers,
        "seed": config.seed,
    }
    if config.weights == "none" or "model" in config.model_fields_set:
        values["model"] = config.model
    return prepare(AdaptConfig(**values), here)


def _grown(
    config: FinetuneClassifierConfig,
    run: RunFolder,
    train: Pictures,
    dataset: Dataset,
    classes: tuple[str, ...],
    device: torch.device,
    here: Place,
) -> Pictures:
    """The train pictures, and those that a generator makes of rare classes after them."""
    if config.generate is None or config.generate in FEATURE_GENERATORS:
        return train
    from toolkit.classify.generate.pictures import grown_pictures

    return grown_pictures(config, run, train, dataset, classes, device, here)


def _factors(config: FinetuneClassifierConfig, dataset: Dataset, train: Pictures) -> list[float]:
    """How often an epoch shows each train picture; those that were made follow the others."""
    if config.sampling == "balanced":
        return class_factors(train.labels)
    made = len(train.labels) - len(dataset.images)
    return picture_factors(dataset, config.sampling) + [1.0] * made


def _read_splits(folder: DatasetFolder) -> dict[str, Dataset]:
    """The splits that have pictures, checked to be learnable."""
    datasets = {split: folder.read(split) for split in ("train", "val")}
    if "test" in folder.splits():
        datasets["test"] = folder.read("test")
    for split in ("train", "val"):
        if not datasets[split].images:
            raise InputError(
                f"{folder.annotations(split)}: has no pictures: convert with a split that has some"
            )
    datasets = {split: dataset for split, dataset in datasets.items() if dataset.images}
    known = set(datasets["train"].image_labels())
    if len(known) == 1:
        raise InputError(
            f"{folder.annotations('train')}: all pictures are {next(iter(known))!r}, so there is "
            "nothing to tell apart: add pictures of another class"
        )
    for split, dataset in datasets.items():
        unknown = sorted(set(dataset.image_labels()) - known)
        if unknown:
            raise InputError(
                f"{folder.annotations(split)}: has pictures of {', '.join(unknown)}, which train "
                "lacks: split so that train has every class"
            )
    return datasets


def _starting_point(
    config: FinetuneClassifierConfig, classes: tuple[str, ...]
) -> tuple[ResNet, FinetuneClassifierConfig]:
    """The model to start from, and the configuration with the architecture that it has."""
    torch.manual_seed(config.seed)
    if config.weights == "none":
        return build_resnet(config.model, len(classes)), config
    asked = config.model if "model" in config.model_fields_set else None
    model, architecture = load_backbone(config.weights, asked, classes)
    return model, config.model_copy(update={"model": architecture})


def _check_unit(config: FinetuneClassifierConfig, run: RunFolder) -> None:
    """Refuse to go on with a run whose length was given in another unit: its epochs are others."""
    recorded = run.config().get("steps")
    if (recorded is None) != (config.steps is None):
        before, now = ("epochs", "steps") if recorded is None else ("steps", "epochs")
        raise InputError(
            f"{run.root}: was started with a length in {before}: resume with {before}, not {now}"
        )


def _lasting(
    config: FinetuneClassifierConfig, factors: Sequence[float], here: Place
) -> FinetuneClassifierConfig:
    """The configuration with the epochs, and passes in each, that the asked-for steps come to.

    Args:
        config: with steps, or without.
        factors: how often a pass shows each train picture.
        here: this process, of all those that share a step.
    """
    if config.steps is None:
        return config
    once, together = epoch_length(factors), config.accumulate * here.world

    def steps(repeat: int) -> int:
        return math.ceil(count_batches(once * repeat, config.batch // here.world) / together)

    repeat = next(number for number in itertools.count(1) if steps(number) >= STEPS_PER_EPOCH)
    epochs = math.ceil(config.steps / steps(repeat))
    return config.model_copy(update={"repeat": repeat, "epochs": epochs})


def _plan(config: FinetuneClassifierConfig) -> Schedule:
    """How fast and how long to learn, where the configuration leaves that open.

    Weights that have seen procedural pictures alone, or those of another line, have more to learn
    than those of ImageNet.
    """
    random = config.weights == "none" and config.adapt is None
    adapted = config.adapt is not None
    some = adapted or config.weights == "none" or is_pretrained(config.weights, PRETRAIN)
    whole = 1e-3 if random else 3e-4 if some else 1e-4
    rate = {"all": whole, "layer4": 3e-4, "head": 1e-3}[config.train]
    if config.optimizer == "SGD":
        rate = 100 * whole if config.train == "all" else 0.01
    epochs = config.epochs or (80 if random else 30)
    return Schedule(
        epochs=epochs,
        learning_rate=config.learning_rate or rate,
        weight_decay=config.weight_decay,
        patience=config.patience or max(10, epochs // 3),
        score="val_score",
        seed=config.seed,
        accumulate=config.accumulate,
        optimizer=config.optimizer,
        decay=config.schedule,
    )


def _task(
    config: FinetuneClassifierConfig,
    model: ResNet,
    train: Pictures,
    val: Pictures,
    factors: Sequence[float],
    outliers: Pictures | None,
) -> ClassifierTask:
    sampler = Sampler(
        train,
        batch=config.batch,
        repeat=config.repeat,
        factors=factors,
        augment=suited(config.augment, train.pixels),
        rotation=config.rotation,
        seed=config.seed,
        outliers=outliers,
    )
    weights = None
    if config.class_weights != "none":
        weights = balance(train.labels, model.fc.out_features, factors, config.class_weights)
    gamma = config.focal_gamma if config.loss == "focal" else 0.0
    return ClassifierTask(
        model,
        train,
        val,
        sampler,
        learns=config.train,
        loss=ClassifierLoss(weights, config.label_smoothing, gamma),
        mixup=config.mixup,
        outlier_weight=config.outlier_weight,
    )


def trained_encoder(model: nn.Module) -> dict[str, bytes]:
    """A model as the file ``TRAINED``: a run is not finished before its head is."""
    return {TRAINED: packed(model.state_dict())}
