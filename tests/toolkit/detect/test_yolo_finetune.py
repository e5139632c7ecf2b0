"""Fine-tuning end to end, with the network switched off and the clip package absent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import FinetuneYoloConfig
from toolkit.detect import Detector, finetune_yolo, predict_dataset
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.data import DefectImages, Draw
from toolkit.detect.embeddings import make_embeddings
from toolkit.detect.models import build_model
from toolkit.detect.trainer import OfflineWorldTrainer
from toolkit.predictions import read_card, read_results

MakeDataset = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"asked for a network or a process: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setitem(sys.modules, "clip", None)


def _config(data: Path, out: str, **options: Any) -> FinetuneYoloConfig:
    defaults: dict[str, Any] = {"epochs": 1, "image_size": 64, "batch": 4, "device": "cpu"}
    return FinetuneYoloConfig(data=data, out=data.parent / out, **{**defaults, **options})


def _official(path: Path, scale: str, names: list[str]) -> Path:
    """A file in the official format: the pickled module in half precision, named for COCO."""
    from ultralytics.nn.tasks import WorldModel  # after toolkit.detect

    model = build_model(scale, seed=9)  # type: ignore[arg-type]
    model.names = dict(enumerate(names + [f"thing {i}" for i in range(80 - len(names))]))
    model.txt_feats = make_embeddings(80, seed=9)[None]
    model.__class__ = WorldModel
    torch.save({"model": deepcopy(model).half(), "ema": None, "train_args": {}}, path)
    return path


def _contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_run_from_nothing_holds_all_that_prediction_needs(make_dataset: MakeDataset) -> None:
    data = make_dataset()
    before = _contents(data)

    run = finetune_yolo(_config(data, "run", epochs=2))

    assert sorted(_contents(run.root)) == [
        "checkpoints/best.safetensors",
        "checkpoints/embeddings.safetensors",
        "checkpoints/last.safetensors",
        "checkpoints/model.json",
        "config.yaml",
        "log.jsonl",
        "predictions/card.yaml",
        "predictions/test.json",
        "predictions/val.json",
    ]
    assert _contents(data) == before  # no label cache, no embeddings beside the pictures
    log = [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    assert {"box_loss", "cls_loss", "dfl_loss", "val_ap50", "val_ap"} <= set(log[0])
    start = load_starting_point("none", "n", 0, trust=False).model.state_dict()
    learned = load_file(run.checkpoints / "best.safetensors")
    weights = [name for name in start if name.endswith("conv.weight") and "dfl" not in name]
    assert not any(torch.equal(start[name], learned[name]) for name in weights)
    card = read_card(run.predictions)
    assert card is not None and (card.boxes, card.masks) == ("detector", False)
    assert card.detector == "YOLO-World v2 n, 64 px, from random weights"


def test_the_saved_model_gives_the_written_predictions(make_dataset: MakeDataset) -> None:
    data = make_dataset(good=1, per_kind=2)
    run = finetune_yolo(_config(data, "run", confidence=1e-6))
    written = read_results(run.predictions / "test.json")

    detector = Detector.load(run.root, torch.device("cpu"), confidence=1e-6)
    again = predict_dataset(detector, DatasetFolder.open(data).read("test"), batch=4)

    assert written == again
    assert len(written) > 50
    for result in written:
        x, y, w, h = result["bbox"]
        assert x >= 0 and y >= 0 and w >= 0 and h >= 0
        assert x + w <= 64.001 and y + h <= 64.001
        assert result["category_id"] in (1, 2)
        assert 1e-6 <= result["score"] <= 1


def test_a_file_in_the_official_format_is_fine_tuned(make_dataset: MakeDataset) -> None:
    data = make_dataset(good=1, per_kind=2)
    weights = _official(data.parent / "yolov8s-worldv2.pt", "s", ["spot"])

    run = finetune_yolo(_config(data, "run", weights=str(weights)))

    model = json.loads((run.checkpoints / "model.json").read_text())
    assert model["scale"] == "s"
    assert model["names"] == ["scratch", "spot"]
    assert model["source"].startswith("yolov8s-worldv2.pt (")
    detector = Detector.load(run.root, torch.device("cpu"))
    kept = detector._model.txt_feats[0, 1]
    assert torch.allclose(kept, make_embeddings(80, seed=9)[0], atol=1e-3)  # the file's "spot"


def test_a_run_goes_on_from_another_and_the_same_seed_gives_the_same_weights(
    make_dataset: MakeDataset,
) -> None:
    data = make_dataset(good=1, per_kind=2)
    first = finetune_yolo(_config(data, "first"))

    second, third = (
        finetune_yolo(_config(data, out, weights=str(first.root), seed=3))
        for out in ("second", "third")
    )

    one, two = (load_file(run.checkpoints / "best.safetensors") for run in (second, third))
    assert all(torch.equal(one[name], two[name]) for name in one)
    start = load_file(first.checkpoints / "best.safetensors")
    moved = (one["model.0.conv.weight"] - start["model.0.conv.weight"]).abs().max()
    assert 0 < moved < 0.01  # one gentle epoch away from the run that it started from
    for name in ("scratch", "spot"):  # embeddings come along, though the seed is another
        vectors = [
            load_file(run.checkpoints / "embeddings.safetensors")[name] for run in (first, second)
        ]
        assert torch.allclose(*vectors, atol=1e-6)


def test_rare_classes_are_shown_more_often(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(good=1, per_kind=4)
    _edit(data / "train.json", _drop_all_spots_but_one)
    shown: list[int] = []
    plain = DefectImages.__getitem__

    def record(self: DefectImages, index: int | Draw) -> Any:
        if isinstance(index, Draw):
            shown.append(index.picture)
        return plain(self, index)

    monkeypatch.setattr(DefectImages, "__getitem__", record)
    finetune_yolo(_config(data, "run", sampling="repeat-factor", repeat=2, workers=0))

    train = DatasetFolder.open(data).read("train")
    labels = train.image_labels() * 2
    assert Counter(labels[index] for index in shown) == {"good": 2, "scratch": 8, "spot": 4}


def test_the_size_of_pictures_follows_the_defects(
    make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(good=1, per_kind=2)

    def shrink(content: dict[str, Any]) -> None:
        content["annotations"][0] |= {"bbox": [10, 10, 5, 5], "area": 25}
        del content["annotations"][0]["segmentation"]

    _edit(data / "train.json", shrink)
    run = finetune_yolo(_config(data, "auto", image_size="auto"))
    assert Detector.load(run.root, torch.device("cpu")).image_size == 128  # 8 / 5 of 64 is 103
    assert "small defects" not in capsys.readouterr().err
    finetune_yolo(_config(data, "small", image_size=64))
    told = capsys.readouterr().err
    assert "small defects are 5.0 pixels wide at 64 pixels; --image-size 128 shows" in told


@pytest.mark.parametrize(
    ("epoch", "message"),
    [
        (1, "a batch of 4 pictures of 64 pixels .* cpu: give --batch 2"),
        (2, "cpu: out of memory: give --batch"),
    ],
)
def test_memory_that_is_too_small_is_said(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, epoch: int, message: str
) -> None:
    data = make_dataset(good=1, per_kind=2)
    plain = OfflineWorldTrainer.preprocess_batch

    def prepare(self: OfflineWorldTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        if self.epoch + 1 == epoch:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        prepared: dict[str, Any] = plain(self, batch)
        return prepared

    monkeypatch.setattr(OfflineWorldTrainer, "preprocess_batch", prepare)
    with pytest.raises(InputError, match=message):
        finetune_yolo(_config(data, "run", epochs=3, workers=0))


def _drop_all_spots_but_one(content: dict[str, Any]) -> None:
    spots = sorted({a["image_id"] for a in content["annotations"] if a["category_id"] == 2})[1:]
    content["images"] = [image for image in content["images"] if image["id"] not in spots]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in spots]


def test_any_class_name_and_embeddings_from_a_file(make_dataset: MakeDataset) -> None:
    # ultralytics takes "/" between synonyms and strips blanks, which would mix these two classes up
    names = ["cable/bent wire", "bent wire"]
    data = make_dataset(good=1, per_kind=2)
    for split in ("train", "val", "test"):

        def rename(content: dict[str, Any]) -> None:
            for category, name in zip(content["categories"], names, strict=True):
                category["name"] = name

        _edit(data / f"{split}.json", rename)
    vectors = make_embeddings(3, seed=8)
    embeddings = data.parent / "classes.safetensors"
    rows = [row.clone() for row in vectors]
    save_file(dict(zip([*names, "other"], rows, strict=True)), embeddings)

    run = finetune_yolo(_config(data, "run", embeddings=embeddings))

    assert json.loads((run.checkpoints / "model.json").read_text())["names"] == names
    stored = load_file(run.checkpoints / "embeddings.safetensors")
    assert set(stored) == set(names)
    assert torch.allclose(stored["bent wire"], vectors[1], atol=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_defects_is_refused(make_dataset: MakeDataset, split: str) -> None:
    data = make_dataset()
    _edit(data / f"{split}.json", lambda content: content.update(annotations=[]))

    with pytest.raises(InputError, match=f"{split} has no defects"):
        finetune_yolo(_config(data, "run"))
    assert not (data.parent / "run").exists()


def test_a_dataset_without_val_is_refused(make_dataset: MakeDataset) -> None:
    data = make_dataset()
    (data / "val.json").unlink()

    with pytest.raises(InputError, match="has no val split"):
        finetune_yolo(_config(data, "run"))


def test_a_picture_that_cannot_be_used_stops_before_training(make_dataset: MakeDataset) -> None:
    data = make_dataset()
    _edit(data / "val.json", lambda content: content["images"][0].update(width=65))

    with pytest.raises(InputError, match="is 64 x 64 pixels, annotated as 65 x 64"):
        finetune_yolo(_config(data, "run"))

    picture = data / "images" / "train_good_000.png"
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(InputError, match=r"train_good_000\.png: is not a readable picture"):
        finetune_yolo(_config(data, "run"))
    assert not (data.parent / "run").exists()


def test_a_loss_that_is_no_number_stops_training(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(good=1, per_kind=2)
    prepare = OfflineWorldTrainer.preprocess_batch

    def spoil(self: OfflineWorldTrainer, batch: dict[str, Any]) -> Any:
        prepared = prepare(self, batch)
        return {**prepared, "img": prepared["img"] * float("nan")}

    monkeypatch.setattr(OfflineWorldTrainer, "preprocess_batch", spoil)
    with pytest.raises(InputError, match=r"diverged in epoch 1: .* lower learning_rate"):
        finetune_yolo(_config(data, "run"))
