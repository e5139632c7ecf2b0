"""Fine-tuning YOLO-World v2 on a dataset folder, without a network and without CLIP."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import torch

from converters.dataset import SPLITS, Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import FinetuneYoloConfig
from toolkit.console import note, track
from toolkit.detect.data import STRIDE
from toolkit.detect.detector import Detector, predict_dataset
from toolkit.detect.embeddings import ClassEmbeddings, resolve_embeddings
from toolkit.detect.modes import frozen_layers, is_reparameterised, reparameterise
from toolkit.detect.offline import quiet
from toolkit.detect.recipe import training_arguments
from toolkit.detect.size import ENOUGH, small_defect, suggest_image_size
from toolkit.detect.state import read_state
from toolkit.detect.trainer import Epoch, OfflineWorldTrainer
from toolkit.detect.weights import (
    COMMAND,
    StartingPoint,
    embeddings_file,
    load_starting_point,
    save_description,
    save_weights,
    set_classes,
)
from toolkit.devices import resolve_device
from toolkit.images import read_image
from toolkit.predictions import PredictionCard, write_predictions
from toolkit.processes import Place, check_batch, joined, launch, mean_of_all, own_device, to_launch
from toolkit.runs import RunFolder
from toolkit.sampling import epoch_length, picture_factors
from toolkit.training import check_resumable, trim_log

FREE_ON_RESUME = ("device", "workers", "resume", "confidence", "track")
"""Fields that may differ when a run goes on."""


def finetune_yolo(config: FinetuneYoloConfig) -> RunFolder:
    """Fine-tune YOLO-World v2 on the train split and predict on val and test.

    The model of the epoch with the best AP on val is kept. Afterwards it finds the classes of the
    dataset and no others: fine-tuning closes the vocabulary. A run that was stopped goes on
    (``resume``) to the same weights, on the same processor and with as many processes.

    Several devices share each batch, a process each; so do the processes that ``torchrun`` started.

    Returns:
        the run: ``checkpoints/`` (``best.safetensors``, ``embeddings.safetensors``,
        ``model.json``), ``log.jsonl`` (a record per epoch), ``predictions/``.

    Raises:
        InputError: the data, the weights or the embeddings cannot be used, the run folder is taken,
            training diverged, or a process of several was killed.
    """
    devices = to_launch(config.device)
    if devices:
        check_batch(config.batch, len(devices))
        for name in devices:
            resolve_device(name)
        launch("toolkit.detect:finetune_yolo", config, devices)
        return RunFolder(config.out)
    device = resolve_device(own_device(config.device))
    with joined(device) as here:
        check_batch(config.batch, here.world)
        return _finetune(config, device, here)


def _finetune(config: FinetuneYoloConfig, device: torch.device, here: Place) -> RunFolder:
    if not here.leads:
        config = config.model_copy(update={"track": ()})
    folder = DatasetFolder.open(config.data, config.fold)
    splits = {split: folder.read(split) for split in SPLITS if split in folder.splits()}
    _check_splits(splits, config, here.world)
    image_size = _image_size(config, splits["train"])
    start = load_starting_point(config.weights, config.scale, config.seed, config.trust)
    embeddings = resolve_embeddings(
        splits["train"].categories, config.embeddings, start.embeddings, config.seed
    )
    if here.leads:
        _check_pictures(splits)
    _check_form(config, start, embeddings)
    with here.in_turn():
        resume = config.resume or not here.leads
        run = RunFolder.create(config.out, COMMAND, config, resume=resume)
    check_resumable(run, COMMAND, config, FREE_ON_RESUME)
    set_classes(start.model, embeddings)
    if config.mode == "reparam" and not is_reparameterised(start.model):
        reparameterise(start.model)
    state = run.checkpoints / "last.safetensors"
    done = read_state(state) if state.is_file() else None
    _check_shared(run, done.epochs if done else 0, device)
    if done is None and here.leads:
        fixed = is_reparameterised(start.model)
        save_description(run, start.scale, embeddings, image_size, start.source, fixed)
    note(
        f"YOLO-World v2 {start.scale} from {start.source}, on {device}; "
        f"class embeddings: {embeddings.summary()}. It will find these classes only: "
        f"{', '.join(embeddings.names)}."
    )
    if done is None or not done.progress["stopped"]:
        epochs = done.epochs if done else 0
        if here.leads:
            trim_log(run, epochs)
        with run.tracked(epochs):
            _train(config, image_size, splits, start, embeddings, device, run)
    if not here.leads:
        return run
    detector = Detector.load(run.root, device, confidence=config.confidence)
    results = {
        split: predict_dataset(detector, dataset, batch=config.batch)
        for split, dataset in splits.items()
        if split != "train"
    }
    card = PredictionCard("detector", masks=False, detector=detector.description)
    write_predictions(run.predictions, results, card)
    return run


def _train(
    config: FinetuneYoloConfig,
    image_size: int,
    splits: dict[str, Dataset],
    start: StartingPoint,
    embeddings: ClassEmbeddings,
    device: torch.device,
    run: RunFolder,
) -> None:
    train = _repeated(splits["train"], config.repeat)
    factors = picture_factors(train, config.sampling)
    arguments = training_arguments(
        config,
        origin=start.origin,
        images=epoch_length(factors),
        image_size=image_size,
        device=device,
        frozen=frozen_layers(config.mode, start.model),
    )
    if config.mode == "prompt":
        start.model.prompts = torch.nn.Parameter(embeddings.vectors.clone())
    frozen = start.model.state_dict() if config.mode == "prompt" else {}

    def keep(state: dict[str, torch.Tensor]) -> None:
        if config.mode == "prompt":
            learnt = torch.nn.functional.normalize(state["prompts"].detach().cpu(), dim=-1)
            origins = tuple(f"learnt, {origin}" for origin in embeddings.origins)
            ClassEmbeddings(embeddings.names, learnt, origins).save(embeddings_file(run))
            state = {name: tensor for name, tensor in frozen.items() if name != "prompts"}
        save_weights(run, state)

    # ultralytics insists on a folder for its own notes.
    with tempfile.TemporaryDirectory(prefix="toolkit-yolo-") as scratch, quiet():
        trainer = OfflineWorldTrainer(
            {**arguments, "save_dir": scratch},
            start.model,
            {"train": train, "val": splits["val"]},
            embeddings,
            factors,
            config.mode,
            run.checkpoints / "last.safetensors",
            on_epoch=_reporter(run, config.epochs),
            on_best=keep,
        )
        try:
            trainer.train()
        except RuntimeError as error:  # torch's own kinds are of this one
            if "out of memory" not in str(error).lower():
                raise
            raise InputError(
                f"{device}: out of memory in epoch {trainer.epoch + 1}: give --batch "
                f"{max(1, config.batch // 2)}, or a smaller --image-size"
            ) from error


def _repeated(dataset: Dataset, times: int) -> Dataset:
    return dataset.subset(dataset.images * times)


def _reporter(run: RunFolder, epochs: int) -> Callable[[Epoch], None]:
    """Log every epoch, and tell the user in one line."""
    started = time.monotonic()

    def report(epoch: Epoch) -> None:
        seconds = round(time.monotonic() - started, 1)
        run.log(
            {
                "epoch": epoch.number,
                "seconds": seconds,
                **epoch.losses,
                "val_ap50": epoch.val_ap50,
                "val_ap": epoch.val_ap,
                "learning_rate": epoch.learning_rate,
            }
        )
        losses = ", ".join(f"{name} {value:.3f}" for name, value in epoch.losses.items())
        note(
            f"epoch {epoch.number}/{epochs}: {losses}; val AP50 {epoch.val_ap50:.3f}, "
            f"AP {epoch.val_ap:.3f} ({seconds:.0f} s)"
        )

    return report


def _check_form(
    config: FinetuneYoloConfig, start: StartingPoint, embeddings: ClassEmbeddings
) -> None:
    """Refuse what a model whose classes are convolutions cannot do."""
    if not is_reparameterised(start.model):
        return
    known = start.embeddings.names if start.embeddings is not None else ()
    if known != embeddings.names:
        raise InputError(
            f"{config.weights}: its classes became weights ({', '.join(known)}) and cannot become "
            f"{', '.join(embeddings.names)}: start from a run of another mode"
        )
    if config.mode != "reparam":
        raise InputError(
            f"mode: {config.mode} needs class embeddings, and those of {config.weights} became "
            "weights: give --mode reparam"
        )


def _check_shared(run: RunFolder, epochs: int, device: torch.device) -> None:
    """Refuse a run folder that another machine has another one of."""
    here = torch.tensor(float(epochs), device=device)
    if mean_of_all(here) != here:
        raise InputError(
            f"{run.root}: is not the same on all machines: give a folder that they share"
        )


def _check_splits(splits: dict[str, Dataset], config: FinetuneYoloConfig, processes: int) -> None:
    """Refuse data that cannot be trained on, or whose best epoch could not be chosen."""
    for split, purpose in {"train": "to learn from", "val": "to choose the best epoch on"}.items():
        if split not in splits:
            raise InputError(f"{config.data}: has no {split} split: convert with one")
        if not any(image.instances for image in splits[split].images):
            raise InputError(
                f"{config.data}: {split} has no defects {purpose}: "
                "convert again with other split fractions or more defect pictures"
            )
    train = _repeated(splits["train"], config.repeat)
    rest = epoch_length(picture_factors(train, config.sampling)) % config.batch
    least = {-(-rest // processes), config.batch // processes}
    image_size = config.image_size
    if image_size != "auto" and image_size < 2 * STRIDE and 1 in least:
        raise InputError(
            f"image_size {image_size} with a batch of one picture leaves batch "
            "normalisation a single value: use an image_size of 64 or more, or another batch"
        )


def _image_size(config: FinetuneYoloConfig, train: Dataset) -> int:
    """The size that was asked for, or that of the data; a word where defects come out small."""
    suggested = suggest_image_size(train)
    size = suggested if config.image_size == "auto" else config.image_size
    kept = small_defect(train) * size
    if kept < ENOUGH:
        more = "" if size >= suggested else f"; --image-size {suggested} shows them larger"
        note(f"small defects are {kept:.1f} pixels wide at {size} pixels{more}")
    return size


def _check_pictures(splits: dict[str, Dataset]) -> None:
    """Refuse pictures that cannot be read or are not as large as annotated, before training."""
    images = [image for dataset in splits.values() for image in dataset.images]
    for image in track(images, "Checking pictures", len(images)):
        height, width = read_image(image.path).shape[:2]
        if (width, height) != (image.width, image.height):
            raise InputError(
                f"{image.path}: is {width} x {height} pixels, annotated as "
                f"{image.width} x {image.height}: convert the data again"
            )
