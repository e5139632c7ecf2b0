"""Whether balancing helps: the same steps of fine-tuning on one train split, balanced in many ways.

    python -m benchmarks.balance_effect OUT MAGNETIC_TILE [--models yolo,sam] [--arms none,hard,…]
    python -m benchmarks.balance_effect OUT NEU_SEG --tail 20 --steps 120

The source is split into five folds, so that no photograph is on two sides. On the first three,
YOLO-World n and SAM nano are fine-tuned from the starter weights on the train split as it is and
after every kind of `toolkit balance`; beside them the same detector with what ultralytics offers
against rare classes: its own copy-paste (given polygons, without which it does nothing), class
weights, and mosaic (on by default) turned off. Epochs are chosen on the fold's val pictures,
figures are pooled over the three folds' test pictures, intervals are 95 % bootstrap intervals over
photographs, and differences to the split as it is are paired, picture by picture.

With ``--tail R`` the train split is made long-tailed first: the first class keeps all of its
pictures, the last one in R, those between so that the numbers fall evenly on a logarithmic scale.

A run that is finished is not repeated. The tables lie in OUT/balance_effect.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from benchmarks.starter import prepare
from benchmarks.text import with_interval
from converters.dataset import Dataset, Image
from converters.errors import InputError
from converters.folder import CARD, DatasetFolder
from converters.formats.coco import write_coco
from toolkit.config import BalanceConfig, FinetuneSamConfig, FinetuneYoloConfig
from toolkit.evaluate import Rules
from toolkit.evaluate.compare import compare_sheets
from toolkit.evaluate.scoring import Part, score_parts
from toolkit.evaluate.sheet import Sheet
from toolkit.predictions import read_card, read_results
from toolkit.sampling import picture_factors

FOLDS = (0, 1, 2)
BATCH = 16
FIGURES = {"yolo": "box.AP50", "sam": "mask.instance_IoU"}


@dataclass(frozen=True)
class Arm:
    """One way to treat rare classes.

    Attributes:
        balance: options of `toolkit balance`; None leaves the split as it is.
        arguments: training arguments of ultralytics that differ.
        polygons: whether ultralytics is given outlines beside boxes.
        options: of `toolkit finetune` that differ.
    """

    balance: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    polygons: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _paste(blend: str, target: int | str = 100, **options: Any) -> Arm:
    return Arm({"method": "paste", "target": target, "blend": blend, **options})


ARMS = {
    "none": Arm(),
    "oversample": Arm({"method": "oversample", "target": 100}),
    "sampler": Arm(options={"sampling": "repeat-factor"}),
    "hard": _paste("hard"),
    "feather": _paste("feather"),
    "poisson": _paste("poisson"),
    "both": Arm({"method": "both", "target": 100, "per_donor": 2}),
    "equal": _paste("feather", "equal"),
    "hard_turned": _paste("hard", rotate=180),
    "feather_turned": _paste("feather", rotate=180),
    "both_turned": Arm({"method": "both", "target": 100, "per_donor": 2, "rotate": 180}),
    "copy_paste": Arm(arguments={"copy_paste": 0.5}, polygons=True),
    "copy_paste_boxes": Arm(arguments={"copy_paste": 0.5}),
    "cls_pw": Arm(arguments={"cls_pw": 1.0}),
    "no_mosaic": Arm(arguments={"mosaic": 0.0}),
}

MODES = {
    mode: Arm(options={"mode": mode}) for mode in ("full", "freeze-backbone", "prompt", "reparam")
}
"""What learns, on the split as it is: asked for by name."""

EVERY = {**ARMS, **MODES}


@dataclass(frozen=True)
class Trial:
    """One fine-tuning."""

    out: Path
    source: str
    model: str
    arm: str
    fold: int
    steps: int
    tail: int

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.source}{'-tail' * (self.tail > 1)}-{self.model}-{self.arm}"

    @property
    def run(self) -> Path:
        """Run folder."""
        return self.out / "runs" / f"{self.name}-{self.fold}"

    @property
    def whole(self) -> Path:
        """The dataset folder with all folds, or the long-tailed one of this fold."""
        whole = self.out / "data" / self.source
        return whole if self.tail == 1 else whole.with_name(f"{self.source}-tail-{self.fold}")


def main() -> None:
    """Parse, convert, train what is missing, print the tables."""
    options = _options()
    trials = [
        Trial(
            options.out,
            options.source.name,
            model,
            arm,
            fold,
            options.steps if model == "yolo" else options.sam_steps,
            options.tail,
        )
        for model in options.models
        for fold in options.folds
        for arm in options.arms
        if model == "yolo" or not (EVERY[arm].arguments or "mode" in EVERY[arm].options)
    ]
    if options.one:
        (trial,) = trials
        train(trial)
        return
    whole = options.out / "data" / options.source.name
    prepare(options.source, whole, options.out / "layout" / options.source.name)
    for trial in trials:
        if not trial.whole.exists():
            _make_tail(whole, trial)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(_start, trials))
    text = "\n".join(line for model in options.models for line in _table(trials, model))
    (options.out / "balance_effect.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    def names(text: str) -> tuple[str, ...]:
        return tuple(text.split(","))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--models", type=names, default=("yolo", "sam"))
    parser.add_argument("--arms", type=names, default=tuple(ARMS))
    parser.add_argument("--folds", type=lambda t: tuple(map(int, t.split(","))), default=FOLDS)
    parser.add_argument("--steps", type=int, default=240, help="of the detector")
    parser.add_argument("--sam-steps", type=int, default=48)
    parser.add_argument("--tail", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _make_tail(whole: Path, trial: Trial) -> None:
    """A dataset folder of one fold whose train split has ever fewer pictures of its classes."""
    folder = DatasetFolder.open(whole, trial.fold)
    train = folder.read("train")
    labels = train.image_labels()
    last = max(1, len(train.categories) - 1)
    kept = []
    for rank, label in enumerate(train.categories):
        of_class = [i for i, own in zip(train.images, labels, strict=True) if own == label]
        of_class.sort(key=lambda image: hashlib.sha256(image.file_name.encode()).hexdigest())
        kept += of_class[: max(1, round(len(of_class) * trial.tail ** (-rank / last)))]
    kept += [image for image in train.images if image.is_good]
    target = trial.whole
    target.mkdir(parents=True)
    (target / "images").symlink_to(folder.images.resolve())
    few = tuple(sorted(kept, key=lambda image: image.file_name))
    write_coco(target / "train.json", train.subset(few))
    for split in ("val", "test"):
        write_coco(target / f"{split}.json", folder.read(split))
    card = {"name": target.name, "categories": list(train.categories)}
    (target / CARD).write_text(yaml.safe_dump(card), encoding="utf-8")


def _start(trial: Trial) -> None:
    """Train in a process of its own, unless that was done; a failed run stops the benchmark."""
    if (trial.run / "done.json").is_file():
        return
    shutil.rmtree(trial.run, ignore_errors=True)
    print(trial.run.name, file=sys.stderr, flush=True)
    words = [sys.executable, "-m", "benchmarks.balance_effect", str(trial.out)]
    words += [trial.source, "--models", trial.model, "--arms", trial.arm]
    words += ["--folds", str(trial.fold), "--tail", str(trial.tail), "--one"]
    words += ["--steps", str(trial.steps), "--sam-steps", str(trial.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{trial.run.name}: {done.stderr[-2000:]}")


def train(trial: Trial) -> None:
    """Balance and fine-tune."""
    arm = EVERY[trial.arm]
    data = trial.whole
    fold = trial.fold if trial.tail == 1 else None
    if arm.balance is not None:
        from toolkit.balance import balance

        data = trial.out / "data" / f"{trial.name}-{trial.fold}"
        if not data.exists():
            balance(BalanceConfig(dataset=trial.whole, dest=data, fold=fold, **arm.balance))
    train_split = DatasetFolder.open(data, fold).read("train")
    counts = train_split.count_instances()
    factors = picture_factors(train_split, arm.options.get("sampling", "uniform"))
    items = round(sum(factors))
    if trial.model == "sam":
        pairs = zip(factors, train_split.images, strict=True)
        items = round(sum(factor * len(image.instances) for factor, image in pairs))
    repeat, epochs = _length(items, trial.steps)
    common = {
        "data": data,
        "fold": fold,
        "out": trial.run,
        "weights": "starter",
        "repeat": repeat,
        "epochs": epochs,
        "patience": epochs,
        "batch": BATCH,
        "seed": trial.fold,
        **arm.options,
    }
    if trial.model == "sam":
        from toolkit.segment import finetune_sam

        finetune_sam(FinetuneSamConfig(**common, workers=1))
    else:
        from toolkit.detect import finetune_yolo

        with _patched(arm):
            finetune_yolo(FinetuneYoloConfig(**common, image_size=160, workers=0))
    steps = epochs * -(-repeat * items // BATCH)
    facts = {"steps": steps, "pictures": len(train_split.images), "instances": counts}
    (trial.run / "done.json").write_text(json.dumps(facts))
    for large in (trial.run / "checkpoints").glob("last*"):
        large.unlink()


def _length(items: int, steps: int) -> tuple[int, int]:
    """How often an item counts in an epoch, and epochs (3 to 6), nearest to so many steps."""
    choices = ((repeat, epochs) for repeat in range(1, 12) for epochs in range(3, 7))
    return min(choices, key=lambda c: (abs(c[1] * -(-c[0] * items // BATCH) - steps), c[1]))


@contextlib.contextmanager
def _patched(arm: Arm) -> Iterator[None]:
    """Ultralytics with other arguments than ours, or with outlines."""
    from toolkit.detect import data, finetune

    plain_arguments, plain_label = finetune.training_arguments, data._label

    def arguments(*positional: Any, **named: Any) -> dict[str, Any]:
        return {**plain_arguments(*positional, **named), **arm.arguments}

    def label(image: Image, dataset: Dataset) -> dict[str, Any]:
        found = plain_label(image, dataset)
        return {**found, "segments": _outlines(image)} if arm.polygons else found

    with (
        mock.patch.object(finetune, "training_arguments", arguments),
        mock.patch.object(data, "_label", label),
    ):
        yield


def _outlines(image: Image) -> list[npt.NDArray[np.float32]]:
    """The longest outline of each instance, as shares of the picture, shape (corners, 2)."""
    size = np.array([image.width, image.height], np.float32)
    outlines = []
    for instance in image.instances:
        mask = instance.to_mask(image.height, image.width).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outlines.append(max(found, key=len).reshape(-1, 2).astype(np.float32) / size)
    return outlines


def _sheet(trials: list[Trial], arm: str) -> Sheet:
    parts = []
    card = None
    for trial in trials:
        if trial.arm == arm:
            fold = trial.fold if trial.tail == 1 else None
            truth = DatasetFolder.open(trial.whole, fold).read("test")
            parts.append(Part(truth, read_results(trial.run / "predictions" / "test.json")))
            card = read_card(trial.run / "predictions")
    return score_parts(parts, Rules(threshold=0.5), card)


def _table(trials: list[Trial], model: str) -> Iterator[str]:
    """A row per arm: the figure, its difference to none, and the figure of every class."""
    mine = [trial for trial in trials if trial.model == model]
    arms = list(dict.fromkeys(trial.arm for trial in mine))
    name = FIGURES[model]
    sheets = {arm: _sheet(mine, arm) for arm in arms}
    classes = sheets[arms[0]].dataset.categories
    yield ""
    yield f"| {model}, {name} | all | difference to none | {' | '.join(classes)} | steps |"
    yield "| --- " * (4 + len(classes)) + "|"
    for arm, sheet in sheets.items():
        metrics = sheet.metrics()
        cells = [with_interval(metrics.figures[name])]
        change = "-"
        if arm != "none" and "none" in sheets:
            paired = compare_sheets(("none", arm), sheets["none"], sheet).differences[name]
            change = with_interval(paired.difference, "+")
        cells.append(change)
        cells += [with_interval(metrics.per_class[label][name]) for label in classes]
        steps = [json.loads((t.run / "done.json").read_text()) for t in mine if t.arm == arm]
        cells.append(", ".join(str(facts["steps"]) for facts in steps))
        yield f"| {arm} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
