"""`toolkit finetune sam`: from a dataset folder to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from converters.dataset import Dataset, Image
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import FinetuneSamConfig
from toolkit.console import note
from toolkit.predictions import PredictionCard, write_predictions
from toolkit.processes import Place, train_in_processes
from toolkit.runs import RunFolder, refuse_other_fold
from toolkit.sampling import picture_factors
from toolkit.segment.cache import EmbeddingCache, check_size, embedding_shape
from toolkit.segment.data import Prompt, masked_prompts
from toolkit.segment.learning import Learns, encoder_learns, rate_factors
from toolkit.segment.lora import FILE, Base, add_lora, merged_state, pack_lora
from toolkit.segment.losses import Criterion
from toolkit.segment.model import build_sam
from toolkit.segment.negatives import negative_prompts
from toolkit.segment.sam import Sam
from toolkit.segment.segmenter import Segmenter, predict_given_boxes
from toolkit.segment.task import Material, Prompting, SamTask, frozen_views
from toolkit.segment.usage import Usage, read_usage
from toolkit.segment.views import View
from toolkit.segment.weights import COMMAND, PRETRAIN, load_sam
from toolkit.starter import is_pretrained
from toolkit.training import Schedule, fit, memory_told, packed, shared_run, whole_model

FREE_ON_RESUME = (
    "epochs",
    "patience",
    "cache",
    "cache_gb",
    "device",
    "workers",
    "resume",
    "track",
)


def finetune_sam(config: FinetuneSamConfig) -> RunFolder:
    """Fine-tune SAM with prompts and predict val and test from their ground-truth boxes.

    Several devices share each batch, a process each; so do the processes that ``torchrun`` started.

    Returns:
        the run: ``checkpoints/best.safetensors`` is the model of the epoch with the best val IoU,
        ``predictions/`` its outlines. With ``train`` lora, the adapters are merged into it, and
        ``checkpoints/lora.safetensors`` holds what was learnt alone; see ``lora.load_lora``.

    Raises:
        InputError: the dataset has no masks to learn or to validate on, the weights cannot be
            used, the device is not there, the run folder is taken, or a process of several was
            killed.
    """
    function = "toolkit.segment:finetune_sam"
    return train_in_processes(function, config, _finetune, items="prompts")


def _finetune(config: FinetuneSamConfig, device: torch.device, here: Place) -> RunFolder:
    folder = DatasetFolder.open(config.data, config.fold)
    folder.require_places("SAM")
    refuse_other_fold(config.weights, config.data, config.fold)
    train, val = folder.read("train"), folder.read("val")
    material = _material(folder, train, val, config)
    sam, config = _starting_point(config)
    usage = _usage(config)
    learns, schedule = _plan(config)
    prompting = Prompting(
        config.prompts, config.box_jitter, config.clicks, config.negatives, usage.several
    )
    views = []
    if not encoder_learns(learns):
        views = frozen_views(material, prompting.kinds, usage.context, config.cache_views)
        check_size(config.cache_gb, len(views), embedding_shape(sam))
    kept = _with_adapters(sam, config) if learns == "lora" else whole_model
    run = shared_run(here, config.out, COMMAND, config, FREE_ON_RESUME, resume=config.resume)
    if here.leads:
        run.write_model({"architecture": config.model, **usage.describe()})
    task = SamTask(
        sam.to(device),
        usage.context,
        material if here.leads else replace(material, val=[], val_negatives=[]),
        prompting,
        learns=learns,
        batch=config.batch // here.world,
        repeat=config.repeat,
        factors=_factors(train, config),
        criterion=Criterion(config.loss),
        cache=None if encoder_learns(learns) else _cache(sam, views, config, here),
        cache_views=config.cache_views,
        seed=config.seed,
        workers=config.workers,
    )
    factors = rate_factors(sam, config.layer_decay)
    progress = fit(task, schedule, run, resume=config.resume, rate_factors=factors, kept=kept)
    note(f"best: epoch {progress.best_epoch}, val IoU {progress.best_score:.4f}")
    if here.leads:
        _predict(run, folder, device)
    return run


def _cache(
    sam: Sam, views: Sequence[tuple[Image, View]], config: FinetuneSamConfig, here: Place
) -> EmbeddingCache:
    """Where a frozen encoder's embeddings go; of several processes each makes a share of files."""
    cache = EmbeddingCache(sam, config.cache, config.cache_gb, config.workers)
    if here.world > 1 and config.cache_gb:
        with memory_told(sam.device):
            cache.build(views[here.rank :: here.world])
        here.wait()
    return cache


def _material(
    folder: DatasetFolder, train: Dataset, val: Dataset, config: FinetuneSamConfig
) -> Material:
    """What it learns from, and what chooses the best epoch."""
    prompts = [_prompts(folder, name, split) for name, split in (("train", train), ("val", val))]
    if not config.negatives:
        return Material(*prompts)
    # More than an epoch shows, so that none is learnt by heart.
    held = [
        negative_prompts(train, 2 * len(prompts[0])),
        negative_prompts(val, len(prompts[1])),
    ]
    for split, found in zip(("train", "val"), held, strict=True):
        if not found:
            raise InputError(
                f"{folder.annotations(split)}: has no place of a defect's size without a defect, "
                "which negatives need: leave negatives out, or add good pictures"
            )
    return Material(*prompts, *held)


def _usage(config: FinetuneSamConfig) -> Usage:
    """How the model is used afterwards, and so in training."""
    before = read_usage(config.weights, config.model)
    context = before.context if config.context is None else config.context or None
    points = before.points or config.clicks > 0 or config.prompts != ("box",)
    return Usage(context, points, config.multimask)


def _factors(train: Dataset, config: FinetuneSamConfig) -> dict[str, float]:
    """How often each training picture comes, by name."""
    names = (image.file_name for image in train.images)
    return dict(zip(names, picture_factors(train, config.sampling), strict=True))


def _starting_point(config: FinetuneSamConfig) -> tuple[Sam, FinetuneSamConfig]:
    """The model to start from, and the configuration with the architecture that it has."""
    if config.weights == "none":
        torch.manual_seed(config.seed)
        return build_sam(config.model), config
    sam, model = load_sam(config.weights)
    if "model" in config.model_fields_set and model != config.model:
        raise InputError(f"{config.weights}: is {model}, not {config.model}: leave model out")
    return sam, config.model_copy(update={"model": model})


def _with_adapters(sam: Sam, config: FinetuneSamConfig) -> Callable[[nn.Module], dict[str, bytes]]:
    """Put adapters on the model; how it is kept: merged, and the adapters alone beside that."""
    base = Base.of(sam, Path(config.weights).name)
    torch.manual_seed(config.seed)
    add_lora(sam, config.lora_rank, config.lora_alpha)

    def kept(_: nn.Module) -> dict[str, bytes]:
        return {FILE: pack_lora(sam, base), "best.safetensors": packed(merged_state(sam))}

    return kept


def _plan(config: FinetuneSamConfig) -> tuple[Learns, Schedule]:
    """What learns, how fast and how long, where the configuration leaves that open.

    A random encoder has to learn, and takes longer; one that has seen procedural pictures alone
    still has to learn what photographs are like. Any other is left alone, or moves slowly:
    over-training makes SAM deaf to its prompts (SAM-Med2D #25: 15 epochs good, 100 bad).

    Raises:
        InputError: rates are to differ between blocks of an encoder that does not learn, or views
            to be kept of one that learns.
    """
    random = config.weights == "none"
    procedural = is_pretrained(config.weights, PRETRAIN)
    learns: Learns = config.train or ("all" if random or procedural else "decoder")
    if config.layer_decay != 1 and not encoder_learns(learns):
        raise InputError(
            f"layer_decay: with train {learns} the image encoder does not learn: "
            "leave it out, or train all or lora"
        )
    if config.cache_views > 1 and encoder_learns(learns):
        raise InputError(
            f"cache_views: with train {learns} the image encoder learns, from random views anyway: "
            "leave it out, or train decoder or decoder+prompt"
        )
    rate = 2e-3 if random else 5e-4 if procedural else 1e-5 if learns == "all" else 1e-4
    epochs = config.epochs or (40 if random else 15)
    return learns, Schedule(
        epochs=epochs,
        learning_rate=config.learning_rate or rate,
        weight_decay=config.weight_decay,
        patience=config.patience or max(5, epochs // 3),
        score="val_iou",
        seed=config.seed,
        average=config.average or None,
        accumulate=config.accumulate,
    )


def _prompts(folder: DatasetFolder, split: str, dataset: Dataset) -> list[Prompt]:
    """The instances of a split that have masks."""
    prompts = masked_prompts(dataset)
    total = sum(dataset.count_instances().values())
    if not prompts:
        raise InputError(
            f"{folder.annotations(split)}: has no instance with a mask, which SAM needs: "
            "convert masks, or a split that holds defects"
        )
    if len(prompts) < total:
        note(f"{split}: {total - len(prompts)} of {total} instances left out: no mask")
    return prompts


def _predict(run: RunFolder, folder: DatasetFolder, device: torch.device) -> None:
    """Outline val and test with the best checkpoint."""
    segmenter = Segmenter.load(run.root, str(device))
    results = {
        split: predict_given_boxes(segmenter, folder.read(split))
        for split in folder.splits()
        if split != "train"
    }
    card = PredictionCard(
        boxes="ground truth", masks=True, segmenter=f"SAM {segmenter.architecture}"
    )
    write_predictions(run.predictions, results, card)
