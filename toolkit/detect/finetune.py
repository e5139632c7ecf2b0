"""Fine-tuning detectors on a dataset folder, without a network and without CLIP."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from ultralytics.nn.tasks import WorldModel

from converters.dataset import SPLITS, Dataset
from converters.folder import DatasetFolder
from toolkit.architectures import WORLD, is_transformer
from toolkit.config import FinetuneYoloConfig
from toolkit.console import note
from toolkit.detect.checkpoints import load_plain_start, load_starting_point
from toolkit.detect.checks import (
    check_form,
    check_last_batch,
    check_pictures,
    check_splits,
)
from toolkit.detect.detector import Detector, predict_dataset
from toolkit.detect.embeddings import ClassEmbeddings
from toolkit.detect.material import Material, training_material
from toolkit.detect.models import set_classes
from toolkit.detect.modes import frozen_layers, is_reparameterised, reparameterise
from toolkit.detect.open_vocabulary import (
    OpenVocabularyTrainer,
    Replay,
    choose_vocabulary,
    stays_open,
)
from toolkit.detect.recipe import in_epochs, training_arguments
from toolkit.detect.size import ENOUGH, small_defect, suggest_image_size
from toolkit.detect.state import read_state
from toolkit.detect.trainer import (
    Epoch,
    OfflinePlainTrainer,
    OfflineTransformerTrainer,
    OfflineWorldTrainer,
)
from toolkit.detect.weights import (
    COMMAND,
    RunModel,
    StartingPoint,
    embeddings_file,
    save_description,
    save_weights,
)
from toolkit.offline import quiet
from toolkit.predictions import PredictionCard, write_predictions
from toolkit.processes import Place, check_shared, train_in_processes
from toolkit.runs import RunFolder, refuse_other_fold
from toolkit.sampling import epoch_length
from toolkit.training import memory_told, shared_run, trim_log

FREE_ON_RESUME = ("device", "workers", "resume", "confidence", "track")
"""Fields that may differ when a run goes on."""

Trainer: TypeAlias = OfflineWorldTrainer | OfflinePlainTrainer | OfflineTransformerTrainer


def finetune_yolo(config: FinetuneYoloConfig) -> RunFolder:
    """Fine-tune a detector on the train split and predict on val and test.

    The model of the epoch with the best AP on val is kept. Afterwards it finds the classes of the
    dataset and no others: fine-tuning closes the vocabulary of YOLO-World, unless
    ``open_vocabulary`` keeps it open, and plain detectors never had one. A run that was stopped
    goes on (``resume``) to the same weights, on the same processor and with as many processes.

    Several devices share each batch, a process each; so do the processes that ``torchrun`` started.

    Returns:
        the run: ``checkpoints/`` (``best.safetensors``, ``model.json``; of YOLO-World
        ``embeddings.safetensors``), ``log.jsonl`` (a record per epoch), ``predictions/``.

    Raises:
        InputError: the data, the weights or the embeddings cannot be used, the run folder is taken,
            training diverged, or a process of several was killed.
    """
    return train_in_processes("toolkit.detect:finetune_yolo", config, _finetune)


def _finetune(config: FinetuneYoloConfig, device: torch.device, here: Place) -> RunFolder:
    if not here.leads:
        config = config.model_copy(update={"track": ()})
    folder = DatasetFolder.open(config.data, config.fold)
    folder.require_places("a detector")
    splits = {split: folder.read(split) for split in SPLITS if split in folder.splits()}
    check_splits(splits, config)
    asked = config
    refuse_other_fold(config.weights, config.data, config.fold)
    start, embeddings, replay = _start(config, splits)
    once = training_material(splits, config, replay)
    epochs, pictures = in_epochs(config, epoch_length(once.factors))
    config = config.model_copy(update={"epochs": epochs})
    shown = once.repeated(config.repeat) if config.steps is None else once.lasting(pictures)
    image_size = _image_size(config, splits["train"])
    check_last_batch(config, epoch_length(shown.factors), image_size, here.world)
    if here.leads:
        check_pictures(splits if replay is None else {**splits, "replay": replay.train})
    run = shared_run(here, config.out, COMMAND, asked, FREE_ON_RESUME, resume=config.resume)
    state = run.checkpoints / "last.safetensors"
    done = read_state(state) if state.is_file() else None
    done_epochs = done.epochs if done else 0
    check_shared(run, done_epochs, device)
    model = RunModel(
        start.model,
        start.scale,
        embeddings,
        image_size,
        start.source,
        arch=start.arch,
        tile=shown.tiling,
        open_vocabulary=stays_open(config, start),
    )
    if done is None and here.leads:
        save_description(run, model)
    _announce(model, replay, device)
    if done is None or not done.progress["stopped"]:
        if here.leads:
            trim_log(run, done_epochs)
        with run.tracked(done_epochs):
            _train(config, image_size, shown, start, embeddings, device, run)
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


def _start(
    config: FinetuneYoloConfig, splits: dict[str, Dataset]
) -> tuple[StartingPoint, ClassEmbeddings | None, Replay | None]:
    """The model to train, with its classes set; their embeddings; what keeps others in mind."""
    if config.arch != WORLD:
        classes = splits["train"].categories
        start = load_plain_start(config.arch, classes, config.weights, config.seed, config.trust)
        return start, None, None
    start = load_starting_point(config.weights, config.scale, config.seed, config.trust)
    embeddings, replay = choose_vocabulary(config, splits, start)
    check_form(config, start, embeddings)
    set_classes(start.model, embeddings)
    if config.mode == "reparam" and not is_reparameterised(start.model):
        reparameterise(start.model)
    return start, embeddings, replay


def _announce(model: RunModel, replay: Replay | None, device: torch.device) -> None:
    """Say what starts, and what the model will find."""
    classes, names = model.embeddings, ", ".join(model.names)
    embedded = "" if classes is None else f"; class embeddings: {classes.summary()}"
    if replay is not None:
        found = (
            f"It learns {names}, beside {len(replay.train.images)} pictures of "
            f"{len(replay.train.categories)} classes that keep its vocabulary open."
        )
    elif model.open_vocabulary:
        found = f"It learns {names}; its vocabulary stays open."
    else:
        other = "" if classes is None else " (--open-vocabulary keeps it open)"
        found = f"It will find these classes only{other}: {names}."
    note(f"{model.title} from {model.source}, on {device}{embedded}. {found}")


def _train(
    config: FinetuneYoloConfig,
    image_size: int,
    shown: Material,
    start: StartingPoint,
    embeddings: ClassEmbeddings | None,
    device: torch.device,
    run: RunFolder,
) -> None:
    if config.tile is not None:
        note(shown.summary())
    arguments = training_arguments(
        config,
        origin=start.origin,
        classes=len(shown.train.categories),
        images=epoch_length(shown.factors),
        image_size=image_size,
        device=device,
        frozen=frozen_layers(config.mode, start.model),
    )
    # ultralytics insists on a folder for its own notes.
    with tempfile.TemporaryDirectory(prefix="toolkit-yolo-") as scratch, quiet():
        shared: dict[str, Any] = {
            "overrides": {**arguments, "save_dir": scratch},
            "model": start.model,
            "splits": {"train": shown.train, "val": shown.val},
            "factors": shown.factors,
            "state": run.checkpoints / "last.safetensors",
            "on_epoch": _reporter(run, config.epochs),
            "on_best": partial(save_weights, run),
        }
        if embeddings is not None and config.mode == "prompt":
            shared["on_best"] = _keep_prompts(run, start.model, embeddings)
        trainer = _trainer(config, start, embeddings, shown.replay)(**shared)
        less = f"--batch {max(1, config.batch // 2)} or a smaller --image-size"
        with memory_told(device, less):
            trainer.train()


def _trainer(
    config: FinetuneYoloConfig,
    start: StartingPoint,
    embeddings: ClassEmbeddings | None,
    replay: Replay | None,
) -> Callable[..., Trainer]:
    """What makes the trainer from what all of them take."""
    if embeddings is None:
        plain = OfflineTransformerTrainer if is_transformer(start.arch) else OfflinePlainTrainer
        return plain
    if replay is not None:
        return partial(OpenVocabularyTrainer, replay, embeddings=embeddings, mode=config.mode)
    return partial(OfflineWorldTrainer, embeddings=embeddings, mode=config.mode)


def _keep_prompts(
    run: RunFolder, model: WorldModel, embeddings: ClassEmbeddings
) -> Callable[[dict[str, torch.Tensor]], None]:
    """Let the class embeddings of a model learn; what keeps them, and the rest as it was."""
    model.prompts = torch.nn.Parameter(embeddings.vectors.clone())
    unchanged = {k: v for k, v in model.state_dict().items() if k != "prompts"}
    origins = tuple(f"learnt, {origin}" for origin in embeddings.origins)

    def keep(state: dict[str, torch.Tensor]) -> None:
        learnt = torch.nn.functional.normalize(state["prompts"].detach().cpu(), dim=-1)
        ClassEmbeddings(embeddings.names, learnt, origins).save(embeddings_file(run))
        save_weights(run, unchanged)

    return keep


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


def _image_size(config: FinetuneYoloConfig, train: Dataset) -> int:
    """The size that was asked for, or that of the data; a word where defects come out small."""
    suggested = suggest_image_size(train, config.tile)
    size = suggested if config.image_size == "auto" else config.image_size
    kept = small_defect(train, config.tile) * size
    if kept < ENOUGH:
        more = "" if size >= suggested else f"; --image-size {suggested} shows them larger"
        note(f"small defects are {kept:.1f} pixels wide at {size} pixels{more}")
    return size
