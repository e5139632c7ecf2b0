"""Which instances and detections the galleries show, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance
from converters.geometry import rle_from_region
from toolkit.evaluate.matching import match
from toolkit.predictions import ImageProbabilities, Result
from toolkit.report.mistakes import Detected, Judged, answered, read_scenes, worst_outlines

CATEGORIES = ("dent", "hole")
THRESHOLDS = {"dent": 0.5, "hole": 0.5}
SIZE = 64


def instance(category: str, box: tuple[int, int, int, int], number: int = 1) -> Instance:
    return Instance(category, box, np.ones((box[3], box[2]), bool), number)


def picture(number: int, *instances: Instance) -> Image:
    name = f"{number}.png"
    return Image(name, Path(name), SIZE, SIZE, instances, name, id=number)


def found(image: int, category: int, box: tuple[int, int, int, int], score: float = 0.9) -> Result:
    x, y, w, h = box
    left, width = max(x, 0), min(x + w, SIZE) - max(x, 0)
    region = ((left, y, width, h), np.ones((h, width), bool))
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": rle_from_region(region, SIZE, SIZE),
    }


def detected(images: list[Image], results: list[Result]) -> Detected:
    dataset = Dataset("d", CATEGORIES, tuple(images))
    return Detected(CATEGORIES, 0.5, read_scenes(dataset, results, THRESHOLDS, 0.5))


DENT = (10, 10, 20, 20)


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ([], "Nothing was found here."),
        ([found(1, 1, (12, 10, 20, 20), 0.2)], "Seen, but too unsure: score 0.2, below"),
        ([found(1, 2, DENT)], "Found, but called hole (score 0.90, IoU 1.00)."),
        ([found(1, 1, (10, 10, 20, 8))], "Found only roughly: IoU 0.40, 0.50 is needed"),
    ],
)
def test_a_miss_says_why(results, why) -> None:
    examples, total = detected([picture(1, instance("dent", DENT))], results).misses(5)
    assert total == 1
    assert examples[0].why.startswith(why)
    assert examples[0].box == DENT


def test_the_largest_misses_come_first_and_the_others_are_counted() -> None:
    boxes = [(0, 0, 4, 4), (10, 10, 20, 20), (40, 40, 9, 9)]
    images = [picture(n, instance("dent", box)) for n, box in enumerate(boxes, start=1)]
    examples, total = detected(images, []).misses(2)
    assert [example.box for example in examples] == [boxes[1], boxes[2]]
    assert total == 3


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (found(2, 1, DENT), "The picture is good"),
        (found(1, 2, DENT, 0.6), "There is a defect here, but it is dent."),
        (found(1, 1, (11, 10, 20, 20), 0.6), "Second detection of a defect"),
        (found(1, 1, (10, 10, 20, 8), 0.6), "Beside a defect (dent): IoU 0.40"),
        (found(1, 1, (40, 40, 9, 9), 0.6), "No defect is marked here."),
    ],
)
def test_a_false_alarm_says_why(result, why) -> None:
    images = [picture(1, instance("dent", DENT)), picture(2)]
    examples, total = detected(images, [found(1, 1, DENT), result]).false_alarms(5)
    assert total == 1
    assert examples[0].why.startswith(why)


def test_the_surest_false_alarms_come_first() -> None:
    results = [found(1, 1, DENT, 0.6), found(1, 1, (40, 40, 9, 9), 0.95), found(2, 1, DENT, 0.7)]
    examples, total = detected([picture(1), picture(2)], results).false_alarms(2)
    assert total == 3
    assert ["score 0.95" in examples[0].facts, "score 0.70" in examples[1].facts] == [True, True]


def crowd(seed: int) -> tuple[Dataset, list[Result]]:
    """Overlapping defects, and detections that are sometimes near them, some equally sure."""
    rng = np.random.default_rng(seed)
    images, results = [], []
    for number in range(1, 16):
        boxes = [tuple(map(int, rng.integers([0, 0, 8, 8], [40, 40, 24, 24]))) for _ in range(4)]
        kinds = rng.integers(1, 3, 4).tolist()
        images.append(
            picture(
                number, *(instance(CATEGORIES[k - 1], b) for k, b in zip(kinds, boxes, strict=True))
            )
        )
        for kind, (x, y, w, h) in [
            *zip(kinds, boxes, strict=True),
            *zip(kinds[::-1], boxes, strict=True),
        ]:
            near = (x + int(rng.integers(-2, 3)), y, w, h)
            results.append(found(number, kind, near, round(float(rng.random()), 1)))
    return Dataset("crowd", CATEGORIES, tuple(images)), results


def test_every_defect_takes_one_detection_as_in_the_evaluation() -> None:
    for seed in range(5):
        dataset, results = crowd(seed)
        for threshold in (0.0, 0.45):
            thresholds = dict.fromkeys(dataset.categories, threshold)
            scenes = read_scenes(dataset, results, thresholds, 0.5)
            hits = sum(int((scene.found_by >= 0).sum()) for scene in scenes)
            expected = sum(
                int((each.found_at_iou & (each.scores >= threshold)).sum())
                for each in match(dataset, results, "box")
            )
            assert hits == expected > 0
            for scene in scenes:
                by = scene.found_by[scene.found_by >= 0].tolist()
                assert len(by) == len(set(by))
                for one, row in zip(scene.image.instances, scene.found_by.tolist(), strict=True):
                    if row >= 0:
                        index = scene.image.instances.index(one)
                        assert scene.overlaps[row, index] >= 0.5
                        assert scene.kept[row]["category_id"] == dataset.category_id(one.category)


def test_the_worst_outlines_come_first_and_a_missing_one_is_the_worst() -> None:
    boxes = [DENT, (40, 40, 10, 10), (40, 4, 10, 10)]
    image = picture(1, *(instance("dent", box, n) for n, box in enumerate(boxes, start=1)))
    dataset = Dataset("d", CATEGORIES, (image,))
    results: list[Result] = [
        {**found(1, 1, DENT), "annotation_id": 1},
        {**found(1, 1, (40, 40, 10, 4)), "annotation_id": 2},
    ]
    examples, total = worst_outlines(answered(dataset, results), 2, CATEGORIES)
    assert total == 3
    assert [example.box for example in examples] == [boxes[2], boxes[1]]
    assert examples[0].why == "There is no outline."
    assert examples[1].facts == "IoU 0.40 (its true box filled: 1.00)"
    assert (
        examples[1].why == "The outline is 0.4 times as large as the defect, and covers 40% of it."
    )


def test_verdicts_go_where_they_are_wrong() -> None:
    images = (
        picture(1),
        picture(2),
        picture(3, instance("dent", DENT)),
        picture(4, instance("hole", DENT)),
    )
    values = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2]])
    probabilities = ImageProbabilities(
        ("good", *CATEGORIES), ("1.png", "2.png", "3.png", "4.png"), values
    )
    judged = Judged.of(Dataset("d", CATEGORIES, images), probabilities)
    for examples, total in (judged.misses(3), judged.false_alarms(3), judged.mixed_up(3)):
        assert total == len(examples) == 1
    assert judged.misses(3)[0][0].image.file_name == "3.png"
    assert judged.false_alarms(3)[0][0].facts == "called dent with probability 0.70"
    assert judged.mixed_up(3)[0][0].why == "It is hole, which was given probability 0.20."
