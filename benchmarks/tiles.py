"""Whether tiles help: the same steps at the same image size on whole pictures and on tiles.

    python -m benchmarks.tiles OUT DATASET [--tiles 320,640] [--image-size 320] [--steps 240]

YOLO-World n is fine-tuned on the train split of a dataset folder, the epoch is chosen on val, and
box AP50 is that of whole test pictures, with 95 % bootstrap intervals over photographs; differences
to whole pictures are paired, picture by picture. ``--large`` adds whole pictures at another image
size, say that at which defects are as large as in the tiles. Seconds per step are without
validation, seconds per picture those of prediction alone, one at a time.

A run that is finished is not repeated. The table lies in OUT/tiles.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.text import with_interval
from converters.folder import DatasetFolder
from toolkit.config import FinetuneYoloConfig
from toolkit.detect import Detector, finetune_yolo
from toolkit.detect.trainer import OfflineWorldTrainer
from toolkit.devices import resolve_device
from toolkit.evaluate import Rules
from toolkit.evaluate.compare import compare_sheets
from toolkit.evaluate.scoring import Part, score_parts
from toolkit.evaluate.sheet import Sheet
from toolkit.images import read_image
from toolkit.predictions import read_card, read_results

TIMED_PICTURES = 20
FIGURE = "box.AP50"


def main() -> None:
    """Train what is missing, print the table."""
    options = _options()
    arms: dict[str, dict[str, Any]] = {"whole": {"image_size": options.image_size}}
    for tile in options.tiles:
        arms[f"tile-{tile}"] = {
            "image_size": options.image_size,
            "tile": tile,
            "tile_overlap": options.tile_overlap,
        }
    if options.large:
        arms["large"] = {"image_size": options.large}
    for arm, settings in arms.items():
        _train(options, options.out / arm, settings)
    table = "\n".join(_table(options, list(arms)))
    (options.out / "tiles.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument(
        "--tiles", type=lambda text: tuple(map(int, text.split(","))), default=(320,)
    )
    parser.add_argument("--tile-overlap", type=float, default=0.2)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--large", type=int, help="another image size for whole pictures")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--weights", default="starter")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _train(options: argparse.Namespace, run: Path, settings: dict[str, Any]) -> None:
    """Fine-tune for so many steps, and note how long steps and pictures take."""
    if (run / "done.json").is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    print(run.name, file=sys.stderr, flush=True)
    folder = DatasetFolder.open(options.data, options.fold)
    clock = _Clock()
    with clock.running():
        finetune_yolo(
            FinetuneYoloConfig(
                data=options.data,
                fold=options.fold,
                out=run,
                weights=options.weights,
                steps=options.steps,
                patience=options.steps,
                batch=options.batch,
                workers=options.workers,
                device=options.device,
                seed=options.seed,
                **settings,
            )
        )
    facts = {
        "steps": clock.steps,
        "seconds_per_step": (clock.training - clock.validation) / clock.steps,
        "seconds_per_picture": _seconds_per_picture(options, run, folder),
    }
    (run / "done.json").write_text(json.dumps(facts))


class _Clock:
    """Seconds in training, and in the validation that is a part of it; steps that were made."""

    def __init__(self) -> None:
        self.training = self.validation = 0.0
        self.steps = 0

    def running(self) -> Any:
        train, validate = OfflineWorldTrainer.train, OfflineWorldTrainer.validate
        step = OfflineWorldTrainer.optimizer_step

        def counted_step(trainer: Any) -> None:
            self.steps += 1
            step(trainer)

        def timed_train(trainer: Any) -> Any:
            start = time.perf_counter()
            result = train(trainer)
            self.training += time.perf_counter() - start
            return result

        def timed_validate(trainer: Any) -> Any:
            start = time.perf_counter()
            result = validate(trainer)
            self.validation += time.perf_counter() - start
            return result

        return mock.patch.multiple(
            OfflineWorldTrainer,
            train=timed_train,
            validate=timed_validate,
            optimizer_step=counted_step,
        )


def _seconds_per_picture(options: argparse.Namespace, run: Path, folder: DatasetFolder) -> float:
    detector = Detector.load(run, resolve_device(options.device))
    paths = [image.path for image in folder.read("test").images[:TIMED_PICTURES]]
    images = [read_image(path) for path in paths]
    detector(images[:1])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for image in images:
        detector([image])  # ends with boxes on the CPU
    return (time.perf_counter() - start) / len(images)


def _sheet(options: argparse.Namespace, run: Path) -> Sheet:
    truth = DatasetFolder.open(options.data, options.fold).read("test")
    results = read_results(run / "predictions" / "test.json")
    return score_parts([Part(truth, results)], Rules(threshold=0.5), read_card(run / "predictions"))


def _table(options: argparse.Namespace, arms: list[str]) -> Iterator[str]:
    sheets = {arm: _sheet(options, options.out / arm) for arm in arms}
    yield f"| {options.data.name} | {FIGURE} | difference to whole | steps | s/step | s/picture |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for arm, sheet in sheets.items():
        facts = json.loads((options.out / arm / "done.json").read_text())
        change = "-"
        if arm != "whole":
            paired = compare_sheets(("whole", arm), sheets["whole"], sheet).differences[FIGURE]
            change = with_interval(paired.difference, "+")
        yield (
            f"| {arm} | {with_interval(sheet.metrics().figures[FIGURE])} | {change} | "
            f"{facts['steps']} | "
            f"{facts['seconds_per_step']:.2f} | {facts['seconds_per_picture']:.3f} |"
        )


if __name__ == "__main__":
    main()
