"""What pretraining on procedural pictures has in common, whatever the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from toolkit.config import PretrainConfig
from toolkit.processes import Place
from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain
from toolkit.synth.streaming import VALIDATION, SynthBatches, load
from toolkit.training import Schedule

B = TypeVar("B")

FREE_ON_RESUME = ("device", "workers", "resume", "track")
"""Fields that may differ when a run goes on: they do not change what is learnt."""


def source_domain(config: PretrainConfig, side: int) -> SourceDomain:
    """What is drawn, ``side`` pixels long, with easy pictures first.

    Raises:
        InputError: a kind of defect is unknown.
    """
    return SourceDomain.of(side, config.kinds, round(config.ramp * config.steps * config.batch))


def validation_pictures(domain: SourceDomain, config: PretrainConfig) -> list[Sample]:
    """Pictures that training never sees, none of them made easy."""
    domain = replace(domain, ramp=0)
    return [domain.draw(config.seed + VALIDATION, index) for index in range(config.val_pictures)]


P = TypeVar("P", bound=PretrainConfig)


def share_of(config: P, here: Place) -> P:
    """The configuration with batches as large as those of one process, and as many more of them.

    Together, the processes see the pictures, step by step, that one process would see.
    """
    batch, piece = config.batch // here.world, config.piece * here.world
    return config.model_copy(update={"batch": batch, "piece": piece})


def new_pictures(
    domain: SourceDomain,
    collate: Callable[[Sequence[Sample], int], B],
    config: PretrainConfig,
    epoch: int,
    numbers: Sequence[int] | None = None,
) -> Iterator[B]:
    """The batches of an epoch, of pictures that no other epoch has; where given, by number."""
    stream = SynthBatches(
        domain,
        collate,
        batch=config.batch,
        seed=config.seed,
        start=epoch * config.piece,
        count=config.piece,
        chosen=numbers,
    )
    return load(stream, config.workers)


def schedule(config: PretrainConfig, score: str) -> Schedule:
    """The whole way of a pretraining: its epochs are pieces, and nothing stops it early."""
    pieces = math.ceil(config.steps / config.piece)
    return Schedule(
        epochs=pieces,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        patience=pieces,
        score=score,
        seed=config.seed,
        average=config.average,
    )
