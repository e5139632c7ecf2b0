"""Figures of ``benchmarks.segmenters``, pooled over folds, with intervals, in tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.text import with_interval
from converters.dataset import Dataset
from toolkit.evaluate.bootstrap import (
    Basis,
    Samples,
    difference,
    image_weights,
    ratio,
    to_figure,
)
from toolkit.evaluate.metrics import Figure
from toolkit.evaluate.rules import join
from toolkit.evaluate.verdicts import auroc
from toolkit.segment.data import masked_prompts

RESAMPLES = 1000
BINS = (16.0, 64.0)
"""Pixels of the picture between small, middle and large, of the square root of the area."""
PAIRS = (
    *(("zoom", other) for other in ("whole", "zoom4", "unet", "starter")),
    *(("zoom", other) for other in ("box", "ellipse", "grabcut")),
    ("negatives", "zoom"),
)
"""Differences: the first minus the second."""

Values = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """What a contender gave on one fold, with one seed.

    Attributes:
        outlines: by kind of boxes: ``fits`` (IoU and Dice of each instance), ``seconds``, and for
            a detector's boxes ``found``, whether there was one for each.
        rejection: ``there`` and ``nowhere``, id of the image and estimate of each prompt, and
            ``without_place``, how many are missing; None for who gives no estimates.
        training: ``steps``, ``seconds`` and ``val_iou``; None for what was not trained.
    """

    outlines: Mapping[str, Mapping[str, Any]]
    rejection: Mapping[str, Any] | None
    training: Mapping[str, Any] | None


@dataclass(frozen=True)
class Sampled:
    """A figure, and its value on every row of the weights."""

    figure: Figure
    samples: Samples
    basis: Basis


class Pool:
    """The test instances of several folds as if they were one split."""

    def __init__(self, tests: Sequence[Dataset]) -> None:
        """Draw the resamples, the same ones for everyone."""
        dataset = join(tests)
        self._labels = dataset.image_labels()
        self._photographs = dataset.photographs()
        drawn = image_weights(self._labels, RESAMPLES, 0, self._photographs)
        self._weights = drawn.astype(np.float64)
        self._row = {image.id: row for row, image in enumerate(dataset.images)}
        prompts = masked_prompts(dataset)
        self._rows = np.array([self._row[image.id] for image, _ in prompts])
        side = np.sqrt([instance.area for _, instance in prompts])
        self.chosen: dict[str, Chosen] = {
            "all": np.ones(len(prompts), np.bool_),
            f"< {BINS[0]:.0f} px": side < BINS[0],
            f"{BINS[0]:.0f} to {BINS[1]:.0f} px": (side >= BINS[0]) & (side <= BINS[1]),
            f"> {BINS[1]:.0f} px": side > BINS[1],
        }

    def counts(self) -> str:
        """How many instances there are of every size, and how many pictures."""
        sizes = ", ".join(f"{name} {chosen.sum()}" for name, chosen in self.chosen.items())
        pictures = len(set(self._rows.tolist()))
        return f"Instances: {sizes}, on {pictures} of {len(self._labels)} pictures."

    def mean(self, values: Values, chosen: Chosen) -> Sampled | None:
        """Mean over the chosen instances; None where there are none."""
        rows = self._rows[chosen]
        if not rows.size:
            return None
        images = len(self._labels)
        sums = np.bincount(rows, values[chosen], minlength=images)
        samples = ratio(sums, np.bincount(rows, minlength=images), self._weights)
        return self._sampled(samples, rows, int(chosen.sum()))

    def rejection(self, there: Sequence[Any], nowhere: Sequence[Any]) -> Sampled:
        """AUROC of estimates, given with the ids of their images."""
        rows = np.array([self._row[image] for image, _ in (*there, *nowhere)])
        scores = np.array([estimate for _, estimate in (*there, *nowhere)])
        truth = np.repeat([1, 0], [len(there), len(nowhere)])
        return self._sampled(auroc(truth, scores, self._weights[:, rows]), rows, len(there))

    def _sampled(self, samples: Samples, rows: npt.NDArray[np.int64], instances: int) -> Sampled:
        seen = sorted(set(rows.tolist()))
        basis = Basis.of(
            [self._labels[row] for row in seen], [self._photographs[row] for row in seen]
        )
        figure = to_figure(samples, n=len(seen), instances=instances, basis=basis)
        return Sampled(figure, samples, basis)


def tables(
    name: str,
    tests: Sequence[Dataset],
    titles: Mapping[str, str],
    measured: Mapping[str, Sequence[Sequence[Measured]]],
) -> Iterator[str]:
    """All that was measured on a dataset.

    Args:
        name: of the dataset.
        tests: ground truth of each fold's test split.
        titles: of the contenders.
        measured: of each contender, by fold and seed.
    """
    pool = Pool(tests)
    yield f"## {name}"
    yield ""
    yield f"{len(tests)} folds. {pool.counts()}"
    kinds = list(next(iter(measured.values()))[0][0].outlines)
    fits = {(arm, kind): _fits(folds, kind) for arm, folds in measured.items() for kind in kinds}
    for kind in kinds:
        yield ""
        yield from _outlines(pool, kind, {arm: fits[arm, kind] for arm in measured}, titles)
        if kind == "detected":
            yield ""
            yield from _found(pool, measured, {arm: fits[arm, kind] for arm in measured}, titles)
    yield ""
    yield from _rejections(pool, measured, titles)
    yield ""
    yield from _times(measured, titles)
    yield ""


def _fits(folds: Sequence[Sequence[Measured]], kind: str) -> Values:
    """IoU and Dice of every instance, shape (instances, 2), means over seeds."""
    return np.concatenate(
        [np.mean([np.array(each.outlines[kind]["fits"]) for each in seeds], 0) for seeds in folds]
    )


def _outlines(
    pool: Pool, kind: str, fits: Mapping[str, Values], titles: Mapping[str, str]
) -> Iterator[str]:
    """Figures from one kind of boxes, and differences."""
    columns = [(f"IoU {name}", 0, chosen) for name, chosen in pool.chosen.items()]
    columns.append(("Dice all", 1, pool.chosen["all"]))
    yield f"| {kind} boxes | {' | '.join(title for title, _, _ in columns)} |"
    yield "| --- " * (1 + len(columns)) + "|"
    for arm, values in fits.items():
        cells = [_cell(pool.mean(values[:, n], chosen)) for _, n, chosen in columns]
        yield f"| {titles[arm]} | {' | '.join(cells)} |"
    for first, second in PAIRS:
        if first in fits and second in fits:
            cells = [
                _change(pool.mean(fits[second][:, n], chosen), pool.mean(fits[first][:, n], chosen))
                for _, n, chosen in columns
            ]
            yield f"| {titles[first]} − {titles[second]} | {' | '.join(cells)} |"


def _found(
    pool: Pool,
    measured: Mapping[str, Sequence[Sequence[Measured]]],
    fits: Mapping[str, Values],
    titles: Mapping[str, str],
) -> Iterator[str]:
    """Of the defects that the detector found, alone."""
    folds = next(iter(measured.values()))
    found = np.concatenate([seeds[0].outlines["detected"]["found"] for seeds in folds])
    shares = [
        f"{name} {np.count_nonzero(found & chosen)} of {chosen.sum()}"
        for name, chosen in pool.chosen.items()
    ]
    yield f"The detector found: {', '.join(shares)}. Of these alone:"
    yield ""
    yield "| detected boxes | IoU of what was found | Dice |"
    yield "| --- | --- | --- |"
    for arm, values in fits.items():
        cells = [_cell(pool.mean(values[:, n], found)) for n in (0, 1)]
        yield f"| {titles[arm]} | {' | '.join(cells)} |"


def _rejections(
    pool: Pool, measured: Mapping[str, Sequence[Sequence[Measured]]], titles: Mapping[str, str]
) -> Iterator[str]:
    """How well estimates tell defects from places without, and differences to zoom."""
    seen: dict[str, Sampled] = {}
    yield "| rejection | AUROC | difference to zoom 1.5 | prompts on defects | elsewhere |"
    yield "| --- | --- | --- | --- | --- |"
    for arm, folds in measured.items():
        if any(each.rejection is None for seeds in folds for each in seeds):
            continue
        by_seed = [
            {
                name: [entry for each in fold for entry in (each.rejection or {})[name]]
                for name in ("there", "nowhere")
            }
            for fold in zip(*folds, strict=True)
        ]
        each_seed = [pool.rejection(one["there"], one["nowhere"]) for one in by_seed]
        mean = np.mean([one.samples for one in each_seed], axis=0)
        like = each_seed[0]
        figure = to_figure(mean, n=like.figure.n, instances=like.figure.instances, basis=like.basis)
        seen[arm] = Sampled(figure, mean, like.basis)
    for arm, found in seen.items():
        change = "-" if arm == "zoom" else _change(seen.get("zoom"), found)
        counts = [
            sum(len((seeds[0].rejection or {})[name]) for seeds in measured[arm])
            for name in ("there", "nowhere")
        ]
        yield f"| {titles[arm]} | {_cell(found)} | {change} | {counts[0]} | {counts[1]} |"


def _times(
    measured: Mapping[str, Sequence[Sequence[Measured]]], titles: Mapping[str, str]
) -> Iterator[str]:
    """What contenders cost; validation is part of the training."""
    yield "| cost | steps | minutes of training per fold | val IoU | ms per outline |"
    yield "| --- | --- | --- | --- | --- |"
    for arm, folds in measured.items():
        pieces = [each for seeds in folds for each in seeds]
        logs = [each.training for each in pieces if each.training is not None]
        outlined = [each.outlines["true"] for each in pieces]
        seconds = sum(each["seconds"] for each in outlined)
        pace = 1e3 * seconds / sum(len(each["fits"]) for each in outlined)
        cells = ["-", "-", "-"]
        if logs:
            cells = [
                _range([log["steps"] for log in logs], ".0f"),
                _range([log["seconds"] / 60 for log in logs], ".1f"),
                _range([log["val_iou"] for log in logs], ".3f"),
            ]
        yield f"| {titles[arm]} | {' | '.join(cells)} | {pace:.1f} |"


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _cell(sampled: Sampled | None) -> str:
    return with_interval(None if sampled is None else sampled.figure)


def _change(before: Sampled | None, after: Sampled | None) -> str:
    """After minus before, paired."""
    if before is None or after is None:
        return "-"
    change = difference(before.samples, after.samples, like=before.figure, basis=before.basis)
    return with_interval(change, "+")
