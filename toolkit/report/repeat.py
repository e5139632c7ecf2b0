"""How to run it again: the commands of a run, from what it wrote down."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from converters.errors import InputError
from toolkit import config as configs
from toolkit.commands import COMMANDS
from toolkit.config import Config, build
from toolkit.report.source import Run
from toolkit.runs import recorded_path

_VERSIONS = ("versions", "version", "toolkit_version")


@dataclass(frozen=True)
class Repeat:
    """What was run, and how to run it again.

    Attributes:
        commands: command lines, in order.
        why_none: why the first of them cannot be told; empty where it can.
        settings: content of ``config.yaml``; empty where there is none.
        facts: name and value of what else is known.
    """

    commands: list[str]
    why_none: str
    settings: str
    facts: list[tuple[str, str]]


def repeat(run: Run) -> Repeat:
    """What is known of how a run was made."""
    commands, why_none = [], ""
    try:
        commands.append(_command(run))
    except InputError as error:
        why_none = str(error)
    root = shlex.quote(str(run.root))
    fold = "" if run.folder.fold is None else f" --fold {run.folder.fold}"
    split = "" if run.split == "test" else f" --split {run.split}"
    data = shlex.quote(str(run.folder.root))
    commands.append(f"toolkit evaluate --data {data}{fold}{split} --predictions {root}")
    path = run.root / "config.yaml"
    settings = path.read_text(encoding="utf-8").strip() if run.settings else ""
    return Repeat([_folded(line) for line in commands], why_none, settings, _facts(run))


def _command(run: Run) -> str:
    """The command that made the run, with another output folder, because this one is taken.

    Raises:
        InputError: it cannot be told.
    """
    values = dict(run.settings)
    name = values.pop("command", None)
    if name not in COMMANDS:
        raise InputError(
            "The run folder has no config.yaml that says how the predictions were made."
        )
    config: type[Config] = getattr(configs, COMMANDS[name].config)
    for field, value in values.items():
        if value is not None and _is_path(config, field, value, run.root):
            values[field] = os.path.normpath(recorded_path(run.root, str(value)))
    try:
        settings = build(config, None, {n: v for n, v in values.items() if v is not None})
    except InputError as error:
        raise InputError(f"config.yaml is of another version of the toolkit: {error}") from error
    again = {"data": run.folder.root, "fold": run.folder.fold, "resume": False}
    again |= {"out": run.root.with_name(f"{run.root.resolve().name}-again")}
    known = {n: v for n, v in again.items() if n in config.model_fields}
    return COMMANDS[name].line(name, settings.model_copy(update=known))


def _folded(line: str) -> str:
    """A command line with every flag on a line of its own, as a shell takes it."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(line):
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(words) for words in lines)


def _is_path(config: type[Config], field: str, value: Any, root: Path) -> bool:
    """Whether a recorded value is a path, relative to the run folder ``root``."""
    info = config.model_fields.get(field)
    if info is None or value == "synth":
        return False
    of_path = Path in (info.annotation, *get_args(info.annotation))
    return of_path or (field == "weights" and (root / str(value)).exists())


def _facts(run: Run) -> list[tuple[str, str]]:
    facts: list[tuple[str, Any]] = [("weights it started from", run.settings.get("weights"))]
    if run.card is not None:
        facts += [
            (part, getattr(run.card, part)) for part in ("detector", "segmenter", "classifier")
        ]
    facts += [(f"model: {name}", value) for name, value in run.model.items()]
    versions = [run.settings.get(n, run.model.get(n)) for n in _VERSIONS]
    facts.append(("versions", next(filter(None, versions), "were not recorded with the run")))
    return [(name, _text(value)) for name, value in facts if value not in (None, "")]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
