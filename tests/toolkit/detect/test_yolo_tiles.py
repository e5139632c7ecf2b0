"""Tiles: every defect is seen whole or as much as can be, in training and in prediction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg

from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from converters.folder import DatasetFolder
from converters.geometry import connected_regions
from toolkit.cli import main
from toolkit.config import FinetuneYoloConfig, PredictConfig, build
from toolkit.detect import Detector, finetune_yolo, predict_dataset
from toolkit.detect.data import DefectImages, Draw, EpochDraws, data_description
from toolkit.detect.embeddings import resolve_embeddings
from toolkit.detect.export import Agreement, _describe
from toolkit.detect.merging import merge
from toolkit.detect.models import build_model, set_classes
from toolkit.detect.size import suggest_image_size
from toolkit.detect.tiled_data import TiledImages
from toolkit.detect.tiles import (
    MIN_VISIBLE,
    Tiling,
    Window,
    cut,
    tile_dataset,
    tiling_for,
    window_factors,
)
from toolkit.detect.weights import RunModel, load_trained
from toolkit.images import read_image
from toolkit.predict import predict
from toolkit.predictions import read_card, read_results

CPU = torch.device("cpu")
MakeDataset = Callable[..., Path]

tilings = st.builds(Tiling, st.integers(32, 90), st.floats(0, 0.9))
sides = st.integers(1, 300)


def _picture(width: int, height: int, *instances: Instance, name: str = "a.png") -> Image:
    return Image(name, Path(name), width, height, instances, id=1)


def _square(x: int, y: int, w: int, h: int, kind: str = "spot") -> Instance:
    return Instance(kind, (x, y, w, h), np.ones((h, w), bool))


# Where windows lie.


@given(sides, sides, tilings)
def test_windows_cover_every_pixel_and_stay_inside(width: int, height: int, tiling: Tiling) -> None:
    seen = np.zeros((height, width), bool)
    for x, y, w, h in tiling.frames(width, height):
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        assert (w, h) == (min(tiling.size, width), min(tiling.size, height))
        seen[y : y + h, x : x + w] = True
    assert seen.all()


@given(sides, tilings)
def test_windows_overlap_as_asked_and_are_no_more_than_needed(width: int, tiling: Tiling) -> None:
    starts = [x for x, *_ in tiling.frames(width, 1)]
    step = tiling.size - round(tiling.size * tiling.overlap)
    assert all(0 < b - a <= step for a, b in pairwise(starts))
    if len(starts) > 1:  # one less would not reach
        assert step * (len(starts) - 2) + tiling.size < width


def test_a_picture_that_is_no_larger_than_a_window_is_one() -> None:
    assert Tiling(64).frames(64, 40) == [(0, 0, 64, 40)]
    assert [frame[0] for frame in Tiling(64).frames(65, 64)] == [0, 1]


# What shows in them.


@st.composite
def _cut_pictures(draw: Any) -> tuple[Image, Tiling, list[np.ndarray]]:
    """A picture with defects of any shape and size, also larger than a window; and their masks."""
    width, height = draw(st.integers(20, 150)), draw(st.integers(20, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    instances, masks = [], []
    for _ in range(draw(st.integers(1, 3))):
        mask = np.zeros((height, width), np.uint8)
        corners = rng.integers(0, [width, height], (3, 2)).astype(np.int32)
        (cv2.fillPoly if rng.random() < 0.5 else cv2.polylines)(mask, [corners], True, 1)
        (region,) = connected_regions(mask.astype(bool))
        boxed = draw(st.booleans())
        instances.append(Instance("spot", region[0], None if boxed else region[1], len(masks) + 1))
        if boxed:
            x, y, w, h = region[0]
            mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
        masks.append(mask.astype(bool))
    tiling = Tiling(draw(st.integers(32, 80)), draw(st.sampled_from([0, 0.2, 0.5])))
    return _picture(width, height, *instances), tiling, masks


@settings(deadline=None)
@given(_cut_pictures())
def test_every_defect_is_in_a_window_and_no_defect_is_taught_as_background(case: Any) -> None:
    image, tiling, masks = case
    windows = cut(image, tiling)
    frames = tiling.frames(image.width, image.height)
    places = [(w.left, w.top, w.width, w.height) for w in windows]
    assert places == [frame for frame in frames if frame in places]

    def inside(mask: np.ndarray, frame: tuple[int, int, int, int]) -> np.ndarray:
        x, y, w, h = frame
        return mask[y : y + h, x : x + w]

    most = [max(np.count_nonzero(inside(mask, frame)) for frame in frames) for mask in masks]
    for window, place in zip(windows, places, strict=True):
        shown = {instance.id - 1: instance for instance in window.instances}
        for index, mask in enumerate(masks):
            part = inside(mask, place)
            if not part.any():
                assert index not in shown
                continue
            x, y, w, h = cv2.boundingRect(part.view(np.uint8))
            assert shown[index].box == (x, y, w, h)
            assert shown[index].area == np.count_nonzero(part)
    seen = {instance.id for window in windows for instance in window.instances}
    assert seen == set(range(1, len(masks) + 1))
    for frame in set(frames) - set(places):  # left out: slivers alone
        parts = [np.count_nonzero(inside(mask, frame)) for mask in masks]
        assert any(parts)
        assert all(part < MIN_VISIBLE * best for part, best in zip(parts, most, strict=True))


def _boxes_by_left(image: Image, tiling: Tiling) -> dict[int, list[tuple[float, ...]]]:
    return {w.left: [i.box for i in w.instances] for w in cut(image, tiling)}


@pytest.mark.parametrize(
    ("instances", "boxes"),
    [
        # windows begin at 0 and 80: their edges are 100 and 80
        ([_square(92, 5, 12, 12)], {0: [(92, 5, 8, 12)], 80: [(12, 5, 12, 12)]}),
        ([_square(97, 5, 12, 12)], {0: [(97, 5, 3, 12)], 80: [(17, 5, 12, 12)]}),  # a quarter
        ([_square(98, 5, 12, 12)], {80: [(18, 5, 12, 12)]}),  # a sliver alone: left out
        (
            [_square(98, 5, 12, 12), _square(20, 50, 9, 9)],  # a sliver beside another defect
            {0: [(20, 50, 9, 9), (98, 5, 2, 12)], 80: [(18, 5, 12, 12)]},
        ),
        ([_square(10, 5, 165, 9)], {0: [(10, 5, 90, 9)], 80: [(0, 5, 95, 9)]}),  # larger than both
        ([_square(10, 5, 9, 9)], {0: [(10, 5, 9, 9)], 80: []}),
    ],
)
def test_what_a_window_shows_of_a_defect(instances: Any, boxes: Any) -> None:
    assert _boxes_by_left(_picture(180, 100, *instances), Tiling(100, 0.2)) == boxes


def test_the_share_is_one_of_mask_pixels_where_there_is_a_mask() -> None:
    corner = np.zeros((40, 40), bool)
    corner[:, 39] = corner[39] = True
    masked = Instance("spot", (85, 5, 40, 40), corner)
    boxed = replace(masked, mask=None)
    # The window ends at 100: 15 of 79 pixels, but 15 of 40 columns.
    assert list(_boxes_by_left(_picture(200, 100, masked), Tiling(100, 0))) == [100]
    assert list(_boxes_by_left(_picture(200, 100, boxed), Tiling(100, 0))) == [0, 100]


# Which windows an epoch shows.


def _windows(**options: Any) -> Dataset:
    images = [_picture(300, 300, name=f"good{n}.png") for n in range(2)]
    images += [_picture(300, 300, _square(10, 10, 9, 9), name=f"spot{n}.png") for n in range(4)]
    images += [_picture(300, 300, _square(10, 10, 9, 9, "dent"), name="dent.png")]
    return tile_dataset(Dataset("data", ("spot", "dent"), tuple(images)), Tiling(100, 0, **options))


def _epochs(windows: Dataset, factors: list[float], count: int, seed: int) -> list[list[int]]:
    draws = EpochDraws(factors, seed)
    return [[draw.picture for draw in draws] for _ in range(count)]


@pytest.mark.parametrize(("background", "empty"), [(0.0, 0), (1.0, 5), (2.4, 12), (100.0, 58)])
def test_an_epoch_shows_all_defects_and_as_much_background_as_asked(
    background: float, empty: int
) -> None:
    windows = _windows()
    assert len(windows.images) == 7 * 9
    factors = window_factors(windows, "uniform", background)
    for epoch in _epochs(windows, factors, 4, seed=3):
        counts = Counter(epoch)
        shown = [windows.images[index] for index in epoch]
        assert sum(window.is_good for window in shown) == empty
        assert all(counts[i] == 1 for i, w in enumerate(windows.images) if w.instances)
        assert max(counts.values()) == 1
    assert _epochs(windows, factors, 3, seed=3) == _epochs(windows, factors, 3, seed=3)
    assert _epochs(windows, factors, 3, seed=3) != _epochs(windows, factors, 3, seed=4)


def test_every_window_has_its_turn_and_good_pictures_their_share() -> None:
    windows = _windows()
    shown = Counter(
        index
        for epoch in _epochs(windows, window_factors(windows, "uniform", 1.0), 300, seed=0)
        for index in epoch
    )
    assert len(shown) == len(windows.images)
    good = sum(n for i, n in shown.items() if windows.images[i].file_name.startswith("good"))
    assert good / (300 * 5) == pytest.approx(18 / 58, abs=0.05)


def test_windows_of_rare_classes_come_more_often() -> None:
    windows = _windows()
    factors = window_factors(windows, "repeat-factor", 1.0)
    of = {w.labels[0]: f for w, f in zip(windows.images, factors, strict=True)}
    assert of == pytest.approx({"spot": 1, "dent": 2, "good": 6 / 58})  # sqrt(4 / 1); 4 + 2 in all


# What the network is given.


def _loader(kind: type[DefectImages], truth: Dataset, mode: str, size: int) -> DefectImages:
    arguments = get_cfg(overrides={"imgsz": size, "task": "detect"})
    description = data_description({"train": truth})
    return kind(truth, mode, arguments, description, 4)  # type: ignore[arg-type]


def _same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    same = [
        np.array_equal(value, two[key]) if hasattr(value, "shape") else value == two[key]
        for key, value in one.items()
    ]
    return one.keys() == two.keys() and all(same)


@pytest.mark.parametrize("mode", ["train", "val"])
def test_pictures_of_one_window_are_given_as_without_tiles(
    make_dataset: MakeDataset, mode: str
) -> None:
    truth = DatasetFolder.open(make_dataset()).read("train")
    whole = _loader(DefectImages, truth, mode, 96)
    tiled = _loader(TiledImages, tile_dataset(truth, Tiling(64)), mode, 96)
    assert len(whole) == len(tiled)
    mine, other = (
        sorted(
            (images[Draw(index, 7) if mode == "train" else index] for index in range(len(images))),
            key=lambda item: item["im_file"],
        )
        for images in (whole, tiled)
    )
    assert all(_same(a, b) for a, b in zip(mine, other, strict=True))


def test_every_window_comes_with_its_own_pixels_and_boxes(make_dataset: MakeDataset) -> None:
    truth = DatasetFolder.open(make_dataset(size=100)).read("val")
    tiles = tile_dataset(truth, Tiling(64))
    loader = _loader(TiledImages, tiles, "val", 64)
    expected = Counter()
    for window in tiles.images:
        assert isinstance(window, Window)
        pixels = read_image(window.path)[window.top :, window.left :][:64, :64]
        boxes = [i.box for i in window.instances]
        expected[pixels.tobytes(), str(boxes)] += 1
    given_: Counter[Any] = Counter()
    for index in range(len(loader)):
        item = loader[index]
        (top, left), (height, width) = ((s - 64) // 2 for s in item["img"].shape[1:]), (64, 64)
        pixels = item["img"].numpy().transpose(1, 2, 0)[top : top + 64, left : left + 64]
        scale = np.array([item["img"].shape[2], item["img"].shape[1]] * 2)
        centre = item["bboxes"].numpy() * scale
        corner = np.round(centre[:, :2] - centre[:, 2:] / 2 - [left, top])
        boxes = np.hstack([corner, np.round(centre[:, 2:])]).astype(int)
        given_[pixels.tobytes(), str([tuple(box) for box in boxes.tolist()])] += 1
        assert (height, width) == item["ori_shape"]
    assert given_ == expected
    assert sum(expected.values()) > len(truth.images)


def test_an_item_depends_on_its_draw_alone(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(size=100)
    tiles = tile_dataset(DatasetFolder.open(data).read("train"), Tiling(64))
    fresh = _loader(TiledImages, tiles, "train", 64)
    used = _loader(TiledImages, tiles, "train", 64)
    monkeypatch.setattr("toolkit.detect.tiled_data._RECENT", 1)  # reads every picture again
    used.max_buffer_length = 2
    for index in range(len(tiles.images)):
        used[Draw(index, index)]
    assert sum(image is not None for image in used.ims) < 3
    assert len(used._recent) == 1
    assert _same(fresh[Draw(3, 11)], used[Draw(3, 11)])
    assert not _same(fresh[Draw(3, 11)], fresh[Draw(3, 12)])


def test_the_size_follows_defects_in_their_tile() -> None:
    train = Dataset("data", ("spot",), (_picture(2000, 1000, _square(5, 5, 10, 10)),))
    assert suggest_image_size(train) == 1280
    assert suggest_image_size(train, 200) == 160  # 8 / 10 of 200
    assert suggest_image_size(train, 5000) == 1280  # the picture is smaller


# Merging.


def _found(*rows: tuple[float, float, float, float, float, int]) -> sv.Detections:
    array = np.array(rows, np.float32).reshape(-1, 6)
    classes = array[:, 5].astype(int)
    names = np.array(["spot", "dent"], object)[classes]
    return sv.Detections(
        array[:, :4], confidence=array[:, 4], class_id=classes, data={"class_name": names}
    )


_PAIR = ((0, 0, 100, 100), (80, 0, 100, 100))


def _merged(left: list[Any], right: list[Any], **options: Any) -> list[tuple[float, ...]]:
    """Boxes of two windows, all in pixels of the picture."""
    moved = [(x1 - 80, y1, x2 - 80, y2, score, kind) for x1, y1, x2, y2, score, kind in right]
    found = merge([_found(*left), _found(*moved)], _PAIR, **options)
    assert found.confidence is not None and found.class_id is not None
    assert found.data["class_name"].tolist() == [("spot", "dent")[i] for i in found.class_id]
    rows = zip(found.xyxy, found.confidence, found.class_id, strict=True)
    return [(*np.round(box).tolist(), round(float(s), 3), int(c)) for box, s, c in rows]


@pytest.mark.parametrize(
    ("left", "right", "merged"),
    [
        # seen by both: the better one
        ([(82, 5, 95, 20, 0.6, 0)], [(83, 5, 95, 20, 0.8, 0)], [(83, 5, 95, 20, 0.8, 0)]),
        # cut by the left window, whole in the right one: whole, with the better score
        ([(90, 5, 100, 20, 0.9, 0)], [(90, 5, 120, 20, 0.7, 0)], [(90, 5, 120, 20, 0.9, 0)]),
        ([(90, 5, 100, 20, 0.4, 0)], [(90, 5, 120, 20, 0.7, 0)], [(90, 5, 120, 20, 0.7, 0)]),
        # cut, and of a defect that goes down: the part lies in the whole, though not alike
        ([(90, 5, 100, 15, 0.6, 0)], [(90, 5, 120, 60, 0.7, 0)], [(90, 5, 120, 60, 0.7, 0)]),
        # cut by both
        ([(10, 5, 100, 20, 0.8, 0)], [(80, 5, 160, 20, 0.6, 0)], [(10, 5, 160, 20, 0.8, 0)]),
        # of two classes
        (
            [(10, 5, 100, 20, 0.8, 0)],
            [(80, 5, 160, 20, 0.6, 1)],
            [(10, 5, 100, 20, 0.8, 0), (80, 5, 160, 20, 0.6, 1)],
        ),
        # two defects, one in the other's box, neither cut where the other goes on
        (
            [(82, 5, 90, 12, 0.8, 0)],
            [(82, 5, 150, 80, 0.6, 0)],
            [(82, 5, 90, 12, 0.8, 0), (82, 5, 150, 80, 0.6, 0)],
        ),
        # a guess does not widen what is well seen
        (
            [(10, 5, 100, 20, 0.8, 0)],
            [(80, 5, 170, 20, 0.01, 0)],
            [(10, 5, 100, 20, 0.8, 0), (80, 5, 170, 20, 0.01, 0)],
        ),
        # nor does another answer of a window that has given one
        (
            [(90, 5, 99, 20, 0.9, 0)],
            [(90, 5, 99, 20, 0.8, 0), (88, 2, 170, 22, 0.5, 0)],
            [(90, 5, 99, 20, 0.9, 0), (88, 2, 170, 22, 0.5, 0)],
        ),
        # a widened box and another of the right window
        (
            [(10, 5, 100, 20, 0.8, 0)],
            [(80, 5, 160, 20, 0.6, 0), (80, 5, 110, 19, 0.5, 0), (80, 5, 99, 19, 0.4, 0)],
            [(10, 5, 160, 20, 0.8, 0), (80, 5, 110, 19, 0.5, 0)],
        ),
        (
            [(10, 5, 100, 20, 0.8, 0)],
            [(80, 5, 116, 20, 0.6, 0), (81, 5, 120, 20, 0.5, 0), (90, 50, 120, 70, 0.9, 0)],
            [(90, 50, 120, 70, 0.9, 0), (10, 5, 116, 20, 0.8, 0), (81, 5, 120, 20, 0.5, 0)],
        ),
        # a widened box suppresses what neither of its parts did
        (
            [(70, 5, 100, 25, 0.8, 0)],
            [(82, 5, 150, 20, 0.6, 0), (82, 5, 150, 27, 0.5, 0)],
            [(70, 5, 150, 25, 0.8, 0)],
        ),
        # within a window nothing is merged
        (
            [(5, 5, 60, 60, 0.9, 0), (10, 10, 20, 20, 0.8, 0)],
            [],
            [(5, 5, 60, 60, 0.9, 0), (10, 10, 20, 20, 0.8, 0)],
        ),
        ([], [], []),
    ],
)
def test_what_two_windows_show_becomes_one(left: Any, right: Any, merged: Any) -> None:
    assert _merged(left, right) == merged


def test_the_best_boxes_of_the_picture_are_kept() -> None:
    left = [(x, 5, x + 8, 20, x / 100, 0) for x in (10, 20, 30)]
    right = [(x, 5, x + 8, 20, x / 200, 0) for x in (110, 130)]
    assert [row[4] for row in _merged(left, right, max_detections=3)] == [0.65, 0.55, 0.3]


@st.composite
def _perfectly_seen(draw: Any) -> tuple[Tiling, int, int, np.ndarray, int]:
    """Boxes in cells of a grid, so that they lie apart; from specks to many windows."""
    tiling = Tiling(draw(st.integers(64, 100)), draw(st.sampled_from([0.2, 0.3, 0.5])))
    cell = draw(st.integers(40, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes = []
    for row in range(2):
        for column in range(2):
            low, high = np.sort(rng.integers(0, cell - 12, (2, 2)), axis=0)
            corner = np.array([column, row]) * cell
            boxes.append([*(low + corner), *(high + corner + 10)])
    return tiling, 2 * cell, 2 * cell, np.array(boxes, np.float32), draw(st.integers(0, 999))


@settings(deadline=None)
@given(_perfectly_seen())
def test_boxes_that_are_right_in_every_window_are_right_in_the_picture(case: Any) -> None:
    tiling, width, height, boxes, seed = case
    rng = np.random.default_rng(seed)
    instances = [Instance("spot", (x, y, r - x, b - y), None) for x, y, r, b in boxes.tolist()]
    windows = cut(_picture(width, height, *instances), tiling)
    found = [
        _found(
            *(
                (x, y, x + w, y + h, rng.uniform(0.5, 1), 0)
                for x, y, w, h in (instance.box for instance in window.instances)
            )
        )
        for window in windows
    ]
    frames = [(w.left, w.top, w.width, w.height) for w in windows]
    merged = merge(found, frames)
    assert len(merged) == len(boxes)
    distance = np.abs(merged.xyxy[:, None] - boxes[None]).max(axis=2)
    assert sorted(distance.argmin(axis=1)) == [0, 1, 2, 3]
    assert distance.min(axis=1).max() <= tiling.size / 4  # a sliver was not to be found


# The detector.


@pytest.fixture(scope="module")
def eager() -> RunModel:
    """A model that, untrained, sees defects everywhere."""
    model = build_model("n", seed=0)
    embeddings = resolve_embeddings(("scratch", "spot"), None, None, seed=0)
    set_classes(model, embeddings)
    for head in model.model[-1].cv4:
        torch.nn.init.zeros_(head.bias)
    return RunModel(model, "n", embeddings, 64, "random weights")


def _noise(seed: int, height: int, width: int) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_pictures_of_one_window_are_found_as_whole_ones(eager: RunModel) -> None:
    images = [_noise(seed, height, 64) for seed, height in enumerate((64, 40, 64))]
    whole = Detector(eager, CPU)(images)
    tiled = Detector(replace(eager, tile=Tiling(64)), CPU)(images)
    assert whole == tiled
    assert min(map(len, whole)) > 10


def test_windows_go_through_the_network_as_they_are_and_in_batches(eager: RunModel) -> None:
    image = _noise(1, 128, 192)
    detector = Detector(replace(eager, tile=Tiling(64, 0)), CPU, max_detections=300)
    seen: list[Any] = []
    answers: list[list[sv.Detections]] = []
    plain = detector._find

    def record(images: Any) -> list[sv.Detections]:
        seen.append(list(images))
        answers.append(plain(images))
        return answers[-1]

    detector._find = record  # type: ignore[method-assign]
    (found,) = detector([image])
    assert [len(batch) for batch in seen] == [6]
    rows = []
    frames = Tiling(64, 0).frames(192, 128)
    for (x, y, w, h), part, alone in zip(frames, seen[0], answers[0], strict=True):
        assert np.array_equal(part, image[y : y + h, x : x + w])
        assert alone.confidence is not None
        rows.append(np.column_stack([alone.confidence, alone.xyxy + np.float32([x, y, x, y])]))
    every = np.concatenate(rows)
    assert found.confidence is not None  # windows do not overlap: there is nothing to merge
    assert np.array_equal(found.confidence, np.sort(every[:, 0])[::-1][:300])
    kept = np.column_stack([found.confidence, found.xyxy])
    assert set(map(tuple, kept.tolist())) <= set(map(tuple, every.tolist()))
    assert len({(x // 64, y // 64) for x, y, *_ in found.xyxy}) > 1
    seen.clear()
    detector([image] * 3)
    assert [len(batch) for batch in seen] == [16, 2]


@pytest.mark.parametrize(
    ("trained", "tile", "overlap", "result"),
    [
        (None, None, None, None),
        (None, 64, None, Tiling(64, 0.2)),
        (None, 64, 0.5, Tiling(64, 0.5)),
        (Tiling(96, 0.3), None, None, Tiling(96, 0.3)),
        (Tiling(96, 0.3), 64, None, Tiling(64, 0.3)),
        (Tiling(96, 0.3), None, 0.0, Tiling(96, 0.0)),
        (Tiling(96, 0.3), 0, None, None),
        (None, 0, None, None),
    ],
)
def test_what_is_asked_for_wins(trained: Any, tile: Any, overlap: Any, result: Any) -> None:
    assert tiling_for(trained, tile, overlap) == result


# The commands.


def _config(data: Path, out: str, **options: Any) -> FinetuneYoloConfig:
    defaults: dict[str, Any] = {"epochs": 2, "image_size": 64, "batch": 8, "device": "cpu"}
    return FinetuneYoloConfig(data=data, out=data.parent / out, **{**defaults, **options})


def test_a_run_on_tiles_predicts_on_tiles(
    make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(size=150, good=1, per_kind=2)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}

    options = {"tile": 80, "tile_overlap": 0.25, "confidence": 1e-5, "weights": "starter"}
    run = finetune_yolo(_config(data, "run", **options))

    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    described = json.loads((run.checkpoints / "model.json").read_text())
    assert described["tile"] == {"size": 80, "overlap": 0.25}
    card = read_card(run.predictions)
    assert card is not None and card.detector == (
        "YOLO-World v2 n, 64 px in tiles of 80 px that overlap by 0.25, from starter"
    )
    told = capsys.readouterr().err
    train = tile_dataset(DatasetFolder.open(data).read("train"), Tiling(80, 0.25))
    val = tile_dataset(DatasetFolder.open(data).read("val"), Tiling(80, 0.25))
    defects = sum(not window.is_good for window in train.images)
    assert f"shows {min(2 * defects, len(train.images))} of {len(train.images)} windows" in told
    assert f"{defects} of them with defects; val has {len(val.images)}" in told

    written = read_results(run.predictions / "test.json")
    test = DatasetFolder.open(data).read("test")
    tiled = Detector.load(run.root, CPU, confidence=1e-5)
    assert written == predict_dataset(tiled, test, batch=8)
    assert max(Counter(result["image_id"] for result in written).values()) <= 100
    found: dict[str, Any] = {"": written}
    for name, options in {"whole": {"tile": 0}, "small": {"tile": 64, "tile_overlap": 0.5}}.items():
        out = data.parent / name
        config = PredictConfig(
            source=data, out=out, detector=run.root, confidence=1e-5, device="cpu", **options
        )
        predict(config)
        found[name] = read_results(out / "predictions" / "test.json")
    model = load_trained(run.root)
    whole = Detector(replace(model, tile=None), CPU, confidence=1e-5)
    assert found["whole"] == predict_dataset(whole, test)
    smaller = Detector(replace(model, tile=Tiling(64, 0.5)), CPU, confidence=1e-5)
    assert found["small"] == predict_dataset(smaller, test)
    assert len({json.dumps(results) for results in found.values()}) == 3

    described["tile"] = {"size": 80, "overlap": 2}
    (run.checkpoints / "model.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"model\.json: describes no detector"):
        load_trained(run.root)


def test_the_description_of_an_exported_model_says_how_pictures_are_cut(eager: RunModel) -> None:
    from toolkit.config import ExportConfig

    config = ExportConfig(run="run", out="model.onnx")
    agreement = Agreement(1, "pictures", 1, 1, 1, 0.0, 0.0, 1.0, 1.0)
    tiled = _describe(config, replace(eager, tile=Tiling(96, 0.3)), 64, agreement)
    assert tiled["tiles"] == {"size": 96, "overlap": 0.3}
    assert "tiles" not in _describe(config, eager, 64, agreement)


_TRAIN = ["finetune", "yolo", "--data", "no", "--out", "run"]
_PREDICT = ["predict", "no", "--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*_TRAIN, "--tile", "31"], "field 'tile': input should be greater than or equal to 32"),
        ([*_TRAIN, "--tile", "64", "--tile-overlap", "1"], "'tile_overlap': input should be less"),
        ([*_TRAIN, "--tile", "64", "--tile-overlap", "-0.1"], "'tile_overlap': input should be gr"),
        ([*_TRAIN, "--tile", "64", "--tile-background", "-1"], "field 'tile_background'"),
        ([*_TRAIN, "--tile-overlap", "0.5"], "tile_overlap: pictures are not cut into tiles: give"),
        ([*_TRAIN, "--tile-background", "2"], "tile_background: pictures are not cut"),
        ([*_PREDICT, "--detector", "starter", "--tile", "16"], "tile: 16 is too small: give at"),
        ([*_PREDICT, "--detector", "starter", "--tile-overlap", "1"], "field 'tile_overlap'"),
        ([*_PREDICT, "--detector", "starter", "--tile-overlap", "0.5"], "give tile as well"),
        ([*_PREDICT, "--segmenter", "starter", "--tile", "64"], "give detector as well"),
    ],
)
def test_tiles_that_cannot_be_cut_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_configuration_with_tiles_is_read_back(tmp_path: Path) -> None:
    from toolkit.config import to_yaml

    for options in ({}, {"tile": 64, "tile_overlap": 0.4, "tile_background": 3.0}):
        config = FinetuneYoloConfig(data="data", out="out", **options)
        file = tmp_path / "config.yaml"
        file.write_text(to_yaml(config))
        assert build(FinetuneYoloConfig, file, {}) == config
