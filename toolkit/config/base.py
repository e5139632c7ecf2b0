"""What all configurations have in common, and how they are filled."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from converters.errors import InputError
from toolkit.architectures import PLAIN, WORLD, scale_of

Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Devices = Annotated[
    str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?|cuda:\d+(,cuda:\d+)+|cpu(,cpu)+)$")
]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
NotNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Trackers = tuple[Literal["tensorboard", "mlflow", "wandb"], ...]
ImageSize = Annotated[int, Field(ge=32, le=8192)]
Overlap = Annotated[float, Field(ge=0, le=0.9)]


class Config(BaseModel):
    """Immutable, with unknown fields refused and field docstrings as descriptions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    @field_validator("*", mode="after")
    @classmethod
    def _home_is_spelt_out(cls, value: Any) -> Any:
        return _expanded(value)


def _expanded(value: Any) -> Any:
    """A value with ``~`` as the home folder in every path."""
    if isinstance(value, Path):
        # Path.expanduser raises where there is no such user, and "~x" may be a folder's name.
        return Path(os.path.expanduser(value))  # noqa: PTH111
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if isinstance(value, dict):
        return {name: _expanded(each) for name, each in value.items()}
    return value


def check_stride(image_size: int) -> None:
    """Raise ValueError unless a detector can take pictures of this size."""
    if image_size % 32:
        near = max(32, round(image_size / 32) * 32)
        raise ValueError(f"image_size: {image_size} is not a multiple of 32: try {near}")


def check_architecture(arch: str) -> None:
    """Raise ValueError unless it is the name of a detector."""
    known = (WORLD, *PLAIN)
    if arch not in known:
        nearest = difflib.get_close_matches(arch, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        raise ValueError(f"arch: no detector is called {arch!r}: {hint}")


def check_scale(arch: str, scale: str, given: bool) -> None:
    """Raise ValueError for a plain detector with the scale of another one."""
    if arch != WORLD and given and scale != scale_of(arch):
        name = arch[:-1] + scale
        hint = f"give arch {name}" if name in PLAIN else "leave scale out"
        raise ValueError(f"scale: that of {arch} is part of its name: {hint}")


C = TypeVar("C", bound=Config)


def build(config: type[C], file: Path | None, flags: Mapping[str, Any]) -> C:
    """Fill a configuration from a YAML file, then from flags, which win.

    Args:
        config: the class to fill.
        file: YAML mapping of field names to values; None for none.
        flags: values by field name, as text or typed.

    Raises:
        InputError: a field is unknown (with the nearest right one), missing or ill-typed.
    """
    values = {} if file is None else _read_yaml(file)
    where = "" if file is None else f"{file}: "
    unknown = [name for name in values if name not in config.model_fields]
    unknown += [name for name in flags if name not in config.model_fields]
    if unknown:
        raise InputError(f"{where}{_unknown(unknown[0], config)}")
    try:
        return config.model_validate({**values, **flags})
    except ValidationError as error:
        raise InputError(f"{where}{_first_problem(error)}") from error


def to_yaml(config: Config, *, given_only: bool = False) -> str:
    """The configuration as YAML that ``build`` reads back.

    Args:
        config: to write.
        given_only: leave defaults out that nobody asked for, so that what is read back tells what
            was asked for from what was not (``model_fields_set``), too.
    """
    content = config.model_dump(mode="json", exclude_unset=given_only)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such configuration file") from error
    except _GivenTwiceError as error:
        raise InputError(f"{file}: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: is not readable YAML ({reason})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: must map field names to values")
    try:
        return underscored(content)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error


def underscored(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Fields by their names, which files may also write with hyphens, as flags are.

    Raises:
        ValueError: a field is there in both spellings.
    """
    result: dict[str, Any] = {}
    for key, value in fields.items():
        name = str(key).replace("-", "_")
        if name in result:
            raise ValueError(f"{name!r} is given twice: keep one")
        result[name] = value
    return result


class _GivenTwiceError(yaml.YAMLError):
    """A key is twice in a mapping."""


class _Loader(yaml.SafeLoader):
    """As YAML asks, refuses a key that is twice in a mapping, instead of taking the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise _GivenTwiceError(f"line {line}: {key.value!r} is given twice: keep one")
                seen.add((key.tag, key.value))
        return node


def _unknown(name: str, config: type[Config]) -> str:
    nearest = difflib.get_close_matches(name, config.model_fields, n=1, cutoff=0.5)
    hint = (
        f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(config.model_fields)}"
    )
    return f"unknown field {name!r}: {hint}"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"field {field!r} is missing: give it"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"field {field!r}: {message}, not {problem['input']!r}"
