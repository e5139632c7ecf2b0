"""Pretraining: from nothing but its configuration, resumable, and a start for fine-tuning."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lightning_fabric  # noqa: F401  (what it reads as it is imported is no data)
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from converters.errors import InputError
from toolkit.classify.pretrain import pretrain_classifier
from toolkit.classify.weights import load_backbone
from toolkit.config import (
    PretrainClassifierConfig,
    PretrainSamConfig,
    PretrainYoloConfig,
)
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.embeddings import ANCHOR, resolve_embeddings
from toolkit.detect.pretrain import pretrain_yolo
from toolkit.outlines import without_outlines
from toolkit.runs import RunFolder
from toolkit.segment.pretrain import pretrain_sam
from toolkit.segment.weights import load_sam

SMALL: dict[str, Any] = {
    "steps": 4,
    "piece": 2,
    "batch": 8,
    "val_pictures": 6,
    "workers": 0,
    "device": "cpu",
}


def yolo(out: Path, **options: Any) -> RunFolder:
    return pretrain_yolo(PretrainYoloConfig(out=out, image_size=64, **{**SMALL, **options}))


def sam(out: Path, **options: Any) -> RunFolder:
    return pretrain_sam(PretrainSamConfig(out=out, picture_size=64, **{**SMALL, **options}))


def classifier(out: Path, **options: Any) -> RunFolder:
    config = PretrainClassifierConfig(out=out, image_size=32, **{**SMALL, **options})
    return pretrain_classifier(config)


Pretrain = Callable[..., RunFolder]
each = pytest.mark.parametrize("pretrain", [yolo, sam, classifier])


def _best(run: RunFolder) -> dict[str, torch.Tensor]:
    return dict(load_file(run.checkpoints / "best.safetensors"))


def _is_metadata(name: str) -> bool:
    """Whether it is where Python looks for what packages have to offer, as Fabric asks it to."""
    return name.endswith(".dist-info/entry_points.txt") or name in sys.path


@each
def test_nothing_is_read_but_code(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No picture can go in, because none is opened: by no library, under no name."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"a picture was opened: {arguments[:1]}")

    for library, name in ((cv2, "imread"), (cv2, "VideoCapture"), (Image, "open")):
        monkeypatch.setattr(library, name, refuse)
    opened: list[str] = []
    plain_open = io.open

    def listen(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return plain_open(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", listen)
    monkeypatch.setattr(io, "open", listen)
    pretrain(tmp_path / "run")

    of_the_run = [name for name in opened if name.startswith(str(tmp_path))]
    others = {name for name in set(opened) - set(of_the_run) if not _is_metadata(name)}
    assert of_the_run, "the log, at least, is opened"
    assert {Path(name).suffix for name in others} <= {".py", ".pyc", ".yaml", ""}


@each
def test_a_resumed_run_ends_like_one_that_was_never_stopped(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(tmp_path / "whole")

    from toolkit import training

    train_epoch = training._train_epoch

    def stop(*arguments: Any) -> dict[str, float]:
        if arguments[3] == 1:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    monkeypatch.setattr(training, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "stopped")
    monkeypatch.undo()
    resumed = pretrain(tmp_path / "stopped", resume=True)

    expected, found = _best(whole), _best(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@each
def test_an_unknown_kind_of_defect_leaves_nothing_behind(
    pretrain: Pretrain, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="unknown defect 'rust'"):
        pretrain(tmp_path / "run", kinds=("rust",))

    assert not (tmp_path / "run").exists()


@each
def test_a_run_goes_on_from_another(pretrain: Pretrain, tmp_path: Path) -> None:
    first = pretrain(tmp_path / "first")
    second = pretrain(tmp_path / "second", weights=str(first.root), learning_rate=1e-9, average=0)

    start, end = _best(first), _best(second)
    name = next(name for name in start if name.endswith("conv1.weight") or "weight" in name)
    assert torch.allclose(start[name], end[name], atol=1e-4)


def test_a_detector_run_is_a_start_whose_new_classes_lie_beside_any_defect(
    tmp_path: Path,
) -> None:
    run = yolo(tmp_path / "run", kinds=("hole", "crack"))

    start = load_starting_point(str(run.root), "n", 0, False)
    assert start.origin == "procedural" and start.embeddings is not None
    assert start.embeddings.names == (ANCHOR, "hole", "crack")
    anchor = start.embeddings.vectors[0]
    mine = resolve_embeddings(("crack", "blowhole", "fray"), None, start.embeddings, seed=1)
    assert torch.allclose(mine.vectors[0], start.embeddings.vectors[2])
    half = torch.full((3,), 0.5**0.5)
    assert torch.allclose(mine.vectors @ anchor, half, atol=1e-5)
    assert float(mine.vectors[1] @ mine.vectors[2]) == pytest.approx(0.5, abs=1e-5)


def test_finding_any_defect_trains_one_class(tmp_path: Path) -> None:
    run = yolo(tmp_path / "run", kinds=("hole", "crack"), classes="defect")

    start = load_starting_point(str(run.root), "n", 0, False)
    assert start.embeddings is not None
    assert start.embeddings.names == (ANCHOR, "hole", "crack")


def test_a_packed_detector_is_a_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = yolo(tmp_path / "run")
    _install(run, "yolo_world_n", monkeypatch, tmp_path)

    start = load_starting_point("starter", "n", 0, False)
    assert start.origin == "procedural" and start.source == "starter"
    _same(start.model.state_dict(), without_outlines(_best(run)))


def test_a_packed_segmenter_is_a_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sam(tmp_path / "run")
    _install(run, "sam_nano", monkeypatch, tmp_path)

    model, architecture = load_sam("starter")
    assert architecture == "nano"
    _same(model.state_dict(), without_outlines(_best(run)))


def test_a_packed_classifier_is_a_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = classifier(tmp_path / "run")
    _install(run, "resnet18", monkeypatch, tmp_path)

    model, architecture = load_backbone("starter", None, ("good", "hole"))
    assert architecture == "resnet18" and model.fc.out_features == 2
    own = without_outlines(_best(run))
    _same(
        {name: t for name, t in model.state_dict().items() if not name.startswith("fc.")},
        {name: t for name, t in own.items() if not name.startswith("fc.")},
    )


def test_going_on_keeps_the_classes_that_were_learnt(tmp_path: Path) -> None:
    first = yolo(tmp_path / "first", kinds=("hole", "crack"))
    second = yolo(tmp_path / "second", kinds=("crack", "stain"), weights=str(first.root), seed=5)

    learnt, kept = (
        load_starting_point(str(run.root), "n", 0, False).embeddings for run in (first, second)
    )
    assert learnt is not None and kept is not None
    assert kept.names == (ANCHOR, "crack", "stain")
    assert torch.allclose(kept.vectors[:2], learnt.only((ANCHOR, "crack")).vectors)
    assert float(kept.vectors[2] @ learnt.vectors[0]) == pytest.approx(0.5**0.5, abs=1e-5)


def _install(run: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put a run's packed model where the package's starters lie."""
    packed = (run.checkpoints / "starter.safetensors").read_bytes()
    (folder / f"{name}.safetensors").write_bytes(packed)
    monkeypatch.setattr("toolkit.starter.FOLDER", folder)


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to half precision."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].float(), tensor.float(), rtol=1e-3, atol=1e-3), name
