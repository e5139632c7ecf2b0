"""From ground truth and results to all figures: which are measured, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from toolkit.evaluate import pixels, verdicts
from toolkit.evaluate.accumulate import (
    average_precision,
    average_recall,
    count_at,
    f1,
    precision_at,
    recall_at,
)
from toolkit.evaluate.backends import Backend, matcher
from toolkit.evaluate.bootstrap import METHOD, Samples, divide, image_weights, ratio
from toolkit.evaluate.boundary import TOLERANCE, boundary_f1, boundary_sums
from toolkit.evaluate.checks import (
    are_boxes_given,
    check_answers,
    check_images,
    check_probabilities,
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
from toolkit.evaluate.matching import IOUS, MAX_DETECTIONS, SIZES, Kind, Matches
from toolkit.evaluate.metrics import Metrics, Missing, Protocol, Threshold
from toolkit.evaluate.sheet import Sheet
from toolkit.evaluate.thresholds import Chooser, Goal, Labelled
from toolkit.predictions import ImageProbabilities, ImageSuspicion, PredictionCard, Result

_AT_THRESHOLD = ("F1", "precision", "recall")
_ALARMS = "false_alarms_per_100_good"
_FOUND = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", *_AT_THRESHOLD, _ALARMS)
_BOX = tuple(f"box.{name}" for name in _FOUND)
_MASK_FOUND = tuple(f"mask.{name}" for name in _FOUND)
_STEPS = {"AP50": 0, "AP75": int(np.flatnonzero(np.isclose(IOUS, 0.75))[0])}
_OVERLAP = {
    "mask.IoU": pixels.iou,
    "mask.Dice": pixels.dice,
    "mask.image_IoU": pixels.image_iou,
    "mask.image_Dice": pixels.image_dice,
    "mask.pixel_precision": pixels.precision,
    "mask.pixel_recall": pixels.recall,
}
_BOUNDARY = {"mask.boundary_F1": boundary_f1}
_MASK_PIXELS = (*_OVERLAP, *_BOUNDARY)


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
        _check_images(part.dataset, rules.split)
        check_results(part.dataset, part.results, part.sources[0])
    dataset = join(tuple(part.dataset for part in parts))
    results = [result for part in parts for result in part.results]
    boxes_given = are_boxes_given(results, card)
    boxes = "ground truth" if boxes_given else "detector"
    sheet = _open_sheet(dataset, rules, boxes, len(parts))
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
        chosen = [choose(chooser) for chooser in self.choosers]
        rows = []
        for number, threshold in enumerate(chosen, start=1):
            if isinstance(threshold, Missing):
                return threshold
            rows.append(threshold.of(self.sheet.dataset.categories))
            self.sheet.set_threshold(name if len(chosen) == 1 else f"{name} {number}", threshold)
        return np.stack(rows)[self.owner]

    def match(self, results: Sequence[Result], kind: Kind) -> list[Matches]:
        """Matches of all parts."""
        return self.choosers[0].matcher(self.sheet.dataset, results, kind)


def score_probabilities(
    dataset: Dataset,
    probabilities: ImageProbabilities,
    *,
    source: str = "probabilities",
    **rules: Any,
) -> Metrics:
    """Score image-level probabilities against the ground truth of their split.

    The verdict on an image is its most probable class, so no threshold is chosen.

    Args:
        dataset: ground truth of one split.
        probabilities: of its images, in any order.
        source: name of the probabilities, for error messages.
        rules: fields of ``Rules``; of these the bootstrap's and the split's name count.

    Raises:
        InputError: the split is empty, or its classes or images are not those of the
            probabilities.
    """
    return score_judged([(dataset, probabilities, source)], Rules(**rules)).metrics()


def score_judged(parts: Sequence[tuple[Dataset, ImageProbabilities, str]], rules: Rules) -> Sheet:
    """Score the probabilities of several folds as if they were one split.

    Args:
        parts: ground truth, probabilities and their name for error messages.
        rules: as of ``score_probabilities``.

    Raises:
        InputError: as there, or an image is in two parts.
    """
    rows = []
    for dataset, probabilities, source in parts:
        _check_images(dataset, rules.split)
        check_probabilities(dataset, probabilities, source)
        row = {name: index for index, name in enumerate(probabilities.file_names)}
        rows.append(probabilities.values[[row[image.file_name] for image in dataset.images]])
    values = np.concatenate(rows)
    dataset = join(tuple(dataset for dataset, _, _ in parts))
    sheet = _open_sheet(dataset, rules, "none", len(parts))
    sheet.leave_out(
        (*_BOX, *_MASK_FOUND, *_MASK_PIXELS),
        "whole images were judged, so there are no boxes and no masks to score",
    )
    truth = verdicts.true_labels(dataset)
    given = values.argmax(axis=1)
    add_verdicts(sheet, truth, given)
    add_ranking(sheet, truth, 1 - values[:, 0])
    add_calibration(sheet, values.max(axis=1), given == truth)
    return sheet


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
    _check_images(dataset, rules.split)
    sheet = _open_sheet(dataset, rules, "maps", 1)
    sheet.leave_out(
        (*_BOX, *_MASK_FOUND, *_MASK_PIXELS, *VERDICT, *RANKING, CALIBRATION),
        "score maps alone were given, without predictions",
    )
    return sheet


def score_suspicion(parts: Sequence[tuple[Dataset, ImageSuspicion, str]], rules: Rules) -> Sheet:
    """Score how suspicious the images of several folds are, as if they were one split.

    Args:
        parts: ground truth, scores and their name for error messages; scores of different parts
            are compared with one another, so they should be on one scale.
        rules: of these the bootstrap's and the split's name count.

    Raises:
        InputError: a split is empty, its images are not those of the scores, or an image is in two
            parts.
    """
    scores = []
    for dataset, suspicion, source in parts:
        _check_images(dataset, rules.split)
        check_images(dataset, suspicion.file_names, source)
        of_name = dict(zip(suspicion.file_names, suspicion.values.tolist(), strict=True))
        scores += [of_name[image.file_name] for image in dataset.images]
    dataset = join(tuple(dataset for dataset, _, _ in parts))
    sheet = _open_sheet(dataset, rules, "none", len(parts))
    sheet.leave_out(
        (*_BOX, *_MASK_FOUND, *_MASK_PIXELS),
        "whole images were judged, so there are no boxes and no masks to score",
    )
    sheet.leave_out(
        (*VERDICT, CALIBRATION),
        "one score per image says neither which defect it is nor how likely: give probabilities",
    )
    add_ranking(sheet, verdicts.true_labels(dataset), np.array(scores))
    return sheet


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


def _check_images(dataset: Dataset, split: str) -> None:
    if not dataset.images:
        raise InputError(f"{split}: has no images to score: convert with a split that has some")


def _open_sheet(dataset: Dataset, rules: Rules, boxes: str, parts: int) -> Sheet:
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


def _score_boxes(cut: Cut, results: Sequence[Result]) -> None:
    if not cut.sheet.instances:
        cut.sheet.leave_out(_BOX, "the split has no defects")
        return
    thresholds = cut.at("box", lambda chooser: chooser.for_defects("box"))
    _add_found(cut, "box", cut.match(results, "box"), thresholds)


def _score_masks(cut: Cut, results: Sequence[Result], no_masks: str | None) -> None:
    sheet = cut.sheet
    if no_masks is not None or not sheet.instances:
        sheet.leave_out((*_MASK_FOUND, *_MASK_PIXELS), no_masks or "the split has no defects")
        return
    thresholds = cut.at("mask", lambda chooser: chooser.for_defects("mask"))
    _add_found(cut, "mask", cut.match(results, "mask"), thresholds)
    if isinstance(thresholds, Missing):
        sheet.leave_out(_MASK_PIXELS, thresholds.reason)
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
    names = [f"{kind}.{name}" for name in _AT_THRESHOLD]
    alarms = f"{kind}.{_ALARMS}"
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
        (*_BOX, *_MASK_FOUND, *VERDICT, *RANKING, CALIBRATION),
        "boxes were given, so finding them was not measured",
    )
    names = (*_MASK_PIXELS, "mask.instance_IoU")
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
