from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from converters.files import read_json, write_json
from converters.folder import DatasetFolder
from converters.geometry import mask_from_segmentation
from toolkit import training
from toolkit.config import FinetuneSamConfig, build
from toolkit.images import read_image
from toolkit.predictions import read_card, read_results
from toolkit.segment import Segmenter, finetune_sam
from toolkit.segment.data import masked_prompts
from toolkit.segment.finetune import _plan
from toolkit.segment.lora import load_lora, merged_state
from toolkit.segment.losses import SAM_LOSSES
from toolkit.segment.model import ARCHITECTURES, Architecture, build_sam
from toolkit.segment.task import Material, Prompting, SamTask

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def zoom(monkeypatch, request):
    """A nano that trains in seconds, with this zoom; threads only slow down so small a model."""
    zoom = getattr(request, "param", 2.0)
    tiny = Architecture(64, 8, 32, 2, 2, (1,), 4, 32, 64, dense_boxes=True, zoom=zoom)
    monkeypatch.setitem(ARCHITECTURES, "nano", tiny)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield zoom
    torch.set_num_threads(threads)


with_and_without_zoom = pytest.mark.parametrize("zoom", [None, 2.0], indirect=True)


def _config(data, out, **options):
    values = {"epochs": 2, "batch": 4, "device": "cpu", "workers": 0, **options}
    return FinetuneSamConfig(data=data, out=out, **values)


def _log(run):
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _best(run):
    return load_file(run.checkpoints / "best.safetensors")


def _iou_of_filled_boxes(dataset):
    shares = [i.area / (i.box[2] * i.box[3]) for image in dataset.images for i in image.instances]
    return float(np.mean(shares))


@with_and_without_zoom
def test_it_learns_to_outline_better_than_the_box(make_dataset, tmp_path, zoom):
    data = make_dataset(per_kind=12)
    epochs = 25 if zoom else 40
    run = finetune_sam(_config(data, tmp_path / "run", epochs=epochs, patience=epochs, batch=8))
    log = _log(run)
    assert len(log) == epochs
    best = max(record["val_iou"] for record in log)
    filled = _iou_of_filled_boxes(DatasetFolder.open(data).read("val"))
    assert best > filled + 0.1, f"val IoU {best}, filled boxes {filled}"


def test_predictions_answer_every_annotation(make_dataset, tmp_path):
    data = make_dataset()
    run = finetune_sam(_config(data, tmp_path / "run"))
    folder = DatasetFolder.open(data)
    card = read_card(run.predictions)
    assert (card.boxes, card.masks, card.segmenter) == ("ground truth", True, "SAM nano")
    for split in ("val", "test"):
        dataset = folder.read(split)
        results = read_results(run.predictions / f"{split}.json")
        truth = {i.id: (im, i) for im in dataset.images for i in im.instances}
        assert [result["annotation_id"] for result in results] == list(truth)
        for result in results:
            image, instance = truth[result["annotation_id"]]
            assert result["image_id"] == image.id
            assert result["category_id"] == dataset.category_id(instance.category)
            assert tuple(result["bbox"]) == instance.box
            assert 0 <= result["score"] <= 1
            segmentation = result["segmentation"]
            assert mask_from_segmentation(segmentation, image.height, image.width).any() in (0, 1)


@with_and_without_zoom
def test_the_saved_segmenter_scores_as_validation_did(make_dataset, tmp_path):
    data = make_dataset()
    run = finetune_sam(_config(data, tmp_path / "run", epochs=6))
    segmenter = Segmenter.load(run.root, "cpu")
    ious = []
    for image in DatasetFolder.open(data).read("val").images:
        masks, _ = segmenter(read_image(image.path), [i.box for i in image.instances])
        assert masks.shape == (len(image.instances), image.height, image.width)
        for mask, instance in zip(masks, image.instances, strict=True):
            truth = instance.to_mask(image.height, image.width)
            ious.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious) == pytest.approx(max(r["val_iou"] for r in _log(run)))


def test_equal_seeds_give_equal_runs(make_dataset, tmp_path):
    data = make_dataset()
    runs = [
        finetune_sam(_config(data, tmp_path / name, seed=seed, workers=workers))
        for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0))
    ]
    weights = [load_file(run.checkpoints / "last.safetensors") for run in runs]
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())
    assert not all(torch.equal(t, weights[2][name]) for name, t in weights[0].items())


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("weights", "more"),
    [
        ("none", {"layer_decay": 0.7, "average": 0.9}),
        ("nano.pth", {}),
        ("nano.pth", {"train": "lora", "average": 0.9, "learning_rate": 1e-2}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    make_dataset, tmp_path, monkeypatch, weights, more
):
    data = make_dataset()
    if weights != "none":
        weights = str(_official_file(tmp_path / weights))
    options = {"epochs": 4, "weights": weights, "patience": 99, **more}
    whole = finetune_sam(_config(data, tmp_path / "whole", **options))

    train_epoch = training._train_epoch

    def kill(task, schedule, optimizer, epoch, *others):
        if epoch == 2:
            raise Killed
        return train_epoch(task, schedule, optimizer, epoch, *others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "_train_epoch", kill)
        finetune_sam(_config(data, tmp_path / "killed", **options))
    killed = finetune_sam(_config(data, tmp_path / "killed", **options, resume=True))

    names = {path.stem for path in whole.checkpoints.glob("*.safetensors")}
    assert names == {"best", "last", *(["lora"] if "train" in more else [])}
    for name in names:
        a, b = (load_file(r.checkpoints / f"{name}.safetensors") for r in (whole, killed))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for split in ("val", "test"):
        a, b = (read_json(run.predictions / f"{split}.json") for run in (whole, killed))
        assert a == b
    assert [r["epoch"] for r in _log(killed)] == [1, 2, 3, 4]


def _official_file(path):
    torch.manual_seed(5)
    torch.save(build_sam("nano").state_dict(), path)
    return path


def test_from_an_official_file_only_the_mask_decoder_learns(make_dataset, tmp_path):
    path = _official_file(tmp_path / "nano.pth")
    before = torch.load(path)
    run = finetune_sam(_config(make_dataset(), tmp_path / "run", weights=str(path)))
    after = _best(run)
    assert after.keys() == before.keys()
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert "mask_decoder.mask_tokens.weight" in changed
    assert all(name.startswith("mask_decoder.") for name in changed)


def test_with_the_decoder_the_prompt_encoder_may_learn(make_dataset, tmp_path):
    path = _official_file(tmp_path / "nano.pth")
    run = finetune_sam(
        _config(make_dataset(), tmp_path / "run", weights=str(path), train="decoder+prompt")
    )
    before, after = torch.load(path), _best(run)
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert {"mask_decoder.mask_tokens.weight", "prompt_encoder.point_embeddings.2.weight"} < changed
    assert {name.split(".")[0] for name in changed} == {"mask_decoder", "prompt_encoder"}


def test_a_run_with_adapters_keeps_them_merged_and_alone(make_dataset, tmp_path):
    path = _official_file(tmp_path / "nano.pth")
    options = {"weights": str(path), "train": "lora", "lora_rank": 2, "learning_rate": 1e-2}
    run = finetune_sam(_config(make_dataset(), tmp_path / "run", **options))
    before, after = torch.load(path), _best(run)
    assert after.keys() == before.keys()
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    qkv = {f"image_encoder.blocks.{k}.attn.qkv.weight" for k in (0, 1)}
    assert {name for name in changed if not name.startswith("mask_decoder.")} == qkv
    for name in qkv:
        queries, keys, values = (after[name] - before[name]).chunk(3)
        assert queries.any() and values.any() and not keys.any()

    sam = build_sam("nano")
    sam.load_state_dict(before)
    load_lora(sam, run.checkpoints / "lora.safetensors")
    alone = merged_state(sam)
    assert all(torch.equal(alone[name], tensor) for name, tensor in after.items())
    state = load_file(run.checkpoints / "last.safetensors")
    assert state["model.image_encoder.blocks.0.attn.qkv.q_a"].shape == (2, 32)
    assert "model.image_encoder.blocks.0.attn.qkv.weight" not in state
    assert read_results(run.predictions / "test.json")


def test_early_blocks_may_be_kept_nearly_as_they_are(make_dataset, tmp_path):
    path = _official_file(tmp_path / "nano.pth")
    options = {"weights": str(path), "train": "all", "layer_decay": 1e-3, "learning_rate": 1e-3}
    run = finetune_sam(_config(make_dataset(), tmp_path / "run", **options))
    before, after = torch.load(path), _best(run)
    names = ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight")
    moved = [
        (after[name] - before[name]).abs().max().item()
        for name in (f"image_encoder.{name}" for name in names)
    ]
    assert 0 < moved[1] < 0.01 * moved[2]
    assert moved[0] < 0.1 * moved[1]
    assert _log(run)[0]["learning_rate"] > 1e-4  # the rate of the decoder


def test_the_average_of_the_weights_is_what_is_kept(make_dataset, tmp_path):
    options = {"epochs": 1, "average": 0.5}
    run = finetune_sam(_config(make_dataset(), tmp_path / "run", **options))
    best, last = _best(run), load_file(run.checkpoints / "last.safetensors")
    assert all(torch.equal(last[f"average.{name}"], tensor) for name, tensor in best.items())
    assert any(not torch.equal(last[f"model.{name}"], tensor) for name, tensor in best.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.8}, "layer_decay: with train decoder the image encoder does not learn"),
        (
            {"layer_decay": 0.8, "train": "decoder+prompt"},
            r"layer_decay: with train decoder\+prompt",
        ),
        ({"train": "lora", "lora_rank": 99}, "lora_rank: 99 is not between 1 and"),
    ],
)
def test_options_that_do_nothing_are_refused_before_anything_is_written(
    make_dataset, tmp_path, options, message
):
    path = _official_file(tmp_path / "nano.pth")
    with pytest.raises(InputError, match=message):
        finetune_sam(_config(make_dataset(), tmp_path / "run", weights=str(path), **options))
    assert not (tmp_path / "run").exists()


PRESETS = {
    "sam": ("decoder", 1e-4),
    "sam_lora": ("lora", 1e-4),
    "sam_none_cpu": ("all", 2e-3),
    "sam_starter_cpu": ("all", 5e-4),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_learn_what_they_speak_of_at_its_rate(name):
    config = build(FinetuneSamConfig, CONFIGS / f"{name}.yaml", {"data": "data", "out": "run"})
    learns, schedule = _plan(config)
    assert (learns, schedule.learning_rate) == PRESETS[name]


def test_every_preset_is_tried():
    assert {file.stem for file in CONFIGS.glob("sam*.yaml")} == set(PRESETS)


def test_from_a_run_of_ours_everything_may_learn(make_dataset, tmp_path):
    data = make_dataset()
    first = finetune_sam(_config(data, tmp_path / "first"))
    second = finetune_sam(_config(data, tmp_path / "second", weights=str(first.root), train="all"))
    a, b = _best(first), _best(second)
    assert not torch.equal(*(w["image_encoder.pos_embed"] for w in (a, b)))
    assert second.config()["model"] == "nano"


def test_the_losses_that_were_asked_for_are_learnt_from_and_logged(make_dataset, tmp_path):
    data = make_dataset()
    own, default = (
        finetune_sam(_config(data, tmp_path / name, epochs=1, **options))
        for name, options in (("own", {"loss": "dice=2,boundary=3"}), ("default", {}))
    )
    (line,), (usual,) = _log(own), _log(default)
    assert line["loss"] == pytest.approx(2 * line["dice"] + 3 * line["boundary"], rel=1e-5)
    assert not {"focal", "iou"} & line.keys()
    total = 20 * usual["focal"] + usual["dice"] + usual["iou"]
    assert usual["loss"] == pytest.approx(total, rel=1e-5)
    assert not torch.equal(
        *(_best(run)["mask_decoder.mask_tokens.weight"] for run in (own, default))
    )


@with_and_without_zoom
@pytest.mark.parametrize("learns", ["decoder", "decoder+prompt"])
def test_a_frozen_encoder_encodes_every_view_once(make_dataset, zoom, learns):
    folder = DatasetFolder.open(make_dataset())
    train, val = (masked_prompts(folder.read(split)) for split in ("train", "val"))
    torch.manual_seed(0)
    sam = build_sam("nano")
    calls = []
    sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    options = {"batch": 4, "seed": 0, "workers": 0, "criterion": SAM_LOSSES}
    task = SamTask(sam, zoom, Material(train, val), Prompting(jitter=0.0), learns=learns, **options)
    views = len({image.file_name for image, _ in (*train, *val)}) if zoom is None else 12
    assert len(calls) == views
    cached = [task.losses(batch)["loss"].item() for batch in task.batches(0)]
    score = task.validate()["val_iou"]
    assert len(calls) == views

    # What is kept in half precision stands for what is encoded anew.
    images = {image.file_name: image for image, _ in (*train, *val)}
    task._cache = None
    task._sampler._recall = lambda views: [task._embed_views(images[n], [v])[0] for n, v in views]
    fresh = [task.losses(batch)["loss"].item() for batch in task.batches(0)]
    assert cached == pytest.approx(fresh, rel=1e-2)
    assert score == pytest.approx(task.validate()["val_iou"], abs=0.02)


def _change(data, split, change):
    path = data / f"{split}.json"
    content = read_json(path)
    change(content)
    write_json(path, content)


def _without_masks(content):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def _empty(content):
    content["images"], content["annotations"] = [], []


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change", [_without_masks, _empty])
def test_a_dataset_without_masks_is_refused_and_leaves_nothing(
    make_dataset, tmp_path, split, change
):
    data = make_dataset()
    _change(data, split, change)
    with pytest.raises(InputError, match=rf"{split}\.json: has no instance with a mask"):
        finetune_sam(_config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_boxes_without_masks_are_left_out_and_counted(make_dataset, tmp_path, capsys):
    data = make_dataset()

    def drop_one(content):
        del content["annotations"][0]["segmentation"]

    _change(data, "train", drop_one)
    finetune_sam(_config(data, tmp_path / "run", epochs=1))
    assert "train: 1 of 6 instances left out: no mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "missing.pth"}, r"missing\.pth: no such weights"),
        ({"device": "cuda:99"}, "device cuda:99"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_written(
    make_dataset, tmp_path, options, message
):
    with pytest.raises(InputError, match=message):
        finetune_sam(_config(make_dataset(), tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_model_than_asked_for_are_refused(make_dataset, tmp_path):
    path = _official_file(tmp_path / "nano.pth")
    with pytest.raises(InputError, match=r"nano\.pth: is nano, not vit_b"):
        finetune_sam(_config(make_dataset(), tmp_path / "run", weights=str(path), model="vit_b"))


def test_a_taken_folder_and_another_configuration_are_refused(make_dataset, tmp_path):
    data = make_dataset()
    finetune_sam(_config(data, tmp_path / "run"))
    with pytest.raises(InputError, match="exists and is not empty"):
        finetune_sam(_config(data, tmp_path / "run"))
    with pytest.raises(InputError, match="run: was started with batch 4, not 3"):
        finetune_sam(_config(data, tmp_path / "run", batch=3, resume=True))
    run = finetune_sam(_config(data, tmp_path / "run", epochs=3, resume=True))
    assert [record["epoch"] for record in _log(run)] == [1, 2, 3]
