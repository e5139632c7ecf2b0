"""Fine-tuning that keeps the vocabulary open: what stays, what is mixed in, what can be asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit import cli
from toolkit.config import FinetuneYoloConfig, PredictConfig
from toolkit.detect import finetune, finetune_yolo
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.data import Draw
from toolkit.detect.embeddings import make_embeddings
from toolkit.detect.models import build_model
from toolkit.detect.open_vocabulary import (
    OpenVocabularyTrainer,
    Replay,
    TwoSets,
    choose_vocabulary,
    text_tensors,
)
from toolkit.detect.weights import load_trained, save_weights
from toolkit.predict import predict
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
        "open_vocabulary": True,
        "replay": data.parent / "replay",
    }
    return FinetuneYoloConfig(data=data, out=data.parent / out, **{**defaults, **options})


def _rename(data: Path, *names: str) -> Path:
    """Other categories, in their order; more than two have no instances."""
    for path in data.glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
        path.write_text(json.dumps(content))
    return data


@pytest.fixture
def data(make_dataset: MakeDataset) -> Path:
    """Scratches and spots, and beside it a replay of holes, spots, dents and cracks."""
    replay = make_dataset(good=0, per_kind=3, seed=1, name="replay")
    _rename(replay, "hole", "spot", "dent", "crack")
    return make_dataset(good=1, per_kind=2)


def _loaded(run: RunFolder, name: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"{name}.safetensors")


class _Stop(Exception):
    pass


@pytest.mark.parametrize("mode", ["full", "freeze-backbone"])
def test_exactly_what_reads_classes_is_frozen(
    data: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    found: dict[str, bool] = {}

    def look(self: OpenVocabularyTrainer, ckpt: None) -> None:
        found.update({name: p.requires_grad for name, p in self.model.named_parameters()})
        raise _Stop

    monkeypatch.setattr(OpenVocabularyTrainer, "resume_training", look)
    with pytest.raises(_Stop):
        finetune_yolo(_config(data, "run", mode=mode))

    expected = {
        *(
            f"model.{layer}.attn.{name}"
            for layer in (12, 15, 18, 21)
            for name in ("gl.weight", "gl.bias", "bias")
        ),
        *(f"model.22.cv4.{level}.{name}" for level in range(3) for name in ("logit_scale", "bias")),
        "model.22.dfl.conv.weight",  # never learns
    }
    if mode == "freeze-backbone":
        expected |= {name for name in found if int(name.split(".")[1]) < 10}
    assert {name for name, learns in found.items() if not learns} == expected


def test_an_open_run_finds_its_own_classes_and_any_other_that_it_is_asked_for(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune_yolo(_config(data, "run", confidence=1e-6))

    start = load_starting_point("starter", "n", 0, trust=False).model
    before, after = start.state_dict(), _loaded(run)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert set(text_tensors(start)) <= same  # bit for bit
    kernels = {n for n in before if n.endswith("conv.weight") and "dfl" not in n}
    assert not same & kernels
    assert "beside 6 pictures of 4 classes that keep its vocabulary open" in capsys.readouterr().err
    assert json.loads((run.checkpoints / "model.json").read_text())["open_vocabulary"] is True
    assert load_trained(run.root).embeddings.names == ("scratch", "spot")
    assert set(_loaded(run, "embeddings")) == {"scratch", "spot"}
    found = read_results(run.predictions / "test.json")
    assert {result["category_id"] for result in found} == {1, 2}

    classes, out = data.parent / "classes.safetensors", data.parent / "asked"
    load_trained(Path("starter")).embeddings.only(("hole", "crack")).save(classes)
    source = data.parent / "replay"
    options = {"detector": run.root, "embeddings": classes, "confidence": 1e-6}
    predict(PredictConfig(source=source, out=out, splits=("test",), **options))
    asked = read_results(out / "predictions/test.json")
    assert {result["category_id"] for result in asked} == {1, 4}  # hole and crack
    # A run can start from it and keep the vocabulary open, given the vectors that it lacks itself.
    start_again = load_starting_point(str(run.root), "n", 0, trust=False)
    again = _config(data, "again", weights=str(run.root))
    with pytest.raises(InputError, match="has no embedding for class 'hole'"):
        choose_vocabulary(again, {"train": DatasetFolder.open(data).read("train")}, start_again)


def test_otherwise_a_line_says_that_the_vocabulary_closes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> None:
        raise _Stop

    monkeypatch.setattr(finetune, "_train", stop)
    with pytest.raises(_Stop):
        finetune_yolo(_config(data, "run", open_vocabulary=False, replay=None))
    assert "(--open-vocabulary keeps it open): scratch, spot." in capsys.readouterr().err
    run = RunFolder(data.parent / "run")
    save_weights(run, build_model("n").state_dict())
    start = load_starting_point(str(run.root), "n", 0, trust=False)
    with pytest.raises(InputError, match="run: has no open vocabulary to keep"):
        splits = {"train": DatasetFolder.open(data).read("train")}
        choose_vocabulary(_config(data, "again", weights=str(run.root)), splits, start)


def _sets(data: Path) -> tuple[FinetuneYoloConfig, Any, Replay]:
    config = _config(data, "run")
    splits = {"train": DatasetFolder.open(data).read("train")}
    start = load_starting_point("starter", "n", 0, trust=False)
    embeddings, replay = choose_vocabulary(config, splits, start)
    assert replay is not None
    return config, (splits["train"], embeddings), replay


def test_a_class_of_both_sets_is_one_class(data: Path) -> None:
    _, (_, embeddings), replay = _sets(data)
    assert embeddings.names == ("scratch", "spot")
    assert replay.embeddings.names == ("hole", "spot", "dent", "crack")
    assert torch.equal(embeddings.vectors[1], replay.embeddings.vectors[1])
    cosines = embeddings.vectors[0] @ replay.embeddings.vectors.T
    assert cosines.max() < 0.9


def test_mosaics_and_labels_are_of_one_set(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.cfg import get_cfg

    _, (train, _), replay = _sets(data)
    args = SimpleNamespace(**vars(get_cfg(overrides={"imgsz": 64})))
    factors = replay.factors([1.0] * len(train.images))
    sets = TwoSets(train, replay.train, args, 4, factors)
    assert len(sets.labels) == len(train.images) + len(replay.train.images) == 5 + 6
    assert sum(factors) == pytest.approx(2 * 5)  # half of the pictures are of each set
    loaded: list[str] = []
    plain = TwoSets.get_image_and_label

    def record(self: TwoSets, index: int) -> Any:
        label = plain(self, index)
        loaded.append(label["im_file"])
        return label

    monkeypatch.setattr(TwoSets, "get_image_and_label", record)
    for picture in range(len(sets.labels)):
        for seed in range(4):
            loaded.clear()
            item = sets[Draw(picture, seed)]
            assert item["vocabulary"] == (picture >= 5)
            folders = Counter(Path(path).parents[1].name for path in loaded)
            assert set(folders) == {"replay" if picture >= 5 else "dataset"}
            assert len(loaded) == 4  # mosaics they are
    spots = [label for label in sets.labels if "spot" in Path(label["im_file"]).name]
    assert {float(value) for label in spots for (value,) in label["cls"]} == {1.0}  # in both sets


def test_a_picture_is_asked_for_the_classes_of_its_own_set_alone(data: Path) -> None:
    seen: list[dict[str, Any]] = []
    plain = OpenVocabularyTrainer.preprocess_batch

    def look(self: OpenVocabularyTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        prepared = plain(self, batch)
        seen.append(prepared)
        found = self.model(prepared["img"], txt_feats=prepared["txt_feats"])
        found["scores"].retain_grad()
        loss, _ = self.model.criterion(found, prepared)
        loss.sum().backward()
        seen[-1]["gradient"] = found["scores"].grad
        raise _Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVocabularyTrainer, "preprocess_batch", look)
        with pytest.raises(_Stop):
            finetune_yolo(_config(data, "run", batch=10))
    (batch,) = seen
    own = batch["repeats"].any(dim=1)
    assert own.any() and not own.all()
    assert batch["txt_feats"].shape == (10, 4, 512)
    for texts, gradient, is_own in zip(batch["txt_feats"], batch["gradient"], own, strict=True):
        if is_own:  # two classes of its own, and again
            assert torch.equal(texts[:2], texts[2:])
            assert gradient[:2].abs().max() > 0 and gradient[2:].abs().max() == 0
        else:
            assert len(torch.unique(texts, dim=0)) == 4
            assert (gradient.abs().amax(dim=1) > 0).all()


def test_a_killed_run_goes_on_to_the_same_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "close_mosaic": 1}
    whole = finetune_yolo(_config(data, "whole", **settings))
    log = RunFolder.log

    def dying(self: RunFolder, record: dict[str, Any]) -> None:
        log(self, record)
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", dying)
    with pytest.raises(KeyboardInterrupt):
        finetune_yolo(_config(data, "killed", **settings))
    monkeypatch.setattr(RunFolder, "log", log)
    resumed = finetune_yolo(_config(data, "killed", **settings, resume=True))

    first, second = _loaded(whole), _loaded(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": None}, "needs pictures of other classes: give --replay"),
        ({"open_vocabulary": False}, "replay: keeps a vocabulary open: give --open-vocabulary"),
        (
            {"open_vocabulary": False, "replay": None, "replay_share": 0.2},
            "replay: keeps a vocabulary open: give --open-vocabulary",
        ),
        ({"mode": "prompt"}, "--mode prompt learns the classes themselves"),
        ({"mode": "reparam"}, "--mode reparam learns the classes themselves"),
        ({"weights": "none"}, "random weights have none to keep"),
        ({"image_size": 32}, "needs an image_size of 64 or more"),
        ({"replay_share": 1.0}, "less than 1"),
    ],
)
def test_settings_that_keep_nothing_open_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _config(tmp_path / "data", "run", **options)


def test_a_replay_that_cannot_be_used_is_one_line(
    data: Path, make_dataset: MakeDataset, capsys: Any
) -> None:
    replay, words = data.parent / "replay", ["finetune", "yolo", "--data", str(data)]
    words += ["--weights", "starter", "--open-vocabulary", "--image-size", "64"]
    words += ["--out", str(data.parent / "run"), "--replay"]

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, *arguments])
        assert caught.value.code == 2
        error: str = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "is not a dataset folder" in refused(str(data.parent / "nowhere"))
    # pictures that the run is measured on, under another name
    held_out, shown = data / "images/test_spot_002.png", replay / "images/train_spot_001.png"
    kept = shown.read_bytes()
    shown.write_bytes(held_out.read_bytes())
    error = refused(str(replay))
    assert "its train has train_spot_001.png, which the test split of the data holds out" in error
    shown.write_bytes(kept)
    # a class that nobody knows a vector of
    _rename(replay, "hole", "spot", "gizmo")
    assert "starter has no embedding for class 'gizmo'" in refused(str(replay))
    classes = data.parent / "classes.safetensors"
    rows = make_embeddings(3, 0)
    save_file(
        {name: rows[i].clone() for i, name in enumerate(("scratch", "spot", "hole"))}, classes
    )
    error = refused(str(replay), "--embeddings", str(classes))
    assert "has no embedding for class 'gizmo'" in error
    _rename(replay, "scratch", "spot")
    assert "has no class that" in refused(str(replay))
    _rename(replay, *(f"kind {number}" for number in range(79)))
    assert "with its classes there are 81" in refused(str(replay))
    content = json.loads((replay / "train.json").read_text())
    (replay / "train.json").write_text(json.dumps({**content, "annotations": []}))
    assert "train has no defects to replay" in refused(str(replay))
    assert not (data.parent / "run").exists()
