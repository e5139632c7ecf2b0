"""What every export has in common, whatever the model: packages, pictures to check it on, files.

An export appears whole or not at all: it is made in a hidden folder beside its destination,
checked there, and renamed last.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.dataset import Image
from converters.errors import InputError
from converters.folder import DatasetFolder, fold_numbers
from toolkit.config import ExportConfig
from toolkit.images import RgbImage, read_image
from toolkit.runs import RunFolder
from toolkit.starter import STARTER

PROCEDURAL = "procedural pictures"
"""What pictures are called that were drawn for the check."""

_EXTRA = '"defect-toolkit[export]"'
_PACKAGES: dict[str, dict[str, str]] = {
    "onnx": {"onnx": _EXTRA, "onnxruntime": _EXTRA},
    "openvino": {"openvino": '"openvino>=2024.0"'},
    "torchscript": {},
    "engine": {"onnx": _EXTRA, "tensorrt": "tensorrt"},
}
"""Packages that a format needs, by the name they are imported under, and what pip installs."""


def require_packages(form: str) -> None:
    """Import what a format needs; ultralytics would install it by itself.

    Raises:
        InputError: a package is not installed.
    """
    # Both report to their makers from the moment they are imported, and onnxruntime (1.29 on) keeps
    # a number for this machine in the user's home. openvino does not if this package is not there.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    missing = [name for name in _PACKAGES[form] if not _can_import(name)]
    if missing:
        wanted = " ".join(dict.fromkeys(_PACKAGES[form][name] for name in missing))
        raise InputError(f"format {form}: needs {' and '.join(missing)}: pip install {wanted}")


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def onnx_session(path: Path) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, which says nothing but errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    # Threads that spin while they wait take turns with whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A session keeps its file open, which Windows would not rename; weights that lie in a file of
    # their own are only found by a path.
    content = str(path) if path.with_name(f"{path.name}.data").exists() else path.read_bytes()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Picture:
    """A picture of a dataset: what is known of it, and its pixels."""

    image: Image
    pixels: RgbImage


@dataclass(frozen=True)
class Pictures:
    """Pictures for a check, and what they are ("the test split of dataset")."""

    pictures: list[Picture]
    origin: str


def dataset_pictures(
    config: ExportConfig, most: int, wanted: Callable[[Image], bool] = lambda image: True
) -> Pictures | None:
    """Pictures of ``--data``, else of the dataset that the run was trained on.

    Args:
        config: of the export.
        most: how many at most, evenly spread over the first split of test, val and train that has
            any.
        wanted: which will do.

    Returns:
        None where no dataset was asked for and that of the run has moved or lost its pictures.

    Raises:
        InputError: ``--data`` is no dataset, or holds no such pictures.
    """
    settings = {} if str(config.run) == STARTER else RunFolder(config.run).config()
    fold = settings.get("fold")
    if config.data is not None:
        return _spread(config.data, fold, most, wanted)
    if settings.get("data"):
        with suppress(InputError):
            return _spread(config.run / settings["data"], fold, most, wanted)
    return None


def _spread(root: Path, fold: int | None, most: int, wanted: Callable[[Image], bool]) -> Pictures:
    folder = DatasetFolder.open(root, fold if fold in fold_numbers(root) else None)
    for split in reversed(folder.splits()):
        images = [image for image in folder.read(split).images if wanted(image)]
        if images:
            chosen = images[:: -(-len(images) // most)]
            origin = f"the {split} split of {root.resolve().name}"
            return Pictures([Picture(image, read_image(image.path)) for image in chosen], origin)
    raise InputError(f"{root}: holds no pictures to check with: give another --data")


def refuse_existing(*paths: Path) -> None:
    """Never write over anything.

    Raises:
        InputError: one of them exists.
    """
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: exists: choose another --out or remove it")


@contextmanager
def told_in_one_line(config: ExportConfig) -> Iterator[None]:
    """Whatever fails in exporting, in the format's own library or in running what they made.

    Raises:
        InputError: instead of any other exception.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{config.out}: {error}") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        asked = [f"--{name}" for name in ("half", "dynamic") if getattr(config, name)]
        without = f", or without {' and '.join(asked)}" if asked else ""
        raise InputError(
            f"{config.run}: could not be exported to {config.format} ({reason}): nothing was "
            f"written; try another --format{without}"
        ) from error


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside the destination, which goes when the block ends, well or not.

    One that a killed process left behind is removed by the next call for the same destination.

    Raises:
        InputError: the folder of the destination cannot be written to.
    """
    out = out.absolute()
    scratch = out.with_name(f".{out.name}.partial")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}): choose a destination you may write"
        ) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:  # stay where the export does
            with suppress(OSError):
                parent.rmdir()


def publish(made: Path, out: Path, described: Path, description: Path) -> None:
    """Give an export its name, last: where it is, its description is too.

    Args:
        made: the file, or a folder that holds its description already.
        out: its name.
        described: the description of a file.
        description: its name.
    """
    if made.is_dir():
        made.replace(out)
        return
    described.replace(description)
    try:
        made.replace(out)
    except BaseException:
        description.unlink(missing_ok=True)
        raise
