"""Results that cannot be scored end in one line that says which, what and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest

from converters.dataset import Dataset
from converters.errors import InputError
from toolkit.evaluate import score
from toolkit.evaluate.checks import count_duplicates
from toolkit.predictions import PredictionCard, Result

MakeScene = Callable[..., tuple[Dataset, list[Result]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 999}, "result 3: image_id 999 is not in the split"),
        ({"image_id": "10"}, "image_id '10' is not in the split"),
        ({"category_id": 0}, "category_id 0 is not 1 to 3"),
        ({"category_id": 4}, "category_id 4 is not 1 to 3"),
        ({"score": math.nan}, "score nan is not a number from 0 to 1"),
        ({"score": math.inf}, "score inf"),
        ({"score": 97.0}, "score 97.0 is not a number from 0 to 1: scale"),
        ({"score": -0.1}, "score -0.1"),
        ({"score": None}, "score None"),
        ({"bbox": [0, 0, math.nan, 3]}, "is not four finite numbers"),
        ({"bbox": [0, 0, 3]}, "is not four finite numbers"),
        ({"bbox": [9, 9, -3, 3]}, "has a negative size: write"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "is not compressed RLE"),
        ({"segmentation": {"size": [32, 64], "counts": "0"}}, r"size \[32, 64\], the image"),
        ({"segmentation": {"size": None, "counts": "0"}}, "size None, the image"),
        ({"segmentation": {"size": 64, "counts": "0"}}, "size 64, the image"),
        ({"segmentation": {"size": [64, 64], "counts": "12"}}, "do not fill the image"),
        ({"segmentation": {"size": [64, 64], "counts": "~~"}}, "do not fill the image"),
        ({"segmentation": {"size": [64, 64], "counts": ""}}, "do not fill the image"),
    ],
)
def test_a_bad_result_is_named(make_scene: MakeScene, change: dict[str, Any], message: str) -> None:
    dataset, results = make_scene(0)
    results[3] = cast(Result, {**results[3], **change})
    with pytest.raises(InputError, match=message) as error:
        score(dataset, results, sources=("RUN/test.json", "RUN/val.json"))
    assert str(error.value).startswith("RUN/test.json: result 3: ")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^RUN/val.json: result 3"):
        score(*make_scene(1), val=(dataset, results), sources=("RUN/test.json", "RUN/val.json"))


def test_some_results_without_masks_are_not_scored_as_empty_masks(make_scene: MakeScene) -> None:
    dataset, results = make_scene(0)
    del results[2]["segmentation"]
    with pytest.raises(InputError, match="result 2: some results have a segmentation and others"):
        score(dataset, results)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([1, None], "result 1: lacks the annotation_id"),
        ([1, 1], "result 1: annotation_id 1 was answered before"),
        ([1, 999], "result 1: annotation_id 999 is not on image"),
    ],
)
def test_results_to_given_boxes_answer_each_box_once(
    make_scene: MakeScene, annotations: list[int | None], message: str
) -> None:
    dataset, results = make_scene(0)
    image = next(image for image in dataset.images if image.instances)
    given: list[Any] = [
        {**results[0], "image_id": image.id, "annotation_id": annotation}
        for annotation in annotations
    ]
    if annotations[1] is None:
        del given[1]["annotation_id"]
    with pytest.raises(InputError, match=message):
        score(dataset, given, card=PredictionCard(boxes="ground truth", masks=True))


def test_a_split_without_images_is_refused() -> None:
    with pytest.raises(InputError, match="test: has no images to score"):
        score(Dataset("empty", ("dent",)), [])


def test_duplicate_detections_are_allowed(make_scene: MakeScene) -> None:
    dataset, results = make_scene(0)
    assert "box.AP" in score(dataset, results + results, resamples=0).figures


@pytest.mark.parametrize(
    ("box", "is_fine"),
    [
        ([60, 60, 10, 10], True),  # reaches beyond the picture of 64 x 64
        ([-5, -5, 10, 10], True),
        ([70, 5, 10, 10], False),
        ([5, -20, 10, 10], False),
        ([0.1, 0.1, 0.2, 0.2], True),
    ],
)
def test_a_box_outside_of_its_picture_is_refused(
    make_scene: MakeScene, box: list[float], is_fine: bool
) -> None:
    dataset, results = make_scene(0)
    given: Any = [{**boxed, "bbox": box} for boxed in results[:1]]
    if is_fine:
        assert "box.AP" in score(dataset, given, resamples=0).figures
        return
    with pytest.raises(InputError, match="lies outside of its picture of 64 x 64 pixels"):
        score(dataset, given, resamples=0)


def test_duplicates_are_counted(make_scene: MakeScene) -> None:
    _, results = make_scene(0)
    assert count_duplicates(results) == 0
    assert count_duplicates([*results, *results[:3]]) == 3
