"""What corrective clicks mend: mask IoU after 0, 1, 2, … of them, on held-out pictures.

    python -m benchmarks.clicks DATASET RUN... [--fold N] [--most 5]

Every test instance is asked for by a careful click, by its exact box, or by both; then, again and
again, a click goes where a person would put it: deep inside the larger part of what is wrong
(missing, or too much), and the answer goes on from the one before. A run that has learnt from
clicks (``toolkit finetune sam --prompts box,point --clicks 2``) is worth looking at beside one that
has learnt from points alone.

Figures are means over instances, with 95 % bootstrap intervals over photographs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.outlines import fit
from benchmarks.text import with_interval
from converters.dataset import BinaryMask, Image, Instance
from converters.folder import DatasetFolder
from toolkit.evaluate.bootstrap import Basis, image_weights, ratio, to_figure
from toolkit.images import read_image
from toolkit.segment import Segmenter
from toolkit.segment.data import by_image, masked_prompts
from toolkit.segment.prompts import INSIDE, OUTSIDE, PromptKind, inner_point
from toolkit.segment.segmenter import Prompts, exact_prompts

RESAMPLES = 1000
KINDS: tuple[PromptKind, ...] = ("point", "box", "box+point")

Points = npt.NDArray[np.float64]


def main() -> None:
    """Print a table: a row for each run and first prompt, a column for each number of clicks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--fold", type=int)
    parser.add_argument("--most", type=int, default=5, help="clicks")
    options = parser.parse_args()
    dataset = DatasetFolder.open(options.dataset, options.fold).read("test")
    prompts = by_image(masked_prompts(dataset))
    print("| run | first prompt |" + "".join(f" {n} clicks |" for n in range(options.most + 1)))
    print("| --- | --- |" + " --- |" * (options.most + 1))
    for run in options.runs:
        segmenter = Segmenter.load(run, "cpu")
        if not segmenter.usage.points:
            print(f"| {run.name} | knows boxes alone |")
            continue
        for kind in KINDS:
            ious = [
                list(_course(segmenter, image, instance, kind, options.most))
                for image, instances in prompts
                for instance in instances
            ]
            cells = _figures(dataset.photographs(), dataset.images, prompts, np.array(ious))
            print(f"| {run.name} | {kind} |" + "".join(f" {cell} |" for cell in cells), flush=True)


def _course(
    segmenter: Segmenter, image: Image, instance: Instance, kind: PromptKind, most: int
) -> Iterator[float]:
    """IoU after each click on one instance, from none to ``most``."""
    pixels = read_image(image.path)
    truth = instance.to_mask(image.height, image.width)
    asked = exact_prompts([instance], kind)
    points = np.zeros((1, 0, 2)) if asked.points is None else np.asarray(asked.points, np.float64)
    labels = np.full(points.shape[:2], INSIDE)
    logits = None
    for number in range(most + 1):
        given = points if points.shape[1] else None
        said = labels if points.shape[1] else None
        (found,) = segmenter.outline(pixels, Prompts(asked.boxes, given, said, logits))
        mask = found.mask(image.height, image.width)
        yield fit(mask, truth)[0]
        if number < most:
            points, labels = _with_click(points, labels, mask, truth)
            logits = found.logits[None]


def _with_click(
    points: Points, labels: npt.NDArray[np.int64], mask: BinaryMask, truth: BinaryMask
) -> tuple[Points, npt.NDArray[np.int64]]:
    """The points, and one more where most is wrong; a perfect mask is confirmed."""
    missing, excess = truth & ~mask, mask & ~truth
    inside = bool(missing.sum() >= excess.sum())
    region = missing if inside else excess
    if not region.any():
        inside, region = True, truth
    height, width = truth.shape
    place = inner_point(((0.0, 0.0, float(width), float(height)), region))
    return (
        np.concatenate([points, [[place]]], axis=1),
        np.concatenate([labels, [[INSIDE if inside else OUTSIDE]]], axis=1),
    )


def _figures(
    photographs: Sequence[int],
    images: Sequence[Image],
    prompts: Sequence[tuple[Image, Sequence[Instance]]],
    ious: npt.NDArray[np.float64],
) -> Iterator[str]:
    """Mean over instances after each number of clicks, with its interval."""
    shown = {image.file_name: p for image, p in zip(images, photographs, strict=True)}
    counts = np.array([len(instances) for _, instances in prompts], dtype=np.float64)
    of = np.repeat(np.arange(len(prompts)), counts.astype(int))
    own = [shown[image.file_name] for image, _ in prompts]
    labels = [instances[0].category for _, instances in prompts]
    weights = image_weights(labels, RESAMPLES, 0, own)
    basis = Basis(len(set(own)), max(1, len(set(own)) - len(set(labels))))
    for column in ious.T:
        sums = np.bincount(of, column, minlength=len(prompts))
        samples = ratio(sums, counts, weights)
        yield with_interval(to_figure(samples, n=len(prompts), instances=len(column), basis=basis))


if __name__ == "__main__":
    main()
