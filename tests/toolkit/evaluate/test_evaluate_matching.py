"""Matches of both backends are the same, and give all of COCO's figures."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from converters.dataset import Dataset
from converters.formats.coco import to_coco
from toolkit.evaluate import matching, reference, score
from toolkit.evaluate.accumulate import average_precision, average_recall
from toolkit.predictions import Result

MakeScene = Callable[..., tuple[Dataset, list[Result]]]

SMALL_SIZES = {"all": (0, 1e10), "small": (0, 60), "medium": (60, 150), "large": (150, 1e10)}

scenes = pytest.mark.parametrize(
    "scene",
    [
        {},
        {"ties": True},
        {"good": 0, "defective": 3, "crowded": 30},
        {"good": 20, "defective": 2},
        {"defective": 1, "crowded": 1},
        {"categories": ("dent",)},
    ],
)
kinds = pytest.mark.parametrize("kind", ["box", "mask"])


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sizes that the scenes' instances have: small, medium and large ones among one another."""
    for name, ends in SMALL_SIZES.items():
        monkeypatch.setitem(matching.SIZES, name, ends)
    yield


@kinds
@scenes
@pytest.mark.parametrize("most", [100, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_arrays_and_pycocotools_match_alike(
    make_scene: MakeScene, kind: Any, scene: dict[str, Any], most: int, seed: int
) -> None:
    dataset, results = make_scene(seed, **scene)
    ours = matching.match(dataset, results, kind, iou=0.3, max_detections=most)
    theirs = reference.match(dataset, results, kind, iou=0.3, max_detections=most)
    for mine, other in zip(ours, theirs, strict=True):
        for name in vars(mine):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), name)


def test_a_crowd_is_matched_in_parts_as_it_is_at_once(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, results = make_scene(0, crowded=30)
    whole = matching.match(dataset, results, "mask")
    monkeypatch.setattr(matching, "_CELLS", 40)
    for mine, other in zip(matching.match(dataset, results, "mask"), whole, strict=True):
        for name in vars(mine):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), name)


def coco(dataset: Dataset, results: list[Result], kind: str) -> Any:
    """pycocotools with its own loading and defaults, but for the sizes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = to_coco(dataset)
        truth.createIndex()
        evaluation = COCOeval(
            truth, truth.loadRes(copy.deepcopy(results)), "bbox" if kind == "box" else "segm"
        )
        evaluation.params.areaRng = [list(ends) for ends in SMALL_SIZES.values()]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def undefined(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, np.nan, values)


@kinds
@scenes
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_precision_and_recall_by_size_are_those_of_pycocotools(
    make_scene: MakeScene, kind: Any, scene: dict[str, Any], seed: int
) -> None:
    dataset, results = make_scene(seed, **scene)
    if not results:
        pytest.skip("pycocotools cannot load an empty list of results")
    expected = coco(dataset, results, kind).eval
    matches = matching.match(dataset, results, kind)
    once = np.ones((1, len(dataset.images)), np.int16)
    precision = average_precision(matches, once, sizes=list(SMALL_SIZES))[:, 0]
    of_coco = undefined(expected["precision"][..., 2].mean(axis=1)).transpose(2, 0, 1)
    np.testing.assert_allclose(precision, of_coco, atol=1e-12)
    for column, most in enumerate((1, 10, 100)):
        for row, size in enumerate(SMALL_SIZES):
            recall = average_recall(matches, once, size=size, most=most)[0]
            of_coco = undefined(expected["recall"][:, :, row, column].mean(axis=0))
            np.testing.assert_allclose(recall, of_coco, atol=1e-12)


@kinds
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_twelve_figures_are_those_of_pycocotools(
    make_scene: MakeScene, kind: str, seed: int
) -> None:
    dataset, results = make_scene(seed)
    names = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    names += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]
    expected = coco(dataset, results, kind).stats
    figures = score(dataset, results, resamples=0).figures
    for name, value in zip(names, expected, strict=True):
        if value < 0:
            assert f"{kind}.{name}" not in figures
        else:
            assert figures[f"{kind}.{name}"].value == pytest.approx(value, abs=1e-9), name


def test_huge_ids_and_an_id_of_zero_change_nothing(make_scene: MakeScene) -> None:
    from dataclasses import replace

    dataset, results = make_scene(1)
    plain = score(dataset, results, resamples=0)
    new = {image.id: 2**40 + index for index, image in enumerate(dataset.images)}
    new[dataset.images[0].id] = 0
    images = tuple(
        replace(
            image,
            id=new[image.id],
            instances=tuple(replace(i, id=n) for n, i in enumerate(image.instances)),
        )
        for image in dataset.images
    )
    moved: Any = [{**result, "image_id": new[result["image_id"]]} for result in results]
    again = score(dataset.subset(images), moved, resamples=0)
    assert again.figures == plain.figures


def test_every_backend_gives_the_same_figures(make_scene: MakeScene) -> None:
    scene, val = make_scene(2), make_scene(3)
    ours, theirs = (
        score(*scene, val=val, resamples=50, backend=backend)
        for backend in ("arrays", "pycocotools")
    )
    assert ours == theirs


def test_fewer_detections_count_where_asked(make_scene: MakeScene) -> None:
    dataset, results = make_scene(2, crowded=20, categories=("dent",))
    every = score(dataset, results, resamples=0).figures
    few = score(dataset, results, resamples=0, max_detections=3).figures
    assert few["box.AR3"].value < every["box.AR100"].value
    assert "box.AR10" not in few and few["box.AR1"] == every["box.AR1"]
