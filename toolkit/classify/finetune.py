"""`toolkit finetune classifier`: from a dataset folder to a run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchvision.models import ResNet

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.classify.data import Pictures, Sampler, read_pictures, suited
from toolkit.classify.finish import finish
from toolkit.classify.generate import FEATURE_GENERATORS
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
from toolkit.processes import Place, train_in_processes
from toolkit.runs import RunFolder, refuse_other_fold
from toolkit.sampling import class_factors, epoch_length, picture_factors
from toolkit.starter import is_pretrained
from toolkit.training import Schedule, fit, packed, shared_run, whole_model

FREE_ON_RESUME = ("epochs", "steps", "patience", "device", "workers", "resume", "track", "pictures")

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


def _check_batch(config: FinetuneClassifierConfig, here: Place) -> None:
    if config.batch < 2 * here.world:
        raise InputError(
            f"batch: {config.batch} pictures leave one for each of {here.world} processes, too few "
            f"for batch normalisation: give {2 * here.world} or more"
        )


def _finetune(config: FinetuneClassifierConfig, device: torch.device, here: Place) -> RunFolder:
    _check_batch(config, here)
    folder = DatasetFolder.open(config.data, config.fold)
    refuse_other_fold(config.weights, config.data, config.fold)
    datasets = _read_splits(folder)
    if config.labels is not None:
        datasets["train"] = labelled_part(datasets["train"], config.labels, config.seed)
    classes = (GOOD, *datasets["train"].categories)
    model, config = _starting_point(config, classes)
    pictures = {
        split: read_pictures(
            dataset, classes, config.image_size, workers=config.workers, name=split
        )
        for split, dataset in datasets.items()
    }
    outliers = _outliers(config, datasets)
    run = shared_run(here, config.out, COMMAND, config, FREE_ON_RESUME, resume=config.resume)
    if config.adapt is not None:
        model = _adapted(config, run, classes, device, here)
    train = _grown(config, run, pictures["train"], datasets["train"], classes, device, here)
    factors = _factors(config, datasets["train"], train)
    config = _lasting(config, factors)
    shared = config.model_copy(update={"batch": config.batch // here.world})
    task = _task(shared, model.to(device), train, pictures["val"], factors, outliers)
    on_features = config.generate in FEATURE_GENERATORS
    kept = trained_encoder if on_features else whole_model
    progress = fit(task, _plan(config), run, resume=config.resume, kept=kept)
    note(f"best: epoch {progress.best_epoch}, val score {progress.best_score:.4f}")
    if here.leads:
        description = Description(config.model, classes, config.image_size)
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


def _adapted(
    config: FinetuneClassifierConfig,
    run: RunFolder,
    classes: tuple[str, ...],
    device: torch.device,
    here: Place,
) -> ResNet:
    """The model, adapted from the source in a run of its own inside this one."""
    from toolkit.adapt import adapt_within

    assert config.source is not None and config.adapt is not None
    adapted = adapt_within(
        AdaptConfig(
            data=config.data,
            source=config.source,
            out=run.root / "adapted",
            method=config.adapt,
            fold=config.fold,
            source_fold=config.source_fold,
            labels=config.labels,
            model=config.model,
            weights=config.weights,
            image_size=config.image_size,
            resume=True,
            device=config.device,
            workers=config.workers,
            seed=config.seed,
        ),
        device,
        here,
    )
    model, _ = load_backbone(str(adapted.root), config.model, classes)
    return model


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


def _lasting(
    config: FinetuneClassifierConfig, factors: Sequence[float]
) -> FinetuneClassifierConfig:
    """The configuration with the epochs, and passes in each, that the asked-for steps come to.

    Args:
        config: with steps, or without.
        factors: how often a pass shows each train picture.
    """
    if config.steps is None:
        return config
    once = math.ceil(epoch_length(factors) / (config.batch * config.accumulate))
    repeat = math.ceil(STEPS_PER_EPOCH / once)
    epochs = math.ceil(config.steps / (once * repeat))
    return config.model_copy(update={"repeat": repeat, "epochs": epochs})


def _plan(config: FinetuneClassifierConfig) -> Schedule:
    """How fast and how long to learn, where the configuration leaves that open.

    Weights that have seen procedural pictures alone, or those of another line, have more to learn
    than those of ImageNet.
    """
    random = config.weights == "none" and config.adapt is None
    some = config.weights == "none" or is_pretrained(config.weights, PRETRAIN)
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
