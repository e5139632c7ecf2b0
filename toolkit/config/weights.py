"""Configurations of the folder of official weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from toolkit.config.base import Config
from toolkit.known_weights import FOLDER


class WeightsListConfig(Config):
    """List the weights that are known by name, and which of them are here."""

    folder: Path = FOLDER
    """Folder of weights."""


class WeightsGetConfig(Config):
    """Download official weights, and check them; the only command that downloads."""

    name: str
    """Name of `toolkit weights list`."""
    folder: Path = FOLDER
    """Folder of weights; the finetune commands look into the default one."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Another address of the same file, such as a mirror's."""


class WeightsVerifyConfig(Config):
    """Compare weights with their SHA-256; exit code 1 where a file is damaged."""

    name_or_path: str | None = None
    """Name of `toolkit weights list`, or a file; by default all files in the folder."""
    folder: Path = FOLDER
    """Folder of weights."""
