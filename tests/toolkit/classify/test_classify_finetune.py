from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from converters.files import read_json, write_json
from converters.folder import DatasetFolder
from toolkit import training
from toolkit.classify import Classifier, finetune_classifier
from toolkit.classify.model import build_resnet, freeze
from toolkit.classify.task import settle_batch_norm
from toolkit.config import EvaluateConfig, FinetuneClassifierConfig
from toolkit.evaluate import evaluate
from toolkit.images import read_image
from toolkit.predictions import read_card, read_probabilities

pytestmark = pytest.mark.usefixtures("narrow")


def _config(data, out, **options):
    values = {"epochs": 2, "batch": 4, "image_size": 32, "device": "cpu", "workers": 0, **options}
    return FinetuneClassifierConfig(data=data, out=out, **values)


def _log(run):
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _best(run):
    return load_file(run.checkpoints / "best.safetensors")


def _official_file(path, architecture="resnet18", classes=1000):
    torch.manual_seed(5)
    torch.save(build_resnet(architecture, classes).state_dict(), path)
    return path


def test_it_learns_to_tell_spots_scratches_and_good_apart(make_dataset, tmp_path):
    data = make_dataset(good=8, per_kind=8)
    run = finetune_classifier(_config(data, tmp_path / "run", epochs=15, batch=8, image_size=48))
    figures = evaluate(EvaluateConfig(data=data, predictions=run.root, resamples=50)).figures
    assert figures["image.balanced_accuracy"].value >= 0.9
    assert figures["image.AUROC"].value >= 0.9
    assert figures["baseline.always_good_accuracy"].value == pytest.approx(1 / 3)


def test_predictions_are_those_of_the_best_checkpoint(make_dataset, tmp_path):
    data = make_dataset()
    run = finetune_classifier(_config(data, tmp_path / "run"))
    assert read_card(run.predictions).boxes == "none"
    assert read_card(run.predictions).classifier == "resnet18 32"
    assert read_json(run.checkpoints / "model.json") == {
        "architecture": "resnet18",
        "classes": ["good", "scratch", "spot"],
        "image_size": 32,
    }
    classifier = Classifier.load(run.root, "cpu")
    for split in ("val", "test"):
        images = DatasetFolder.open(data).read(split).images
        found = read_probabilities(run.predictions / f"{split}_images.csv")
        assert found.classes == classifier.classes == ("good", "scratch", "spot")
        assert found.file_names == tuple(image.file_name for image in images)
        assert found.values.sum(axis=1) == pytest.approx(1)
        again = classifier([read_image(image.path) for image in images])
        assert found.values == pytest.approx(again)


def test_the_logged_score_is_balanced_accuracy_less_a_little_loss(make_dataset, tmp_path):
    run = finetune_classifier(_config(make_dataset(), tmp_path / "run"))
    for record in _log(run):
        expected = record["val_balanced_accuracy"] - 0.01 * record["val_loss"]
        assert record["val_score"] == pytest.approx(expected)


def test_equal_seeds_give_equal_runs(make_dataset, tmp_path):
    data = make_dataset()
    runs = [
        finetune_classifier(_config(data, tmp_path / name, epochs=1, seed=seed, workers=workers))
        for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0))
    ]
    weights = [_best(run) for run in runs]
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())
    assert not all(torch.equal(t, weights[2][name]) for name, t in weights[0].items())


class Killed(Exception):
    pass


@pytest.mark.parametrize("weights", ["none", "resnet18.pth"])
def test_a_killed_run_goes_on_to_the_same_weights(make_dataset, tmp_path, monkeypatch, weights):
    data = make_dataset()
    options = {"epochs": 3, "patience": 99}
    if weights != "none":
        path = _official_file(tmp_path / weights)
        options |= {"weights": str(path), "train": "layer4"}
    whole = finetune_classifier(_config(data, tmp_path / "whole", **options))
    train_epoch = training._train_epoch

    def kill(task, schedule, optimizer, epoch, *others):
        if epoch == 1:
            raise Killed
        return train_epoch(task, schedule, optimizer, epoch, *others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "_train_epoch", kill)
        finetune_classifier(_config(data, tmp_path / "killed", **options))
    assert not (tmp_path / "killed/predictions").exists()
    killed = finetune_classifier(_config(data, tmp_path / "killed", **options, resume=True))
    for name in ("best", "last"):
        a, b = (load_file(r.checkpoints / f"{name}.safetensors") for r in (whole, killed))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = ((run.predictions / "test_images.csv").read_bytes() for run in (whole, killed))
    assert a == b
    assert [record["epoch"] for record in _log(killed)] == [1, 2, 3]


@pytest.mark.parametrize(("train", "parts"), [("layer4", {"layer4", "fc"}), ("head", {"fc"})])
def test_frozen_parts_stay_as_they_were_with_their_statistics(make_dataset, tmp_path, train, parts):
    path = _official_file(tmp_path / "resnet18.pth")
    before = torch.load(path)
    config = _config(make_dataset(), tmp_path / "run", weights=str(path), train=train)
    after = _best(finetune_classifier(config))
    changed = {
        name
        for name, tensor in after.items()
        if tensor.shape != before[name].shape or not torch.equal(tensor, before[name])
    }
    assert {name.split(".")[0] for name in changed} == parts
    assert ("layer4.1.bn2.running_mean" in changed) == (train == "layer4")


def test_validation_takes_batch_norm_statistics_of_the_learning_parts_anew():
    torch.manual_seed(0)
    model = build_resnet("resnet18", 3)
    freeze(model, "layer4")
    frozen = model.bn1.running_mean.clone()
    inputs = []
    layer4 = model.layer4[0]
    layer4.conv1.register_forward_hook(lambda *call: inputs.append(call[2]))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    settle_batch_norm(model, pixels)
    expected = torch.cat(inputs).mean(dim=(0, 2, 3))
    assert torch.allclose(layer4.bn1.running_mean, expected, atol=1e-6)
    assert layer4.bn1.momentum == 0.1 and not layer4.bn1.training
    assert torch.equal(model.bn1.running_mean, frozen)


def test_validation_is_not_at_chance_while_the_rate_is_high(make_dataset, tmp_path):
    """With running statistics, epochs that separate their batches are validated at chance."""
    data = make_dataset(good=8, per_kind=8)
    run = finetune_classifier(
        _config(data, tmp_path / "run", epochs=6, batch=8, image_size=48, learning_rate=2e-3)
    )
    log = _log(run)
    best = max(record["val_balanced_accuracy"] for record in log[:5])
    assert best > 0.6, log


def _change(data, split, change):
    content = read_json(data / f"{split}.json")
    change(content)
    write_json(data / f"{split}.json", content)


def _only(*category_ids):
    def change(content):
        content["annotations"] = [
            a for a in content["annotations"] if a["category_id"] in category_ids
        ]

    return change


def _no_images(content):
    content["images"], content["annotations"] = [], []


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", _only(), r"train\.json: all pictures are 'good', so there is nothing to tell"),
        ("train", _only(1), r"val\.json: has pictures of spot, which train lacks: split so"),
        ("train", _no_images, r"train\.json: has no pictures"),
        ("val", _no_images, r"val\.json: has no pictures"),
    ],
)
def test_a_dataset_that_cannot_be_learnt_is_refused_and_leaves_nothing(
    make_dataset, tmp_path, split, change, message
):
    data = make_dataset()
    _change(data, split, change)
    with pytest.raises(InputError, match=message) as caught:
        finetune_classifier(_config(data, tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_test_split_with_a_class_that_train_lacks_is_refused(make_dataset, tmp_path):
    data = make_dataset()
    for split in ("train", "val"):
        _change(data, split, _only(2))
    with pytest.raises(InputError, match=r"test\.json: has pictures of scratch, which train lacks"):
        finetune_classifier(_config(data, tmp_path / "run"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_unreadable_picture_is_named_before_anything_is_learnt(make_dataset, tmp_path, split):
    data = make_dataset()
    next((data / "images").glob(f"{split}_*")).write_bytes(b"no picture")
    with pytest.raises(InputError, match=rf"{split}_.*\.png: is not a readable picture"):
        finetune_classifier(_config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "missing.pth"}, r"missing\.pth: no such weights: give an official file"),
        ({"device": "cuda:99"}, "device cuda:99"),
        ({"fold": 3}, "fold 3 is not there"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_written(
    make_dataset, tmp_path, options, message
):
    with pytest.raises(InputError, match=message):
        finetune_classifier(_config(make_dataset(), tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_and_another_configuration_are_refused(make_dataset, tmp_path):
    data = make_dataset(per_kind=1, good=1)
    finetune_classifier(_config(data, tmp_path / "run", epochs=1))
    with pytest.raises(InputError, match="exists and is not empty"):
        finetune_classifier(_config(data, tmp_path / "run"))
    with pytest.raises(InputError, match="run: was started with batch 4, not 3"):
        finetune_classifier(_config(data, tmp_path / "run", batch=3, resume=True))


def test_a_picture_with_several_defects_is_of_the_one_that_covers_most(make_dataset, tmp_path):
    """Trained on such labels, the prediction's truth in evaluate is the same one."""
    data = make_dataset(good=1, per_kind=1)

    def add_a_small_scratch(content):
        spot = next(a for a in content["annotations"] if a["category_id"] == 2)
        scratch = next(a for a in content["annotations"] if a["category_id"] == 1)
        small = {**scratch, "id": 999, "image_id": spot["image_id"], "area": 1}
        small["segmentation"] = [[1, 1, 2, 1, 2, 2, 1, 2]]
        small["bbox"] = [1, 1, 1, 1]
        content["annotations"].append(small)

    _change(data, "test", add_a_small_scratch)
    run = finetune_classifier(_config(data, tmp_path / "run", epochs=1))
    metrics = evaluate(EvaluateConfig(data=data, predictions=run.root, resamples=0))
    assert metrics.protocol.labels == {"good": 1, "scratch": 1, "spot": 1}
    assert np.sum([list(row.values()) for row in metrics.confusion.values()]) == 3
