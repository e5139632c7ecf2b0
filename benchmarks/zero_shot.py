"""What the starter detector finds on real pictures that nothing was trained on.

    python -m benchmarks.zero_shot OUT MAGNETIC_TILE NEU_SEG TRANSISTOR [--detector RUN]

All pictures of the sources, all kinds of defects as one class. AR is COCO's average recall with at
most 100 boxes a picture, over IoU 0.5 to 0.95 (and at 0.5). Recall and false alarms are at the
score that is best (F1 at IoU 0.5) on procedural pictures, since nothing real may decide it.
Intervals are 95 % bootstrap intervals over photographs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision

from benchmarks.starter import lay_out_neu
from benchmarks.text import with_interval
from converters.dataset import Dataset
from converters.geometry import region_from_mask
from converters.layouts import find_layout
from converters.read import ReadOptions, read_source
from toolkit.detect import Detector, predict_dataset
from toolkit.evaluate.bootstrap import Basis, Samples, image_weights, ratio, to_figure
from toolkit.evaluate.matching import match
from toolkit.synth.source import SourceDomain
from toolkit.synth.streaming import VALIDATION

RESAMPLES = 1000
PROCEDURAL_PICTURES = 400


def main() -> None:
    """Find defects on every source and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for what must be laid out anew")
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--detector", type=Path, default=Path("starter"))
    options = parser.parse_args()
    detector = Detector.load(options.detector, torch.device("cpu"))
    threshold = procedural_threshold(detector)
    print(f"score threshold, from procedural pictures: {threshold:.3f}\n")
    print(
        "| data | pictures (good) | defects | AR | AR50 | recall | false alarms per good picture |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for source in options.sources:
        dataset = _read(source, options.out)
        print("\n".join(_row(source.name, dataset, detector, threshold)), flush=True)


def procedural_threshold(detector: Detector) -> float:
    """The score with the best F1 on procedural pictures that training never saw."""
    domain = SourceDomain(detector.image_size)
    scores: list[float] = []
    right: list[bool] = []
    defects = 0
    for index in range(PROCEDURAL_PICTURES):
        picture = domain.draw(VALIDATION, index)
        boxes = [region_from_mask(instance.mask)[0] for instance in picture.instances]
        truth = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in boxes]).reshape(-1, 4)
        (found,) = detector([picture.image])
        overlaps = torchvision.ops.box_iou(torch.from_numpy(found.xyxy).float(), truth.float())
        free = set(range(len(boxes)))
        assert found.confidence is not None
        for score, row in zip(found.confidence.tolist(), overlaps, strict=True):
            best = max(free, key=lambda n: float(row[n]), default=None)
            hit = best is not None and float(row[best]) >= 0.5
            if hit:
                free.discard(best)
            scores.append(score)
            right.append(hit)
        defects += len(boxes)
    order = np.argsort(-np.array(scores))
    hits = np.cumsum(np.array(right)[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + defects)
    return float(np.array(scores)[order][np.argmax(f1)])


def _read(source: Path, out: Path) -> Dataset:
    if (source / "annotations").is_dir():
        layout = out / "layout" / source.name
        if not layout.exists():
            lay_out_neu(source, layout)
        source = layout
    dataset = read_source(source, find_layout(source), ReadOptions(classes="single")).dataset
    numbered = (replace(image, id=number) for number, image in enumerate(dataset.images, start=1))
    return dataset.subset(tuple(numbered))


def _row(name: str, dataset: Dataset, detector: Detector, threshold: float) -> Iterator[str]:
    (matches,) = match(dataset, predict_dataset(detector, dataset), "box")
    weights = image_weights(dataset.image_labels(), RESAMPLES, 0, dataset.photographs())
    count = len(dataset.images)

    def per_image(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(matches.image[chosen], minlength=count)

    def recall(chosen: np.ndarray) -> Samples:
        return ratio(per_image(chosen), matches.instances[0], weights)

    ar = np.mean([recall(found) for found in matches.found[0]], axis=0)
    sure = matches.scores >= threshold
    good = np.array([image.is_good for image in dataset.images])
    basis = Basis.of(dataset.image_labels(), dataset.photographs())
    figures = [
        to_figure(samples, n=count, basis=basis)
        for samples in (ar, recall(matches.found[0, 0]), recall(matches.found[0, 0] & sure))
    ]
    texts = [with_interval(figure) for figure in figures]
    alarms = "no good pictures"
    if good.any():
        per_good = ratio(per_image(sure) * good, good * 1, weights)
        alarms = with_interval(to_figure(per_good, n=count, basis=replace(basis, bounded=False)))
    defects = int(matches.instances[0].sum())
    yield f"| {name} | {count} ({good.sum()}) | {defects} | {' | '.join(texts)} | {alarms} |"


if __name__ == "__main__":
    main()
