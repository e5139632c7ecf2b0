"""Class embeddings from phrases, in training and for prediction without any."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from converters.errors import InputError
from toolkit import cli
from toolkit.config import FinetuneYoloConfig, PredictConfig, PromptsMakeConfig
from toolkit.detect import finetune_yolo
from toolkit.detect.embeddings import ClassEmbeddings, make_embeddings, names_in
from toolkit.detect.models import build_model, set_classes
from toolkit.detect.modes import reparameterise
from toolkit.detect.prompts import choose_embeddings, embeddings_from, make_prompts, read_phrases
from toolkit.detect.weights import (
    COMMAND,
    RunModel,
    load_trained,
    save_description,
    save_weights,
)
from toolkit.predict import predict
from toolkit.predictions import read_card, read_results
from toolkit.runs import RunFolder

MakeDataset = Callable[..., Path]

PHRASES = """
spot:
  - bright spot
  - round stain on grey metal
scratch: a dark scratch
bent_lead:
"""


@pytest.fixture
def clip(clip_state: dict[str, Tensor], tmp_path: Path) -> str:
    path = tmp_path / "clip.safetensors"
    save_file(clip_state, path)
    return str(path)


@pytest.fixture
def phrases(tmp_path: Path) -> Path:
    path = tmp_path / "phrases.yaml"
    path.write_text(PHRASES)
    return path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def _config(data: Path, out: str, **options: Any) -> FinetuneYoloConfig:
    defaults = {"epochs": 1, "image_size": 64, "batch": 4, "device": "cpu", "workers": 0}
    return FinetuneYoloConfig(data=data, out=data.parent / out, **{**defaults, **options})


def _official(path: Path, names: tuple[str, ...] = ("spot",)) -> Path:
    """A file in the official format, of scale n, that sees things everywhere."""
    from ultralytics.nn.tasks import WorldModel  # after toolkit.detect

    model = build_model("n", seed=9)
    for head in model.model[-1].cv4:
        torch.nn.init.constant_(head.bias, -1.0)
        torch.nn.init.constant_(head.logit_scale, 1.0)
    model.names = dict(enumerate([*names, *(f"thing {i}" for i in range(80 - len(names)))]))
    model.txt_feats = make_embeddings(80, seed=9)[None]
    model.__class__ = WorldModel
    torch.save({"model": deepcopy(model).half(), "ema": None, "train_args": {}}, path)
    return path


# Phrases


def test_phrases_are_averaged_as_unit_vectors_in_the_order_of_the_file(
    clip: str, phrases: Path, clip_files: Any, clip_state: dict[str, Tensor]
) -> None:
    found = embeddings_from(phrases, None, clip, trust=False)

    texts = ["bright spot", "round stain on grey metal", "a dark scratch", "bent lead"]
    first, second, scratch, bent = clip_files.reference(clip_state, texts)
    mean = (first + second) / 2
    assert found.names == ("spot", "scratch", "bent_lead")
    expected = torch.stack([mean / mean.norm(), scratch, bent])
    assert torch.allclose(found.vectors, expected, atol=1e-6)
    assert mean.norm() < 0.99  # so that the second normalisation shows
    assert found.origins == (
        "CLIP ViT-B/32: 'bright spot', 'round stain on grey metal'",
        "CLIP ViT-B/32: 'a dark scratch'",
        "CLIP ViT-B/32: 'bent lead'",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "must map class names to phrases"),
        ("", "must map class names to phrases"),
        ("a: [b", "is not readable YAML"),
        ("a: b\nc: d\na: e", "'a' comes 2 times"),
        ("1: b\n'1': c", "class '1' comes twice"),
        ("no: b", r"False is not a class name: put it in quotes"),
        ("a: []", r"class 'a': must have a phrase, a list of phrases, or nothing"),
        ("a: [b, ' ']", "class 'a': must have a phrase"),
        ("a: {b: c}", "class 'a': must have a phrase"),
        ("a: 3", "class 'a': must have a phrase"),
    ],
)
def test_phrases_that_are_none_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "phrases.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_phrases(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file of phrases"):
        read_phrases(tmp_path / "none.yaml")


def test_a_misspelt_class_is_named_with_the_nearest(clip: str, phrases: Path) -> None:
    with pytest.raises(InputError, match="no phrases for class 'spots': did you mean 'spot'"):
        embeddings_from(phrases, ("scratch", "spots"), clip, trust=False)


def test_more_classes_than_ultralytics_trains_are_refused(phrases: Path, tmp_path: Path) -> None:
    names = tuple(f"kind {number}" for number in range(81))
    phrases.write_text("\n".join(f"{name}:" for name in names))
    config = _config(tmp_path / "data", "run", embeddings=phrases, clip="not looked for")
    with pytest.raises(InputError, match=r"^81 classes: .* at most 80"):
        choose_embeddings(names, config, None)


# toolkit prompts make, and training


def test_a_made_file_gives_what_the_phrases_give_and_a_run_keeps_it(
    make_dataset: MakeDataset, clip: str, phrases: Path, tmp_path: Path
) -> None:
    data, file = make_dataset(good=1, per_kind=1), tmp_path / "classes.safetensors"
    made = make_prompts(PromptsMakeConfig(phrases=phrases, out=file, clip=clip))
    assert names_in(file) == ("spot", "scratch", "bent_lead")
    assert made.phrases["bent_lead"] == ("bent lead",)

    names = ("scratch", "spot")
    elsewhere = choose_embeddings(names, _config(data, "run", embeddings=file, clip="none"), None)
    run = finetune_yolo(_config(data, "run", embeddings=phrases, clip=clip))

    kept = load_trained(run.root).embeddings
    assert kept.names == elsewhere.names == names
    assert torch.allclose(kept.vectors, elsewhere.vectors, atol=1e-6)
    assert torch.allclose(kept.vectors, made.embeddings.only(names).vectors, atol=1e-6)
    assert kept.origins == elsewhere.origins
    assert kept.origins[0] == "CLIP ViT-B/32: 'a dark scratch'"


def test_phrases_without_clip_stop_before_the_run_is_made(
    make_dataset: MakeDataset, phrases: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data = make_dataset()
    monkeypatch.chdir(data.parent)
    words = ["finetune", "yolo", "--data", data, "--out", "run", "--embeddings", phrases]
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: weights/ViT-B-32.pt: no such file")
    assert not Path("run").exists()


def test_the_command_says_what_it_made(
    make_dataset: MakeDataset, clip: str, phrases: Path, tmp_path: Path, capsys: Any
) -> None:
    data, out = make_dataset(), tmp_path / "classes.safetensors"
    assert call("prompts", "make", phrases, "--out", out, "--clip", clip) == 0
    shown = capsys.readouterr().out
    assert "spot: bright spot; round stain on grey metal" in shown and "most alike: " in shown
    assert call("prompts", "make", phrases, "--out", out, "--clip", clip) == 2
    assert "exists: choose another --out" in capsys.readouterr().err
    # of a dataset alone, its names are the phrases
    named = tmp_path / "named.safetensors"
    assert call("prompts", "make", "--dataset", data, "--out", named, "--clip", clip, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phrases"] == {"scratch": ["scratch"], "spot": ["spot"]}
    assert -1 <= found["most_alike"][2] < 1
    assert call("prompts", "make", "--out", tmp_path / "x.safetensors") == 2
    assert "error: no classes: give a YAML file of phrases" in capsys.readouterr().err
    assert call("prompts", "make", phrases, "--out", tmp_path / "x.pt") == 2
    assert "does not end in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scratch:\nspotts:\nspot:", "has a class 'spotts', and .* has none: did you mean 'spot'"),
        ("scratch:", "has no phrases for class 'spot': it has scratch"),
    ],
)
def test_phrases_that_do_not_fit_the_dataset_are_refused(
    make_dataset: MakeDataset, phrases: Path, text: str, message: str
) -> None:
    data, out = make_dataset(), phrases.with_name("x.safetensors")
    phrases.write_text(text)
    config = PromptsMakeConfig(phrases=phrases, dataset=data, out=out, clip="not looked for")
    with pytest.raises(InputError, match=message):
        make_prompts(config)
    assert not out.exists()


# Prediction without training


def test_an_official_file_finds_the_classes_that_it_is_told(
    make_dataset: MakeDataset, clip: str, phrases: Path, tmp_path: Path
) -> None:
    data = make_dataset(good=0, per_kind=1)
    phrases.write_text("spot: bright spot\nscratch: [a dark scratch, hair line]\n")
    detector, out = _official(tmp_path / "yolov8n-worldv2.pt"), tmp_path / "out"
    config = {"detector": detector, "embeddings": phrases, "clip": clip, "splits": ("test",)}
    every = {"max_detections": 20_000, "confidence": 0.0}  # so that no class crowds out another
    counts = predict(PredictConfig(source=data, out=out, **config, **every))

    found = read_results(out / "predictions/test.json")
    assert len(found) == counts["test"] > 0
    card = read_card(out / "predictions")
    assert card is not None and card.detector.startswith("YOLO-World v2 n, 640 px, from yolov8n-")
    assert card.detector.endswith("looking for the classes of phrases.yaml")
    # The same from the model itself, whose own way of setting classes needs the clip package.
    vectors = embeddings_from(phrases, ("scratch", "spot"), clip, trust=False).vectors
    last = [result for result in found if result["image_id"] == found[-1]["image_id"]]
    best = [max(r["score"] for r in last if r["category_id"] == number) for number in (1, 2)]
    expected = _best_scores(detector, vectors, data / "images/test_spot_001.png")
    assert best == pytest.approx(expected, abs=1e-4)


def _best_scores(path: Path, vectors: Tensor, picture: Path) -> list[float]:
    """The highest score of each class, straight from the pickled model."""
    from toolkit.images import read_image

    model = torch.load(path, weights_only=False)["model"].float().eval()
    model.txt_feats = vectors[None]
    model.model[-1].nc = len(vectors)
    pixels = torch.from_numpy(read_image(picture)).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (640, 640), mode="bilinear")
    with torch.no_grad():
        scores: list[float] = model(pixels)[0][0, 4:].amax(dim=1).tolist()
    return scores


def test_pictures_get_all_classes_of_the_file(
    make_dataset: MakeDataset, clip: str, phrases: Path, tmp_path: Path
) -> None:
    picture = make_dataset(good=0, per_kind=1) / "images/val_spot_001.png"
    out, file = tmp_path / "out", tmp_path / "classes.safetensors"
    make_prompts(PromptsMakeConfig(phrases=phrases, out=file, clip=clip))
    arguments = ["--detector", _official(tmp_path / "yolov8n-worldv2.pt"), "--embeddings", file]
    assert call("predict", picture, "--out", out, *arguments, "--quiet") == 0
    listed = json.loads((out / "predictions/images.json").read_text())
    assert [each["name"] for each in listed["categories"]] == ["spot", "scratch", "bent_lead"]
    assert read_results(out / "predictions/pictures.json")


def test_what_cannot_be_looked_for_is_one_line(
    make_dataset: MakeDataset, clip: str, phrases: Path, tmp_path: Path, capsys: Any
) -> None:
    data = make_dataset(good=1, per_kind=1)
    official = _official(tmp_path / "yolov8n-worldv2.pt")
    common = ["predict", data, "--out", tmp_path / "out", "--clip", clip]

    phrases.write_text("spots:\nscratch:\n")
    assert call(*common, "--detector", official, "--embeddings", phrases) == 2
    error = capsys.readouterr().err
    assert "has a class 'spots'" in error and "did you mean 'spot'?" in error
    assert call(*common, "--detector", official) == 2
    assert "an official file finds whatever it is told: say what by --embe" in (
        capsys.readouterr().err
    )
    assert call(*common, "--embeddings", phrases, "--segmenter", "starter") == 2
    assert "give --detector with them" in capsys.readouterr().err
    assert call(*common, "--detector", "yolov8s-worldv2", "--embeddings", phrases) == 2
    assert "`toolkit weights get yolov8s-worldv2`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reparam", [False, True])
def test_a_closed_vocabulary_is_said(phrases: Path, reparam: bool, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", COMMAND, _config(tmp_path / "data", "run"))
    known = ClassEmbeddings(("scratch", "spot"), make_embeddings(2, 0), ("made",) * 2)
    model = build_model("n")
    set_classes(model, known)
    if reparam:
        reparameterise(model)
    save_description(run, RunModel(model, "n", known, 64, "random weights"))
    save_weights(run, model.state_dict())
    reason = "its classes became weights" if reparam else "fine-tuning closed its vocabulary"
    config = PredictConfig(
        source=tmp_path, out=tmp_path / "out", detector=run.root, embeddings=phrases, clip="none"
    )
    how = "fine-tune with --open-vocabulary --replay DATASET"
    with pytest.raises(InputError, match=f"finds scratch, spot and nothing .* {reason}.*: .*{how}"):
        predict(config)


def test_the_starter_looks_for_what_its_vectors_name_and_says_that_it_knows_no_phrases(
    make_dataset: MakeDataset, clip: str, phrases: Path, tmp_path: Path, capsys: Any
) -> None:
    data = make_dataset(good=1, per_kind=1)
    known = load_trained(Path("starter")).embeddings
    file = tmp_path / "kinds.safetensors"
    known.only(("spot", "scratch")).save(file)
    settings = {"source": data, "detector": Path("starter"), "splits": ("test",), "clip": clip}
    predict(PredictConfig(out=tmp_path / "kinds", embeddings=file, **settings))
    assert "phrases mean nothing" not in capsys.readouterr().err
    phrases.write_text("spot:\nscratch:\n")
    predict(PredictConfig(out=tmp_path / "phrases", embeddings=phrases, **settings))
    assert "starter: has learnt the kinds of defects" in capsys.readouterr().err
    card = read_card(tmp_path / "kinds/predictions")
    assert card is not None and "looking for the classes of kinds.safetensors" in card.detector


def test_ultralytics_cannot_reach_for_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"asked for a network or a process: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(RuntimeError, match=r"asked for CLIP: set class embeddings of \['crack'\]"):
        build_model("n").set_classes(["crack"])
