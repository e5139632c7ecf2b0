"""`toolkit finetune classifier`: from a dataset folder to a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchvision.models import ResNet

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.classify.classifier import Classifier
from toolkit.classify.data import Pictures, Sampler, read_pictures
from toolkit.classify.model import build_resnet
from toolkit.classify.task import ClassifierTask, balance
from toolkit.classify.weights import COMMAND, PRETRAIN, load_backbone
from toolkit.config import FinetuneClassifierConfig
from toolkit.console import note
from toolkit.predictions import ImageProbabilities, PredictionCard, write_probabilities
from toolkit.processes import Place, train_in_processes
from toolkit.runs import RunFolder, refuse_other_fold
from toolkit.sampling import picture_factors
from toolkit.starter import is_pretrained
from toolkit.training import Schedule, fit, shared_run

FREE_ON_RESUME = ("epochs", "patience", "device", "workers", "resume", "track")


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
    if config.batch < 2 * here.world:
        raise InputError(
            f"batch: {config.batch} pictures leave one for each of {here.world} processes, too few "
            f"for batch normalisation: give {2 * here.world} or more"
        )
    folder = DatasetFolder.open(config.data, config.fold)
    refuse_other_fold(config.weights, config.data, config.fold)
    datasets = _read_splits(folder)
    classes = (GOOD, *datasets["train"].categories)
    model, config = _starting_point(config, classes)
    schedule = _plan(config)
    pictures = {
        split: read_pictures(
            dataset, classes, config.image_size, workers=config.workers, name=split
        )
        for split, dataset in datasets.items()
    }
    run = shared_run(here, config.out, COMMAND, config, FREE_ON_RESUME, resume=config.resume)
    if here.leads:
        run.write_model(
            {
                "architecture": config.model,
                "classes": list(classes),
                "image_size": config.image_size,
            }
        )
    factors = picture_factors(datasets["train"], config.sampling)
    shared = config.model_copy(update={"batch": config.batch // here.world})
    task = _task(shared, model.to(device), pictures["train"], pictures["val"], factors)
    progress = fit(task, schedule, run, resume=config.resume)
    note(f"best: epoch {progress.best_epoch}, val score {progress.best_score:.4f}")
    if here.leads:
        _predict(run, datasets, pictures, str(device))
    return run


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


def _plan(config: FinetuneClassifierConfig) -> Schedule:
    """How fast and how long to learn, where the configuration leaves that open.

    Weights that have seen procedural pictures alone have more to learn than those of ImageNet.
    """
    random = config.weights == "none"
    procedural = is_pretrained(config.weights, PRETRAIN)
    whole = 1e-3 if random else 3e-4 if procedural else 1e-4
    rate = {"all": whole, "layer4": 3e-4, "head": 1e-3}[config.train]
    epochs = config.epochs or (80 if random else 30)
    return Schedule(
        epochs=epochs,
        learning_rate=config.learning_rate or rate,
        weight_decay=config.weight_decay,
        patience=config.patience or max(10, epochs // 3),
        score="val_score",
        seed=config.seed,
        accumulate=config.accumulate,
    )


def _task(
    config: FinetuneClassifierConfig,
    model: ResNet,
    train: Pictures,
    val: Pictures,
    factors: Sequence[float],
) -> ClassifierTask:
    sampler = Sampler(
        train,
        batch=config.batch,
        repeat=config.repeat,
        factors=factors,
        augment=config.augment,
        seed=config.seed,
    )
    weights = balance(train.labels, model.fc.out_features) if config.class_weights else None
    return ClassifierTask(
        model,
        train,
        val,
        sampler,
        learns=config.train,
        class_weights=weights,
        label_smoothing=config.label_smoothing,
    )


def _predict(
    run: RunFolder, datasets: Mapping[str, Dataset], pictures: Mapping[str, Pictures], device: str
) -> None:
    """Classify val and test with the best checkpoint."""
    classifier = Classifier.load(run.root, device)
    probabilities = {
        split: ImageProbabilities(
            classifier.classes,
            tuple(image.file_name for image in dataset.images),
            classifier.classify_squares(pictures[split].pixels),
        )
        for split, dataset in datasets.items()
        if split != "train"
    }
    card = PredictionCard(
        boxes="none", masks=False, classifier=f"{classifier.architecture} {classifier.image_size}"
    )
    write_probabilities(run.predictions, probabilities, card)
