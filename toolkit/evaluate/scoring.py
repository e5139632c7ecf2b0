"""From ground truth and results to all figures: which are measured, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from toolkit.evaluate.checks import (
    are_boxes_given,
    check_answers,
    check_probabilities,
    check_results,
    why_no_masks,
)
from toolkit.evaluate.image_level import AUROC, VERDICT, add_auroc, add_verdicts
from toolkit.evaluate.matching import IOUS, MAX_DETECTIONS, SIZES, Kind, Matches
from toolkit.evaluate.metrics import Metrics, Missing, Protocol, Threshold
from toolkit.evaluate.sheet import Sheet
from toolkit.evaluate.thresholds import Chooser, Labelled
from toolkit.predictions import ImageProbabilities, PredictionCard, Result

_AT_THRESHOLD = ("F1", "precision", "recall")
_FOUND = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", *_AT_THRESHOLD)
_BOX = tuple(f"box.{name}" for name in _FOUND)
_MASK_FOUND = tuple(f"mask.{name}" for name in _FOUND)
_STEPS = {"AP50": 0, "AP75": int(np.flatnonzero(np.isclose(IOUS, 0.75))[0])}
_MASK_PIXELS = ("mask.IoU", "mask.Dice")


def score(
    dataset: Dataset,
    results: Sequence[Result],
    *,
    val: Labelled | None = None,
    card: PredictionCard | None = None,
    threshold: float | None = None,
    iou: float = 0.5,
    max_detections: int = MAX_DETECTIONS,
    backend: Backend = "arrays",
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
        max_detections: that count in AP, AR and F1 per image and class, the surest.
        backend: who matches detections to instances; all give the same.
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
        find = matcher(backend, iou=iou, max_detections=max_detections)
        chooser = Chooser(val, threshold, find, split)
        _score_boxes(sheet, results, chooser, max_detections)
        _score_masks(sheet, results, chooser, no_masks, max_detections)
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


def _score_boxes(sheet: Sheet, results: Sequence[Result], chooser: Chooser, most: int) -> None:
    if not sheet.instances:
        sheet.leave_out(_BOX, "the split has no defects")
        return
    matches = chooser.matcher(sheet.dataset, results, "box")
    _add_found(sheet, "box", matches, chooser.for_f1("box"), most)


def _score_masks(
    sheet: Sheet, results: Sequence[Result], chooser: Chooser, no_masks: str | None, most: int
) -> None:
    if no_masks is not None or not sheet.instances:
        sheet.leave_out((*_MASK_FOUND, *_MASK_PIXELS), no_masks or "the split has no defects")
        return
    matches = chooser.matcher(sheet.dataset, results, "mask")
    threshold = chooser.for_f1("mask")
    _add_found(sheet, "mask", matches, threshold, most)
    if isinstance(threshold, Missing):
        sheet.leave_out(_MASK_PIXELS, threshold.reason)
        return
    kept = [result for result in results if result["score"] >= threshold.value]
    boxes = pixels.filled_boxes(sheet.dataset, kept)
    _add_pixels(sheet, pixels.masks(kept), boxes, sheet.add_found)


def _add_found(
    sheet: Sheet,
    kind: Kind,
    matches: Sequence[Matches],
    threshold: Threshold | Missing,
    most: int,
) -> None:
    """Which defects were found: COCO's figures, and those at the threshold."""
    _add_precision(sheet, kind, matches)
    _add_recall(sheet, kind, matches, most)
    names = [f"{kind}.{name}" for name in _AT_THRESHOLD]
    if isinstance(threshold, Missing):
        sheet.leave_out(names, threshold.reason)
        return
    sheet.set_threshold(kind, threshold)
    counts = count_at(matches, threshold.value)
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
