"""What learns in each mode, in which form classes are kept, and runs that go on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import FinetuneYoloConfig
from toolkit.detect import Detector, finetune_yolo, predict_dataset
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.data import DefectImages, Draw, EpochDraws
from toolkit.detect.embeddings import ClassEmbeddings, make_embeddings
from toolkit.detect.models import build_model, set_classes
from toolkit.detect.modes import is_reparameterised, reparameterise
from toolkit.detect.weights import load_trained
from toolkit.predictions import read_results
from toolkit.runs import RunFolder

MakeDataset = Callable[..., Path]


def _config(data: Path, out: str, **options: Any) -> FinetuneYoloConfig:
    defaults: dict[str, Any] = {
        "epochs": 1,
        "image_size": 64,
        "batch": 4,
        "device": "cpu",
        "workers": 0,
        "weights": "starter",
    }
    return FinetuneYoloConfig(data=data, out=data.parent / out, **{**defaults, **options})


def _weights(run: RunFolder, name: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"{name}.safetensors")


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if torch.equal(first[name], second[name])}


@pytest.fixture(scope="module")
def start() -> dict[str, torch.Tensor]:
    return load_starting_point("starter", "n", 0, trust=False).model.state_dict()


@pytest.mark.parametrize("classes", [1, 5])
def test_a_reparameterised_model_answers_the_same_and_reads_no_text(classes: int) -> None:
    model = build_model("n", seed=1)
    for head in model.model[-1].cv4:  # as if it had learnt
        torch.nn.init.uniform_(head.norm.running_mean, -1, 1)
        torch.nn.init.uniform_(head.norm.running_var, 0.5, 2)
        torch.nn.init.constant_(head.logit_scale, 0.7)
        torch.nn.init.constant_(head.bias, -3.0)
    names = tuple(f"class {i}" for i in range(classes))
    set_classes(model, ClassEmbeddings(names, make_embeddings(classes, 0), ("made",) * classes))
    model.eval()
    pictures = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        before = model(pictures)[0]
        reparameterise(model)
        after = model(pictures)[0]
        model.txt_feats = torch.full_like(model.txt_feats, torch.nan)
        without_text = model(pictures)[0]
    assert before[:, 4:].max() > 0.01
    assert torch.allclose(before, after, atol=1e-4, rtol=1e-4)
    assert torch.equal(after, without_text)


def test_prompts_alone_learn(make_dataset: MakeDataset, start: dict[str, torch.Tensor]) -> None:
    data = make_dataset()
    run = finetune_yolo(_config(data, "run", mode="prompt"))
    assert _equal(_weights(run), start) == set(start)
    plain = finetune_yolo(_config(data, "plain", learning_rate=1e-9))
    learnt, before = _weights(run, "embeddings"), _weights(plain, "embeddings")
    for name in ("scratch", "spot"):
        assert learnt[name].shape == (512,)
        assert learnt[name].norm() == pytest.approx(1.0, abs=1e-5)
        assert 1e-4 < (learnt[name] - before[name]).abs().max() < 0.2
    trained = load_trained(run.root)
    assert trained.embeddings is not None
    assert trained.embeddings.origins == ("learnt, starter",) * 2
    # The network is that of the starter, which can be asked for anything; the other's is not.
    assert trained.open_vocabulary and not load_trained(plain.root).open_vocabulary
    test = DatasetFolder.open(data).read("test")
    detector = Detector.load(run.root, torch.device("cpu"))
    assert predict_dataset(detector, test, batch=4) == read_results(run.predictions / "test.json")


def test_a_frozen_backbone_stays(make_dataset: MakeDataset, start: dict[str, torch.Tensor]) -> None:
    run = finetune_yolo(_config(make_dataset(), "run", mode="freeze-backbone"))
    same = _equal(_weights(run), start)
    backbone = {name for name in start if int(name.split(".")[1]) < 10}
    assert backbone <= same
    kernels = {name for name in start if name.endswith("conv.weight") and "dfl" not in name}
    assert not same & (kernels - backbone)


def test_classes_as_convolutions_learn_and_are_loaded(make_dataset: MakeDataset) -> None:
    data = make_dataset()
    run = finetune_yolo(_config(data, "run", mode="reparam", epochs=2))
    trained = load_trained(run.root)
    assert is_reparameterised(trained.model)
    fresh = load_starting_point("starter", "n", 0, trust=False).model
    set_classes(fresh, trained.embeddings)
    reparameterise(fresh)
    kernel = trained.model.model[-1].cv4[0].conv.weight
    assert kernel.shape == (2, 512, 1, 1)
    assert not torch.equal(kernel, fresh.model[-1].cv4[0].conv.weight)
    test = DatasetFolder.open(data).read("test")
    detector = Detector.load(run.root, torch.device("cpu"))
    assert predict_dataset(detector, test, batch=4) == read_results(run.predictions / "test.json")

    again = finetune_yolo(_config(data, "again", mode="reparam", weights=str(run.root)))
    assert is_reparameterised(load_trained(again.root).model)
    with pytest.raises(InputError, match="mode: full needs class embeddings, and those of"):
        finetune_yolo(_config(data, "full", weights=str(run.root)))
    other = make_dataset(name="other")
    for split in ("train", "val", "test"):
        path = other / f"{split}.json"
        path.write_text(path.read_text().replace('"spot"', '"stain"'))
    with pytest.raises(InputError, match=r"its classes became weights \(scratch, spot\)"):
        finetune_yolo(_config(other, "bad", mode="reparam", weights=str(run.root)))
    assert not (data.parent / "bad").exists()


def test_random_weights_must_learn(make_dataset: MakeDataset) -> None:
    with pytest.raises(ValueError, match="mode: prompt leaves random weights as they are"):
        _config(make_dataset(), "run", mode="prompt", weights="none")


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ({}, 1),
        ({"workers": 2, "sampling": "repeat-factor"}, 2),
        ({"mode": "prompt"}, 1),
        ({"mode": "reparam", "optimizer": "SGD"}, 2),
        ({"arch": "yolo26n", "weights": "none"}, 1),  # whose loss shifts from epoch to epoch
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], stop: int
) -> None:
    data = make_dataset(good=1, per_kind=3)
    settings = {"epochs": 4, "close_mosaic": 1, **options}
    whole = finetune_yolo(_config(data, "whole", **settings))
    log = RunFolder.log

    def dying(self: RunFolder, record: dict[str, Any]) -> None:
        log(self, record)
        if record["epoch"] == stop + 1:  # logged, but its state is not written yet
            raise _Killed

    monkeypatch.setattr(RunFolder, "log", dying)
    with pytest.raises(_Killed):
        finetune_yolo(_config(data, "killed", **settings))
    monkeypatch.setattr(RunFolder, "log", log)
    settings["workers"] = 0  # who reads the pictures changes nothing
    resumed = finetune_yolo(_config(data, "killed", **settings, resume=True))

    kept = sorted(path.stem for path in whole.checkpoints.glob("*.safetensors"))
    assert {"best", "last"} <= set(kept)
    for name in kept:
        first, second = _weights(whole, name), _weights(resumed, name)
        assert _equal(first, second) == set(first), name
    records = [
        [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    for record in (*records[0], *records[1]):
        record.pop("seconds")
    assert records[0] == records[1]


def test_a_finished_run_is_not_trained_again(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    run = finetune_yolo(_config(data, "run"))
    before = (run.root / "log.jsonl").read_text()
    (run.predictions / "test.json").unlink()
    finetune_yolo(_config(data, "run", resume=True))
    assert (run.root / "log.jsonl").read_text() == before
    assert (run.predictions / "test.json").is_file()
    with pytest.raises(InputError, match="was started with mode 'full', not 'prompt'"):
        finetune_yolo(_config(data, "run", mode="prompt", resume=True))
    (run.checkpoints / "last.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"last\.safetensors: is damaged"):
        finetune_yolo(_config(data, "run", resume=True))


def test_what_a_picture_becomes_depends_on_its_draw_alone(make_dataset: MakeDataset) -> None:
    from types import SimpleNamespace

    from toolkit.detect.data import data_description

    truth = DatasetFolder.open(make_dataset()).read("train")
    from ultralytics.cfg import get_cfg

    args = get_cfg(overrides={"imgsz": 64})

    def images() -> DefectImages:
        description = data_description({"train": truth, "val": truth})
        return DefectImages(truth, "train", SimpleNamespace(**vars(args)), description, 4)

    draws = list(EpochDraws([1.0] * len(truth.images), seed=3))
    assert sorted(draw.picture for draw in draws) == list(range(len(truth.images)))
    forwards, backwards = images(), images()
    first = {draw: forwards[draw] for draw in draws}
    second = {draw: backwards[draw] for draw in reversed(draws)}
    for draw in draws:
        assert torch.equal(first[draw]["img"], second[draw]["img"])
        assert torch.equal(first[draw]["bboxes"], second[draw]["bboxes"])
    other = Draw(draws[0].picture, draws[0].seed + 1)
    assert not torch.equal(forwards[other]["img"], first[draws[0]]["img"])


def test_no_process_is_started_without_workers(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"asked for a process: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    finetune_yolo(_config(make_dataset(), "run", mode="reparam"))
