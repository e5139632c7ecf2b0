"""Plain detectors: the same command, data and predictions as YOLO-World."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from toolkit.architectures import PLAIN, WORLD
from toolkit.config import ExportConfig, FinetuneYoloConfig, PredictConfig, PretrainYoloConfig
from toolkit.config.base import build
from toolkit.detect import Detector, finetune_yolo
from toolkit.detect.checkpoints import load_plain_start, load_starting_point
from toolkit.detect.data import DefectImages, data_description
from toolkit.detect.export import export_detector
from toolkit.detect.models import build_plain
from toolkit.detect.pretrain import pretrain_yolo
from toolkit.detect.recipe import in_epochs, training_arguments
from toolkit.detect.trainer import OfflinePlainTrainer
from toolkit.detect.weights import (
    COMMAND,
    RunModel,
    load_trained,
    save_description,
    save_weights,
)
from toolkit.predict import predict
from toolkit.predictions import read_card
from toolkit.runs import RunFolder

MakeDataset = Callable[..., Path]
CPU = torch.device("cpu")


def _config(data: Path, out: str, **options: Any) -> FinetuneYoloConfig:
    defaults: dict[str, Any] = {"epochs": 1, "image_size": 64, "batch": 4, "device": "cpu"}
    return FinetuneYoloConfig(data=data, out=data.parent / out, **{**defaults, **options})


def _published(path: Path, name: str, classes: int = 80) -> Path:
    """A file as ultralytics publishes them: the pickled module in half precision."""
    from ultralytics.nn.tasks import DetectionModel  # after toolkit.detect

    model = build_plain(name, tuple(f"thing {i}" for i in range(classes)), seed=9)
    model.__class__ = DetectionModel
    torch.save({"model": model.half(), "ema": None, "train_args": {}}, path)
    return path


@pytest.mark.parametrize("arch", ["yolov8n", "yolo26n"])
def test_a_plain_detector_trains_predicts_and_is_exported(
    make_dataset: MakeDataset, arch: str
) -> None:
    data = make_dataset(good=1, per_kind=2)
    run = finetune_yolo(_config(data, "run", arch=arch))
    assert not (run.checkpoints / "embeddings.safetensors").exists()
    start = build_plain(arch, ("scratch", "spot"), seed=0).state_dict()
    learnt = load_trained(run.root).model.state_dict()
    assert not torch.equal(start["model.0.conv.weight"], learnt["model.0.conv.weight"])

    detector = Detector.load(run.root, CPU)
    assert detector.names == ("scratch", "spot")
    assert detector.description == f"{arch}, 64 px, from random weights"
    card = read_card(run.predictions)
    assert card is not None and card.detector == detector.description
    out = data.parent / "model.onnx"
    exported = export_detector(ExportConfig(run=run.root, out=out, data=data))
    assert exported.classes == ("scratch", "spot")
    assert exported.agreement.pixels < 0.5


def test_rt_detr_finds_boxes_in_pictures_of_any_shape() -> None:
    model = build_plain("rtdetr-l", ("scratch", "spot"), seed=0)
    model.eval()
    trained = RunModel(model, "l", None, 64, "random weights", arch="rtdetr-l")
    picture = np.random.default_rng(0).integers(0, 255, (50, 100, 3), np.uint8)
    square = np.ascontiguousarray(picture[:, :50])
    detector = Detector(trained, CPU, confidence=0.0, max_detections=5)

    (wide, small) = detector([picture, square])

    assert len(wide) == len(small) == 5
    assert wide.confidence is not None and np.all(np.diff(wide.confidence) <= 0)
    assert np.all(wide.xyxy >= 0) and np.all(wide.xyxy <= [100, 50, 100, 50])
    # queries answer for the stretched square: what it is stretched back to has both scales
    pixels = torch.from_numpy(detector._fit(image=picture)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        best = model(pixels)[0][0]
    best = best[best[:, 4].argmax()]
    x, y, w, h = (best[:4] * torch.tensor([100.0, 50, 100, 50])).tolist()
    expected = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [100, 50, 100, 50])
    np.testing.assert_allclose(wide.xyxy[0], expected, atol=1e-3)


def test_weights_of_the_same_architecture_are_taken_but_for_the_classes(tmp_path: Path) -> None:
    path = _published(tmp_path / "yolov8n.pt", "yolov8n")
    theirs = build_plain("yolov8n", tuple(map(str, range(80))), seed=9).half().float().state_dict()

    start = load_plain_start("yolov8n", ("scratch", "spot"), str(path), 0, trust=False)

    assert start.origin == "photographs" and start.source.startswith("yolov8n.pt (")
    own = start.model.state_dict()
    assert all(
        torch.equal(tensor, theirs[name]) for name, tensor in own.items() if ".cv3." not in name
    )
    assert own["model.22.cv3.0.2.weight"].shape[0] == 2


def test_the_starter_gives_a_plain_yolov8_what_both_have() -> None:
    start = load_plain_start("yolov8n", ("scratch", "spot"), "starter", 0, trust=False)
    world = load_starting_point("starter", "n", 0, trust=False).model.state_dict()
    assert (start.source, start.origin) == (
        "starter (315 of 355 tensors, 0 of 2 classes)",
        "procedural",
    )
    own = start.model.state_dict()
    layers = {int(name.split(".")[1]) for name, tensor in own.items() if _in(name, tensor, world)}
    assert set(range(10)) <= layers and 22 in layers


def _in(name: str, tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> bool:
    return name in state and torch.equal(state[name], tensor)


def test_rows_of_classes_go_by_their_names(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", COMMAND, _config(tmp_path / "data", "run"))
    model = build_plain("yolov8n", ("scratch", "dent", "hole"), seed=3)
    save_description(run, RunModel(model, "n", None, 64, "random weights", arch="yolov8n"))
    save_weights(run, model.state_dict())

    start = load_plain_start("yolov8n", ("hole", "glue", "scratch"), str(run.root), 0, trust=False)

    name = "model.22.cv3.1.2.weight"
    theirs, own = model.state_dict()[name], start.model.state_dict()[name]
    random = build_plain("yolov8n", ("hole", "glue", "scratch"), seed=0).state_dict()[name]
    assert torch.equal(own[0], theirs[2]) and torch.equal(own[2], theirs[0])
    assert torch.equal(own[1], random[1])
    assert start.source.endswith("2 of 3 classes)")


def test_what_was_found_as_defect_starts_every_class(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", COMMAND, _config(tmp_path / "data", "run"))
    model = build_plain("rtdetr-l", ("defect",), seed=3)
    save_description(run, RunModel(model, "l", None, 64, "random weights", arch="rtdetr-l"))
    save_weights(run, model.state_dict())
    start = load_plain_start("rtdetr-l", ("hole", "glue"), str(run.root), 0, trust=False)
    name = "model.28.enc_score_head.weight"
    theirs, own = model.state_dict()[name], start.model.state_dict()[name]
    assert torch.equal(own, theirs.expand(2, -1))


def test_another_architecture_gives_its_backbone_or_is_refused(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel  # after toolkit.detect

    classes = ("scratch", "spot")
    starter = _published(tmp_path / "starter.pt", "yolov8n")
    start = load_plain_start("yolov9t", classes, "none", 0, trust=False)
    assert (start.source, start.origin) == ("random weights", "random")
    ghost = tmp_path / "yolov8n-p2.pt"
    model = DetectionModel("yolov8-p2.yaml", nc=2, verbose=False)
    torch.save({"model": model.half(), "ema": None}, ghost)
    start = load_plain_start("yolov8n", classes, str(ghost), 0, trust=False)
    assert (start.source, start.origin) == ("the backbone of yolov8n-p2.pt", "random")
    theirs, own = model.float().state_dict(), start.model.state_dict()
    random = build_plain("yolov8n", classes, seed=0).state_dict()
    for name, tensor in own.items():
        source = theirs if int(name.split(".")[1]) < 10 else random
        assert torch.equal(tensor, source[name]), name

    with pytest.raises(InputError, match=r"starter\.pt: only .* give weights of yolo11n or of its"):
        load_plain_start("yolo11n", classes, str(starter), 0, trust=False)
    path = _published(tmp_path / "yolov8s.pt", "yolov8s", classes=2)
    with pytest.raises(InputError, match=r"yolov8s\.pt: only .* give weights of yolov8n"):
        load_plain_start("yolov8n", classes, str(path), 0, trust=False)


def test_pretraining_gives_a_plain_detector_that_finds_one_class(tmp_path: Path) -> None:
    config = PretrainYoloConfig(
        out=tmp_path / "pre",
        arch="yolo11n",
        kinds=("hole", "crack"),
        steps=2,
        piece=2,
        batch=8,
        image_size=64,
        val_pictures=4,
        device="cpu",
        workers=0,
    )
    run = pretrain_yolo(config)
    assert load_trained(run.root).names == ("hole", "crack")
    assert Detector.load(run.root, CPU).names == ("defect",)
    start = load_plain_start("yolo11n", ("a", "b", "c"), str(run.root), 0, trust=False)
    assert start.origin == "procedural"
    learnt, own = load_trained(run.root).model.state_dict(), start.model.state_dict()
    assert torch.equal(own["model.9.cv1.conv.weight"], learnt["model.9.cv1.conv.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "yolo11m1"}, "no detector is called 'yolo11m1': did you mean 'yolo11m'"),
        ({"arch": "yolo11n", "mode": "prompt"}, "mode: prompt is for class embeddings"),
        ({"arch": "yolo11n", "mode": "reparam"}, "mode: reparam is for class embeddings"),
        ({"arch": "yolo11n", "embeddings": Path("e")}, "embeddings: yolo11n has none"),
        ({"arch": "yolo11n", "scale": "x"}, "scale: .* is part of its name: give arch yolo11x"),
        ({"arch": "rtdetr-l", "scale": "n"}, "scale: .* is part of its name: leave scale out"),
    ],
)
def test_what_a_plain_detector_cannot_do_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(FinetuneYoloConfig, None, {"data": "data", "out": "run", **options})


def test_a_plain_detector_is_not_asked_in_words(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", COMMAND, _config(tmp_path / "data", "run"))
    model = build_plain("yolo11n", ("scratch", "spot"))
    save_description(run, RunModel(model, "n", None, 64, "random weights", arch="yolo11n"))
    save_weights(run, model.state_dict())
    config = PredictConfig(
        source=tmp_path, out=tmp_path / "out", detector=run.root, embeddings=tmp_path / "e.yaml"
    )
    with pytest.raises(InputError, match="run: is a plain yolo11n, which compares nothing with"):
        predict(config)


def test_rt_detr_is_not_pretrained() -> None:
    with pytest.raises(InputError, match="rtdetr-l is not pretrained"):
        build(PretrainYoloConfig, None, {"out": "run", "arch": "rtdetr-l"})


@pytest.mark.parametrize(
    ("arch", "origin", "rate"),
    [
        ("yolov8n", "photographs", 0.002),
        ("yolov8n", "random", 2e-3),
        ("rtdetr-l", "random", 1e-4),
        (WORLD, "photographs", 1e-3),
    ],
)
def test_rates_of_plain_detectors(arch: str, origin: Any, rate: float) -> None:
    config = FinetuneYoloConfig(data=Path("data"), out=Path("run"), arch=arch)
    found = training_arguments(
        config, origin=origin, classes=1, images=9, image_size=64, device=CPU, frozen=[]
    )
    assert found["lr0"] == pytest.approx(rate)
    assert found["optimizer"] == ("SGD" if arch == WORLD else "AdamW")


@pytest.mark.parametrize(
    ("steps", "images", "epochs", "each"),
    [
        (200, 320, 10, 20),
        (200, 32, 10, 20),
        (5, 1000, 1, 5),
        (100, 30_000, 1, 100),
        (270, 2912, 1, 270),
    ],
)
def test_a_length_in_steps_becomes_epochs_of_about_their_length(
    steps: int, images: int, epochs: int, each: int
) -> None:
    config = FinetuneYoloConfig(data=Path("data"), out=Path("run"), steps=steps, batch=16)
    assert in_epochs(config, images) == (epochs, each * 16)


@pytest.mark.parametrize("steps", [3, 50])
def test_as_many_steps_are_made_as_asked(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    made: list[int] = []
    step = OfflinePlainTrainer.optimizer_step

    def counted(self: OfflinePlainTrainer) -> None:
        made.append(self.epoch)
        step(self)

    monkeypatch.setattr(OfflinePlainTrainer, "optimizer_step", counted)
    data = make_dataset(good=1, per_kind=2)
    finetune_yolo(_config(data, "run", arch="yolov9t", steps=steps, batch=2, workers=0))
    assert (len(made), max(made) + 1) == (steps, max(1, round(steps / 20)))


def test_every_architecture_that_is_listed_exists() -> None:
    from ultralytics.utils import ROOT

    missing = [n for n, file in PLAIN.items() if not (ROOT / "cfg" / "models" / file).is_file()]
    assert not missing


def test_a_description_of_no_known_detector_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "run"
    (data / "checkpoints").mkdir(parents=True)
    (data / "config.yaml").write_text("command: finetune yolo\n")
    (data / "checkpoints" / "best.safetensors").write_bytes(b"")
    content = {"architecture": "yolo99n", "scale": "n", "names": ["a"], "image_size": 64}
    (data / "checkpoints" / "model.json").write_text(json.dumps({**content, "source": ""}))
    with pytest.raises(InputError, match="describes no detector that is known"):
        load_trained(data)


@pytest.mark.parametrize(("squares", "shape"), [(False, (64, 96)), (True, (64, 64))])
def test_rt_detr_learns_from_pictures_stretched_to_squares(
    tmp_path: Path, squares: bool, shape: tuple[int, int]
) -> None:
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32] = 255
    cv2.imwrite(str(tmp_path / "wide.png"), picture)
    mask = np.ones((32, 32), bool)
    image = Image(
        "wide.png", tmp_path / "wide.png", 64, 32, (Instance("spot", (0, 0, 32, 32), mask, 1),)
    )
    dataset = Dataset("wide", ("spot",), (image,))
    from ultralytics.cfg import get_cfg  # after toolkit.detect

    args = get_cfg(overrides={"imgsz": 64})

    data = data_description({"train": dataset, "val": dataset})
    images = DefectImages(dataset, "val", args, data, 1, fixed_classes=True, squares=squares)
    item = images[0]

    assert tuple(item["img"].shape[1:]) == shape
    if squares:
        assert item["bboxes"].tolist() == [[0.25, 0.5, 0.5, 1.0]]
