"""Score thresholds: the given one, or those that serve a goal best on val."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from converters.dataset import Dataset
from toolkit.evaluate.backends import Matcher
from toolkit.evaluate.checks import why_no_masks
from toolkit.evaluate.matching import Kind, Matches
from toolkit.evaluate.metrics import Missing, Threshold
from toolkit.evaluate.verdicts import (
    ImageScores,
    confusion_by_threshold,
    macro_f1,
    score_images,
)
from toolkit.predictions import PredictionCard, Result

Labelled: TypeAlias = tuple[Dataset, Sequence[Result]]
"""Ground truth of a split, and what was predicted on it."""

Scores: TypeAlias = npt.NDArray[np.float64]

# Where nothing was found on val, that is no lack of masks.
_WITH_MASKS = PredictionCard(boxes="detector", masks=True)


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for.

    Attributes:
        name: "F1" (of verdicts macro-F1); "recall": as few detections as find at least ``recall``
            of the defects; or "cost": the least sum of what misses and false alarms cost.
        recall: share of the defects of val that have to be found, 0 to 1.
        miss_cost: what a missed defect costs.
        alarm_cost: what a false alarm costs.
        per_class: a threshold for each class that val has, instead of one for all.
    """

    name: Literal["F1", "recall", "cost"] = "F1"
    recall: float = 0.99
    miss_cost: float = 10.0
    alarm_cost: float = 1.0
    per_class: bool = False

    def __str__(self) -> str:
        """One line, as in "recall of at least 99.0 %, a threshold per class"."""
        costs = f"a miss {self.miss_cost:g}, a false alarm {self.alarm_cost:g}"
        what = {
            "F1": "the best F1",
            "recall": f"a recall of at least {self.recall:.1%}",
            "cost": f"the least cost ({costs})",
        }[self.name]
        return f"{what}, a threshold per class" if self.per_class else what

    def rate(self, right: Scores, kept: Scores, defects: int) -> Scores:
        """How well thresholds serve it; the more the better, minus infinity where not at all.

        Args:
            right: defects that are found at each threshold, shape (T,).
            kept: detections at each threshold.
            defects: that there are.
        """
        if self.name == "F1":
            return np.asarray(2 * right / (kept + defects), np.float64)
        if self.name == "recall":
            return np.where(right >= self.recall * defects - 1e-9, -kept, -np.inf)
        return -(self.miss_cost * (defects - right) + self.alarm_cost * (kept - right))


@dataclass(frozen=True)
class Chooser:
    """Thresholds: the given one, or those that are best on val.

    Attributes:
        val: what they are chosen on; None where there is none.
        given: threshold of the user; None where there is none.
        goal: what they are chosen for.
        matcher: finds out which detections are right.
        split: the split that is scored.
    """

    val: Labelled | None
    given: float | None
    goal: Goal
    matcher: Matcher
    split: str

    def for_defects(self, kind: Kind) -> Threshold | Missing:
        """The threshold of boxes or masks."""
        if self.given is not None:
            return Threshold(self.given, "given")
        val = self._usable_val()
        if isinstance(val, Missing):
            return val
        no_masks = why_no_masks(*val, _WITH_MASKS) if kind == "mask" else None
        if no_masks is not None:
            return Missing(f"no threshold was chosen: on val, {no_masks}")
        matches = self.matcher(*val, kind)
        overall = choose(matches, self.goal)
        if isinstance(overall, Missing):
            return overall
        by_class = {}
        if self.goal.per_class:
            for name, found in zip(val[0].categories, matches, strict=True):
                chosen = choose([found], self.goal) if found.instances[0].any() else overall
                by_class[name] = overall if isinstance(chosen, Missing) else chosen
        return Threshold(overall, self._chosen_on(), by_class)

    def for_verdicts(self, images: ImageScores) -> Threshold | Missing:
        """The threshold of the verdicts on ``images``."""
        if self.given is not None:
            return Threshold(self.given, "given")
        val = self._usable_val()
        if isinstance(val, Missing):
            return val
        scores = score_images(*val)
        if (images.truth == 0).any() and not (scores.truth == 0).any():
            # Calling every image defective would be best on such a val.
            return Missing(
                "no threshold was chosen: val has no good images: "
                "split so that it has some, or pass --threshold"
            )
        overall = choose_for_verdicts(scores, self.goal)
        if isinstance(overall, Missing):
            return overall
        by_class = {}
        if self.goal.per_class:
            for index, name in enumerate(val[0].categories):
                chosen = _choose_for_class(scores, index, self.goal)
                by_class[name] = overall if isinstance(chosen, Missing) else chosen
        return Threshold(overall, self._chosen_on(), by_class)

    def _usable_val(self) -> Labelled | Missing:
        if self.val is None:
            return Missing(
                "no threshold was chosen: there are no predictions on val: "
                "predict on val too, or pass --threshold"
            )
        if all(image.is_good for image in self.val[0].images):
            return Missing(
                "no threshold was chosen: val has no defects: "
                "split so that it has some, or pass --threshold"
            )
        return self.val

    def _chosen_on(self) -> str:
        return "val" if self.split != "val" else "val, the split that is scored: optimistic"


def widest_best(scores: Scores, objective: Callable[[Scores], Scores]) -> tuple[float, float]:
    """The middle of the widest range of thresholds that give the best objective.

    All thresholds between two neighbouring scores keep the same detections, so each such range has
    one value; neighbouring ranges with the best value are joined. The middle of the widest is the
    choice that small shifts of the scores upset least; of equally wide ones the highest is taken.

    Args:
        scores: all scores that occur, 0 to 1; any shape.
        objective: from thresholds, shape (T,), to what to maximise, shape (T,).

    Returns:
        the threshold, above 0 and at most 1, and the objective there.
    """
    edges = np.unique(np.concatenate([[0.0], np.ravel(scores), [1.0]]))
    values = objective(edges[1:])  # a threshold keeps the scores from itself on
    best = float(values.max())
    is_best = np.concatenate([[False], values >= best - 1e-12, [False]]).astype(np.int8)
    changes = np.diff(is_best)
    low, high = edges[changes == 1], edges[changes == -1]
    widest = low.size - 1 - int(np.argmax((high - low)[::-1]))
    middle = float(low[widest] + high[widest]) / 2
    # Between two neighbouring floating-point numbers there is no middle.
    return (middle if middle > low[widest] else float(high[widest])), best


def choose(matches: Sequence[Matches], goal: Goal) -> float | Missing:
    """The threshold that serves a goal best over some categories together.

    Args:
        matches: one per category, on val, at least one of them with instances.
        goal: what for.
    """
    scores = np.concatenate([found.scores for found in matches])
    hits = np.concatenate([found.scores[found.found_at_iou] for found in matches])
    defects = sum(int(found.instances[0].sum()) for found in matches)
    return _choose(scores, hits, defects, goal)


def _choose(scores: Scores, hits: Scores, defects: int, goal: Goal) -> float | Missing:
    """The threshold that serves a goal best.

    Args:
        scores: of all detections.
        hits: scores of those that find a defect.
        defects: that there are.
        goal: what for.
    """
    scores, hits = np.sort(scores), np.sort(hits)
    if not hits.size:
        return Missing(
            "no detection on val finds a defect, so no threshold is better than another: "
            "train longer, or pass --threshold"
        )

    def objective(thresholds: Scores) -> Scores:
        kept = scores.size - np.searchsorted(scores, thresholds)
        right = hits.size - np.searchsorted(hits, thresholds)
        return goal.rate(right.astype(np.float64), kept.astype(np.float64), defects)

    threshold, best = widest_best(scores, objective)
    if best == -np.inf:
        return _out_of_reach(hits.size, defects, goal)
    return threshold


def choose_for_verdicts(images: ImageScores, goal: Goal) -> float | Missing:
    """The threshold that serves a goal best in verdicts.

    Args:
        images: val.
        goal: what for; F1 is macro-F1, a defect is found where its image is called defective, and
            a false alarm is a good image that is.
    """
    defective = int(np.count_nonzero(images.truth))

    def objective(thresholds: Scores) -> Scores:
        matrices = confusion_by_threshold(images, thresholds)
        if goal.name == "F1":
            return macro_f1(matrices)
        right = matrices[:, 1:, 1:].sum(axis=(1, 2))
        return goal.rate(right, right + matrices[:, 0, 1:].sum(axis=1), defective)

    threshold, best = widest_best(images.score, objective)
    if best == -np.inf:
        found = int(np.count_nonzero(images.score[images.truth > 0]))
        return _out_of_reach(found, defective, goal)
    return threshold


def _choose_for_class(images: ImageScores, category: int, goal: Goal) -> float | Missing:
    """The threshold of one class in verdicts, that class against all the rest."""
    scores = images.highest[:, category]
    there = scores >= 0
    of_class = images.truth == category + 1
    return _choose(scores[there], scores[there & of_class], int(of_class.sum()), goal)


def _out_of_reach(found: int, defects: int, goal: Goal) -> Missing:
    return Missing(
        f"no threshold was chosen: all detections on val together find {found} of {defects} "
        f"defects, less than {goal.recall:.1%}: predict with a lower --confidence, train longer, "
        "or lower --recall-floor"
    )
