"""How often a 95 % interval holds the true value: experiments on few images of a known population.

    python -m benchmarks.coverage [--experiments 300] [--images 40]

A population of procedural detections (right ones, duplicates, false alarms, images that are hard
for everything on them) is scored as a whole: these are the true values. Experiments draw a few of
its images, with the population's share of every label, and ask for intervals. What is reported is
the share of experiments whose interval holds the true value, with its own 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import numpy as np

from converters.dataset import GOOD, Dataset, Image, Instance
from converters.geometry import rle_from_region, whole_region
from toolkit.evaluate import score
from toolkit.evaluate.metrics import Metrics
from toolkit.predictions import Result

SIDE = 64
CATEGORIES = ("dent", "hole", "scratch")
THRESHOLD = 0.5
POPULATION = 3000


def main() -> None:
    """Draw, score, count, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=300)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    dataset, results = population(np.random.default_rng(0), POPULATION)
    truth = score(dataset, results, threshold=THRESHOLD, resamples=0)
    counts = {name: np.zeros(3, int) for name in truth.figures}
    for number in range(options.experiments):
        few, found = draw(np.random.default_rng([1, number]), dataset, results, options.images)
        metrics = score(few, found, threshold=THRESHOLD, resamples=options.resamples, seed=number)
        for name, hit in _hits(truth, metrics):
            counts[name] += hit
    _print(truth, counts)


def population(rng: np.random.Generator, images: int) -> tuple[Dataset, list[Result]]:
    """Images, four in ten of them good, and what a detector of middling skill finds on them."""
    entries: list[Image] = []
    results: list[Result] = []
    for number in range(1, images + 1):
        good = number % 10 < 4
        kind = CATEGORIES[number % 3]
        hard = rng.beta(2, 2)
        instances = []
        for _ in range(0 if good else 1 + rng.poisson(0.8)):
            instance = _instance(rng, kind, len(instances) + 1)
            instances.append(instance)
            if rng.random() > hard * 0.7:
                results += _found(rng, number, instance, hard)
        for _ in range(rng.poisson(0.5 * hard)):
            alarm = _instance(rng, CATEGORIES[rng.integers(3)], 0)
            results.append(_result(number, alarm, float(rng.beta(2, 4))))
        name = f"{number:05}.png"
        entries.append(Image(name, Path(name), SIDE, SIDE, tuple(instances), name, id=number))
    return Dataset("population", CATEGORIES, tuple(entries)), results


def _instance(rng: np.random.Generator, category: str, number: int) -> Instance:
    x, y, w, h = (int(value) for value in rng.integers([0, 0, 5, 5], [40, 40, 24, 24]))
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.8
    mask[y, x] = True
    box, crop = whole_region(mask)[0]
    return Instance(category, box, crop, number)


def _found(
    rng: np.random.Generator, image: int, instance: Instance, hard: float
) -> Iterator[Result]:
    """A detection near an instance, sometimes two, sometimes of another class."""
    for _ in range(1 + (rng.random() < 0.15)):
        x, y, w, h = (int(value) for value in instance.box)
        dx, dy = (int(value) for value in rng.integers(-2, 3, 2))
        crop = rng.random((h, w)) < 0.9
        crop[0, 0] = True
        left, top = int(np.clip(x + dx, 0, SIDE - w)), int(np.clip(y + dy, 0, SIDE - h))
        wrong = rng.random() < 0.15
        category = CATEGORIES[rng.integers(3)] if wrong else instance.category
        near = Instance(category, (left, top, w, h), crop, 0)
        yield _result(image, near, float(np.clip(rng.beta(4, 2) - 0.3 * hard, 0.01, 1)))


def _result(image: int, instance: Instance, confidence: float) -> Result:
    assert instance.crop is not None
    return {
        "image_id": image,
        "category_id": CATEGORIES.index(instance.category) + 1,
        "bbox": [float(value) for value in instance.box],
        "score": confidence,
        "segmentation": rle_from_region((instance.box, instance.crop), SIDE, SIDE),
    }


def draw(
    rng: np.random.Generator, dataset: Dataset, results: list[Result], images: int
) -> tuple[Dataset, list[Result]]:
    """Some of the images, with the population's share of every label."""
    labels = np.array(dataset.image_labels())
    rows: list[int] = []
    for label in (GOOD, *dataset.categories):
        (members,) = np.nonzero(labels == label)
        share = round(images * members.size / labels.size)
        rows += rng.choice(members, share, replace=False).tolist()
    chosen = tuple(dataset.images[row] for row in sorted(rows))
    ids = {image.id for image in chosen}
    return dataset.subset(chosen), [each for each in results if each["image_id"] in ids]


def _hits(truth: Metrics, metrics: Metrics) -> Iterator[tuple[str, np.ndarray]]:
    """Whether each interval holds the true value, lies above it, or lies below it."""
    for name, figure in metrics.figures.items():
        if figure.ci95 is not None and name in truth.figures:
            low, high = figure.ci95
            value = truth.figures[name].value
            yield name, np.array([low <= value <= high, low > value, high < value], int)


def _print(truth: Metrics, counts: dict[str, np.ndarray]) -> None:
    print("| figure | true value | experiments | coverage | interval above | interval below |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (held, above, below) in counts.items():
        n = held + above + below
        if n == 0:
            continue
        low, high = _wilson(held / n, n)
        print(
            f"| {name} | {truth.figures[name].value:.3f} | {n} "
            f"| {held / n:.3f} [{low:.3f}, {high:.3f}] | {above / n:.3f} | {below / n:.3f} |"
        )


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


if __name__ == "__main__":
    main()
