"""When YOLO-World is worth it: its modes against plain detectors, all with the same budget.

    python -m benchmarks.detectors OUT MAGNETIC_TILE [--budget 1200] [--steps 240] [--set tile=160]

Two comparisons. "budget": YOLO-World n, yolov8n and yolo11n are pretrained on procedural pictures
for the same, small number of steps (`toolkit pretrain yolo --arch …`), and fine-tuned whole from
there. "starter": YOLO-World n is fine-tuned in each of its modes from the starter, and yolov8n from
those 315 of its 355 tensors that the starter has; yolo11n shares none with it.

All are fine-tuned on the first three of five folds for the same number of steps. Epochs are chosen
on the fold's val pictures, figures are pooled over the three folds' test pictures, intervals are
95 % bootstrap intervals over photographs, and differences to YOLO-World whole from the same start
are paired, picture by picture. Steps per second include the validation after each epoch.

A run that is finished is not repeated, and one that was stopped goes on. The table lies in
OUT/detectors.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.starter import prepare
from benchmarks.text import with_interval
from converters.folder import DatasetFolder
from toolkit.architectures import WORLD
from toolkit.evaluate import Rules
from toolkit.evaluate.compare import compare_sheets
from toolkit.evaluate.scoring import Part, score_parts
from toolkit.evaluate.sheet import Sheet
from toolkit.predictions import read_card, read_results

FIGURE = "box.AP50"
MODES = ("full", "freeze-backbone", "prompt", "reparam")


@dataclass(frozen=True)
class Arm:
    """A detector, what it starts from, and what of it learns."""

    start: str
    arch: str
    mode: str = "full"

    @property
    def name(self) -> str:
        """In the table."""
        return f"YOLO-World n, {self.mode}" if self.arch == WORLD else self.arch

    @property
    def slug(self) -> str:
        """In the names of folders."""
        return f"{self.start}-" + (f"world-{self.mode}" if self.arch == WORLD else self.arch)


ARMS = (
    *(Arm("budget", arch) for arch in (WORLD, "yolov8n", "yolo11n")),
    *(Arm("starter", WORLD, mode) for mode in MODES),
    Arm("starter", "yolov8n"),
)


def main() -> None:
    """Pretrain, convert, fine-tune what is missing, print the table."""
    options = _options()
    out: Path = options.out
    (out / "logs").mkdir(parents=True, exist_ok=True)
    data = out / "data" / options.source.name
    prepare(options.source, data, out / "layout" / options.source.name)
    arms = [arm for arm in ARMS if arm.slug in options.arms]
    trials = [
        (arm, fold)
        for start in ("budget", "starter")
        for fold in options.folds
        for arm in arms
        if arm.start == start
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        archs = dict.fromkeys(arm.arch for arm in arms if arm.start == "budget")
        list(pool.map(lambda arch: _pretrain(arch, options), archs))
        list(pool.map(lambda trial: _finetune(*trial, data, options), trials))
    text = "\n".join(_table(arms, data, options))
    (out / "detectors.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    def names(text: str) -> tuple[str, ...]:
        return tuple(text.split(","))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--budget", type=int, default=1200, help="steps of pretraining")
    parser.add_argument("--steps", type=int, default=240, help="steps of fine-tuning")
    parser.add_argument(
        "--folds", type=lambda text: tuple(map(int, names(text))), default=(0, 1, 2)
    )
    parser.add_argument("--arms", type=names, default=tuple(arm.slug for arm in ARMS))
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of finetune yolo")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    return parser.parse_args()


def _toolkit(out: Path, name: str, *words: object) -> None:
    """Run a command of the toolkit on one core, into a log of its own."""
    with (out / "logs" / f"{name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", "toolkit", *map(str, words)],
            check=True,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _pretrain(arch: str, options: argparse.Namespace) -> None:
    run = options.out / "pre" / arch
    if (run / "done").exists():
        return
    settings = ("--steps", options.budget, "--piece", 200, "--batch", 16, "--image-size", 128)
    pictures = ("--val-pictures", 96, "--resume")
    _toolkit(
        options.out, f"pre-{arch}", "pretrain", "yolo", "--arch", arch, "--out", run,
        *settings, *pictures,
    )  # fmt: skip
    (run / "done").touch()


def _finetune(arm: Arm, fold: int, data: Path, options: argparse.Namespace) -> None:
    run = _run(options, arm, fold)
    if (run / "predictions" / "test.json").exists():
        return
    weights = "starter" if arm.start == "starter" else options.out / "pre" / arm.arch
    others = [word for each in options.set for word in _flag(each)]
    _toolkit(
        options.out, run.name, "finetune", "yolo", "--data", data, "--fold", fold, "--out", run,
        "--arch", arm.arch, "--mode", arm.mode, "--weights", weights,
        "--steps", options.steps, "--image-size", options.image_size, "--patience", 1000,
        "--workers", 0, "--seed", fold, "--resume", *others,
    )  # fmt: skip


def _flag(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return f"--{name.replace('_', '-')}", value


def _run(options: argparse.Namespace, arm: Arm, fold: int) -> Path:
    run: Path = options.out / "runs" / f"{options.source.name}-{arm.slug}-{fold}"
    return run


def _sheet(arm: Arm, data: Path, options: argparse.Namespace) -> Sheet:
    parts = []
    card = None
    for fold in options.folds:
        predictions = _run(options, arm, fold) / "predictions"
        truth = DatasetFolder.open(data, fold).read("test")
        parts.append(Part(truth, read_results(predictions / "test.json")))
        card = read_card(predictions)
    return score_parts(parts, Rules(threshold=0.5), card)


def _table(arms: list[Arm], data: Path, options: argparse.Namespace) -> Iterator[str]:
    sheets = {arm: _sheet(arm, data, options) for arm in arms}
    classes = next(iter(sheets.values())).dataset.categories
    titles = ["start", "detector", FIGURE, "difference", *classes, "learn", "steps/s"]
    yield f"| {' | '.join(titles)} |"
    yield "| --- " * len(titles) + "|"
    for arm, sheet in sheets.items():
        metrics = sheet.metrics()
        first = next(other for other in arms if other.start == arm.start)
        cells = [arm.name, with_interval(metrics.figures[FIGURE])]
        paired = compare_sheets((first.name, arm.name), sheets[first], sheet).differences[FIGURE]
        cells.append("-" if arm == first else with_interval(paired.difference, "+"))
        cells += [f"{metrics.per_class[label][FIGURE].value:.3f}" for label in classes]
        cells += [_learning(arm, options), _pace(arm, options)]
        yield f"| {arm.start} | {' | '.join(cells)} |"


def _learning(arm: Arm, options: argparse.Namespace) -> str:
    """How many numbers learn, in millions or exactly where they are few."""
    from toolkit.detect.modes import frozen_layers
    from toolkit.detect.weights import load_trained

    trained = load_trained(_run(options, arm, options.folds[0]))
    if arm.mode == "prompt":
        return str(len(trained.names) * 512)
    frozen = {str(layer) for layer in frozen_layers(arm.mode, trained.model)}  # type: ignore[arg-type]
    parameters = trained.model.named_parameters()
    count = sum(p.numel() for name, p in parameters if name.split(".")[1] not in frozen)
    return f"{count / 1e6:.2f} M"


def _pace(arm: Arm, options: argparse.Namespace) -> str:
    """Steps per second of the folds, lowest to highest."""
    paces = []
    for fold in options.folds:
        lines = (_run(options, arm, fold) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        paces.append(options.steps / json.loads(lines[-1])["seconds"])
    return f"{min(paces):.2f} to {max(paces):.2f}"


if __name__ == "__main__":
    main()
