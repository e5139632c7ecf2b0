"""Writing that leaves nothing half-written: beside the final name first, then renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from converters.collector import uncollected
from converters.errors import InputError


@contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes ``destination`` only when the block ends well.

    The staging folder is a hidden sibling (``.NAME.partial``), so that the rename stays on one
    file system. It is removed when the block raises; one left behind by a killed process is
    removed by the next call for the same destination.

    Raises:
        InputError: the destination holds something already, or its parent cannot be written to.
    """
    destination = destination.absolute()
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{destination}: is a file, not a folder: choose another destination")
    staging = destination.parent / f".{destination.name}.partial"
    made = [parent for parent in destination.parents if not parent.exists()]
    try:
        if destination.exists() and any(destination.iterdir()):
            raise InputError(
                f"{destination}: exists and is not empty: choose another destination or remove it"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
    except OSError as error:
        raise _not_writable(destination, error) from error
    try:
        yield staging
        staging.replace(destination)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and str(error.filename).startswith(str(staging)):
            raise _not_writable(destination, error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step (temporary sibling, then rename)."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file in one step (temporary sibling, then rename)."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        value, ensure_ascii=False, sort_keys=True, indent=indent, separators=separators
    )
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing, not readable or not JSON.
    """
    try:
        with uncollected():
            return from_json(path.read_bytes(), cache_strings="keys")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not readable JSON ({error}): write it again") from error


def _not_writable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"{path}: cannot be written ({reason}): choose a destination you may write")
