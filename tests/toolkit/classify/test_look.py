"""Pictures of what a classifier sees, on made problems where the truth is known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sklearn.metrics import silhouette_score
from torch.nn import functional as F

from converters.dataset import Dataset, Image, Instance
from toolkit.classify import Classifier, finetune_classifier
from toolkit.classify.data import Pictures, to_input
from toolkit.classify.look import charts, draw, features, made_pictures
from toolkit.classify.look.cam import (
    Verdict,
    draw_cam,
    explained_layer,
    grad_cam,
    instructive,
    judge,
    pointing,
)
from toolkit.classify.look.features import Entry, embed, some
from toolkit.classify.model import build_resnet
from toolkit.classify.weights import Description
from toolkit.config import FinetuneClassifierConfig
from toolkit.runs import RunFolder

pytestmark = pytest.mark.usefixtures("narrow")

SIDE = 64
CLASSES = ("good", "left", "right")


def _squares(count, seed):
    """Noise, with a bright square on the left or on the right of two thirds of the pictures."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.normal(100, 12, (count, SIDE, SIDE, 3))
    masks = np.zeros((count, SIDE, SIDE), bool)
    for number, label in enumerate(labels):
        if label:
            x, y = int(rng.integers(2, 14)) + 32 * (label == 2), int(rng.integers(2, 46))
            masks[number, y : y + 16, x : x + 16] = True
            pixels[number][masks[number]] += 90
    return Pictures(pixels.clip(0, 255).astype(np.uint8), labels), masks


def _taught(seed, steps=40):
    """A classifier that has learnt where the square is."""
    torch.manual_seed(seed)
    model = build_resnet("resnet18", len(CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    train, _ = _squares(96, seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(train.labels), 24)
        logits = model(to_input(torch.from_numpy(train.pixels[rows])))
        loss = F.cross_entropy(logits, torch.from_numpy(train.labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return Classifier(model, Description("resnet18", CLASSES, SIDE))


def _on_disk(folder, pictures, masks, name="made"):
    """A split whose pictures are files, as reading and drawing need them."""
    folder.mkdir(exist_ok=True)
    images = []
    for number, (pixels, mask) in enumerate(zip(pictures.pixels, masks, strict=True)):
        path = folder / f"{name}_{number:03d}.png"
        cv2.imwrite(str(path), pixels[..., ::-1])
        instances = ()
        if mask.any():
            ys, xs = np.nonzero(mask)
            box = (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
            crop = np.ones((box[3], box[2]), bool)
            kind = CLASSES[pictures.labels[number]]
            instances = (Instance(kind, tuple(map(float, box)), crop, number + 1),)
        images.append(Image(path.name, path, SIDE, SIDE, instances, id=number + 1))
    return Dataset("squares", CLASSES[1:], tuple(images))


@pytest.fixture(autouse=True)
def quick_charts(monkeypatch):
    """Coarser than usual: drawing them takes most of the time."""
    monkeypatch.setattr(charts, "DOTS_PER_INCH", 30)


def _rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("seed", range(3))
def test_maps_of_a_network_that_learnt_where_a_square_is_point_at_it(seed, tmp_path):
    classifier = _taught(seed)
    pictures, masks = _squares(30, 100 + seed)
    dataset = _on_disk(tmp_path / "images", pictures, masks)
    verdicts = judge(classifier, dataset, pictures, np.arange(30))
    assert np.mean([v.truth == v.verdict for v in verdicts]) > 0.9
    inside, by_chance = pointing(verdicts, seed)
    assert by_chance.value == pytest.approx(1 / 16)
    assert inside.ci95[0] > 1.5 * by_chance.value
    assert inside.n == sum(v.verdict != "good" for v in verdicts if v.truth != "good")
    for verdict in verdicts:
        assert verdict.map.sum() == pytest.approx(1, abs=1e-4) or not verdict.map.any()
        assert (verdict.inside is None) == (verdict.truth == "good")


def test_a_map_is_of_the_class_that_is_asked_for():
    classifier = _taught(0)
    pictures, _ = _squares(3, 5)
    left, right = (grad_cam(classifier, pictures.pixels, np.full(3, label)) for label in (1, 2))
    assert not np.allclose(left, right)


def test_making_maps_leaves_the_network_as_it_was():
    classifier = _taught(0, steps=2)
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    pictures, _ = _squares(3, 5)
    grad_cam(classifier, pictures.pixels, pictures.labels)
    assert all(torch.equal(before[n], v) for n, v in classifier.network.state_dict().items())
    assert all(value.grad is None for value in classifier.network.parameters())
    assert not any(part._forward_hooks for part in classifier.network.modules())


@pytest.mark.parametrize(
    ("side", "layer", "cells"),
    [(224, "layer4", 7), (128, "layer3", 8), (64, "layer2", 8), (32, "layer1", 8)],
)
def test_small_pictures_are_explained_by_an_earlier_layer(side, layer, cells):
    assert explained_layer(side) == (layer, cells)


def _verdict(truth, verdict, probability, inside=None):
    image = Image("a.png", None, 8, 8)
    even = None if inside is None else 0.1
    return Verdict(image, -1, truth, verdict, probability, np.zeros((8, 8)), inside, even)


def test_mistakes_come_first_the_surest_of_them_and_then_the_least_sure():
    given = [("a", "a", 0.9), ("a", "b", 0.6), ("a", "a", 0.5), ("b", "a", 0.8)]
    order = instructive([_verdict(*each) for each in given])
    assert [verdict.probability for verdict in order] == [0.8, 0.6, 0.5, 0.9]


def test_what_was_called_good_is_no_part_of_the_pointing():
    called = [_verdict("a", "a", 0.9, 0.5), _verdict("a", "b", 0.9, 0.3)]
    missed = [_verdict("a", "good", 0.9, 0.0), _verdict("good", "a", 0.9)]
    inside, by_chance = pointing(called + missed, 0)
    assert (inside.value, inside.n, by_chance.value) == (pytest.approx(0.4), 2, pytest.approx(0.1))
    assert pointing(missed, 0) == (None, None)


def test_classes_that_the_network_tells_apart_lie_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centres = 4 * rng.normal(size=(3, 16))
    apart = embed((centres[labels] + rng.normal(size=(60, 16))).astype(np.float32), 0)
    mixed = embed(rng.normal(size=(60, 16)).astype(np.float32), 0)
    assert silhouette_score(apart, labels) > 0.5
    assert silhouette_score(mixed, labels) < 0.1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_pictures_can_be_laid_out(count):
    rng = np.random.default_rng(0)
    layout = embed(rng.normal(size=(count, 8)).astype(np.float32), 0)
    assert layout.shape == (count, 2) and np.isfinite(layout).all()


def test_pictures_that_are_all_the_same_to_a_network_lie_on_one_point():
    assert not embed(np.ones((6, 8), np.float32), 0).any()


def test_of_very_many_pictures_some_of_every_class_are_drawn(monkeypatch):
    monkeypatch.setattr(features, "MOST", 60)
    monkeypatch.setattr(features, "LEAST_OF_EACH", 5)
    labels = np.array([0] * 500 + [1] * 3)
    pictures = Pictures(np.zeros((503, 4, 4, 3), np.uint8), labels)
    few = Pictures(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    entries = [
        Entry("set", "train", [f"train {n}" for n in range(503)], pictures),
        Entry("set", "test", [f"test {n}" for n in range(8)], few),
    ]
    train, test = some(entries, 0)
    assert len(train.names) + len(test.names) == 60
    assert len(set(train.names)) == len(train.names)
    assert {"train 500", "train 501", "train 502"} <= set(train.names)
    assert len(test.names) >= 5
    assert [labels[int(name.split()[1])] for name in train.names] == train.pictures.labels.tolist()
    assert some(entries, 0)[0].names == train.names != some(entries, 1)[0].names


@pytest.fixture
def drawn(tmp_path):
    """A run whose pictures were drawn, and how to draw them again."""
    classifier = _taught(0, steps=25)
    splits = {name: _squares(count, n) for n, (name, count) in enumerate(_COUNTS.items())}
    pictures = {name: made for name, (made, _) in splits.items()}
    datasets = {
        name: _on_disk(tmp_path / "images", made, masks, name)
        for name, (made, masks) in splits.items()
    }
    made = Pictures(pictures["train"].pixels[:4], np.array([1, 2, -1, -1]))

    def again(name="run", **changes):
        run = RunFolder(tmp_path / name)
        use = {"datasets": datasets, "pictures": pictures, "others": {"made": made}, **changes}
        draw(run, classifier, **use, seed=0)
        return run.root / "pictures"

    return again


_COUNTS = {"train": 24, "val": 9, "test": 12}


def test_every_picture_is_in_the_table_once(drawn):
    rows = _rows(drawn() / "features.csv")
    names = [row["file_name"] for row in rows]
    assert len(names) == len(set(names)) == 24 + 9 + 12 + 4
    of_split = {split: sum(row["split"] == split for row in rows) for split in (*_COUNTS, "")}
    assert of_split == {**_COUNTS, "": 4}
    assert [row["class"] for row in rows if row["domain"] == "made"] == [
        "left", "right", "none", "none",
    ]  # fmt: skip
    assert all(np.isfinite([float(row["x"]), float(row["y"])]).all() for row in rows)
    assert {row["verdict"] for row in rows} <= set(CLASSES)
    known = [row for row in rows if row["class"] != "none"]  # the network was taught what they are
    places = [(float(row["x"]), float(row["y"])) for row in known]
    assert silhouette_score(places, [row["class"] for row in known]) > 0


def test_equal_runs_give_equal_files_and_nothing_of_before_stays(drawn):
    first = drawn()
    again = drawn("other")
    (again / "cam" / "99_old.png").write_bytes(b"of before")
    again = drawn("other")
    names = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert names == sorted(path.relative_to(again) for path in again.rglob("*.*"))
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_held_out_pictures_are_those_of_test_with_their_maps(drawn):
    folder = drawn()
    rows = _rows(folder / "cam.csv")
    assert sorted(row["file_name"] for row in rows) == [f"test_{n:03d}.png" for n in range(12)]
    shown = [row["picture"] for row in rows if row["picture"]]
    assert sorted(shown) == sorted(path.name for path in (folder / "cam").iterdir())
    assert [int(name[:2]) for name in shown] == list(range(1, 13))
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["cam"]["split"] == "test" and figures["cam"]["pictures"] == 12
    inside = [float(row["inside"]) for row in rows if row["inside"] and row["verdict"] != "good"]
    assert figures["cam"]["inside"]["value"] == pytest.approx(np.mean(inside), abs=1e-3)
    assert (
        cv2.imread(str(folder / "cam.png")).shape[1]
        == cv2.imread(str(folder / "features.png")).shape[1] * 13 // 9
    )


def test_without_a_test_split_val_is_looked_at(drawn, tmp_path):
    made = {split: _squares(3, n) for n, split in enumerate(("train", "val"))}
    datasets = {split: _on_disk(tmp_path / "images", *of, split) for split, of in made.items()}
    pictures = {split: of[0] for split, of in made.items()}
    folder = drawn("other", datasets=datasets, pictures=pictures, others=None)
    assert [row["file_name"][:3] for row in _rows(folder / "cam.csv")] == ["val"] * 3


def test_of_each_photograph_one_picture_is_shown(tmp_path):
    pictures, masks = _squares(6, 3)
    dataset = _on_disk(tmp_path / "images", pictures, masks)
    same = tuple(replace(image, photograph=1 + image.id % 2) for image in dataset.images)
    draw_cam(tmp_path, _taught(0, steps=2), "test", dataset.subset(same), pictures, seed=0)
    rows = _rows(tmp_path / "cam.csv")
    assert len(rows) == 6 and sum(bool(row["picture"]) for row in rows) == 2


def test_a_run_draws_them_unless_it_is_told_not_to(make_dataset, tmp_path):
    data = make_dataset(good=1, per_kind=1)
    options = {"epochs": 1, "batch": 4, "image_size": 32, "device": "cpu", "workers": 0}
    run = finetune_classifier(FinetuneClassifierConfig(data=data, out=tmp_path / "run", **options))
    assert len(_rows(run.root / "pictures/features.csv")) == 9
    config = FinetuneClassifierConfig(data=data, out=tmp_path / "bare", pictures=False, **options)
    assert not (finetune_classifier(config).root / "pictures").exists()


def test_made_pictures_of_a_run_are_another_domain(tmp_path):
    run = RunFolder(tmp_path)
    assert made_pictures(run) == {}
    (tmp_path / "generated").mkdir()
    content = {"pixels": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.array([1, 2])}
    save_file(content, tmp_path / "generated/grown.safetensors")
    (made,) = made_pictures(run).values()
    assert made.pixels.shape == (2, 8, 8, 3) and made.labels.tolist() == [1, 2]
