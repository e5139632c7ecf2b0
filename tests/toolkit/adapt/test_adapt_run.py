from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from converters.crops import CropOptions, crop
from converters.errors import InputError
from converters.files import read_json
from converters.folder import DatasetFolder
from toolkit import training
from toolkit.adapt import adapt, adapt_classifier, data
from toolkit.adapt.data import UNLABELLED, read_material
from toolkit.classify import finetune_classifier
from toolkit.classify.data import read_pictures
from toolkit.classify.task import predict_logits, val_scores
from toolkit.classify.weights import load_backbone
from toolkit.config import AdaptConfig, FinetuneClassifierConfig
from toolkit.runs import refuse_other_fold


def _config(target, source, out, **options):
    values = {"epochs": 2, "batch": 8, "image_size": 40, "device": "cpu", "workers": 0, **options}
    return AdaptConfig(data=target, source=source, out=out, **values)


def _best(run):
    return load_file(run.checkpoints / "best.safetensors")


def _log(run):
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _split(root, split, side=40):
    dataset = DatasetFolder.open(root).read(split)
    classes = ("good", *dataset.categories)
    return classes, read_pictures(dataset, classes, side, workers=0, name=split)


def _accuracy(run, root):
    """Balanced accuracy on val of the network that fine-tuning would start from."""
    classes, pictures = _split(root, "val")
    model, _ = load_backbone(str(run.root), None, classes)
    logits = predict_logits(model, pictures.pixels)
    return val_scores(logits, pictures.labels)["val_balanced_accuracy"]


@pytest.fixture
def domains(make_domain):
    return make_domain("target", "shifted", seed=1), make_domain("source", "plain")


def test_a_target_without_labels_gains_from_adaptation(make_domain, tmp_path):
    quick = {"optimizer": "AdamW", "learning_rate": 3e-3, "epochs": 12, "batch": 32}
    common = {"device": "cpu", "workers": 0}
    gains = {"mmd": [], "adversarial": []}
    for seed in range(3):
        source = make_domain(f"source{seed}", "plain", per_class=30, seed=seed)
        counts = {"per_class": 24, "val": 24}
        target = make_domain(f"target{seed}", "shifted", seed=100 + seed, **counts)
        alone = FinetuneClassifierConfig(
            data=source,
            out=tmp_path / f"alone{seed}",
            image_size=32,
            pictures=False,
            **quick,
            **common,
        )
        before = _accuracy(finetune_classifier(alone), target)
        for method, found in gains.items():
            out = tmp_path / f"{method}{seed}"
            options = {"method": method, "labels": 0, "source_image_size": 32, **quick}
            after = _accuracy(adapt_classifier(_config(target, source, out, **options)), target)
            found.append(after - before)
    for method, found in gains.items():
        mean, deviation = np.mean(found), np.std(found, ddof=1)
        interval = 4.303 * deviation / np.sqrt(len(found))  # 95 %, t with 2 degrees of freedom
        assert mean > 0.2 and min(found) > 0.1, (method, found, interval)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["adversarial", "mmd"])
def test_a_killed_run_goes_on_to_the_same_weights(domains, tmp_path, monkeypatch, method):
    options = {"method": method, "labels": 2, "epochs": 3}
    whole = adapt_classifier(_config(*domains, tmp_path / "whole", **options))
    train_epoch = training._train_epoch

    def kill(task, schedule, optimizer, epoch, *others):
        if epoch == 1:
            raise Killed
        return train_epoch(task, schedule, optimizer, epoch, *others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "_train_epoch", kill)
        adapt_classifier(_config(*domains, tmp_path / "killed", **options))
    killed = adapt_classifier(_config(*domains, tmp_path / "killed", **options, resume=True))
    for name in ("best", "last"):
        a, b = (load_file(r.checkpoints / f"{name}.safetensors") for r in (whole, killed))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert [record["epoch"] for record in _log(killed)] == [1, 2, 3]


@pytest.mark.parametrize("method", ["adversarial", "mmd"])
@pytest.mark.parametrize("labels", [0, 2, None])
def test_the_plain_network_scores_as_the_run_says(domains, tmp_path, method, labels):
    target, source = domains
    config = _config(
        target, source, tmp_path / "run", method=method, labels=labels, source_image_size=32
    )
    run = adapt_classifier(config)
    assert read_json(run.checkpoints / "model.json") == {
        "architecture": "resnet18",
        "classes": ["good", "bars", "disc"],
        "image_size": 40,
        "temperature": 1.0,
        "head": None,
    }
    records = _log(run)
    if labels == 0:
        assert [record["val_score"] for record in records] == [1, 2]
        assert all("val_balanced_accuracy" not in record for record in records)
        assert all(record["target"] == 0 for record in records)
    else:
        # The private kernel of one channel has become three: on grey pictures it is the same.
        best = max(records, key=lambda record: record["val_score"])
        assert _accuracy(run, target) == pytest.approx(best["val_balanced_accuracy"])
        assert all(record["target"] > 0 for record in records)
    assert ("pseudo" in records[0]) == (method == "mmd" and labels is not None)
    assert ("told_apart" in records[0]) == (method == "adversarial")


def test_other_classes_share_what_has_one_name(make_domain, tmp_path):
    target = make_domain("target", "shifted", kinds=("disc",))
    source = make_domain("source", "plain", kinds=("bars",))
    run = adapt_classifier(_config(target, source, tmp_path / "run", labels=2, method="mmd"))
    assert _best(run)["fc.weight"].shape == (2, 64)
    state = load_file(run.checkpoints / "last.safetensors")
    assert state["model.head.weight"].shape[0] == 3  # good, disc and bars
    assert state["model.encoder.network.conv1.private.target"].shape[1] == 1
    assert state["model.encoder.network.conv1.private.source"].shape[1] == 3


def test_a_batch_may_have_one_unlabelled_picture(make_domain, tmp_path):
    target = make_domain("target", "shifted", per_class=3)
    source = make_domain("source", "plain", per_class=3)
    options = {"labels": 2, "image_size": 32, "batch": 4, "epochs": 1}
    # At 32 pixels the last batch norms see one cell: they cannot normalise a picture alone.
    run = adapt_classifier(_config(target, source, tmp_path / "run", **options))
    assert _log(run)[0]["pseudo_labelled"] >= 0


def test_procedural_pictures_are_a_source(make_domain, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SYNTH_PICTURES", 100)
    target = make_domain("target", "shifted")
    config = _config(target, "synth", tmp_path / "run", epochs=1, labels=2)
    source = read_material(config).source
    assert source.classes[0] == "good" and len(source.classes) > 5 and len(source.labels) == 100
    assert np.array_equal(read_material(config).source.pixels, source.pixels)
    assert _best(adapt_classifier(config))["fc.weight"].shape == (3, 64)


def test_only_as_many_labels_as_may_be_used(domains, tmp_path):
    target, source = domains
    known = {}
    for labels in (0, 2, None):
        found = read_material(_config(target, source, tmp_path / "run", labels=labels)).target
        known[labels] = found.labels[found.labels != UNLABELLED]
        assert len(found.labels) == 24
    assert len(known[0]) == 0
    assert np.bincount(known[2]).tolist() == [8, 2, 2]  # good pictures stay whole
    assert np.bincount(known[None]).tolist() == [8, 8, 8]


def test_windows_of_held_out_pictures_are_no_source(domains, tmp_path):
    target, _ = domains
    crops = tmp_path / "crops"
    crop(target, crops, CropOptions())
    read_material(_config(target, crops, tmp_path / "run"))
    with pytest.raises(InputError, match=r"same files as .* 24 of them in train, val, test"):
        read_material(_config(target, crops, tmp_path / "run", labels=0))
    (crops / "test.json").replace(crops / "train.json")
    with pytest.raises(InputError, match=r"same files as .* of them in val, test of it"):
        read_material(_config(target, crops, tmp_path / "run"))


def test_grey_pictures_have_one_channel_however_they_are_stored(domains, tmp_path):
    found = read_material(_config(*domains, tmp_path / "run"))
    assert (found.source.channels, found.target.channels) == (3, 1)


def test_finetuning_starts_from_it_and_from_no_other_fold(domains, tmp_path):
    target, source = domains
    run = adapt_classifier(_config(target, source, tmp_path / "run", labels=2))
    config = FinetuneClassifierConfig(
        data=target,
        out=tmp_path / "fine",
        weights=str(run.root),
        train="head",
        epochs=1,
        device="cpu",
        workers=0,
        image_size=40,
    )
    tuned, adapted = _best(finetune_classifier(config)), _best(run)
    same = [name for name in adapted if not name.startswith("fc.")]
    assert all(torch.equal(tuned[name], adapted[name]) for name in same)
    for root in (target, source):
        with pytest.raises(InputError, match=r"has learnt from fold None of .* that fold 1 holds"):
            refuse_other_fold(str(run.root), root, 1)
        refuse_other_fold(str(run.root), root, None)
    with pytest.raises(InputError, match=r"2 labels per class of .* labels 0 \(seed 0\) allows"):
        adapt_classifier(_config(target, source, tmp_path / "x", labels=0, weights=str(run.root)))


def _one_epoch(plan):
    return lambda *arguments: replace(plan(*arguments), epochs=1)


def test_finetuning_adapts_first_where_it_is_told_to(domains, tmp_path, monkeypatch):
    target, source = domains
    config = FinetuneClassifierConfig(
        data=target,
        source=source,
        adapt="mmd",
        labels=2,
        out=tmp_path / "run",
        train="head",
        epochs=1,
        device="cpu",
        workers=0,
        image_size=40,
    )
    monkeypatch.setattr("toolkit.adapt.adapt._plan", _one_epoch(adapt._plan))
    run = finetune_classifier(config)
    adapted = load_file(run.root / "adapted/checkpoints/best.safetensors")
    tuned = _best(run)
    assert torch.equal(tuned["conv1.weight"], adapted["conv1.weight"])
    assert (run.predictions / "test_images.csv").is_file()


def _same_folder(target, source):
    return target, target


def _a_held_out_picture(target, source):
    held_out = next((target / "images").glob("test_*"))
    shutil.copy(held_out, next((source / "images").glob("train_*")))
    return target, source


def _a_train_picture(target, source):
    mine = next((target / "images").glob("train_*"))
    shutil.copy(mine, next((source / "images").glob("train_*")))
    return target, source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_same_folder, "target: is source and target at once: give another dataset"),
        (_a_held_out_picture, "source: has 1 pictures that are in test of .*target, too: give a"),
        (_a_train_picture, "source: has 1 pictures that are in train of .*target, too: give a"),
    ],
)
def test_a_source_with_pictures_of_the_target_is_refused(domains, tmp_path, change, message):
    target, source = change(*domains)
    with pytest.raises(InputError, match=message) as error:
        adapt_classifier(_config(target, source, tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adversarial", "views": 2}, "views: nothing depends on it"),
        ({"source": "synth", "source_fold": 1}, "source_fold: procedural pictures have no folds"),
        ({"model": "nano", "image_size": 64}, "image_size: SAM nano sees 128 pixels"),
        ({"model": "yolov8-worldv2", "image_size": 100}, "is not a multiple of 32: try 96"),
        ({"model": "vgg"}, "model"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValidationError, match=message):
        AdaptConfig(**{"data": "a", "source": "b", "out": "c", **options})
