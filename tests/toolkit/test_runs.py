"""Run folders: what may start from which."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converters.crops import CropOptions, crop
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import AdaptConfig, Config, FinetuneClassifierConfig
from toolkit.report.repeat import repeat
from toolkit.runs import RunFolder, refuse_more_labels, refuse_other_fold
from toolkit.training import check_resumable


def test_a_run_on_another_fold_is_no_start(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "runs" / "first"
    RunFolder.create(out, "finetune sam", FinetuneClassifierConfig(data=data, out=out, fold=0))

    with pytest.raises(InputError, match=r"learnt from fold 0 .* that fold 1 holds out"):
        refuse_other_fold(str(out), data, 1)
    with pytest.raises(InputError, match="fold None holds out"):
        refuse_other_fold(str(out), data, None)

    refuse_other_fold(str(out), data, 0)
    refuse_other_fold(str(out), tmp_path / "other", 1)
    refuse_other_fold("starter", data, 1)


def _with_folds(root: Path, *numbers: int) -> Path:
    for number in numbers:
        (root / "folds" / str(number)).mkdir(parents=True)
    return root


def test_sources_and_outliers_are_data_too_wherever_they_are_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = _with_folds(Path("data"), 0, 1)
    given: dict[str, dict[str, Any]] = {
        "adapted": {"source": "data", "source_fold": 1, "adapt": "mmd"},
        "exposed": {"outliers": "data"},  # fold 0
    }
    for name, options in given.items():
        out = Path("runs") / name
        config = FinetuneClassifierConfig.model_validate({"data": "other", "out": out, **options})
        run = RunFolder.create(out, "finetune classifier", config)
        learnt = options.get("source_fold", 0)
        assert run.config()["outliers" if name == "exposed" else "source"] == "../../data"
        refuse_other_fold(str(out), data, learnt)
        with pytest.raises(InputError, match=f"learnt from fold {learnt} of data"):
            refuse_other_fold(str(out), data, 1 - learnt)

    kept = Path("runs/adapted/config.yaml")  # as older runs have it: relative to where they began
    kept.write_text(kept.read_text().replace("source: ../../data", "source: data"))
    with pytest.raises(InputError, match="learnt from fold 1 of data"):
        refuse_other_fold("runs/adapted", data, 0)


def test_procedural_sources_and_outliers_are_no_paths(tmp_path: Path) -> None:
    config = FinetuneClassifierConfig(
        data=tmp_path, out=tmp_path / "run", source="synth", adapt="mmd", outliers="synth"
    )
    values = RunFolder.create(tmp_path / "run", "finetune classifier", config).config()
    assert (values["source"], values["outliers"], values["weights"]) == ("synth", "synth", "none")


def _run(out: str, config: type[Config] = FinetuneClassifierConfig, **options: Any) -> str:
    values = {"data": "other", "out": out, **options}
    RunFolder.create(Path(out), "some command", config.model_validate(values))
    return out


@pytest.mark.parametrize("place", ["", "/adapted", "/checkpoints/best.safetensors"])
def test_what_a_run_started_from_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _run("runs/first", fold=0, data="data")
    if place == "/adapted":
        _run("runs/first/adapted", AdaptConfig, source="synth", fold=0, data="data")
    elif place:
        Path("runs/first/checkpoints").mkdir()
        Path("runs/first" + place).touch()
    second = _run("runs/second", AdaptConfig, source="synth", weights="runs/first" + place)
    third = _run("deep/runs/third", weights=second)
    assert RunFolder(Path(third)).config()["weights"] == "../../../runs/second"
    refuse_other_fold(third, Path("data"), 0)
    with pytest.raises(InputError, match="third: has learnt from fold 0 of data"):
        refuse_other_fold(third, Path("data"), 1)

    kept = Path(third) / "config.yaml"  # as older runs have it
    kept.write_text(kept.read_text().replace("../../../runs/second", "runs/second"))
    with pytest.raises(InputError, match="third: has learnt from fold 0 of data"):
        refuse_other_fold(third, Path("data"), 1)


def test_a_run_that_started_from_itself_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("{command: adapt, weights: ../run, data: ../data, fold: 0}")
    refuse_other_fold("run", Path("data"), 0)


def _two_folds(root: Path) -> Path:
    """The same dataset folder with two folds, of which the second has train and test swapped."""
    for fold, order in enumerate((("train", "val", "test"), ("test", "val", "train"))):
        (root / "folds" / str(fold)).mkdir(parents=True)
        for name, other in zip(("train", "val", "test"), order, strict=True):
            shutil.copy(root / f"{other}.json", root / "folds" / str(fold) / f"{name}.json")
    for name in ("train", "val", "test"):
        (root / f"{name}.json").unlink()
    return root


def test_windows_of_held_out_pictures_were_learnt_from(
    tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    data, crops = _two_folds(make_dataset(good=1, per_kind=1)), tmp_path / "crops"
    crop(data, crops, CropOptions())
    for learnt, held_out in ((crops, data), (data, crops)):
        run = _run(str(tmp_path / f"on-{learnt.name}"), data=learnt, fold=1)
        refuse_other_fold(run, held_out, 1)
        with pytest.raises(InputError, match=r"has learnt from .* which shows 3 pictures that"):
            refuse_other_fold(run, held_out, 0)

    card = crops / "dataset.yaml"
    card.write_text(card.read_text().replace("name: dataset-crops", "name: another"))
    refuse_other_fold(run, crops, 0)


@pytest.mark.parametrize(
    ("learnt", "allowed", "refused"),
    [
        ({}, False, "all labels"),
        ({"labels": 3}, False, "3 labels per class"),
        ({"labels": 2}, True, ""),
        ({"labels": 2, "seed": 1}, False, r"2 labels per class of .* \(seed 1\)"),
        ({"data": "elsewhere"}, True, ""),
    ],
)
def test_no_more_labels_were_learnt_from_than_may_be_used(
    tmp_path: Path, learnt: dict[str, Any], allowed: bool, refused: str
) -> None:
    data = tmp_path / "data"
    run = _run(str(tmp_path / "first"), **{"data": data, **learnt})
    run = _run(str(tmp_path / "next"), AdaptConfig, source="synth", labels=0, weights=run)
    config = AdaptConfig(data=data, source="synth", out=tmp_path / "out", labels=2)
    refuse_more_labels(run, config.model_copy(update={"labels": None}))
    for budget, may in ((2, allowed), (0, learnt.get("data") is not None)):
        config = config.model_copy(update={"labels": budget})
        if may:
            refuse_more_labels(run, config)
            continue
        with pytest.raises(InputError, match=f"next: has learnt from {refused}"):
            refuse_more_labels(run, config)


def test_a_run_goes_on_however_its_weights_were_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, kept = _run("runs/first"), Path("runs/second/config.yaml")
    config = FinetuneClassifierConfig(data=Path("other"), out=kept.parent, weights=first)
    run = RunFolder.create(kept.parent, "finetune classifier", config)
    check_resumable(run, "finetune classifier", config, ())
    kept.write_text(kept.read_text().replace("weights: ../first", "weights: runs/first"))
    check_resumable(run, "finetune classifier", config, ())
    other = config.model_copy(update={"weights": "starter"})
    with pytest.raises(InputError, match="was started with weights 'runs/first'"):
        check_resumable(run, "finetune classifier", other, ())


def test_the_command_of_a_run_names_what_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_dataset: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, first = make_dataset(), _run("runs/first")
    out = _run("runs/second", data=data, weights=first, source=data, adapt="mmd", outliers="synth")
    kept = Path(out) / "config.yaml"
    kept.write_text(kept.read_text().replace("some command", "finetune classifier"))
    run = SimpleNamespace(
        settings=RunFolder(Path(out)).config(),
        root=Path(out),
        folder=DatasetFolder.open(data),
        split="test",
        card=None,
        model={},
    )
    said = repeat(run).commands[0]  # type: ignore[arg-type]
    for part in ("--weights runs/first", "--source dataset", "--outliers synth"):
        assert part in said
