"""Score thresholds: the given one, or those that are best on val."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
class Chooser:
    """Thresholds: the given one, or those that are best on val.

    Attributes:
        val: what they are chosen on; None where there is none.
        given: threshold of the user; None where there is none.
        matcher: finds out which detections are right.
        split: the split that is scored.
    """

    val: Labelled | None
    given: float | None
    matcher: Matcher
    split: str

    def for_f1(self, kind: Kind) -> Threshold | Missing:
        """The threshold of box or mask F1."""
        if self.given is not None:
            return Threshold(self.given, "given")
        val = self._usable_val()
        if isinstance(val, Missing):
            return val
        no_masks = why_no_masks(*val, _WITH_MASKS) if kind == "mask" else None
        if no_masks is not None:
            return Missing(f"no threshold was chosen: on val, {no_masks}")
        chosen = choose_for_f1(self.matcher(*val, kind))
        return chosen if isinstance(chosen, Missing) else Threshold(chosen, self._chosen_on())

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
        return Threshold(choose_for_verdicts(scores), self._chosen_on())

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


def choose_for_f1(matches: Sequence[Matches]) -> float | Missing:
    """The threshold that maximises F1 over all categories together.

    Args:
        matches: one per category, on val, at least one of them with instances.
    """
    scores = np.sort(np.concatenate([found.scores for found in matches]))
    hits = np.sort(np.concatenate([found.scores[found.found_at_iou] for found in matches]))
    instances = sum(int(found.instances[0].sum()) for found in matches)

    def f1(thresholds: Scores) -> Scores:
        kept = scores.size - np.searchsorted(scores, thresholds)
        right = hits.size - np.searchsorted(hits, thresholds)
        return np.asarray(2 * right / (kept + instances), dtype=np.float64)

    threshold, best = widest_best(scores, f1)
    if best == 0:
        return Missing(
            "no detection on val finds a defect, so no threshold is better than another: "
            "train longer, or pass --threshold"
        )
    return threshold


def choose_for_verdicts(images: ImageScores) -> float:
    """The threshold that maximises the macro-F1 of image verdicts.

    Args:
        images: val.
    """

    def objective(thresholds: Scores) -> Scores:
        return macro_f1(confusion_by_threshold(images, thresholds))

    threshold, _ = widest_best(images.score, objective)
    return threshold
