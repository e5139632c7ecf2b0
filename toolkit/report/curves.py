"""The curves behind the figures, as lines to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.evaluate.matching import Matches
from toolkit.report.source import Record
from toolkit.report.words import KEPT_BY

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: what it is of.
        x, y: shape (N,), the points.
        bold: whether it is the one that matters most.
    """

    label: str
    x: Values
    y: Values
    bold: bool = False


@dataclass(frozen=True)
class Detections:
    """Detections of some categories together, by falling score; equal scores are one point.

    Attributes:
        score: shape (N,), the score from which detections count.
        right: shape (N,), how many of them find a defect.
        kept: shape (N,), how many there are.
        defects: that there are to find.
    """

    score: Values
    right: Values
    kept: Values
    defects: int

    @classmethod
    def of(cls, matches: Sequence[Matches]) -> Detections:
        """From the matches of these categories."""
        scores = np.concatenate([found.scores for found in matches])
        hits = np.concatenate([found.found_at_iou for found in matches])
        order = np.argsort(-scores, kind="stable")
        scores, hits = scores[order], np.cumsum(hits[order])
        last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if scores.size else order
        defects = sum(int(found.instances[0].sum()) for found in matches)
        return cls(scores[last], hits[last].astype(float), (last + 1).astype(float), defects)

    @property
    def precision(self) -> Values:
        """Share of the detections that find a defect."""
        return self.right / self.kept

    @property
    def recall(self) -> Values:
        """Share of the defects that are found."""
        return self.right / max(1, self.defects)

    @property
    def f1(self) -> Values:
        """Balance of the two."""
        return 2 * self.right / (self.kept + self.defects)


def precision_recall(label: str, matches: Sequence[Matches], *, bold: bool = False) -> Line:
    """Precision over recall, from the surest detection on."""
    found = Detections.of(matches)
    precision = found.precision
    start = precision[:1] if precision.size else np.zeros(1)
    return Line(
        label,
        np.concatenate([[0.0], found.recall]),
        np.concatenate([start, precision]),
        bold,
    )


def by_threshold(matches: Sequence[Matches]) -> list[Line]:
    """F1, precision and recall of all categories together, at every threshold."""
    found = Detections.of(matches)
    x = np.concatenate([found.score[::-1]])
    values = {"F1": found.f1, "precision": found.precision, "recall": found.recall}
    return [
        Line(name, *_steps(x, value[::-1]), bold=name == "F1") for name, value in values.items()
    ]


def _steps(thresholds: Values, values: Values) -> tuple[Values, Values]:
    """A value holds from the score before (not from itself) up to its own score."""
    if not thresholds.size:
        return thresholds, values
    starts = np.concatenate([[0.0], thresholds[:-1]])
    return np.stack([starts, thresholds], axis=1).ravel(), np.repeat(values, 2)


def at_least(label: str, values: Sequence[float], *, bold: bool = False) -> Line:
    """Share of the values that are at least x, for x from 0 to 1."""
    ordered = np.sort(np.asarray(values, np.float64))
    share = 1 - np.arange(ordered.size) / max(1, ordered.size)
    x, y = _steps(ordered, share)
    end = ordered[-1:] if ordered.size else np.zeros(1)
    return Line(label, np.concatenate([x, end, [1.0]]), np.concatenate([y, [0.0, 0.0]]), bold)


def receiver_operating(label: str, defective: npt.NDArray[np.bool_], suspicion: Values) -> Line:
    """Share of pictures with a defect that are suspected, over that of good ones."""
    order = np.argsort(-suspicion, kind="stable")
    ranked, bad = suspicion[order], defective[order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    found, alarms = np.cumsum(bad)[last], np.cumsum(~bad)[last]
    x = np.concatenate([[0.0], alarms / max(1, int(alarms[-1]))])
    return Line(label, x, np.concatenate([[0.0], found / max(1, int(found[-1]))]), bold=True)


@dataclass(frozen=True)
class Training:
    """How a training went.

    Attributes:
        losses: by name, over epochs.
        scores: on val, by name, over epochs.
        kept: the epoch whose weights were kept; None where it cannot be told.
        kept_by: name of the score that chose it; empty where it cannot be told.
        epochs: how many there are.
    """

    losses: dict[str, Line]
    scores: dict[str, Line]
    kept: int | None
    kept_by: str
    epochs: int


def training(log: Sequence[Record]) -> Training | None:
    """The curves of a log; None where there is none."""
    if not log:
        return None
    names = list(dict.fromkeys(name for record in log for name in record))
    skipped = {"epoch", "step", "seconds", "learning_rate"}
    lines = {name: _line_of(name, log) for name in names if name not in skipped}
    scores = {n: line for n, line in lines.items() if n.startswith("val_") and "loss" not in n}
    chosen = next((name for name in KEPT_BY if name in scores), "")
    kept = None
    if chosen:
        line = scores[chosen]
        # Of equal epochs the detector's trainer keeps the last, the others the first.
        best = np.flatnonzero(line.y == line.y.max())
        kept = int(line.x[best[-1 if chosen == "val_ap" else 0]])
    losses = {name: line for name, line in lines.items() if name not in scores}
    return Training(losses, scores, kept, chosen, len(log))


def _line_of(name: str, log: Sequence[Mapping[str, float]]) -> Line:
    points = [(record["epoch"], record[name]) for record in log if name in record]
    x, y = np.array(points, np.float64).T
    finite = np.isfinite(y)
    return Line(name, x[finite], y[finite])
