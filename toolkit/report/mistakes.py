"""What went wrong, worst first: defects that were missed, false alarms, bad outlines and verdicts.

Which detection found which defect is what ``toolkit.evaluate.matching`` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from converters.dataset import GOOD, Box, Dataset, Image, Instance
from toolkit.evaluate.matching import match
from toolkit.evaluate.pixels import instance_rle
from toolkit.predictions import ImageProbabilities, Result

Overlaps = npt.NDArray[np.float64]
"""IoU of boxes, shape (detections, instances)."""

MOST_SAID = 4
"""Detections on one picture that are named; the others are counted."""

_LITTLE = 0.1
"""Overlap below which a detection is not called a rough find."""


@dataclass(frozen=True)
class Example:
    """One entry of a gallery.

    Attributes:
        image: the picture.
        box: of what it is about, in pixels; None where it is about the whole picture.
        category: class of what it is about.
        facts: class, score and IoU in words.
        why: what went wrong, in one sentence.
        found: predictions to draw, the surest first.
        found_words: what they say, in words.
        beside: other predictions, to draw thinly.
    """

    image: Image
    box: Box | None
    category: str
    facts: str
    why: str
    found: tuple[Result, ...]
    found_words: str
    beside: tuple[Result, ...] = ()


@dataclass(frozen=True)
class Scene:
    """One picture, and what counts as found on it.

    Attributes:
        image: the picture, with its instances.
        kept: detections from the threshold on, the surest first.
        unsure: those below it, the surest first.
        overlaps: of ``kept`` with the instances.
        found_by: shape (instances,), index into ``kept`` of what found each; -1 for none.
    """

    image: Image
    kept: tuple[Result, ...]
    unsure: tuple[Result, ...]
    overlaps: Overlaps
    found_by: npt.NDArray[np.int64]


def read_scenes(
    dataset: Dataset, results: Sequence[Result], thresholds: Mapping[str, float], iou: float
) -> list[Scene]:
    """The pictures that have a defect or a detection that counts.

    Args:
        dataset: ground truth of the split.
        results: checked detections.
        thresholds: by category, the score from which detections count.
        iou: overlap of boxes from which a detection finds an instance.
    """
    by_image: defaultdict[int, list[int]] = defaultdict(list)
    for number in sorted(range(len(results)), key=lambda number: -results[number]["score"]):
        by_image[results[number]["image_id"]].append(number)
    finder = _finders(dataset, results, iou)
    least = [thresholds[name] for name in dataset.categories]
    scenes = []
    first = 0  # instance of the image, counted over all images
    for image in dataset.images:
        numbers = by_image[image.id]
        counts = {n for n in numbers if results[n]["score"] >= least[results[n]["category_id"] - 1]}
        row = {number: row for row, number in enumerate(n for n in numbers if n in counts)}
        of_image = range(first, first + len(image.instances))
        first += len(image.instances)
        if not row and image.is_good:
            continue
        kept = tuple(results[number] for number in row)
        found_by = [row.get(finder.get(instance, -1), -1) for instance in of_image]
        scenes.append(
            Scene(
                image,
                kept,
                tuple(results[n] for n in numbers if n not in counts),
                box_overlaps(kept, image.instances),
                np.array(found_by, np.int64),
            )
        )
    return scenes


def _finders(dataset: Dataset, results: Sequence[Result], iou: float) -> dict[int, int]:
    """By instance, counted over all images, the result that found it.

    A threshold changes nothing but which results count: what is below it takes no instance from
    what is above.
    """
    return {
        int(instance): int(result)
        for found in match(dataset, results, "box", iou=iou)
        for instance, result in zip(found.taken_at_iou, found.result, strict=True)
        if instance >= 0
    }


def box_overlaps(found: Sequence[Result], instances: Sequence[Instance]) -> Overlaps:
    """IoU of boxes as pycocotools computes it."""
    if not found or not instances:
        return np.zeros((len(found), len(instances)))
    boxes = np.array([result["bbox"] for result in found], np.float64)
    true = np.array([instance.box for instance in instances], np.float64)
    return np.asarray(coco_mask.iou(boxes, true, [0] * len(instances)), np.float64)


@dataclass(frozen=True)
class Detected:
    """What galleries of a detector need besides the scenes.

    Attributes:
        categories: names; the category id counts from 1.
        iou: overlap of boxes from which a detection finds an instance.
        scenes: pictures with a defect or a detection.
    """

    categories: Sequence[str]
    iou: float
    scenes: Sequence[Scene]

    def misses(self, most: int) -> tuple[list[Example], int]:
        """Defects that no detection found, the largest first; and how many there are in all."""
        missed = [
            (scene, index)
            for scene in self.scenes
            for index in np.flatnonzero(scene.found_by < 0).tolist()
        ]
        missed.sort(key=lambda entry: -entry[0].image.instances[entry[1]].area)
        return [self._miss(*entry) for entry in missed[:most]], len(missed)

    def false_alarms(self, most: int) -> tuple[list[Example], int]:
        """Detections that find nothing, the surest first; and how many there are in all."""
        wrong = [
            (scene, row)
            for scene in self.scenes
            for row in sorted(set(range(len(scene.kept))) - set(scene.found_by.tolist()))
        ]
        wrong.sort(key=lambda entry: -entry[0].kept[entry[1]]["score"])
        return [self._false_alarm(*entry) for entry in wrong[:most]], len(wrong)

    def outlines(self, most: int) -> tuple[list[Example], int]:
        """Outlines of defects that were found, the worst first; and how many there are."""
        pairs = [
            (scene.image, instance, scene.kept[row])
            for scene in self.scenes
            for instance, row in zip(scene.image.instances, scene.found_by.tolist(), strict=True)
            if row >= 0
        ]
        return worst_outlines(pairs, most, self.categories)

    def _miss(self, scene: Scene, index: int) -> Example:
        instance = scene.image.instances[index]
        why, hint = self._why_missed(scene, index, instance)
        best = float(scene.overlaps[:, index].max(initial=0.0))
        return Example(
            image=scene.image,
            box=instance.box,
            category=instance.category,
            facts=f"{_size(instance)}; best overlap with any detection: IoU {best:.2f}",
            why=why,
            found=scene.kept,
            found_words=_say(scene.kept, self.categories, hint, "too unsure, thin line"),
            beside=hint,
        )

    def _why_missed(
        self, scene: Scene, index: int, instance: Instance
    ) -> tuple[str, tuple[Result, ...]]:
        """One sentence, and the detection below the threshold that it speaks of."""
        overlaps = scene.overlaps[:, index]
        for row in np.argsort(-overlaps, kind="stable").tolist():
            result, overlap = scene.kept[row], float(overlaps[row])
            name = self.categories[result["category_id"] - 1]
            score = f"score {result['score']:.2f}"
            if overlap >= self.iou and name != instance.category:
                return f"Found, but called {name} ({score}, IoU {overlap:.2f}).", ()
            if overlap >= self.iou:
                return "The detection here found another defect already.", ()
            if overlap >= _LITTLE and name == instance.category:
                needed = f"{self.iou:.2f} is needed"
                return f"Found only roughly: IoU {overlap:.2f}, {needed} ({score}).", ()
        below = box_overlaps(scene.unsure, [instance])[:, 0]
        for row in np.flatnonzero(below >= self.iou).tolist():
            result = scene.unsure[row]
            if self.categories[result["category_id"] - 1] == instance.category:
                score = f"score {result['score']:.2g}, below the threshold"
                return f"Seen, but too unsure: {score} (IoU {below[row]:.2f}).", (result,)
        return "Nothing was found here.", ()

    def _false_alarm(self, scene: Scene, row: int) -> Example:
        result = scene.kept[row]
        name = self.categories[result["category_id"] - 1]
        others = (*scene.kept[:row], *scene.kept[row + 1 :])
        x, y, w, h = result["bbox"]
        best = float(scene.overlaps[row].max(initial=0.0))
        return Example(
            image=scene.image,
            box=(x, y, w, h),
            category=name,
            facts=f"score {result['score']:.2f}; best overlap with any defect: IoU {best:.2f}",
            why=self._why_false(scene, row, name),
            found=(result,),
            found_words=_say((result,), self.categories, others, "thin lines"),
            beside=others,
        )

    def _why_false(self, scene: Scene, row: int, name: str) -> str:
        if scene.image.is_good:
            return "The picture is good: there is no defect on it."
        overlaps = scene.overlaps[row]
        nearest = int(np.argmax(overlaps))
        overlap, there = float(overlaps[nearest]), scene.image.instances[nearest].category
        if overlap >= self.iou and there == name:
            return "Second detection of a defect that was found already."
        if overlap >= self.iou:
            return f"There is a defect here, but it is {there}."
        if overlap >= _LITTLE:
            return f"Beside a defect ({there}): IoU {overlap:.2f}, {self.iou:.2f} is needed."
        return "No defect is marked here."


def answered(
    dataset: Dataset, results: Sequence[Result]
) -> list[tuple[Image, Instance, Result | None]]:
    """Every instance with the outline that answers its given box; None where there is none."""
    answers = {result["annotation_id"]: result for result in results}
    return [
        (image, instance, answers.get(instance.id))
        for image in dataset.images
        for instance in image.instances
    ]


def outline_iou(image: Image, instance: Instance, result: Result | None) -> float:
    """IoU of the mask of a result with that of an instance; 0 without a result."""
    if result is None:
        return 0.0
    true = instance_rle(instance, image)
    return float(coco_mask.iou([result["segmentation"]], [true], [0])[0, 0])


def worst_outlines(
    pairs: Sequence[tuple[Image, Instance, Result | None]], most: int, categories: Sequence[str]
) -> tuple[list[Example], int]:
    """Outlines of instances, the least overlap first; and how many there are in all.

    Args:
        pairs: picture, instance with a mask, and the result with a mask that is its outline.
        most: how many to give.
        categories: names; the category id counts from 1.
    """
    rated = [(outline_iou(*pair), *pair) for pair in pairs]
    rated.sort(key=lambda entry: entry[0])
    return [_outline(*entry, categories) for entry in rated[:most]], len(rated)


def _outline(
    overlap: float,
    image: Image,
    instance: Instance,
    result: Result | None,
    categories: Sequence[str],
) -> Example:
    filled = instance.area / (instance.box[2] * instance.box[3])
    if result is None:
        why = "There is no outline."
    elif overlap == 0:
        why = "The outline misses the defect."
    else:
        outline, true = result["segmentation"], instance_rle(instance, image)
        both = float(coco_mask.area(coco_mask.merge([outline, true], intersect=True)))
        size = float(coco_mask.area(outline)) / instance.area
        why = (
            f"The outline is {size:.1f} times as large as the defect, "
            f"and covers {both / instance.area:.0%} of it."
        )
    score = "" if result is None or "annotation_id" in result else f"score {result['score']:.2f}; "
    found = () if result is None else (result,)
    return Example(
        image=image,
        box=instance.box,
        category=instance.category,
        facts=f"{score}IoU {overlap:.2f} (its true box filled: {filled:.2f})",
        why=why,
        found=found,
        found_words="one outline" if result is not None else "nothing",
    )


@dataclass(frozen=True)
class Judged:
    """Verdicts on whole pictures, the most probable class of each.

    Attributes:
        images: the pictures.
        classes: "good", then the categories.
        truth: index of the true label of each, shape (images,).
        values: probabilities, shape (images, classes).
    """

    images: Sequence[Image]
    classes: Sequence[str]
    truth: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @classmethod
    def of(cls, dataset: Dataset, probabilities: ImageProbabilities) -> Judged:
        """From checked probabilities."""
        row = {name: index for index, name in enumerate(probabilities.file_names)}
        values = probabilities.values[[row[image.file_name] for image in dataset.images]]
        classes = (GOOD, *dataset.categories)
        truth = np.array([classes.index(label) for label in dataset.image_labels()], np.int64)
        return cls(dataset.images, classes, truth, values)

    def misses(self, most: int) -> tuple[list[Example], int]:
        """Pictures with a defect that were called good, the surest of it first."""
        return self._wrong((self.truth > 0) & (self._given() == 0), most)

    def false_alarms(self, most: int) -> tuple[list[Example], int]:
        """Good pictures that were called defective, the surest of it first."""
        return self._wrong((self.truth == 0) & (self._given() > 0), most)

    def mixed_up(self, most: int) -> tuple[list[Example], int]:
        """Defects that were called by another defect's name, the surest of it first."""
        given = self._given()
        return self._wrong((self.truth > 0) & (given > 0) & (given != self.truth), most)

    def _given(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.values.argmax(axis=1), np.int64)

    def _wrong(self, chosen: npt.NDArray[np.bool_], most: int) -> tuple[list[Example], int]:
        (rows,) = np.nonzero(chosen)
        order = rows[np.argsort(-self.values[rows].max(axis=1), kind="stable")]
        return [self._example(row) for row in order[:most].tolist()], rows.size

    def _example(self, row: int) -> Example:
        given, truth = int(self._given()[row]), int(self.truth[row])
        verdict, label = self.classes[given], self.classes[truth]
        own = self.values[row, truth]
        return Example(
            image=self.images[row],
            box=None,
            category=label,
            facts=f"called {verdict} with probability {self.values[row, given]:.2f}",
            why=f"It is {label}, which was given probability {own:.2f}.",
            found=(),
            found_words=verdict,
        )


def _size(instance: Instance) -> str:
    _, _, w, h = instance.box
    return f"{w:g} × {h:g} px"


def _say(
    found: Sequence[Result],
    categories: Sequence[str],
    beside: Sequence[Result] = (),
    what: str = "",
) -> str:
    """Detections in words, and in brackets what those beside them are."""
    said = _list(found, categories)
    if beside:
        said += f"{'; ' if said else ''}{_list(beside, categories)} ({what})"
    return said or "nothing"


def _list(found: Sequence[Result], categories: Sequence[str]) -> str:
    said = [f"{categories[r['category_id'] - 1]} {r['score']:.2g}" for r in found[:MOST_SAID]]
    if len(found) > MOST_SAID:
        said.append(f"{len(found) - MOST_SAID} more")
    return ", ".join(said)
