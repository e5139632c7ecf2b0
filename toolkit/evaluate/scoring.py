"""From ground truth and results to all figures: which are measured, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from converters.dataset import GOOD, Dataset
from converters.errors import InputError
from toolkit.evaluate import pixels, verdicts
from toolkit.evaluate.accumulate import average_precision, count_at, f1
from toolkit.evaluate.bootstrap import METHOD, Samples, image_weights, ratio
from toolkit.evaluate.checks import (
    are_boxes_given,
    check_answers,
    check_probabilities,
    check_results,
    why_no_masks,
)
from toolkit.evaluate.image_level import AUROC, VERDICT, add_auroc, add_verdicts
from toolkit.evaluate.matching import Kind, Matches, match
from toolkit.evaluate.metrics import Metrics, Missing, Protocol, Threshold
from toolkit.evaluate.sheet import Sheet
from toolkit.evaluate.thresholds import Chooser, Labelled
from toolkit.predictions import ImageProbabilities, PredictionCard, Result

_BOX = ("box.AP", "box.AP50", "box.F1")
_MASK_FOUND = ("mask.AP", "mask.AP50", "mask.F1")
_MASK_PIXELS = ("mask.IoU", "mask.Dice")


def score(
    dataset: Dataset,
    results: Sequence[Result],
    *,
    val: Labelled | None = None,
    card: PredictionCard | None = None,
    threshold: float | None = None,
    iou: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    split: str = "test",
    sources: tuple[str, str] = ("results", "val results"),
) -> Metrics:
    """Score results against the ground truth of the split that they were predicted on.

    Args:
        dataset: ground truth of one split.
        results: predictions on it.
        val: ground truth and predictions of val, on which score thresholds are chosen; without
            them, and without ``threshold``, there is no F1, IoU, Dice or verdict.
        card: where the results come from. Where it, or an ``annotation_id`` on a result, says
            that boxes were given, the outlines alone are scored, and every result needs its
            ``annotation_id``.
        threshold: score threshold for everything, instead of those chosen on val.
        iou: IoU from which a detection counts as found in F1, above 0 and below 1.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.
        split: name of the split.
        sources: names of the results and of val's, for error messages.

    Raises:
        InputError: the split is empty, or a result cannot be scored.
    """
    _check_images(dataset, split)
    check_results(dataset, results, sources[0])
    sheet = _open_sheet(dataset, resamples, seed)
    no_masks = why_no_masks(dataset, results, card)
    boxes_given = are_boxes_given(results, card)
    if boxes_given:
        check_answers(dataset, results, sources[0])
        _score_outlines(sheet, results, no_masks)
    else:
        if val is not None:
            check_results(*val, sources[1])
        chooser = Chooser(val, threshold, iou, split)
        _score_boxes(sheet, results, chooser)
        _score_masks(sheet, results, chooser, no_masks)
        _score_images(sheet, results, chooser)
    boxes = "ground truth" if boxes_given else "detector"
    return sheet.metrics(_protocol(dataset, split, boxes, iou, resamples, seed))


def score_probabilities(
    dataset: Dataset,
    probabilities: ImageProbabilities,
    *,
    resamples: int = 1000,
    seed: int = 0,
    split: str = "test",
    source: str = "probabilities",
) -> Metrics:
    """Score image-level probabilities against the ground truth of their split.

    The verdict on an image is its most probable class, so no threshold is chosen.

    Args:
        dataset: ground truth of one split.
        probabilities: of its images, in any order.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of the bootstrap.
        split: name of the split.
        source: name of the probabilities, for error messages.

    Raises:
        InputError: the split is empty, or its classes or images are not those of the
            probabilities.
    """
    _check_images(dataset, split)
    check_probabilities(dataset, probabilities, source)
    sheet = _open_sheet(dataset, resamples, seed)
    sheet.leave_out(
        (*_BOX, *_MASK_FOUND, *_MASK_PIXELS),
        "whole images were judged, so there are no boxes and no masks to score",
    )
    row = {name: index for index, name in enumerate(probabilities.file_names)}
    values = probabilities.values[[row[image.file_name] for image in dataset.images]]
    truth = verdicts.true_labels(dataset)
    add_verdicts(sheet, truth, values.argmax(axis=1))
    add_auroc(sheet, truth, 1 - values[:, 0])
    return sheet.metrics(_protocol(dataset, split, "none", None, resamples, seed))


def _check_images(dataset: Dataset, split: str) -> None:
    if not dataset.images:
        raise InputError(f"{split}: has no images to score: convert with a split that has some")


def _open_sheet(dataset: Dataset, resamples: int, seed: int) -> Sheet:
    weights = image_weights(dataset.image_labels(), resamples, seed, dataset.photographs())
    return Sheet(dataset, weights)


def _protocol(
    dataset: Dataset, split: str, boxes: str, iou: float | None, resamples: int, seed: int
) -> Protocol:
    labels = dataset.image_labels()
    return Protocol(
        split=split,
        images=len(dataset.images),
        photographs=len(set(dataset.photographs())),
        good_images=labels.count(GOOD),
        instances=sum(dataset.count_instances().values()),
        labels={label: labels.count(label) for label in (GOOD, *dataset.categories)},
        boxes=boxes,
        iou=iou,
        resamples=resamples,
        seed=seed,
        interval=METHOD,
        dataset=dataset.name,
    )


def _score_boxes(sheet: Sheet, results: Sequence[Result], chooser: Chooser) -> None:
    if not sheet.instances:
        sheet.leave_out(_BOX, "the split has no defects")
        return
    matches = match(sheet.dataset, results, "box", chooser.iou)
    _add_found(sheet, "box", matches, chooser.for_f1("box"))


def _score_masks(
    sheet: Sheet, results: Sequence[Result], chooser: Chooser, no_masks: str | None
) -> None:
    if no_masks is not None or not sheet.instances:
        sheet.leave_out((*_MASK_FOUND, *_MASK_PIXELS), no_masks or "the split has no defects")
        return
    matches = match(sheet.dataset, results, "mask", chooser.iou)
    threshold = chooser.for_f1("mask")
    _add_found(sheet, "mask", matches, threshold)
    if isinstance(threshold, Missing):
        sheet.leave_out(_MASK_PIXELS, threshold.reason)
        return
    kept = [result for result in results if result["score"] >= threshold.value]
    boxes = pixels.filled_boxes(sheet.dataset, kept)
    _add_pixels(sheet, pixels.masks(kept), boxes, sheet.add_found)


def _add_found(
    sheet: Sheet, kind: Kind, matches: Sequence[Matches], threshold: Threshold | Missing
) -> None:
    precision = average_precision(matches, sheet.weights)
    sheet.add_found(f"{kind}.AP", np.nanmean(precision, axis=(1, 2)))
    sheet.add_found(f"{kind}.AP50", np.nanmean(precision[:, 0], axis=1))
    for index, name in sheet.present:
        sheet.add_for(name, f"{kind}.AP", precision[:, :, index].mean(axis=1))
        sheet.add_for(name, f"{kind}.AP50", precision[:, 0, index])
    if isinstance(threshold, Missing):
        sheet.leave_out([f"{kind}.F1"], threshold.reason)
        return
    sheet.set_threshold(kind, threshold)
    counts = count_at(matches, threshold.value)
    sheet.add_found(f"{kind}.F1", f1(counts.sum(axis=1), sheet.weights))
    for index, name in sheet.present:
        sheet.add_for(name, f"{kind}.F1", f1(counts[:, index], sheet.weights))


def _add_pixels(
    sheet: Sheet,
    masks: Sequence[pixels.Shape],
    boxes: Sequence[pixels.Shape],
    add: Callable[[str, Samples], None],
) -> None:
    """Overlap of the masks, and beside it that of their boxes filled."""
    overlap = pixels.overlap(sheet.dataset, masks)
    for name, measure in (("mask.IoU", pixels.iou), ("mask.Dice", pixels.dice)):
        add(name, measure(overlap[:, 0], sheet.weights))
        for index, category in sheet.present:
            sheet.add_for(category, name, measure(overlap[:, 1 + index], sheet.weights))
    filled = pixels.overlap(sheet.dataset, boxes)
    add("baseline.filled_box_IoU", pixels.iou(filled[:, 0], sheet.weights))


def _score_outlines(sheet: Sheet, results: Sequence[Result], no_masks: str | None) -> None:
    """Given boxes: how well each instance was outlined, and how well its box alone would."""
    sheet.leave_out(
        (*_BOX, *_MASK_FOUND, *VERDICT, AUROC),
        "boxes were given, so finding them was not measured",
    )
    names = (*_MASK_PIXELS, "mask.instance_IoU")
    if no_masks is not None or not sheet.instances:
        sheet.leave_out(names, no_masks or "the split has no defects")
        return
    boxes = pixels.filled_true_boxes(sheet.dataset)
    _add_pixels(sheet, pixels.masks(results), boxes, sheet.add_outlined)
    sums = pixels.instance_ious(sheet.dataset, results)
    for part, name in enumerate(("mask.instance_IoU", "baseline.filled_box_instance_IoU")):
        sheet.add_outlined(name, ratio(sums[:, 0, part], sums[:, 0, 2], sheet.weights))
        for index, category in sheet.present:
            column = sums[:, 1 + index]
            sheet.add_for(category, name, ratio(column[:, part], column[:, 2], sheet.weights))


def _score_images(sheet: Sheet, results: Sequence[Result], chooser: Chooser) -> None:
    images = verdicts.score_images(sheet.dataset, results)
    threshold = chooser.for_verdicts(images)
    if isinstance(threshold, Missing):
        sheet.leave_out(VERDICT, threshold.reason)
    else:
        sheet.set_threshold("image", threshold)
        add_verdicts(sheet, images.truth, images.verdicts(threshold.value))
    add_auroc(sheet, images.truth, images.score)
