"""What fine-tuning a segmenter is worth on real pictures, held out, and how much it should see.

    python -m benchmarks.segmenters OUT DATASET... [--folds 3] [--steps 120] [--detectors RUNS]

SAM nano is fine-tuned from the starter on the first folds of every dataset folder (on its one split
where it has no folds), the epoch chosen on val, and outlines the test pictures, which are pooled
over the folds:

- zoom: a window of 1.5 longer sides of the box around each box, as the starter was trained with;
  zoom4: of 4; whole: all of the picture;
- negatives: as zoom, with prompts where no defect is among those that it learns from;
- starter: nothing was trained.

Beside them a plain U-Net of its size from random weights (``benchmarks.unet``), with the same
windows, steps and batches, and what needs no learning (``benchmarks.outlines``). All are given the
same boxes: the true ones, the true ones jittered as in training, and, with ``--detectors``, those
of a detector: the boxes of a run whose score reaches the threshold that is best on val (F1), surest
first, matched to defects at box IoU 0.5, whatever their class. What no box finds scores 0, and is
reported apart. The runs are RUNS/NAME-FOLD or RUNS/NAME-…-FOLD, NAME being that of the dataset
folder, as ``benchmarks.detectors`` names its own.

Figures are means over instances, all and by size (square root of the area, in pixels of the
picture), with 95 % bootstrap intervals over photographs; differences are paired, instance by
instance; of several seeds each instance's mean counts. Rejection is how well SAM's own estimate of
the IoU tells true boxes from boxes of the same sizes where no defect is (AUROC): half of them on
good pictures, where there are any.

What is finished is not repeated, so the command can be stopped and started again, with more arms,
folds or seeds; other epochs, batches or versions of the toolkit need another OUT. The tables lie in
OUT/segmenters.md, and go to the terminal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import unet
from benchmarks.outlines import Outliner, ellipses, filled_boxes, fits, grabcut
from benchmarks.segmenter_tables import Measured, tables
from benchmarks.starter import passes
from converters.dataset import Box, Dataset, Image, Instance
from converters.errors import InputError
from converters.files import read_json, write_json
from converters.folder import DatasetFolder, fold_numbers
from toolkit.config import FinetuneSamConfig
from toolkit.evaluate.backends import matcher
from toolkit.evaluate.metrics import Missing
from toolkit.evaluate.thresholds import Chooser, Goal
from toolkit.images import RgbImage, read_image
from toolkit.predictions import Result, read_results
from toolkit.runs import RunFolder
from toolkit.segment import Segmenter, finetune_sam
from toolkit.segment.data import by_image, masked_prompts
from toolkit.segment.losses import Criterion
from toolkit.segment.model import build_sam
from toolkit.segment.prompts import jitter_box
from toolkit.segment.task import Material, Prompting, SamTask
from toolkit.training import Schedule, fit
from toolkit.weights import read_state

NEGATIVES = 0.5
"""Prompts where no defect is, for each on a defect."""
JITTER = 0.1
MATCH = 0.5
"""Box IoU from which a detection is the box of a defect."""
SEED = 0
"""Of jittered boxes and of places without defects: the same for everyone."""
PLACES = 200
"""Places that are tried for a box where no defect is."""


@dataclass(frozen=True)
class Arm:
    """A contender.

    Attributes:
        title: in the tables.
        settings: fields of ``FinetuneSamConfig``, of what is fine-tuned.
        trained: whether it has to be trained; the others have one seed.
        estimates: whether it says how good its outlines are.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    estimates: bool = True


ARMS = {
    "zoom": Arm("SAM nano, zoom 1.5"),
    "zoom4": Arm("SAM nano, zoom 4", {"context": 4.0}),
    "whole": Arm("SAM nano, whole picture", {"context": 0.0}),
    "negatives": Arm("SAM nano, zoom 1.5, negatives", {"negatives": NEGATIVES}),
    "starter": Arm("SAM nano, not fine-tuned", trained=False),
    "unet": Arm("U-Net", estimates=False),
    "box": Arm("filled box", trained=False, estimates=False),
    "ellipse": Arm("ellipse", trained=False, estimates=False),
    "grabcut": Arm("GrabCut", trained=False, estimates=False),
}
NAIVE: dict[str, Outliner] = {"box": filled_boxes, "ellipse": ellipses, "grabcut": grabcut}


@dataclass(frozen=True)
class Held:
    """A fold of a dataset, and what is held out in it."""

    root: Path
    number: int | None

    @property
    def name(self) -> str:
        """Of its files."""
        return self.root.name if self.number is None else f"{self.root.name}-{self.number}"

    def read(self, split: str) -> Dataset:
        """The ground truth of a split."""
        return DatasetFolder.open(self.root, self.number).read(split)

    @cached_property
    def test(self) -> Dataset:
        """The ground truth of test."""
        return self.read("test")

    @cached_property
    def prompts(self) -> list[tuple[Image, list[Instance]]]:
        """What is outlined, image by image."""
        return by_image(masked_prompts(self.test))


@dataclass(frozen=True)
class Piece:
    """A contender on a fold."""

    held: Held
    arm: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folders."""
        own = f"-{self.steps}-{self.seed}" if ARMS[self.arm].trained else ""
        return f"{self.held.name}-{self.arm}{own}"


def main() -> None:
    """Train and measure what is missing, print the tables."""
    options = _options()
    texts: list[str] = []
    for root in options.datasets:
        numbers: list[int | None] = [*fold_numbers(root)[: options.folds]] or [None]
        holds = [Held(root, number) for number in numbers]
        measured: dict[str, list[list[Measured]]] = {arm: [] for arm in options.arms}
        for held in holds:
            for arm in options.arms:
                seeds = range(options.seeds if ARMS[arm].trained else 1)
                pieces = [Piece(held, arm, options.steps, seed) for seed in seeds]
                measured[arm].append([_measured(piece, options) for piece in pieces])
        titles = {arm: ARMS[arm].title for arm in options.arms}
        texts += tables(root.name, [held.test for held in holds], titles, measured)
    text = "\n".join(texts) + "\n"
    (options.out / "segmenters.md").write_text(text, encoding="utf-8")
    print(text, end="")


def _options() -> argparse.Namespace:
    def arms(text: str) -> tuple[str, ...]:
        unknown = set(text.split(",")) - set(ARMS)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(ARMS)}")
        return tuple(text.split(","))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--arms", type=arms, default=tuple(ARMS), help=",".join(ARMS))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5, help="so many validations, about")
    parser.add_argument("--detectors", type=Path, help="folder of runs of finetune yolo")
    return parser.parse_args()


def _measured(piece: Piece, options: argparse.Namespace) -> Measured:
    """Everything that is asked of a contender on a fold, from its files where they are there."""
    arm, held = ARMS[piece.arm], piece.held
    run = options.out / "runs" / piece.name
    pieces = options.out / "pieces" / piece.name
    if arm.trained:
        _train(piece, run, options)

    def outlined(boxes: Sequence[Sequence[Box | None]]) -> dict[str, Any]:
        outline, seconds = _outliner(piece.arm, run), 0.0

        def timed(image: RgbImage, some: Sequence[Box]) -> npt.NDArray[np.bool_]:
            nonlocal seconds
            start = time.perf_counter()
            masks = outline(image, some)
            seconds += time.perf_counter() - start
            return masks

        found = fits(timed, held.prompts, boxes)
        return {"fits": found, "seconds": seconds}

    boxes: dict[str, Callable[[], list[list[Box | None]]]] = {
        "true": partial(_true_boxes, held),
        "jittered": partial(_jittered_boxes, held),
    }
    if options.detectors is not None:
        boxes["detected"] = partial(_detected_boxes, held, options.detectors)
    files = {"detected": f"detected-{options.detectors.name}"} if options.detectors else {}
    content = {
        kind: _once(pieces / f"{files.get(kind, kind)}.json", lambda make=make: outlined(make()))  # type: ignore[misc]
        for kind, make in boxes.items()
    }
    if "detected" in content:
        given = boxes["detected"]()
        content["detected"]["found"] = [box is not None for some in given for box in some]
    rejection = None
    if arm.estimates:
        rejection = _once(pieces / "rejection.json", lambda: _rejection(held, _segmenter(run)))
    log = read_json(run / "done.json") if arm.trained else None
    return Measured(content, rejection, log)


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; it is made where it is not there."""
    if not path.is_file():
        print(f"{path.parent.name}: {path.stem}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    content: dict[str, Any] = read_json(path)
    return content


def _train(piece: Piece, run: Path, options: argparse.Namespace) -> None:
    """Fine-tune, unless that was done."""
    if (run / "done.json").is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    print(f"{piece.name}: training", file=sys.stderr, flush=True)
    items = len(masked_prompts(piece.held.read("train")))
    repeat, epochs = passes(options.steps, options.batch, items, options.epochs)
    config = FinetuneSamConfig(
        data=piece.held.root,
        fold=piece.held.number,
        out=run,
        weights="none" if piece.arm == "unet" else "starter",
        epochs=epochs,
        patience=epochs,
        repeat=repeat,
        batch=options.batch,
        workers=1,
        device="cpu",
        seed=piece.seed,
        **ARMS[piece.arm].settings,
    )
    log = _train_unet(piece, config) if piece.arm == "unet" else finetune_sam(config)
    lines = (log.root / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    facts = {
        "steps": records[-1]["step"],
        "seconds": sum(record["seconds"] for record in records),
        "val_iou": max(record["val_iou"] for record in records),
    }
    for large in (run / "checkpoints").glob("last*"):
        large.unlink()
    write_json(run / "done.json", facts)


def _train_unet(piece: Piece, config: FinetuneSamConfig) -> RunFolder:
    """On the batches that nano would get, at a usual rate for random weights."""
    held = piece.held
    train, val = masked_prompts(held.read("train")), masked_prompts(held.read("val"))
    nano = SamTask(
        build_sam("nano"),
        unet.ZOOM,
        Material(train, val),
        Prompting(jitter=config.box_jitter),
        learns="all",
        batch=config.batch,
        repeat=config.repeat,
        criterion=Criterion(config.loss),
        seed=config.seed,
        workers=config.workers,
    )
    task = unet.UNetTask(nano, val, config.seed)
    assert config.epochs is not None, "the benchmark says how many"
    run = RunFolder.create(config.out, "benchmark unet", config)
    fit(task, Schedule(config.epochs, 1e-3, 0.01, config.epochs, "val_iou", config.seed), run)
    return run


def _segmenter(run: Path) -> Segmenter:
    """A fine-tuned SAM, or the starter where nothing was trained."""
    return Segmenter.load(run if run.is_dir() else Path("starter"), "cpu")


def _outliner(arm: str, run: Path) -> Outliner:
    if arm in NAIVE:
        return NAIVE[arm]
    if arm == "unet":
        model = unet.UNet()
        model.load_state_dict(read_state(run / "checkpoints" / "best.safetensors", "the benchmark"))
        return partial(unet.outline, model)
    segmenter = _segmenter(run)
    return lambda image, boxes: segmenter(image, boxes)[0]


def _true_boxes(held: Held) -> list[list[Box | None]]:
    return [[instance.box for instance in instances] for _, instances in held.prompts]


def _jittered_boxes(held: Held) -> list[list[Box | None]]:
    rng = np.random.default_rng(SEED)
    return [
        [jitter_box(each.box, JITTER, image.height, image.width, rng) for each in instances]
        for image, instances in held.prompts
    ]


def _detected_boxes(held: Held, runs: Path) -> list[list[Box | None]]:
    """The detector's boxes of the instances; None for those that it did not find."""
    predictions = _detector(held, runs) / "predictions"
    val = held.read("val"), read_results(predictions / "val.json")
    chooser = Chooser(val, None, Goal(), matcher(iou=MATCH), "test")
    threshold = chooser.for_defects("box")
    if isinstance(threshold, Missing):
        raise InputError(f"{predictions}: {threshold.reason}")
    kept: dict[int, list[Result]] = {}
    for result in sorted(read_results(predictions / "test.json"), key=lambda r: -r["score"]):
        if result["score"] >= threshold.value:
            kept.setdefault(result["image_id"], []).append(result)
    return [_matched(instances, kept.get(image.id, [])) for image, instances in held.prompts]


def _detector(held: Held, runs: Path) -> Path:
    ending = "" if held.number is None else f"-{held.number}"
    found = {*runs.glob(f"{held.root.name}{ending}"), *runs.glob(f"{held.root.name}-*{ending}")}
    usable = sorted(run for run in found if (run / "predictions" / "test.json").is_file())
    if len(usable) != 1:
        raise InputError(
            f"{runs}: {len(usable)} runs with predictions are called {held.root.name}…{ending}: "
            "give a folder with one for each fold"
        )
    return usable[0]


def _matched(instances: Sequence[Instance], results: Sequence[Result]) -> list[Box | None]:
    """The surest detection first, each for the instance that it overlaps most of those left."""
    boxes: list[Box | None] = [None] * len(instances)
    for result in results:
        x, y, w, h = result["bbox"]
        overlaps = {
            n: _box_iou(instance.box, (x, y, w, h))
            for n, instance in enumerate(instances)
            if boxes[n] is None
        }
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= MATCH:
            boxes[best] = (x, y, w, h)
    return boxes


def _box_iou(first: Box, second: Box) -> float:
    across = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    down = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    both = max(across, 0) * max(down, 0)
    return both / (first[2] * first[3] + second[2] * second[3] - both)


def _rejection(held: Held, segmenter: Segmenter) -> dict[str, Any]:
    """SAM's own estimates, by id of the image, in true boxes and where no defect is."""
    there: list[tuple[int, float]] = []
    nowhere: list[tuple[int, float]] = []
    for image, instances in held.prompts:
        _, estimates = segmenter(read_image(image.path), [each.box for each in instances])
        there += [(image.id, estimate) for estimate in estimates.tolist()]
    sizes = [instance.box[2:] for _, instances in held.prompts for instance in instances]
    places = list(_without_defect(held.test, sizes))
    for image, box in places:
        _, estimates = segmenter(read_image(image.path), [box])
        nowhere.append((image.id, float(estimates[0])))
    return {"there": there, "nowhere": nowhere, "without_place": len(sizes) - len(places)}


def _without_defect(
    dataset: Dataset, sizes: Sequence[tuple[float, float]]
) -> Iterator[tuple[Image, Box]]:
    """Boxes of some sizes at random places without a pixel of a defect.

    They are on good pictures and on others by turns, or on those that there are. A size for which
    no place was found in ``PLACES`` attempts is left out. Not by ``toolkit.segment.negatives``:
    those take small boxes more often, and are what is trained with.
    """
    rng = np.random.default_rng(SEED)
    kinds = [
        [image for image in dataset.images if image.is_good],
        [image for image in dataset.images if not image.is_good],
    ]
    kinds = [images for images in kinds if images]
    for number, (w, h) in enumerate(sizes):
        images = kinds[number % len(kinds)]
        for _ in range(PLACES):
            image = images[rng.integers(len(images))]
            if w > image.width or h > image.height:
                continue
            x = int(rng.integers(image.width - int(w) + 1))
            y = int(rng.integers(image.height - int(h) + 1))
            if not any(_touches(instance, (x, y, w, h)) for instance in image.instances):
                yield image, (x, y, w, h)
                break


def _touches(instance: Instance, box: Box) -> bool:
    """Whether a pixel of an instance lies in a box of whole pixels."""
    x, y = (int(value) for value in instance.box[:2])
    left, top, w, h = (int(value) for value in box)
    crop = instance.crop
    if crop is None:
        return _box_iou(instance.box, box) > 0
    rows = slice(max(0, top - y), max(0, top + h - y))
    columns = slice(max(0, left - x), max(0, left + w - x))
    return bool(crop[rows, columns].any())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
