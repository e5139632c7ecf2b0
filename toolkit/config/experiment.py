"""Configurations of experiments: the command's own, and what its file says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.config.base import Config, NotNegative, Positive, underscored

Engine = Literal["local", "submitit"]
"""Who runs the runs: processes on this machine, or a cluster through submitit."""

Learning = Literal["finetune classifier", "finetune yolo", "finetune sam"]
"""A command whose runs can be scored."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def _by_name(value: object) -> object:
    """A mapping by names, of which YAML may have made numbers; anything else as it is."""
    if not isinstance(value, dict):
        return value
    for name in value:
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            raise ValueError(f"YAML reads a name as {name!r} (on, yes, null, …): put it in quotes")
    names = [str(name) for name in value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice: keep one")
    return dict(zip(names, value.values(), strict=True))


def _as_fields(value: object) -> object:
    """Fields of a command by their names; `after` of a number is the name that it is written as."""
    if not isinstance(value, dict):
        return value
    fields = underscored(value)
    after = fields.get("after")
    if isinstance(after, int | float) and not isinstance(after, bool):
        fields["after"] = str(after)
    return fields


class ExperimentConfig(Config):
    """Run a baseline and its variants over folds and seeds, and make one table of them.

    Called again, it goes on where it was stopped.
    """

    experiment: Path
    """YAML file that says what to run; configs/experiments has some."""
    out: Path | None = None
    """Folder of all runs and of the table, instead of the file's."""
    folds: tuple[NotNegative, ...] = ()
    """Folds of the dataset, instead of the file's."""
    seeds: tuple[NotNegative, ...] = ()
    """Seeds, instead of the file's."""
    jobs: Positive | None = None
    """Runs at a time, instead of the file's; the processor's cores are shared out to them."""
    engine: Engine | None = None
    """local (processes on this machine) or submitit (a cluster), instead of the file's."""
    table: bool = False
    """Run nothing: make the table of what is finished."""


class ExperimentPlan(Config):
    """What the file of an experiment says."""

    command: Learning = "finetune classifier"
    """What every variant runs."""
    data: dict[str, Path] = Field(min_length=1)
    """Dataset folder, or several by name, each of which gets a table."""
    out: Path
    """Folder of all runs and of the table."""
    folds: tuple[NotNegative, ...] | None = None
    """Folds to run; by default all that the dataset has."""
    seeds: tuple[NotNegative, ...] = Field(default=(0,), min_length=1)
    """Seeds to run everything with."""
    jobs: Positive | None = None
    """Runs at a time; by default one, on a cluster all."""
    engine: Engine = "local"
    """local or submitit."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """Of submitit: a cluster of Slurm, or this machine, to try it."""
    submitit: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Parameters of submitit: slurm_partition, timeout_min, gpus_per_node, …"""
    base: dict[str, Any] = Field(default_factory=dict)
    """Fields of the command that all variants share."""
    baseline: Annotated[str | None, Field(coerce_numbers_to_str=True)] = None
    """Variant that the others are compared with; by default the first."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """By name, the fields in which each differs. Besides those of its command it may have `after`
    (the variant whose run of the same data, fold and seed it starts from) and `command` (such as
    adapt, for a stage that only serves others)."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Fields with several values, at each of which all variants are run; null is the default."""
    figures: tuple[str, ...] | None = None
    """Columns of the table, by their names in metrics.json; by default what suits the command."""
    resamples: NotNegative = 1000
    """Bootstrap resamples behind the intervals; 0 leaves them out."""

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return {"": value} if isinstance(value, str | Path) else _by_name(value)

    @field_validator("variants", mode="before")
    @classmethod
    def _nothing_is_an_empty_mapping(cls, value: object) -> object:
        named = _by_name(value)
        if not isinstance(named, dict):
            return named
        return {
            name: {} if fields is None else _as_fields(fields) for name, fields in named.items()
        }

    @field_validator("base", "grid", mode="before")
    @classmethod
    def _fields_may_be_hyphenated(cls, value: object) -> object:
        return _as_fields(value)

    @field_validator("variants", mode="after")
    @classmethod
    def _after_is_a_name(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, fields in value.items():
            after = fields.get("after")
            if after is not None and not isinstance(after, str):
                raise ValueError(
                    f"variant {name!r}: after: {after!r} is not the name of a variant: give one"
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def _what_is_empty_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _names_are_names_of_folders(self) -> ExperimentPlan:
        several = [name for name in self.data if len(self.data) > 1 or name]
        for name in (*self.variants, *several):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r}: cannot be the name of a folder: give letters, digits, . _ + -"
                )
        for name, values in (("seeds", self.seeds), ("folds", self.folds or ())):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: give each once")
        return self
