"""Finding classes that are said at prediction, by a YOLO-World whose vocabulary is open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from converters.errors import InputError
from toolkit.console import note
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.clip import ARCHITECTURE
from toolkit.detect.detector import Detector
from toolkit.detect.embeddings import ANCHOR
from toolkit.detect.models import set_classes
from toolkit.detect.modes import is_reparameterised
from toolkit.detect.prompts import embeddings_from
from toolkit.detect.tiles import tiling_for
from toolkit.detect.weights import RunModel, load_trained
from toolkit.known_weights import located
from toolkit.starter import STARTER

OFFICIAL_IMAGE_SIZE = 640
"""Pixels of the longer side that the official files were trained on."""


def load_prompted(
    detector: Path,
    embeddings: Path,
    clip: str,
    device: torch.device,
    *,
    trust: bool = False,
    confidence: float = 0.001,
    max_detections: int = 100,
    tile: int | None = None,
    tile_overlap: float | None = None,
) -> Detector:
    """Load a detector that looks for the classes of a file.

    Args:
        detector: an official file of YOLO-World v2 or its known name, "starter", a run of
            ``toolkit pretrain yolo``, or one of ``toolkit finetune yolo --open-vocabulary``.
        embeddings: class embeddings (safetensors) or phrases (YAML).
        clip: weights of CLIP, for phrases.
        device: where it runs.
        trust: as of ``load_starting_point`` and ``TextEncoder.load``.
        confidence: as of ``Detector``.
        max_detections: as of ``Detector``.
        tile: as of ``Detector.load``.
        tile_overlap: as of ``Detector.load``.

    Raises:
        InputError: the detector's vocabulary is closed, or a file cannot be used.
    """
    trained = _load_open(detector, trust)
    tiling = tiling_for(trained.tile, tile, tile_overlap)
    classes = embeddings_from(embeddings, None, clip, trust=trust)
    if _knows_no_clip(trained) and any(each.startswith(ARCHITECTURE) for each in classes.origins):
        note(
            f"{detector}: has learnt the kinds of defects of `toolkit synth` as vectors of their "
            "own, not from CLIP: phrases mean nothing to it"
        )
    set_classes(trained.model, classes)
    source = f"{trained.source}, looking for the classes of {embeddings.name}"
    return Detector(
        replace(trained, embeddings=classes, source=source, tile=tiling),
        device,
        confidence=confidence,
        max_detections=max_detections,
    )


def check_has_vocabulary(detector: Path) -> None:
    """Refuse an official file that is to predict without being told what to look for.

    Raises:
        InputError: it is one; ours are folders.
    """
    if located(str(detector)).suffix == ".pt":
        raise InputError(
            f"{detector}: an official file finds whatever it is told: say what by --embeddings "
            "(a YAML file of phrases, or what `toolkit prompts make` made of one), or fine-tune it"
        )


def _load_open(detector: Path, trust: bool) -> RunModel:
    path = located(str(detector))
    if str(detector) == STARTER or path.is_dir():
        trained = load_trained(path)
        if trained.embeddings is None:
            raise InputError(
                f"{detector}: is a plain {trained.arch}, which compares nothing with words: leave "
                "--embeddings out, or give a YOLO-World"
            )
        if is_reparameterised(trained.model):
            raise _closed(detector, trained, "its classes became weights (--mode reparam)")
        if not trained.pretrained and not trained.open_vocabulary:
            raise _closed(detector, trained, "fine-tuning closed its vocabulary")
        return trained
    start = load_starting_point(str(detector), "n", seed=0, trust=trust)
    if start.embeddings is None:
        raise InputError(
            f"{detector}: has a backbone alone, and nothing that compares pictures with classes: "
            "give a file of YOLO-World v2 (yolov8s-worldv2.pt)"
        )
    return RunModel(start.model, start.scale, start.embeddings, OFFICIAL_IMAGE_SIZE, start.source)


def _knows_no_clip(trained: RunModel) -> bool:
    """Whether a model, or what it was fine-tuned from, has learnt procedural pictures alone."""
    ours = (STARTER, f"made beside {ANCHOR!r}")
    return trained.pretrained or any(o.startswith(ours) for o in _origins(trained))


def _origins(trained: RunModel) -> tuple[str, ...]:
    return () if trained.embeddings is None else trained.embeddings.origins


def _closed(detector: Path, trained: RunModel, reason: str) -> InputError:
    return InputError(
        f"{detector}: finds {', '.join(trained.names)} and nothing else, since "
        f"{reason}: leave --embeddings out, or fine-tune with --open-vocabulary --replay DATASET, "
        "which keeps the vocabulary open"
    )
