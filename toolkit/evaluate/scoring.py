"""From ground truth and results to all figures: which are measured, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.dataset import Dataset
from toolkit.evaluate import pixels, verdicts
from toolkit.evaluate.accumulate import (
    average_precision,
    average_recall,
    count_at,
    f1,
    precision_at,
    recall_at,
)
from toolkit.evaluate.backends import matcher
from toolkit.evaluate.bootstrap import Samples, divide, ratio
from toolkit.evaluate.boundary import boundary_f1, boundary_sums
from toolkit.evaluate.checks import (
    are_boxes_given,
    boxes_from,
    check_answers,
    check_results,
    why_no_masks,
)
from toolkit.evaluate.image_level import (
    CALIBRATION,
    RANKING,
    VERDICT,
    add_calibration,
    add_ranking,
    add_verdicts,
)
from toolkit.evaluate.maps import FPR_LIMIT, add_maps
from toolkit.evaluate.matching import IOUS, SIZES, Kind, Matches
from toolkit.evaluate.metrics import Metrics, Missing, Threshold
from toolkit.evaluate.names import (
    ALARMS,
    AT_THRESHOLD,
    BOX,
    MASK_BOUNDARY,
    MASK_FOUND,
    MASK_OVERLAP,
    MASK_PIXELS,
)
from toolkit.evaluate.rules import Rules, check_not_empty, join, open_sheet
from toolkit.evaluate.sheet import Sheet
from toolkit.evaluate.thresholds import Chooser, Labelled
from toolkit.predictions import PredictionCard, Result

_STEPS = {"AP50": 0, "AP75": int(np.flatnonzero(np.isclose(IOUS, 0.75))[0])}
_OVERLAP = dict(
    zip(
        MASK_OVERLAP,
        (
            pixels.iou,
            pixels.dice,
            pixels.image_iou,
            pixels.image_dice,
            pixels.precision,
            pixels.recall,
        ),
        strict=True,
    )
)
_BOUNDARY = dict(zip(MASK_BOUNDARY, (boundary_f1,), strict=True))


@dataclass(frozen=True)
class Part:
    """A split, what was predicted on it, and what thresholds are chosen on.

    Attributes:
        dataset: ground truth of the split.
        results: predictions on it.
        val: ground truth and predictions of val; without them, and without a threshold given,
            there is no F1, IoU, Dice or verdict.
        sources: names of the results and of val's, for error messages.
    """

    dataset: Dataset
    results: Sequence[Result]
    val: Labelled | None = None
    sources: tuple[str, str] = ("results", "val results")


def score(
    dataset: Dataset,
    results: Sequence[Result],
    *,
    val: Labelled | None = None,
    card: PredictionCard | None = None,
    sources: tuple[str, str] = ("results", "val results"),
    **rules: Any,
) -> Metrics:
    """Score results against the ground truth of the split that they were predicted on.

    Args:
        dataset: ground truth of one split.
        results: predictions on it.
        val: as of ``Part``.
        card: where the results come from. Where it, or an ``annotation_id`` on a result, says
            that boxes were given, the outlines alone are scored, and every result needs its
            ``annotation_id``.
        sources: as of ``Part``.
        rules: fields of ``Rules``.

    Raises:
        InputError: the split is empty, or a result cannot be scored.
    """
    return score_parts([Part(dataset, results, val, sources)], Rules(**rules), card).metrics()


def score_parts(parts: Sequence[Part], rules: Rules, card: PredictionCard | None = None) -> Sheet:
    """Score the splits of several folds as if they were one.

    Each part has thresholds of its own, chosen on its own val; no image is in two parts.

    Args:
        parts: at least one, with the same categories.
        rules: how.
        card: as of ``score``, the same for all.

    Returns:
        the sheet with all figures.

    Raises:
        InputError: a split is empty, an image is in two of them, or a result cannot be scored.
    """
    for part in parts:
        check_not_empty(part.dataset, rules.split)
        check_results(part.dataset, part.results, part.sources[0])
    dataset = join(tuple(part.dataset for part in parts))
    results = [result for part in parts for result in part.results]
    boxes_given = are_boxes_given(results, card)
    boxes = "ground truth" if boxes_given else boxes_from(card)
    sheet = open_sheet(dataset, rules, boxes, len(parts))
    no_masks = why_no_masks(dataset, results, card)
    if boxes_given:
        check_answers(dataset, results, parts[0].sources[0])
        _score_outlines(sheet, results, no_masks, rules.boundary_tolerance)
        return sheet
    choosers = [_chooser(part, rules) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [len(part.dataset.images) for part in parts])
    cut = Cut(sheet, choosers, owner, rules)
    _score_boxes(cut, results)
    _score_masks(cut, results, no_masks)
    _score_images(cut, results)
    return sheet


def _chooser(part: Part, rules: Rules) -> Chooser:
    if part.val is not None:
        check_results(*part.val, part.sources[1])
    find = matcher(rules.backend, iou=rules.iou, max_detections=rules.max_detections)
    return Chooser(part.val, rules.threshold, rules.goal, find, rules.split)


@dataclass(frozen=True)
class Cut:
    """Where scores are cut: the thresholds of every part, on the images of all.

    Attributes:
        sheet: that figures are entered on.
        choosers: one per part.
        owner: shape (images,), index of each image's part.
        rules: how results are scored.
    """

    sheet: Sheet
    choosers: Sequence[Chooser]
    owner: npt.NDArray[np.int64]
    rules: Rules

    def at(
        self, name: str, choose: Callable[[Chooser], Threshold | Missing]
    ) -> npt.NDArray[np.float64] | Missing:
        """Thresholds by image and category, entered on the sheet; or why there are none.

        Args:
            name: what they decide: "box", "mask" or "image".
            choose: asks a part for its own.
        """
        chosen: list[Threshold] = []
        for chooser in self.choosers:
            threshold = choose(chooser)
            if isinstance(threshold, Missing):
                return threshold  # none is entered where one part has none
            chosen.append(threshold)
        for number, threshold in enumerate(chosen, start=1):
            self.sheet.set_threshold(name if len(chosen) == 1 else f"{name} {number}", threshold)
        rows = [threshold.of(self.sheet.dataset.categories) for threshold in chosen]
        return np.stack(rows)[self.owner]

    def match(self, results: Sequence[Result], kind: Kind) -> list[Matches]:
        """Matches of all parts."""
        return self.choosers[0].matcher(self.sheet.dataset, results, kind)


def score_maps(
    dataset: Dataset, folder: Path, *, fpr_limit: float = FPR_LIMIT, **rules: Any
) -> Metrics:
    """Score maps of pixel scores against the ground truth of their split.

    Args:
        dataset: ground truth of one split.
        folder: holds a map for each image, as ``toolkit.evaluate.maps.find_maps`` looks for them.
        fpr_limit: false-positive rate that AUPRO goes up to, above 0 and at most 1.
        rules: fields of ``Rules``; of these the bootstrap's and the split's name count.

    Raises:
        InputError: the split is empty, or a map is missing or cannot be scored.
    """
    sheet = open_for_maps(dataset, Rules(**rules))
    add_maps(sheet, folder, fpr_limit)
    return sheet.metrics()


def open_for_maps(dataset: Dataset, rules: Rules) -> Sheet:
    """A sheet without predictions, for figures of score maps alone.

    Raises:
        InputError: the split is empty.
    """
    check_not_empty(dataset, rules.split)
    sheet = open_sheet(dataset, rules, "maps", 1)
    sheet.leave_out(
        (*BOX, *MASK_FOUND, *MASK_PIXELS, *VERDICT, *RANKING, CALIBRATION),
        "score maps alone were given, without predictions",
    )
    return sheet


def _score_boxes(cut: Cut, results: Sequence[Result]) -> None:
    if not cut.sheet.instances:
        cut.sheet.leave_out(BOX, "the split has no defects")
        return
    thresholds = cut.at("box", lambda chooser: chooser.for_defects("box"))
    _add_found(cut, "box", cut.match(results, "box"), thresholds)


def _score_masks(cut: Cut, results: Sequence[Result], no_masks: str | None) -> None:
    sheet = cut.sheet
    if no_masks is not None or not sheet.instances:
        sheet.leave_out((*MASK_FOUND, *MASK_PIXELS), no_masks or "the split has no defects")
        return
    thresholds = cut.at("mask", lambda chooser: chooser.for_defects("mask"))
    _add_found(cut, "mask", cut.match(results, "mask"), thresholds)
    if isinstance(thresholds, Missing):
        sheet.leave_out(MASK_PIXELS, thresholds.reason)
        return
    row = {image.id: index for index, image in enumerate(sheet.dataset.images)}
    kept = [
        result
        for result in results
        if result["score"] >= thresholds[row[result["image_id"]], result["category_id"] - 1]
    ]
    boxes = pixels.filled_boxes(sheet.dataset, kept)
    tolerance = cut.rules.boundary_tolerance
    _add_pixels(sheet, pixels.masks(kept), boxes, sheet.add_found, tolerance)


def _add_found(
    cut: Cut,
    kind: Kind,
    matches: Sequence[Matches],
    thresholds: npt.NDArray[np.float64] | Missing,
) -> None:
    """Which defects were found: COCO's figures, and those at the threshold."""
    sheet = cut.sheet
    _add_precision(sheet, kind, matches)
    _add_recall(sheet, kind, matches, cut.rules.max_detections)
    names = [f"{kind}.{name}" for name in AT_THRESHOLD]
    alarms = f"{kind}.{ALARMS}"
    if isinstance(thresholds, Missing):
        sheet.leave_out((*names, alarms), thresholds.reason)
        return
    counts = count_at(matches, thresholds)
    for name, measure in zip(names, (f1, precision_at, recall_at), strict=True):
        overall = measure(counts.sum(axis=1), sheet.weights)
        if np.isfinite(overall[0]):
            sheet.add_found(name, overall)
        else:
            sheet.leave_out([name], "no detection reaches the threshold")
        for index, category in sheet.present:
            samples = measure(counts[:, index], sheet.weights)
            if np.isfinite(samples[0]):
                sheet.add_for(category, name, samples)
    good = sheet.good
    if good.any():
        detected = 100 * counts[:, :, 1].sum(axis=1) * good
        per_good = ratio(detected, good.astype(np.int64), sheet.weights)
        sheet.add(alarms, per_good, over=good, top=100, bounded=False)
    else:
        sheet.leave_out([alarms], "the split has no good images")


def _add_precision(sheet: Sheet, kind: Kind, matches: Sequence[Matches]) -> None:
    sizes = _sizes(matches)
    precision = average_precision(matches, sheet.weights, sizes=sizes)
    every = precision[0]
    sheet.add_found(f"{kind}.AP", _mean(every, axis=(1, 2)))
    for name, step in _STEPS.items():
        sheet.add_found(f"{kind}.{name}", _mean(every[:, step], axis=1))
    for size, of_size in zip(sizes[1:], precision[1:], strict=True):
        sheet.add_found(f"{kind}.AP_{size}", _mean(of_size, axis=(1, 2)))
    for index, name in sheet.present:
        sheet.add_for(name, f"{kind}.AP", every[:, :, index].mean(axis=1))
        sheet.add_for(name, f"{kind}.AP50", every[:, 0, index])


def _add_recall(sheet: Sheet, kind: Kind, matches: Sequence[Matches], most: int) -> None:
    weights = sheet.weights
    for count in sorted({1, 10, most}):
        if count <= most:
            recall = average_recall(matches, weights, most=count)
            sheet.add_found(f"{kind}.AR{count}", _mean(recall, axis=1))
    for index, name in sheet.present:
        sheet.add_for(name, f"{kind}.AR{most}", recall[:, index])
    for size in _sizes(matches)[1:]:
        recall = average_recall(matches, weights, size=size)
        sheet.add_found(f"{kind}.AR_{size}", _mean(recall, axis=1))


def _sizes(matches: Sequence[Matches]) -> list[str]:
    """Sizes of which there is an instance, "all" first."""
    return [
        name
        for row, name in enumerate(SIZES)
        if row == 0 or any(found.instances[row].any() for found in matches)
    ]


def _mean(values: npt.NDArray[np.float64], axis: int | tuple[int, ...]) -> Samples:
    """Mean over what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0).sum(axis=axis), defined.sum(axis=axis).astype(float))


def _add_pixels(
    sheet: Sheet,
    masks: Sequence[pixels.Shape],
    boxes: Sequence[pixels.Shape],
    add: Callable[[str, Samples], None],
    tolerance: float,
) -> None:
    """Overlap and boundary of the masks, and beside them the overlap of their boxes filled."""
    sheet.protocol = replace(sheet.protocol, boundary_tolerance=tolerance)
    overlap = pixels.overlap(sheet.dataset, masks)
    near = boundary_sums(sheet.dataset, masks, tolerance)
    for sums, measures in ((overlap, _OVERLAP), (near, _BOUNDARY)):
        for name, measure in measures.items():
            overall = measure(sums[:, 0], sheet.weights)
            if np.isfinite(overall[0]):
                add(name, overall)
            else:
                sheet.leave_out([name], "there is no predicted mask to score")
            for index, category in sheet.present:
                samples = measure(sums[:, 1 + index], sheet.weights)
                if np.isfinite(samples[0]):
                    sheet.add_for(category, name, samples)
    filled = pixels.overlap(sheet.dataset, boxes)
    add("baseline.filled_box_IoU", pixels.iou(filled[:, 0], sheet.weights))


def _score_outlines(
    sheet: Sheet, results: Sequence[Result], no_masks: str | None, tolerance: float
) -> None:
    """Given boxes: how well each instance was outlined, and how well its box alone would."""
    sheet.leave_out(
        (*BOX, *MASK_FOUND, *VERDICT, *RANKING, CALIBRATION),
        "boxes were given, so finding them was not measured",
    )
    names = (*MASK_PIXELS, "mask.instance_IoU")
    if no_masks is not None or not sheet.instances:
        sheet.leave_out(names, no_masks or "the split has no defects")
        return
    boxes = pixels.filled_true_boxes(sheet.dataset)
    _add_pixels(sheet, pixels.masks(results), boxes, sheet.add_outlined, tolerance)
    sums = pixels.instance_ious(sheet.dataset, results)
    for part, name in enumerate(("mask.instance_IoU", "baseline.filled_box_instance_IoU")):
        sheet.add_outlined(name, ratio(sums[:, 0, part], sums[:, 0, 2], sheet.weights))
        for index, category in sheet.present:
            column = sums[:, 1 + index]
            sheet.add_for(category, name, ratio(column[:, part], column[:, 2], sheet.weights))


def _score_images(cut: Cut, results: Sequence[Result]) -> None:
    sheet = cut.sheet
    images = verdicts.score_images(sheet.dataset, results)
    thresholds = cut.at("image", lambda chooser: chooser.for_verdicts(images))
    if isinstance(thresholds, Missing):
        sheet.leave_out(VERDICT, thresholds.reason)
    else:
        add_verdicts(sheet, images.truth, images.verdicts(thresholds))
    add_ranking(sheet, images.truth, images.score)
    add_calibration(sheet, images.score, images.truth > 0)
