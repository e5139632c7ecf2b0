from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from converters.errors import InputError
from converters.files import read_json
from converters.folder import DatasetFolder
from toolkit.classify import Classifier, finetune_classifier
from toolkit.classify.generate import (
    FEATURE_GENERATORS,
    Grown,
    dac,
    ecrt,
    grow,
    head,
    make_generator,
)
from toolkit.classify.generate.features import Features, pooled_features
from toolkit.classify.generate.head import Score, build_head, fit_linear, learn_head
from toolkit.classify.weights import TRAINED, load_run
from toolkit.config import FinetuneClassifierConfig
from toolkit.images import read_image
from toolkit.predictions import read_probabilities

CPU = torch.device("cpu")
CLASSES = ("good", "dent", "hole")


def _problem(seed):
    """Clusters that overlap, in 12 dimensions; a class of 5 against two of 200."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 12))
    centres *= 2 / np.linalg.norm(centres, axis=1, keepdims=True)

    def draw(*counts):
        labels = np.repeat(np.arange(3), counts)
        values = centres[labels] + rng.normal(size=(len(labels), 12))
        return Features(values.astype(np.float32), labels)

    return draw(200, 200, 5), draw(30, 30, 30), draw(1000, 1000, 1000)


def _recall(layer, features, label):
    own = torch.from_numpy(features.values[features.labels == label])
    with torch.no_grad():
        return float((layer(own).argmax(dim=1) == label).float().mean())


@pytest.fixture(scope="module")
def plain():
    """Heads without any grown features, and without weights of classes, by seed."""
    heads = []
    for seed in range(5):
        train, val, _ = _problem(seed)
        none = Grown.none(train.values)
        heads.append(learn_head(make_generator("smote", 0), train, none, val, 3, weighted=False))
    return heads


@pytest.mark.parametrize("name", FEATURE_GENERATORS)
def test_grown_features_raise_the_recall_of_a_rare_class(plain, name):
    gains, balanced = [], []
    for seed in range(5):
        train, val, test = _problem(seed)
        generator = make_generator(name, seed)
        grown = grow(generator, train.values, train.labels, CLASSES, 1.0, CPU)
        with_grown = learn_head(generator, train, grown, val, 3)
        gains.append(_recall(with_grown, test, 2) - _recall(plain[seed], test, 2))
        scores = [Score.of(layer, test).balanced_accuracy for layer in (with_grown, plain[seed])]
        balanced.append(scores[0] - scores[1])
    low, _ = stats.t.interval(0.95, 4, loc=np.mean(gains), scale=stats.sem(gains))
    assert low > 0, gains
    assert np.mean(balanced) > 0, balanced


def test_softmax_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    train, _, test = _problem(0)
    standard = (train.values - train.values.mean(axis=0)) / train.values.std(axis=0)
    weights = np.where(train.labels == 2, 7.0, 1.0)
    expected = LogisticRegression(C=1 / (weights.sum() * 0.01), tol=1e-8, max_iter=1000).fit(
        standard, train.labels, weights
    )
    found = fit_linear(train.values, train.labels, weights, 3, 0.01)
    with torch.no_grad():
        logits = found(torch.from_numpy(test.values)).softmax(dim=1).numpy()
    moved = (test.values - train.values.mean(axis=0)) / train.values.std(axis=0)
    assert np.allclose(logits, expected.predict_proba(moved), atol=1e-3)


def test_a_class_that_train_lacks_is_never_found():
    train, *_ = _problem(0)
    layer = fit_linear(train.values, train.labels, np.ones(405), 4, 0.01)
    with torch.no_grad():
        assert layer(torch.from_numpy(train.values)).argmax(dim=1).max() == 2


def test_real_rows_of_a_grown_class_count_next_to_nothing_in_the_head_on_sources(monkeypatch):
    train, val, _ = _problem(0)
    generator = make_generator("ecrt", 0)
    grown = grow(generator, train.values, train.labels, CLASSES, 1.0, CPU)
    seen = []
    choose = head.choose_linear
    monkeypatch.setattr(head, "choose_linear", lambda *given: seen.append(given) or choose(*given))
    learn_head(generator, train, grown, val, 3, weighted=False)
    weights = seen[0][2]
    assert np.allclose(weights[:400], 1)
    assert np.allclose(weights[400:405], 1e-3)
    assert np.allclose(weights[405:], 0.999)


def test_an_unknown_head_is_refused():
    with pytest.raises(InputError, match="describes no known head: fine-tune again"):
        build_head({"kind": "forest", "sources": 3}, 12, 3)


def _config(data, out, **options):
    values = {"epochs": 1, "batch": 4, "image_size": 32, "device": "cpu", "workers": 0, **options}
    return FinetuneClassifierConfig(data=data, out=out, **values)


@pytest.fixture
def rare(make_dataset, narrow, monkeypatch):
    """A dataset whose defects are rarer than good pictures, and networks that learn little."""
    monkeypatch.setattr(dac, "_STEPS", 50)
    monkeypatch.setattr(ecrt, "_STEPS", 10)
    return make_dataset(good=8, per_kind=3)


@pytest.mark.parametrize("name", FEATURE_GENERATORS)
def test_a_run_grows_its_head_and_loads_again(rare, tmp_path, capsys, name):
    run = finetune_classifier(_config(rare, tmp_path / "run", generate=name))
    model, description = load_run(run.root)
    assert (description.head is not None) == (name == "ecrt")
    assert "val balanced accuracy" in capsys.readouterr().err
    trained = load_file(run.checkpoints / TRAINED)
    best = load_file(run.checkpoints / "best.safetensors")
    body = {key for key in trained if not key.startswith("fc.")}
    assert all(torch.equal(best[key], trained[key]) for key in body)
    if name != "ecrt":
        assert best.keys() == trained.keys()
        assert not torch.equal(best["fc.weight"], trained["fc.weight"])
    classifier = Classifier.load(run.root, "cpu")
    images = DatasetFolder.open(rare).read("test").images
    found = read_probabilities(run.predictions / "test_images.csv")
    assert found.values == pytest.approx(classifier([read_image(i.path) for i in images]))
    _check_generated(run, rare, model)


def _check_generated(run, data, model):
    train = DatasetFolder.open(data).read("train")
    grown = load_file(run.root / "generated/grown.safetensors")
    assert grown["values"].shape == (len(grown["labels"]), 64)
    with (run.root / "generated/grown.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(grown["labels"]) > 0
    kinds = ("good", "scratch", "spot")
    for row, label, parents in zip(rows, grown["labels"], grown["parents"], strict=True):
        names = [train.images[index].file_name for index in parents if index >= 0]
        assert row["parents"].split(";") == names
        assert row["class"] == kinds[label] != "good"
        assert all(f"_{kinds[label]}_" in name for name in names)
    assert cv2.imread(str(run.root / "generated/sheet.png")).shape[1] > 500


@pytest.mark.parametrize("name", FEATURE_GENERATORS)
def test_grown_samples_come_from_train_alone(rare, tmp_path, monkeypatch, name):
    first = finetune_classifier(_config(rare, tmp_path / "first", generate=name))
    for image in DatasetFolder.open(rare).read("val").images:
        cv2.imwrite(str(image.path), 255 - cv2.imread(str(image.path)))
    other = finetune_classifier(_config(rare, tmp_path / "other", generate=name))
    values = [
        load_file(run.root / "generated/grown.safetensors")["values"] for run in (first, other)
    ]
    assert torch.equal(*values)


class Killed(Exception):
    pass


def test_a_run_killed_before_its_head_goes_on_to_the_same_weights(rare, tmp_path, monkeypatch):
    whole = finetune_classifier(_config(rare, tmp_path / "whole", generate="ecrt"))

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(head, "grow_head", kill)
        finetune_classifier(_config(rare, tmp_path / "killed", generate="ecrt"))
    assert (tmp_path / "killed/checkpoints" / TRAINED).is_file()
    assert not (tmp_path / "killed/checkpoints/best.safetensors").exists()
    killed = finetune_classifier(_config(rare, tmp_path / "killed", generate="ecrt", resume=True))
    a, b = (load_file(run.checkpoints / "best.safetensors") for run in (whole, killed))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert read_json(killed.checkpoints / "model.json") == read_json(
        whole.checkpoints / "model.json"
    )


def test_the_head_of_a_run_is_grown_without_training_it_anew(rare, tmp_path):
    base = finetune_classifier(_config(rare, tmp_path / "base"))
    options = {"weights": str(base.root), "train": "head"}
    on_sources = finetune_classifier(_config(rare, tmp_path / "ecrt", generate="ecrt", **options))
    options["weights"] = str(on_sources.root)  # a run whose head is no linear layer starts another
    again = finetune_classifier(_config(rare, tmp_path / "smote", generate="smote", **options))
    a, b = (load_file(run.checkpoints / "best.safetensors") for run in (base, again))
    assert all(torch.equal(a[key], b[key]) for key in a if not key.startswith("fc."))


def test_features_are_what_the_last_layer_takes(rare):
    from toolkit.classify.data import read_pictures
    from toolkit.classify.model import build_resnet
    from toolkit.classify.task import predict_logits

    pictures = read_pictures(
        DatasetFolder.open(rare).read("train"),
        ("good", "scratch", "spot"),
        32,
        workers=0,
        name="train",
    )
    torch.manual_seed(0)
    model = build_resnet("resnet18", 3)
    features = pooled_features(model, pictures)
    assert features.values.shape == (len(pictures.labels), 64)
    with torch.no_grad():
        logits = model.fc(torch.from_numpy(features.values)).numpy()
    assert np.allclose(logits, predict_logits(model, pictures.pixels), atol=1e-6)
    assert not model.fc._forward_pre_hooks
