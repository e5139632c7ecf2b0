"""The figures of whole images, wherever their verdicts come from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.dataset import GOOD
from toolkit.evaluate import verdicts
from toolkit.evaluate.bootstrap import ratio
from toolkit.evaluate.sheet import Sheet

_ALARMS = "image.false_alarms_per_100_good"
VERDICT = ("image.accuracy", "image.balanced_accuracy", "image.macro_F1", _ALARMS)
RANKING = ("image.AUROC", "image.AP")
CALIBRATION = "image.ECE"


def add_verdicts(sheet: Sheet, truth: verdicts.Labels, given: verdicts.Labels) -> None:
    """Enter how often verdicts are right, over all and by class, and "always good" beside it.

    Args:
        sheet: of the images' split.
        truth: true label of each image.
        given: its verdict.
    """
    labels = (GOOD, *sheet.dataset.categories)
    matrices = verdicts.confusion(truth, given, len(labels), sheet.weights)
    measures = (verdicts.accuracy, verdicts.balanced_accuracy, verdicts.macro_f1)
    for name, measure in zip(VERDICT, measures, strict=False):
        sheet.add(name, measure(matrices))
    good = truth == 0
    if good.any():
        alarms = 100 * (1 - verdicts.recall(matrices)[:, 0])
        sheet.add(_ALARMS, alarms, over=good, top=100)
    else:
        sheet.leave_out([_ALARMS], "the split has no good images")
    always_good = ratio(truth == 0, np.ones_like(truth), sheet.weights)
    sheet.add("baseline.always_good_accuracy", always_good)
    _add_labels(sheet, labels, truth, matrices)
    sheet.set_confusion(labels, matrices[0])


def _add_labels(
    sheet: Sheet, labels: tuple[str, ...], truth: verdicts.Labels, matrices: verdicts.Confusion
) -> None:
    recall, precision = verdicts.recall(matrices), verdicts.precision(matrices)
    f1_of_label = verdicts.f1(matrices)
    for index, label in enumerate(labels):
        n = truth == index
        if not n.any():
            continue
        sheet.add_for_label(label, "image.recall", recall[:, index], n)
        if np.isfinite(precision[0, index]):
            sheet.add_for_label(label, "image.precision", precision[:, index], n)
        else:
            sheet.leave_out(
                [f"per_class.{label}.image.precision"], f"no image was given the verdict {label}"
            )
        sheet.add_for_label(label, "image.F1", f1_of_label[:, index], n)


def add_ranking(sheet: Sheet, truth: verdicts.Labels, scores: npt.NDArray[np.float64]) -> None:
    """Enter how well scores tell images with defects from good ones.

    Args:
        sheet: of the images' split.
        truth: true label of each image.
        scores: the higher, the more suspicious; shape (images,).
    """
    good = int(np.count_nonzero(truth == 0))
    if 0 < good < truth.size:
        for name, measure in zip(
            RANKING, (verdicts.auroc, verdicts.average_precision), strict=True
        ):
            sheet.add(name, measure(truth, scores, sheet.weights))
    else:
        which = "defects" if good else "good images"
        sheet.leave_out(RANKING, f"the split has no {which} to tell from the others")


def add_calibration(
    sheet: Sheet, confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> None:
    """Enter how far confidence is from how often it is right.

    Args:
        sheet: of the images' split.
        confidence: that a statement about each image is true, 0 to 1, shape (images,).
        right: whether it is, shape (images,).
    """
    error = verdicts.expected_calibration_error(confidence, right, sheet.weights)
    sheet.add(CALIBRATION, error)
