"""How results are scored, and the sheet that a split, or several as one, is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from toolkit.evaluate.backends import Backend
from toolkit.evaluate.bootstrap import METHOD, image_weights
from toolkit.evaluate.boundary import TOLERANCE
from toolkit.evaluate.matching import MAX_DETECTIONS
from toolkit.evaluate.metrics import Protocol
from toolkit.evaluate.sheet import Sheet
from toolkit.evaluate.thresholds import Goal


@dataclass(frozen=True)
class Rules:
    """How results are scored.

    Attributes:
        threshold: score threshold for everything, instead of those chosen on val.
        goal: what thresholds are chosen for.
        iou: IoU from which a detection counts as found in F1, above 0 and below 1.
        max_detections: that count in AP, AR and F1 per image and class, the surest.
        backend: who matches detections to instances; all give the same.
        boundary_tolerance: pixels by which an outline may be off in boundary F1, 0 or more.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.
        split: name of the split.
    """

    threshold: float | None = None
    goal: Goal = Goal()  # noqa: RUF009, it is frozen
    iou: float = 0.5
    max_detections: int = MAX_DETECTIONS
    backend: Backend = "arrays"
    boundary_tolerance: float = TOLERANCE
    resamples: int = 1000
    seed: int = 0
    split: str = "test"


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Splits of several folds as one, in their order.

    Raises:
        InputError: their categories differ, or an image is in two of them.
    """
    first, *others = datasets
    seen = {image.id for image in first.images}
    for number, other in enumerate(others, start=2):
        if other.categories != first.categories:
            raise InputError(
                f"run {number} knows {', '.join(other.categories)}, the first "
                f"{', '.join(first.categories)}: pool runs on folds of one dataset"
            )
        twice = sorted(image.file_name for image in other.images if image.id in seen)
        if twice:
            raise InputError(
                f"run {number}: {twice[0]} is in an earlier run's split, too: "
                "pool runs on different folds"
            )
        seen |= {image.id for image in other.images}
    return first.subset(tuple(image for each in datasets for image in each.images))


def check_not_empty(dataset: Dataset, split: str) -> None:
    """Raise InputError where a split has no images."""
    if not dataset.images:
        raise InputError(f"{split}: has no images to score: convert with a split that has some")


def open_sheet(dataset: Dataset, rules: Rules, boxes: str, parts: int) -> Sheet:
    """An empty sheet for the images of a split.

    Args:
        dataset: ground truth.
        rules: how it is scored.
        boxes: as of ``Protocol``.
        parts: splits that were pooled.
    """
    labels = dataset.image_labels()
    photographs = dataset.photographs()
    judged = boxes != "detector"
    protocol = Protocol(
        split=rules.split,
        images=len(dataset.images),
        photographs=len(set(photographs)),
        good_images=labels.count(GOOD),
        instances=sum(dataset.count_instances().values()),
        labels={label: labels.count(label) for label in (GOOD, *dataset.categories)},
        boxes=boxes,
        iou=None if boxes in ("none", "maps") else rules.iou,
        resamples=rules.resamples,
        seed=rules.seed,
        interval=METHOD,
        dataset=dataset.name,
        goal="" if judged or rules.threshold is not None else str(rules.goal),
        parts=parts,
    )
    weights = image_weights(labels, rules.resamples, rules.seed, photographs)
    return Sheet(dataset, weights, protocol)
