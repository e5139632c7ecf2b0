"""`toolkit demo`: the whole path once, each step as the command that does the same."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit import config as configs
from toolkit import console
from toolkit.commands import COMMANDS

if TYPE_CHECKING:
    from toolkit.evaluate import Metrics

SURFACE = "turned_disc"
DEFECTS = ("hole", "thread", "stain")
PER_DEFECT = 30
BATCH = 8  # few pictures: small batches make more steps of an epoch
EPOCHS = {"starter": (30, 10), "none": (50, 40)}
"""Passes of YOLO-World and of SAM, by what they start from."""
ROWS = 8
MAX_DETECTIONS = 20  # per picture, a few times as many as there are defects; each is outlined


def demo(config: configs.DemoConfig) -> dict[str, Any]:
    """Walk from pictures to figures, and say at every step what is done.

    Procedural pictures (or those of a given source) are converted and split; YOLO-World and SAM
    learn from the starter weights or from nothing; on the held-out pictures the detector's boxes
    prompt SAM; the result is scored and drawn.

    Returns:
        seconds per step, the figures of the whole path and of the outlines alone (the right boxes
        given), and the path of the picture.

    Raises:
        InputError: the output folder is taken, or the given source cannot be used.
    """
    out, seed, device = config.out, config.seed, config.device
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out}: exists and is not empty: choose another --out or remove it")
    walk = _Walk()
    source = config.data or out / "pictures"
    dataset, yolo, sam, pipeline = (out / n for n in ("dataset", "yolo", "sam", "pipeline"))
    if config.data is None:
        synth = configs.SynthConfig(
            dest=source, surface=SURFACE, defects=DEFECTS, per_defect=PER_DEFECT, seed=seed
        )
        walk.step("Draw a product, good and with defects", "synth", synth)
    convert = configs.ConvertConfig(source=source, dest=dataset, seed=seed)
    walk.step("Masks to COCO, split so that nothing leaks", "convert", convert)
    finetune_yolo = configs.FinetuneYoloConfig(
        data=dataset,
        out=yolo,
        weights=config.weights,
        image_size=config.image_size,
        epochs=config.yolo_epochs or EPOCHS[config.weights][0],
        batch=BATCH,
        device=device,
        seed=seed,
    )
    walk.step("YOLO-World learns to find defects", "finetune yolo", finetune_yolo)
    finetune_sam = configs.FinetuneSamConfig(
        data=dataset,
        out=sam,
        weights=config.weights,
        epochs=config.sam_epochs or EPOCHS[config.weights][1],
        device=device,
        seed=seed,
    )
    walk.step("SAM learns to outline what is in a box", "finetune sam", finetune_sam)
    predict = configs.PredictConfig(
        source=dataset,
        out=pipeline,
        detector=yolo,
        segmenter=sam,
        max_detections=MAX_DETECTIONS,
        device=device,
    )
    walk.step("Found boxes prompt SAM, on pictures never learnt from", "predict", predict)
    evaluate = configs.EvaluateConfig(data=dataset, predictions=(pipeline,), seed=seed)
    metrics = walk.step("Thresholds from val, figures from test", "evaluate", evaluate)
    given = evaluate.model_copy(update={"predictions": (sam,)})
    outlines = walk.step("The outlines alone, the right boxes given", "evaluate", given)
    picture = _draw(dataset, pipeline, metrics, out / "held-out.png")
    console.note(f"\nDone in {sum(walk.seconds.values()):.0f} s. See what was found: {picture}")
    return {
        "seconds": walk.seconds,
        "pipeline": metrics.to_json(),
        "outlines_in_given_boxes": outlines.to_json(),
        "picture": str(picture),
    }


@dataclass
class _Walk:
    """Runs commands one after the other, telling and timing each."""

    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, title: str, name: str, config: configs.Config) -> Any:
        command = COMMANDS[name]
        console.note(f"\n{len(self.seconds) + 1}. {title}\n$ {command.line(name, config)}")
        started = time.monotonic()
        result = command.run(config)
        seconds = time.monotonic() - started
        self.seconds[title] = round(seconds, 1)
        if not console.is_quiet():
            command.print(config, result)
        console.note(f"({seconds:.1f} s)")
        return result


def _draw(dataset: Path, pipeline: Path, metrics: Metrics, path: Path) -> Path:
    """Held-out pictures, their truth and what was found, at the threshold chosen on val."""
    from toolkit.predictions import read_results
    from toolkit.report.pictures import comparison_sheet, write_picture

    threshold = metrics.thresholds.get("box")
    sheet = comparison_sheet(
        DatasetFolder.open(dataset).read("test"),
        read_results(pipeline / "predictions" / "test.json"),
        threshold=0.25 if threshold is None else threshold.value,
        rows=ROWS,
    )
    write_picture(path, sheet)
    return path
