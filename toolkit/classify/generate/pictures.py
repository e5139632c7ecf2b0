"""Pictures of rare classes that a run makes once, before training, and keeps.

::

    RUN/generated/
      grown.safetensors   pixels, labels, parents
      provenance.csv      of each: its class, its number, and the train pictures that it comes from
      sheet.png           real ones beside made ones
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from converters.dataset import Dataset
from converters.errors import InputError
from converters.files import write_bytes, write_text
from toolkit.classify.data import Labels, Pictures
from toolkit.classify.generate import Grown, grow, make_generator
from toolkit.classify.generate.sheet import write_sheet
from toolkit.config import FinetuneClassifierConfig
from toolkit.console import note
from toolkit.processes import Place
from toolkit.runs import RunFolder
from toolkit.training import memory_told

FOLDER = "generated"
NOBODY = -1
"""In the file, where a picture has fewer parents than another one."""


def grown_pictures(
    config: FinetuneClassifierConfig,
    run: RunFolder,
    train: Pictures,
    dataset: Dataset,
    classes: Sequence[str],
    device: torch.device,
    here: Place,
) -> Pictures:
    """The train pictures, and after them those that a generator makes of rare classes.

    The first process makes them and writes them into the run; all read them from there, and so does
    a run that goes on.

    Args:
        config: of the run, with a generator of pictures.
        run: where they are kept.
        train: pictures as they are labelled.
        dataset: of the same pictures, in the same order.
        classes: "good", then the categories.
        device: to compute on.
        here: this process.

    Raises:
        InputError: no rare class has enough pictures, the run cannot be written to, the file in it
            is damaged or was made from other pictures, or memory is too small.
    """
    assert config.generate is not None
    folder = run.root / FOLDER
    path = folder / "grown.safetensors"
    with here.in_turn():
        if here.leads and not path.is_file():
            generator = make_generator(config.generate, config.seed)
            with memory_told(device, "a smaller --image-size"):
                made = grow(
                    generator, train.pixels, train.labels, classes, config.generate_to, device
                )
            _write(folder, train, made, dataset, classes)
            note(f"{len(made.labels)} pictures of rare classes were made: see {folder}")
        made = _read(path, train, len(classes))
    return Pictures(
        np.concatenate([train.pixels, made.values]), np.concatenate([train.labels, made.labels])
    )


def _write(
    folder: Path, train: Pictures, made: Grown, dataset: Dataset, classes: Sequence[str]
) -> None:
    """All files; the one that the others belong to is the last."""
    names = [image.file_name for image in dataset.images]
    write_text(folder / "provenance.csv", _provenance(made, names, classes))
    write_sheet(folder / "sheet.png", train, made, classes)
    most = max(map(len, made.parents), default=0)
    parents = [[*own, *[NOBODY] * (most - len(own))] for own in made.parents]
    content = {
        "pixels": made.values,
        "labels": made.labels,
        "parents": np.array(parents, np.int64).reshape(len(parents), most),
    }
    write_bytes(folder / "grown.safetensors", save(content))


def _provenance(made: Grown, names: Sequence[str], classes: Sequence[str]) -> str:
    """A table: class, number within the class from 1, file names of the parents."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "number", "parents"])
    count = dict.fromkeys(classes, 0)
    for label, parents in zip(made.labels, made.parents, strict=True):
        name = classes[label]
        count[name] += 1
        table.writerow([name, count[name], ";".join(names[row] for row in parents)])
    return text.getvalue()


def _read(path: Path, train: Pictures, classes: int) -> Grown:
    """What ``_write`` wrote."""
    damaged = f"{path}: is damaged: remove it to make the pictures again"
    try:
        content = load(path.read_bytes())
        pixels, labels, parents = (content[name] for name in ("pixels", "labels", "parents"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(damaged) from error
    if not _fits(pixels, labels, parents, classes):
        raise InputError(damaged)
    if pixels.shape[1:] != train.pixels.shape[1:] or (parents >= len(train.labels)).any():
        raise InputError(
            f"{path}: was made from other pictures: choose another run folder, or remove it"
        )
    own = tuple(tuple(row[row != NOBODY].tolist()) for row in parents)
    return Grown(pixels, labels, own)


def _fits(
    pixels: npt.NDArray[np.uint8], labels: Labels, parents: npt.NDArray[np.int64], classes: int
) -> bool:
    """Whether these are pictures, labels and parents of each other."""
    return (
        pixels.dtype == np.uint8
        and labels.dtype == parents.dtype == np.int64
        and (pixels.ndim, labels.ndim, parents.ndim) == (4, 1, 2)
        and len(pixels) == len(labels) == len(parents)
        and bool(((labels >= 0) & (labels < classes)).all() and (parents >= NOBODY).all())
    )
