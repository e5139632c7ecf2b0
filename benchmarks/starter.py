"""What the starter weights are worth on real pictures, held out, against random weights.

    python -m benchmarks.starter OUT MAGNETIC_TILE NEU_SEG TRANSISTOR

Every source is split into five folds, so that no photograph is on two sides; on the first three,
every model is fine-tuned from every kind of weights on 5 and 10 defect pictures per class and on
all of them, for the same number of optimiser steps. Epochs are chosen on the fold's val pictures,
figures are pooled over the three folds' test pictures, and intervals are 95 % bootstrap intervals
over photographs. Good pictures are limited to the number of defect pictures.

A run that is finished is not repeated, so the command can be stopped and started again, with more
sources, models or weights. The table lies in OUT/starter.md, and goes to the terminal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from benchmarks.text import with_interval
from converters.convert import ConvertOptions, convert
from converters.dataset import GOOD, Dataset, Image
from converters.errors import InputError
from converters.folder import CARD, DatasetFolder
from converters.formats.coco import write_coco
from converters.split import SplitOptions
from toolkit.evaluate import Figure, Rules
from toolkit.evaluate.judging import score_judged
from toolkit.evaluate.scoring import Part, score_parts
from toolkit.images import read_image
from toolkit.predictions import (
    ImageProbabilities,
    images_file,
    read_card,
    read_probabilities,
    read_results,
)

FOLDS = 5
CLASSES_OF_NEU = ("inclusion", "patches", "scratches")
EPOCHS = 3


@dataclass(frozen=True)
class Model:
    """How a model is fine-tuned and what is asked of it.

    Attributes:
        command: of the toolkit.
        options: the same for all weights.
        batch: items per step.
        steps: optimiser steps in all.
        figures: of the evaluation.
    """

    command: str
    options: tuple[str, ...]
    batch: int
    steps: int
    figures: tuple[str, ...]


MODELS = {
    "yolo": Model("yolo", ("--image-size", "160", "--workers", "0"), 16, 120, ("box.AP50",)),
    "sam": Model("sam", ("--workers", "1"), 16, 48, ("mask.instance_IoU",)),
    "classifier": Model("classifier", ("--image-size", "128"), 32, 60, ("image.macro_F1",)),
}


@dataclass(frozen=True)
class Trial:
    """One fine-tuning.

    Attributes:
        source: name of the data.
        shots: defect pictures per class; None for all of them.
        fold: number of the fold.
        model: a name in ``MODELS``.
        weights: what it starts from: label and ``--weights``.
    """

    source: str
    shots: int | None
    fold: int
    model: str
    weights: tuple[str, str]

    @property
    def data(self) -> str:
        """Name of its dataset folder."""
        return f"{self.source}-{self.shots or 'all'}-{self.fold}"

    @property
    def run(self) -> str:
        """Name of its run folder."""
        return f"{self.data}-{self.model}-{self.weights[0]}"


def main() -> None:
    """Parse, convert, train what is missing, print the table."""
    options = _options()
    sources = {path.name: path for path in options.sources}
    for name, path in sources.items():
        prepare(path, options.out / "data" / name, options.out / "layout" / name)
    trials = [
        Trial(source, shots, fold, model, weights)
        for fold in options.folds
        for source in sources
        for shots in options.shots
        for model in options.models
        for weights in options.weights
    ]
    for trial in trials:
        _few(options.out, trial)
    trials = [trial for trial in trials if (options.out / "data" / trial.data).is_dir()]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda trial: _train(options.out, trial), trials))
    table = "\n".join(_table(options.out, trials))
    (options.out / "starter.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--models", type=_names, default=tuple(MODELS))
    parser.add_argument("--shots", type=_shots, default=(5, 10, None), help="5,10,all")
    parser.add_argument("--folds", type=_numbers, default=(0, 1, 2))
    parser.add_argument(
        "--weights",
        type=_weights,
        default=(("none", "none"), ("starter", "starter")),
        help="LABEL=WEIGHTS,…",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _shots(text: str) -> tuple[int | None, ...]:
    return tuple(None if part == "all" else int(part) for part in text.split(","))


def _weights(text: str) -> tuple[tuple[str, str], ...]:
    pairs = (part.partition("=") for part in text.split(","))
    return tuple((label, weights or label) for label, _, weights in pairs)


def prepare(source: Path, dataset: Path, layout: Path) -> None:
    """Convert a source into folds; NEU-Seg's masks of class numbers become MVTec's first."""
    if dataset.exists():
        return
    if (source / "annotations").is_dir():
        if not layout.exists():
            lay_out_neu(source, layout)
        source = layout
    convert(source, dataset, ConvertOptions(split=SplitOptions(protocol="folds", folds=FOLDS)))


def lay_out_neu(source: Path, layout: Path) -> None:
    """Pictures of one class each, in folders of their class."""
    (layout / "train" / GOOD).mkdir(parents=True)
    for annotation in sorted((source / "annotations").rglob("*.png")):
        values = read_image(annotation)[..., 0]
        (number,) = set(np.unique(values).tolist()) - {0}
        kind, name = CLASSES_OF_NEU[number - 1], f"{annotation.parent.name}_{annotation.stem}"
        picture = source / "images" / annotation.relative_to(source / "annotations")
        for folder in (layout / "test" / kind, layout / "ground_truth" / kind):
            folder.mkdir(parents=True, exist_ok=True)
        pixels = read_image(picture.with_suffix(".jpg"))
        cv2.imwrite(str(layout / "test" / kind / f"{name}.png"), pixels)
        mask = np.where(values > 0, np.uint8(255), np.uint8(0))
        cv2.imwrite(str(layout / "ground_truth" / kind / f"{name}_mask.png"), mask)


def _few(out: Path, trial: Trial) -> None:
    """A dataset folder whose train split has few defect pictures; none where train lacks them."""
    target = out / "data" / trial.data
    if target.exists():
        return
    whole = DatasetFolder.open(out / "data" / trial.source, trial.fold)
    train = whole.read("train")
    chosen = list(_choose(train, trial.shots))
    if not chosen:
        return
    target.mkdir(parents=True)
    (target / "images").symlink_to(whole.images.resolve())
    few = train.subset(tuple(sorted(chosen, key=lambda image: image.file_name)))
    write_coco(target / "train.json", few)
    for split in ("val", "test"):
        write_coco(target / f"{split}.json", whole.read(split))
    card = {"name": trial.data, "categories": list(train.categories)}
    (target / CARD).write_text(yaml.safe_dump(card), encoding="utf-8")


def _choose(train: Dataset, shots: int | None) -> Iterator[Image]:
    """The first pictures of every class in an order that names alone decide, and good ones.

    Nothing where some class has fewer than ``shots``: that would be a milder trial under the same
    name.
    """
    images = sorted(train.images, key=lambda i: hashlib.sha256(i.file_name.encode()).hexdigest())
    labels = dict(zip((i.file_name for i in train.images), train.image_labels(), strict=True))
    of_class = {
        name: [i for i in images if labels[i.file_name] == name] for name in train.categories
    }
    if shots is not None and min(map(len, of_class.values())) < shots:
        return
    defective = [image for group in of_class.values() for image in group[:shots]]
    good = [image for image in images if image.is_good]
    yield from defective
    yield from good[: len(defective)]


def _train(out: Path, trial: Trial) -> None:
    """Fine-tune, unless that was done; a failed run stops the benchmark."""
    run, data = out / "runs" / trial.run, out / "data" / trial.data
    if (run / "done.json").is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    model = MODELS[trial.model]
    train = DatasetFolder.open(data).read("train")
    items = sum(train.count_instances().values()) if trial.model == "sam" else len(train.images)
    repeat, epochs = passes(model.steps, model.batch, items, EPOCHS)
    words = [sys.executable, "-m", "toolkit", "finetune", model.command, "--quiet"]
    words += ["--data", str(data), "--out", str(run), "--weights", trial.weights[1]]
    words += ["--repeat", str(repeat), "--epochs", str(epochs), "--patience", str(epochs)]
    words += ["--batch", str(model.batch), "--seed", str(trial.fold), *model.options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    print(f"{trial.run}: {repeat=} {epochs=}", file=sys.stderr, flush=True)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{trial.run}: {done.stderr[-2000:]}")
    steps = epochs * -(-repeat * items // model.batch)
    (run / "done.json").write_text(json.dumps({"steps": steps, "items": items}))
    for large in (run / "checkpoints").glob("last*"):
        large.unlink()


def passes(steps: int, batch: int, items: int, epochs: int) -> tuple[int, int]:
    """``repeat`` and ``epochs`` of about so many steps in about so many epochs."""
    repeat = max(1, round(steps / epochs * batch / items))
    return repeat, max(1, round(steps / -(-repeat * items // batch)))


def _table(out: Path, trials: Sequence[Trial]) -> Iterator[str]:
    """One row per source, model and number of pictures; one column per kind of weights."""
    labels = list(dict.fromkeys(trial.weights[0] for trial in trials))
    yield f"| data | model | figure | defect pictures per class | {' | '.join(labels)} |"
    yield "| --- " * (4 + len(labels)) + "|"
    rows: dict[tuple[str, str, int | None], dict[str, list[Trial]]] = {}
    for trial in trials:
        cells = rows.setdefault((trial.source, trial.model, trial.shots), {})
        cells.setdefault(trial.weights[0], []).append(trial)
    for (source, model, shots), cells in sorted(rows.items(), key=lambda row: str(row[0])):
        for name in MODELS[model].figures:
            texts = [with_interval(pooled(out, cells[label], name)) for label in labels]
            yield f"| {source} | {model} | {name} | {shots or 'all'} | {' | '.join(texts)} |"


def pooled(out: Path, trials: Sequence[Trial], name: str) -> Figure:
    """A figure over the test pictures of several folds as if they were one split."""
    parts: list[Part] = []
    judged: list[tuple[Dataset, ImageProbabilities, str]] = []
    card = None
    for trial in trials:
        truth = DatasetFolder.open(out / "data" / trial.data).read("test")
        folder = out / "runs" / trial.run / "predictions"
        if trial.model == "classifier":
            judged.append((truth, read_probabilities(folder / images_file("test")), trial.run))
        else:
            parts.append(Part(truth, read_results(folder / "test.json")))
            card = read_card(folder)
    if judged:
        return score_judged(judged, Rules()).metrics().figures[name]
    return score_parts(parts, Rules(threshold=0.5), card).metrics().figures[name]


if __name__ == "__main__":
    main()
