"""Galleries: the worst mistakes of a run, with pictures, within a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.console import track
from toolkit.report.mistakes import (
    Detected,
    Example,
    Judged,
    answered,
    read_scenes,
    worst_outlines,
)
from toolkit.report.panels import Panel, make_panels
from toolkit.report.source import Run

MOST_CHARACTERS = 12_000_000
"""Characters that all pictures of a page take together, at most."""

LEAST_EACH, _MOST_EACH = 60_000, 360_000
"""Characters that the pictures of one example may take, at least and at most."""


@dataclass(frozen=True)
class Gallery:
    """Examples of one kind of mistake.

    Attributes:
        title: what went wrong.
        order: what comes first.
        examples: the worst ones.
        total: how many there are in all.
        none: what it means that there is none.
    """

    title: str
    order: str
    examples: Sequence[Example]
    total: int
    none: str


@dataclass(frozen=True)
class Shown:
    """An example with its pictures."""

    example: Example
    panels: Sequence[Panel]


def find_galleries(run: Run, most: int) -> list[Gallery]:
    """The worst mistakes of a run, at most ``most`` of each kind."""
    if run.kind == "classifier":
        return _judged(run, most)
    if run.kind == "maps":
        return []
    if run.kind == "outlines":
        if "mask.instance_IoU" not in run.metrics.figures:
            return []
        found = worst_outlines(answered(run.dataset, run.results), most, run.dataset.categories)
        return [_outlines(*found)]
    return _detected(run, most)


def score_thresholds(run: Run) -> dict[str, float]:
    """Score from which detections of each category count; 0 where no threshold was chosen."""
    threshold = run.metrics.thresholds.get("box")
    categories = run.dataset.categories
    if threshold is None:
        return dict.fromkeys(categories, 0.0)
    return dict(zip(categories, threshold.of(categories).tolist(), strict=True))


def with_pictures(galleries: Sequence[Gallery], most_each: int) -> list[list[Shown]]:
    """Draw the examples of galleries; only their pictures are opened."""
    return [
        [
            Shown(example, make_panels(example, most_each))
            for example in track(gallery.examples, "drawing", len(gallery.examples))
        ]
        for gallery in galleries
    ]


def fitting(of_runs: Sequence[Sequence[Gallery]]) -> tuple[list[list[Gallery]], int]:
    """The galleries of all runs, shortened where the page would become too large.

    Returns:
        them, and the characters that the pictures of each example may take.
    """
    lengths = [len(gallery.examples) for of_run in of_runs for gallery in of_run]
    most = max(lengths, default=0)
    while most > 1 and sum(min(length, most) for length in lengths) * LEAST_EACH > MOST_CHARACTERS:
        most -= 1
    shortened = [
        [replace(gallery, examples=gallery.examples[:most]) for gallery in of_run]
        for of_run in of_runs
    ]
    shown = sum(min(length, most) for length in lengths)
    return shortened, min(_MOST_EACH, MOST_CHARACTERS // max(1, shown))


def _detected(run: Run, most: int) -> list[Gallery]:
    iou = run.metrics.protocol.iou or 0.5
    scenes = read_scenes(run.dataset, run.results, score_thresholds(run), iou)
    detected = Detected(run.dataset.categories, iou, scenes)
    galleries = [
        Gallery(
            "Missed defects",
            "the largest first",
            *detected.misses(most),
            none="Every defect was found.",
        ),
        Gallery(
            "False alarms",
            "the highest scores first",
            *detected.false_alarms(most),
            none="Every detection found a defect.",
        ),
    ]
    if "mask.AP50" in run.metrics.figures:
        galleries.append(_outlines(*detected.outlines(most)))
    return galleries


def _outlines(examples: list[Example], total: int) -> Gallery:
    order = "the least overlap with the true outline first"
    return Gallery("Worst outlines", order, examples, total, none="Nothing was outlined.")


def _judged(run: Run, most: int) -> list[Gallery]:
    assert run.probabilities is not None, "read for every classifier"
    judged = Judged.of(run.dataset, run.probabilities)
    order = "the surest of the wrong verdicts first"
    return [
        Gallery(
            "Defects called good",
            order,
            *judged.misses(most),
            none="No picture with a defect was called good.",
        ),
        Gallery(
            "Good parts called defective",
            order,
            *judged.false_alarms(most),
            none="No good picture was called defective.",
        ),
        Gallery(
            "Defects called by another name",
            order,
            *judged.mixed_up(most),
            none="No defect was called by another's name.",
        ),
    ]
