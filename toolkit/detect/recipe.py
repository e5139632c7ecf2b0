"""Training arguments of ultralytics, from ours.

Fine-tuning follows what works for YOLO-World on box-only data (AILab-CVC/YOLO-World#160): SGD at
1e-3 and mosaic off for the last 30 of 40 epochs, where AdamW at 2e-4 degrades. Random weights need
the opposite: AdamW at ten times that, and mosaic for most of the time. So do the starter weights,
at half the rate: they know what a defect is, but have never seen a photograph. Class embeddings
alone learn by AdamW at 2e-3 without weight decay, as the official prompt tuning does. Plain
detectors go on from photographs as ultralytics' "auto" has it for short trainings: AdamW at a rate
that falls with the number of classes; RT-DETR learns at 1e-4, whatever it starts from.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from toolkit.architectures import WORLD, is_transformer
from toolkit.config import FinetuneYoloConfig
from toolkit.detect.weights import Origin
from toolkit.devices import has_bfloat16

_WARMUP_STEPS = 100
_RATES: dict[tuple[str, Origin], float] = {
    ("AdamW", "random"): 2e-3,
    ("AdamW", "procedural"): 1e-3,
    ("AdamW", "photographs"): 2e-4,
    ("SGD", "random"): 1e-2,
    ("SGD", "procedural"): 1e-2,
    ("SGD", "photographs"): 1e-3,
}
"""Peak learning rate by optimiser and what the weights have seen."""

_PROMPT_RATE = 2e-3
"""Peak learning rate of class embeddings that learn alone."""

_TRANSFORMER_RATE = 1e-4

_EPOCH_STEPS = 20
"""Fewest steps between looks at val where the length of training is given in steps."""


def in_epochs(config: FinetuneYoloConfig, images: int) -> tuple[int, int]:
    """How many epochs there are, and how many pictures each shows.

    Where the length is given in steps, epochs are about as long as they would be, but at least 20
    steps, and together as many as asked (fewer than one step per epoch more).

    Args:
        config: as the user gave it.
        images: pictures of an epoch in which none is repeated.
    """
    images *= config.repeat
    if config.steps is None:
        return config.epochs, images
    usual = max(_EPOCH_STEPS, math.ceil(images / config.batch))
    epochs = max(1, round(config.steps / usual))
    return epochs, math.ceil(config.steps / epochs) * config.batch


def training_arguments(
    config: FinetuneYoloConfig,
    *,
    origin: Origin,
    classes: int,
    images: int,
    image_size: int,
    device: torch.device,
    frozen: list[int],
) -> dict[str, Any]:
    """The arguments with which ultralytics trains.

    Args:
        config: ours; where a field is None, its default for these weights is filled in.
        origin: what the weights have seen before.
        classes: how many there are.
        images: pictures per epoch.
        image_size: pixels of the longer side.
        device: where training runs.
        frozen: numbers of the layers that do not learn.
    """
    prompt = config.mode == "prompt"
    careful = origin == "photographs" and config.arch == WORLD and not prompt
    optimizer = config.optimizer or ("SGD" if careful else "AdamW")
    close_mosaic = config.close_mosaic
    if close_mosaic is None:
        close_mosaic = round(config.epochs * (0.75 if origin == "photographs" else 0.25))
    steps = math.ceil(images / config.batch)
    warmup = min(_WARMUP_STEPS, steps * config.epochs // 10)
    # The matching of RT-DETR fails on what is not a number, which rounding can make.
    mixed = device.type == "cuda" and not is_transformer(config.arch)
    return {
        "task": "detect",
        "mode": "train",
        "epochs": config.epochs,
        "patience": config.patience,
        "imgsz": image_size,
        "batch": config.batch,
        "nbs": config.batch,  # otherwise gradients of several batches add up to 64 pictures
        "optimizer": optimizer,
        "lr0": config.learning_rate or _rate(config, optimizer, origin, classes),
        "momentum": 0.9 if optimizer == "AdamW" else 0.937,
        "weight_decay": 0.0 if prompt else config.weight_decay,
        "freeze": frozen,
        "warmup_epochs": warmup / steps,
        "warmup_bias_lr": 0.0,  # 0.1 by default, far above the rates here
        "close_mosaic": close_mosaic,
        "device": str(device),
        # On a CPU the model does it itself: see MixedWorldModel.
        "amp": "bf16" if mixed and has_bfloat16(device) else False,
        "workers": config.workers,
        "seed": config.seed,
        "deterministic": True,
        "plots": False,
    }


def _rate(config: FinetuneYoloConfig, optimizer: str, origin: Origin, classes: int) -> float:
    """Peak learning rate where none was given."""
    if config.mode == "prompt":
        return _PROMPT_RATE
    if is_transformer(config.arch):
        return _TRANSFORMER_RATE
    if config.arch != WORLD and (optimizer, origin) == ("AdamW", "photographs"):
        return 0.002 * 5 / (4 + classes)
    return _RATES[optimizer, origin]
