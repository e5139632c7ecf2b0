"""What fine-tuning leaves of a vocabulary: closed, and kept open by frozen text and replay.

    python -m benchmarks.open_vocabulary OUT [--products 3] [--steps 120]

No weights of others are needed: the vocabulary is that of the starter, whose class embeddings name
the procedural kinds of defects. Of every product (a surface that is photographed many times) a
dataset of three kinds is drawn, on which the starter is fine-tuned twice for the same number of
steps: as usual, and with `--open-vocabulary` and a replay of procedural pictures of eight other
kinds on surfaces of all sorts. Before and after, it is asked on pictures of the product that were
held out for three groups of kinds: those that it was fine-tuned on, those of the replay, and five
that neither has shown. The vocabulary of each question is the group's.

Figures are box AP50, pooled over the products, with 95 % bootstrap intervals over pictures;
differences are paired, picture by picture. A run that is finished is not repeated. The table lies
in OUT/open_vocabulary.md, and goes to the terminal. The sizes are meant for ten minutes on two
cores that do nothing else; ``--smoke`` tries the way in one or two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch
import yaml

from benchmarks.text import with_interval
from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from converters.folder import CARD, DatasetFolder
from converters.formats.coco import write_coco
from converters.geometry import region_from_mask
from converters.layouts import find_layout
from converters.read import ReadOptions, read_source
from toolkit.detect import Detector, predict_dataset
from toolkit.detect.models import set_classes
from toolkit.detect.weights import load_trained
from toolkit.evaluate import Rules
from toolkit.evaluate.compare import compare_sheets
from toolkit.evaluate.scoring import Part, score_parts
from toolkit.evaluate.sheet import Sheet
from toolkit.synth import write_mvtec
from toolkit.synth.source import SourceDomain

GROUPS = {
    "fine-tuned on": ("scratch", "stain", "dent"),
    "of the replay": (
        "thread",
        "missing_piece",
        "glue",
        "streak",
        "uneven",
        "fray",
        "abrasion",
        "broken_edge",
    ),
    "shown by neither": ("spot", "hole", "crack", "patch", "contamination"),
}
NEW, REPLAYED, UNSEEN = GROUPS.values()
SURFACES = ("painted", "brushed_metal", "leather", "cast_grain", "ribs", "speckle")
SIDE = 160
BATCH = 16
EPOCHS = 4
GOOD = 10
"""Good pictures of each split."""
SHOTS = {"train": 10, "val": 5, "test": 15}
"""Pictures of each kind; of those that are only asked for, there is a test split alone."""
REPLAY_PICTURES = 400
REPLAY_SEED = 77
ARMS = ("closed", "open")
FIGURE = "box.AP50"


@dataclass(frozen=True)
class Sizes:
    """How much of everything; a smoke test takes less.

    Attributes:
        shots: pictures of each kind by split.
        replay: pictures of the replay.
        steps: optimiser steps of a fine-tuning.
    """

    shots: dict[str, int]
    replay: int
    steps: int


def main() -> None:
    """Draw, fine-tune what is missing, ask, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--products", type=int, default=3, choices=range(1, len(SURFACES) + 1))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--smoke", action="store_true", help="quickly, with figures of no worth")
    options = parser.parse_args()
    sizes = Sizes(SHOTS, REPLAY_PICTURES, options.steps)
    if options.smoke:
        sizes = Sizes({"train": 2, "val": 1, "test": 2}, 16, 4)
    replay = options.out / "data" / "replay"
    if not replay.exists():
        draw_replay(replay, sizes.replay)
    products = SURFACES[: options.products]
    for number, surface in enumerate(products):
        if not (options.out / "data" / surface).exists():
            draw_product(options.out / "data" / surface, surface, number, sizes)
    pairs = [(surface, arm) for surface in products for arm in ARMS]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda pair: fine_tune(options.out, *pair, sizes), pairs))
    table = "\n".join(_table(options.out, products))
    (options.out / "open_vocabulary.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def draw_product(root: Path, surface: str, number: int, sizes: Sizes) -> None:
    """A dataset of the new kinds, and in ``asked/`` held-out pictures of all kinds."""
    every = sum(sizes.shots.values())
    splits: dict[str, list[Image]] = {split: [] for split in sizes.shots}
    for kinds, count in ((NEW, every), (REPLAYED + UNSEEN, sizes.shots["test"])):
        folder = root.with_name(f"{root.name}-drawn-{len(kinds)}")
        shutil.rmtree(folder, ignore_errors=True)
        good = 3 * GOOD if kinds == NEW else 0
        write_mvtec(
            folder,
            category=surface,  # with the seed it decides which product it is
            surface=surface,
            defects=kinds,
            train_good=0,
            test_good=good,
            per_defect=count,
            size=(SIDE, SIDE),
            seed=number,
        )
        source = folder / surface
        options = ReadOptions(near_duplicates=False)
        images = read_source(source, find_layout(source), options).dataset.images
        for label in (*(("good",) if good else ()), *kinds):
            mine = [image for image in images if image.labels == (label,)]
            cuts = (GOOD, GOOD) if label == "good" else (sizes.shots["train"], sizes.shots["val"])
            if kinds != NEW:
                splits["test"] += mine
                continue
            splits["train"] += mine[: cuts[0]]
            splits["val"] += mine[cuts[0] : sum(cuts)]
            splits["test"] += mine[sum(cuts) :]
    base = 100_000 * (number + 1)  # ids differ between products, which are scored together
    numbered = {
        split: tuple(replace(i, id=base + 10_000 * n + k) for k, i in enumerate(images, start=1))
        for n, (split, images) in enumerate(splits.items())
    }
    all_kinds = NEW + REPLAYED + UNSEEN
    write_dataset(root / "asked", {"test": Dataset(surface, all_kinds, numbered["test"])})
    own = {split: tuple(_of(images, NEW)) for split, images in numbered.items()}
    write_dataset(root / "data", {s: Dataset(surface, NEW, images) for s, images in own.items()})


def draw_replay(root: Path, count: int) -> None:
    """Procedural pictures of the replayed kinds, on another surface every time."""
    domain = SourceDomain(SIDE, REPLAYED)
    drawn = root.with_name(f"{root.name}-drawn")
    drawn.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(count):
        picture = domain.draw(REPLAY_SEED, index)
        path = drawn / f"{index:04d}.png"
        cv2.imwrite(str(path), picture.image[..., ::-1])
        instances = []
        for each in picture.instances:
            box, crop = region_from_mask(each.mask)
            instances.append(Instance(each.kind, box, crop))
        height, width = picture.image.shape[:2]
        images.append(Image(path.name, path, width, height, tuple(instances), id=index + 1))
    write_dataset(root, {"train": Dataset("replay", REPLAYED, tuple(images))})


def write_dataset(root: Path, splits: dict[str, Dataset]) -> None:
    """A dataset folder with copies of the pictures; annotations are numbered."""
    (root / "images").mkdir(parents=True)
    number = 0
    for split, dataset in splits.items():
        images = []
        for image in dataset.images:
            shutil.copy(image.path, root / "images" / image.file_name)
            instances = []
            for instance in image.instances:
                number += 1
                instances.append(replace(instance, id=number))
            images.append(replace(image, instances=tuple(instances)))
        write_coco(root / f"{split}.json", dataset.subset(tuple(images)))
    names = list(next(iter(splits.values())).categories)
    card = yaml.safe_dump({"name": root.name, "categories": names})
    (root / CARD).write_text(card, encoding="utf-8")


def _of(images: Sequence[Image], kinds: Sequence[str]) -> Iterator[Image]:
    """Good pictures, and those with defects of some kinds."""
    yield from (i for i in images if i.is_good or set(i.labels) <= set(kinds))


def fine_tune(out: Path, surface: str, arm: str, sizes: Sizes) -> None:
    """Fine-tune, unless that was done; a failed run stops the benchmark."""
    run, data = out / "runs" / f"{surface}-{arm}", out / "data" / surface / "data"
    if (run / "predictions" / "card.yaml").is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    pictures = len(DatasetFolder.open(data).read("train").images)
    repeat = sizes.steps * BATCH / EPOCHS / pictures
    if arm == "open":  # half of the pictures are of the replay
        repeat /= 2
    words = [sys.executable, "-m", "toolkit", "finetune", "yolo", "--quiet"]
    words += ["--data", str(data), "--out", str(run), "--weights", "starter"]
    words += ["--repeat", str(max(1, round(repeat))), "--epochs", str(EPOCHS)]
    words += ["--batch", str(BATCH), "--image-size", str(SIDE), "--workers", "0"]
    if arm == "open":
        words += ["--open-vocabulary", "--replay", str(out / "data" / "replay")]
    print(" ".join(words[3:]), file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{run}: {done.stderr[-2000:]}")


def ask(out: Path, products: Sequence[str], kinds: tuple[str, ...], arm: str) -> Sheet:
    """Score a model of every product where it is asked for some kinds.

    A closed run is asked like the others, by setting its classes, which `toolkit predict` refuses.
    """
    vocabulary = load_trained(Path("starter")).embeddings.only(kinds)
    parts = []
    for surface in products:
        run = Path("starter") if arm == "before" else out / "runs" / f"{surface}-{arm}"
        trained = replace(load_trained(run), embeddings=vocabulary, pretrained=False)
        set_classes(trained.model, vocabulary)
        asked = DatasetFolder.open(out / "data" / surface / "asked").read("test")
        truth = Dataset(asked.name, kinds, tuple(_of(asked.images, kinds)))
        detector = Detector(trained, torch.device("cpu"))
        parts.append(Part(truth, predict_dataset(detector, truth)))
    return score_parts(parts, Rules(threshold=0.5))


def _table(out: Path, products: Sequence[str]) -> Iterator[str]:
    yield f"{FIGURE}, {len(products)} products ({', '.join(products)})"
    yield ""
    yield "| kinds | pictures | before | closed | open | closed - before | open - before |"
    yield "| --- " * 7 + "|"
    for name, kinds in GROUPS.items():
        sheets = {arm: ask(out, products, kinds, arm) for arm in ("before", *ARMS)}
        cells = [with_interval(sheet.metrics().figures[FIGURE]) for sheet in sheets.values()]
        for arm in ARMS:
            paired = compare_sheets(("before", arm), sheets["before"], sheets[arm])
            cells.append(with_interval(paired.differences[FIGURE].difference, "+"))
        yield f"| {name} | {len(sheets['before'].dataset.images)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
