from __future__ import annotations

import json
import math
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from converters.errors import InputError
from converters.files import read_json, write_json
from converters.folder import DatasetFolder
from toolkit import cli, training
from toolkit.classify import Classifier, finetune, finetune_classifier
from toolkit.classify.data import Pictures, Sampler, count_batches, read_pictures
from toolkit.classify.finetune import _lasting
from toolkit.classify.labels import labelled_part
from toolkit.classify.losses import ClassifierLoss, undecided
from toolkit.classify.model import build_resnet, freeze
from toolkit.classify.scores import suspicion
from toolkit.classify.task import ClassifierTask, settle_batch_norm, val_scores
from toolkit.classify.weights import load_run
from toolkit.config import AdaptConfig, EvaluateConfig, FinetuneClassifierConfig
from toolkit.evaluate import evaluate
from toolkit.images import read_image
from toolkit.predictions import read_card, read_judgements, read_probabilities
from toolkit.processes import Place
from toolkit.runs import RunFolder

pytestmark = pytest.mark.usefixtures("narrow")


def _config(data, out, **options):
    values = {"epochs": 2, "batch": 4, "image_size": 32, "device": "cpu", "workers": 0, **options}
    return FinetuneClassifierConfig(data=data, out=out, pictures=False, **values)


def _log(run):
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _best(run):
    return load_file(run.checkpoints / "best.safetensors")


def _read(data, split, side=32):
    dataset = DatasetFolder.open(data).read(split)
    return read_pictures(dataset, ("good", *dataset.categories), side, workers=1, name=split)


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
    described = read_json(run.checkpoints / "model.json")
    assert described.pop("temperature") > 0
    assert described == {
        "architecture": "resnet18",
        "classes": ["good", "scratch", "spot"],
        "image_size": 32,
        "head": None,
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


def test_scores_of_the_unknown_lie_beside_the_predictions_and_are_evaluated(make_dataset, tmp_path):
    data = make_dataset()
    run = finetune_classifier(_config(data, tmp_path / "run"))
    model, description = load_run(run.root)
    classifier = Classifier(model, description)
    for kind in ("msp", "uniform"):
        folder = run.predictions / "scores" / kind
        for split in ("val", "test"):
            images = DatasetFolder.open(data).read(split).images
            found = read_judgements(folder / f"{split}_images.csv")
            assert found.file_names == tuple(image.file_name for image in images)
            logits = classifier.logits(_read(data, split).pixels)
            expected = suspicion(logits, description.temperature, kind)
            assert found.values == pytest.approx(expected, rel=1e-4)
        path = folder / "test_images.csv"
        figures = evaluate(EvaluateConfig(data=data, predictions=path, resamples=0)).figures
        defective = DatasetFolder.open(data).read("test").image_labels() != np.array("good")
        assert figures["image.AUROC"].value == roc_auc_score(defective, found.values)


@pytest.mark.parametrize("calibrate", [True, False])
def test_calibration_changes_how_sure_verdicts_are_alone(make_dataset, tmp_path, calibrate):
    data = make_dataset()
    run = finetune_classifier(_config(data, tmp_path / "run", calibrate=calibrate))
    _, description = load_run(run.root)
    assert (description.temperature != 1) == calibrate
    found = read_probabilities(run.predictions / "val_images.csv")
    logits = Classifier.load(run.root, "cpu").logits(_read(data, "val").pixels)
    assert np.array_equal(found.values.argmax(axis=1), logits.argmax(axis=1))
    ratio = (logits[:, 0] - logits[:, 1]) / np.log(found.values[:, 0] / found.values[:, 1])
    assert ratio == pytest.approx(np.full(len(ratio), description.temperature), rel=1e-3)


def test_the_logged_score_is_balanced_accuracy_less_a_little_loss(make_dataset, tmp_path):
    run = finetune_classifier(_config(make_dataset(), tmp_path / "run"))
    for record in _log(run):
        expected = record["val_balanced_accuracy"] - 0.01 * record["val_loss"]
        assert record["val_score"] == pytest.approx(expected)
        assert 0 <= record["train_accuracy"] <= 1


def test_figures_of_val_are_those_of_their_names():
    logits = np.log(np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.9, 0.1]], np.float32))
    found = val_scores(logits, np.array([0, 0, 0, 1]))
    loss = (-np.log([0.8, 0.7, 0.6]).mean() - np.log(0.1)) / 2
    assert found["val_accuracy"] == 0.75
    assert found["val_balanced_accuracy"] == 0.5
    assert found["val_loss"] == pytest.approx(loss)
    assert found["val_score"] == pytest.approx(0.5 - 0.01 * loss)


EVERYTHING = {
    "optimizer": "SGD",
    "schedule": "plateau",
    "augment": ("flip", "turn", "rotate", "light", "autoaugment"),
    "rotation": 30.0,
    "mixup": 0.2,
    "loss": "focal",
    "focal_gamma": 3.0,
    "class_weights": "effective",
    "label_smoothing": 0.2,
    "sampling": "balanced",
    "labels": 2,
}
"""Another value of every field that changes how training goes."""


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ({"augment": ()}, {"augment": ("flip",)}),
        ({"augment": ()}, {"augment": ("autoaugment",)}),
        ({"augment": ("rotate",)}, {"augment": ("rotate",), "rotation": 90.0}),
        ({}, {"mixup": 0.2}),
        ({}, {"loss": "focal"}),
        ({"loss": "focal"}, {"loss": "focal", "focal_gamma": 5.0}),
        ({"class_weights": "none"}, {"class_weights": "inverse"}),
        ({"class_weights": "inverse"}, {"class_weights": "effective"}),
        ({}, {"label_smoothing": 0.2}),
        ({"class_weights": "none"}, {"class_weights": "none", "sampling": "balanced"}),
    ],
)
def test_every_field_of_the_task_changes_its_loss(make_dataset, tmp_path, plain, other):
    data = make_dataset(good=8)
    train, pictures = DatasetFolder.open(data).read("train"), _read(data, "train")
    found = []
    for fields in (plain, plain, other):
        config = _config(data, tmp_path / "run", **fields)
        torch.manual_seed(0)
        model = build_resnet("resnet18", 3)
        factors = finetune._factors(config, train, pictures)
        task = finetune._task(config, model, pictures, pictures, factors, None)
        found.append([task.losses(batch)["loss"].item() for batch in task.batches(0)])
    assert found[0] == found[1] != found[2]


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


@pytest.mark.parametrize("weights", ["none", "resnet18.pth", "everything"])
def test_a_killed_run_goes_on_to_the_same_weights(make_dataset, tmp_path, monkeypatch, weights):
    data = make_dataset(good=3)
    options = {"epochs": 3, "patience": 99}
    if weights == "everything":
        options |= EVERYTHING
        weights = "none"
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


def _text(_):
    return b"no picture"


def _cut_jpeg(picture):
    content = cv2.imencode(".jpg", picture)[1].tobytes()
    return content[: len(content) // 2]


def _cut_png(picture):
    content = cv2.imencode(".png", picture)[1].tobytes()
    return content[:-20]


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("spoil", [_text, _cut_jpeg, _cut_png])
def test_an_unreadable_picture_is_named_before_anything_is_learnt(
    make_dataset, tmp_path, split, spoil
):
    data = make_dataset()
    path = next((data / "images").glob(f"{split}_*"))
    path.write_bytes(spoil(read_image(path)))
    with pytest.raises(InputError, match=rf"{split}_.*\.png: is not a readable picture"):
        finetune_classifier(_config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_command_ends_in_one_line_and_code_2(make_dataset, tmp_path, capsys):
    data = make_dataset()
    _change(data, "train", _only(1))
    arguments = f"finetune classifier --data {data} --out {tmp_path / 'run'} --device cpu"
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert "val.json: has pictures of spot, which train lacks: split so that" in line
    assert not (tmp_path / "run").exists()


def _labelled(train):
    labels = train.image_labels()
    return {label: labels.count(label) for label in set(labels)}


def test_a_budget_of_labels_keeps_every_class_and_all_good_pictures(
    make_dataset, tmp_path, monkeypatch
):
    data = make_dataset(good=4, per_kind=5)
    run = finetune_classifier(_config(data, tmp_path / "run", labels=1, epochs=1))
    assert _log(run)[0]["step"] == 2  # 4 + 1 + 1 pictures in batches of 4
    config = _config(data, tmp_path / "run", labels=1, epochs=2, resume=True)
    assert [record["epoch"] for record in _log(finetune_classifier(config))] == [1, 2]
    other = _config(data, tmp_path / "run", labels=2, epochs=2, resume=True)
    with pytest.raises(InputError, match="run: was started with labels 1, not 2"):
        finetune_classifier(other)


def test_a_larger_budget_takes_all_that_a_smaller_one_does(make_dataset):
    train = DatasetFolder.open(make_dataset(good=4, per_kind=5)).read("train")
    drawn = [
        {image.file_name for image in labelled_part(train, budget, seed=3).images}
        for budget in (1, 3, 5, 99)
    ]
    assert [len(names) for names in drawn] == [6, 10, 14, 14]
    assert drawn[0] < drawn[1] < drawn[2] == drawn[3]
    part = labelled_part(train, 2, seed=3)
    assert _labelled(part) == {"good": 4, "scratch": 2, "spot": 2}
    others = [
        {image.file_name for image in labelled_part(train, 1, seed=seed).images}
        for seed in range(5)
    ]
    assert any(names != others[0] for names in others)


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


def test_an_official_file_is_fine_tuned_offline(make_dataset, tmp_path, monkeypatch):
    """By its name, from ``weights/`` of the folder that the command is run in."""
    (tmp_path / "weights").mkdir()
    path = _official_file(tmp_path / "weights/resnet18-f37072fd.pth")
    data = make_dataset()
    monkeypatch.chdir(tmp_path)
    options = {"weights": "resnet18-f37072fd.pth", "train": "head", "epochs": 1}
    after = _best(finetune_classifier(_config(data, tmp_path / "run", **options)))
    before = torch.load(path)
    assert after["fc.weight"].shape == (3, before["fc.weight"].shape[1])
    kept = [name for name in before if not name.startswith("fc.")]
    assert all(torch.equal(after[name], before[name]) for name in kept)


@pytest.mark.parametrize(
    ("fields", "rate", "epochs"),
    [
        ({}, 1e-3, 80),
        ({"optimizer": "Adam"}, 1e-3, 80),
        ({"optimizer": "SGD"}, 0.1, 80),
        ({"weights": "starter"}, 3e-4, 30),
        ({"weights": "starter", "optimizer": "SGD"}, 0.03, 30),
        ({"weights": "w.pth"}, 1e-4, 30),
        ({"weights": "w.pth", "optimizer": "SGD"}, 0.01, 30),
        ({"weights": "w.pth", "train": "layer4"}, 3e-4, 30),
        ({"weights": "w.pth", "train": "head"}, 1e-3, 30),
        ({"weights": "w.pth", "train": "layer4", "optimizer": "SGD"}, 0.01, 30),
        ({"weights": "w.pth", "train": "head", "optimizer": "SGD"}, 0.01, 30),
        ({"source": "synth", "adapt": "mmd"}, 3e-4, 30),
        ({"weights": "adapted"}, 3e-4, 30),
        ({"weights": "adapted", "learning_rate": 0.5, "epochs": 7}, 0.5, 7),
    ],
)
def test_rate_and_epochs_follow_from_what_the_weights_have_seen(
    tmp_path, monkeypatch, fields, rate, epochs
):
    monkeypatch.chdir(tmp_path)
    config = AdaptConfig(data=tmp_path, source="synth", out=tmp_path / "adapted")
    RunFolder.create(config.out, "adapt", config)
    given = FinetuneClassifierConfig(data=tmp_path, out=tmp_path / "run", **fields)
    plan = finetune._plan(given)
    assert (plan.learning_rate, plan.epochs) == (pytest.approx(rate), epochs)
    assert (plan.optimizer, plan.decay) == (given.optimizer, given.schedule)


def _strange(count, side, seed):
    """Coarse stripes in colours: nothing of the dataset has any."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, side // 8, 1, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=1).repeat(side, axis=2)
    return Pictures(pixels, np.full(count, -1))


def _task(train, val, outliers, **options):
    torch.manual_seed(0)
    sampler = Sampler(
        train,
        batch=8,
        repeat=1,
        factors=[1.0] * len(train.labels),
        augment=(),
        seed=0,
        outliers=outliers,
    )
    model = build_resnet("resnet18", 3)
    return ClassifierTask(
        model, train, val, sampler, learns="all", loss=ClassifierLoss(), **options
    )


def test_outliers_add_their_weighted_loss_and_leave_the_statistics_to_the_parts(make_dataset):
    train = _read(make_dataset(), "train")
    outliers = _strange(9, 32, seed=0)
    plain, exposed = (_task(train, train, of, outlier_weight=0.5) for of in (None, outliers))
    momenta = [norm.momentum for norm in exposed.model.modules() if hasattr(norm, "momentum")]
    batches = next(plain.batches(0)), next(exposed.batches(0))
    alone, both = plain.losses(batches[0]), exposed.losses(batches[1])
    assert "outlier_loss" not in alone
    expected = alone["loss"] + 0.5 * both["outlier_loss"]
    assert both["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    both["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in exposed.model.parameters())
    inputs = exposed._input(batches[1])
    mean = exposed.model.conv1(inputs).mean(dim=(0, 2, 3))
    assert torch.allclose(exposed.model.bn1.running_mean, mean, atol=1e-5)
    again = [norm.momentum for norm in exposed.model.modules() if hasattr(norm, "momentum")]
    assert again == momenta


def test_exposed_to_outliers_the_network_is_less_sure_of_others_of_their_kind(
    make_dataset, tmp_path, monkeypatch
):
    """Stripes in training, other stripes at work; over three seeds."""
    data = make_dataset(good=6, per_kind=6)
    made = ModuleType("toolkit.classify.outliers")
    made.read_outliers = lambda given, datasets, side, *, workers, seed: _strange(60, side, seed)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    unknown = _strange(30, 32, seed=99).pixels
    gains = []
    for seed in range(3):
        found = []
        for outliers in (None, "stripes"):
            out = tmp_path / f"{outliers}-{seed}"
            options = {"epochs": 8, "batch": 8, "seed": seed, "outliers": outliers}
            run = finetune_classifier(_config(data, out, **options, calibrate=False))
            logits = torch.from_numpy(Classifier.load(run.root, "cpu").logits(unknown))
            found.append(undecided(logits).item() - np.log(3))
        gains.append(found[0] - found[1])
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / np.sqrt(3), gains


def test_steps_are_as_many_for_few_pictures_as_for_many(make_dataset, tmp_path):
    """An epoch has at least twenty, so that val is not looked at after every other step."""
    data = make_dataset(good=8, per_kind=4)
    run = finetune_classifier(_config(data, tmp_path / "run", epochs=None, steps=45, batch=8))
    assert [record["step"] for record in _log(run)] == [20, 40, 60]
    with pytest.raises(ValueError, match="steps: are given instead of epochs"):
        _config(data, tmp_path / "other", epochs=3, steps=45)


@pytest.mark.parametrize(("pictures", "accumulate"), [(33, 1), (20, 1), (3, 1), (100, 4), (33, 4)])
def test_steps_are_no_fewer_than_asked_for_whatever_is_left_of_a_batch(pictures, accumulate):
    config = _config("d", "r", epochs=None, steps=200, batch=32, accumulate=accumulate)
    lasting = _lasting(config, [1.0] * pictures, Place())
    batches = count_batches(pictures * lasting.repeat, 32)
    steps = math.ceil(batches / accumulate)
    assert steps >= 20
    assert 200 <= steps * lasting.epochs < 200 + steps


def test_a_length_in_steps_is_not_gone_on_with_in_epochs(make_dataset, tmp_path):
    data = make_dataset()
    finetune_classifier(_config(data, tmp_path / "run", epochs=None, steps=20))
    with pytest.raises(InputError, match="length in steps: resume with steps, not epochs"):
        finetune_classifier(_config(data, tmp_path / "run", epochs=4, resume=True))


def test_outliers_are_compared_with_pictures_whose_labels_were_left_out_too(make_dataset, tmp_path):
    data = make_dataset(per_kind=8)
    train = DatasetFolder.open(data).read("train")
    kept = {image.id for image in labelled_part(train, 1, seed=0).images}
    folder = tmp_path / "others"
    folder.mkdir()
    for image in train.images:
        if image.id not in kept:
            (folder / image.file_name).write_bytes(image.path.read_bytes())
    config = _config(data, tmp_path / "run", labels=1, outliers=str(folder))
    with pytest.raises(InputError, match="is the same picture as"):
        finetune_classifier(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generate": "ecrt", "labels": 2}, "generate: no rare class has the 3 train pictures"),
        ({"generate": "lro", "labels": 2}, "generate: no rare class has the 3 train pictures"),
        ({"source": "nowhere", "adapt": "mmd"}, "nowhere: is not a dataset folder"),
    ],
)
def test_what_cannot_begin_leaves_no_run(make_dataset, tmp_path, options, message):
    data = make_dataset(good=8, per_kind=8)
    with pytest.raises(InputError, match=message):
        finetune_classifier(_config(data, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"outliers": "synth"},
        {"class_weights": "effective"},
        {"weights": "starter", "train": "head", "mixup": 0.2},
        {"weights": "starter", "train": "head", "sampling": "balanced"},
    ],
)
def test_what_a_new_head_would_not_heed_is_refused(options):
    with pytest.raises(ValueError, match="a head from smote"):
        _config("d", "r", generate="smote", **options)
