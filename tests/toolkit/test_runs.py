"""Run folders: what may start from which."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.errors import InputError
from toolkit.config import FinetuneClassifierConfig
from toolkit.runs import RunFolder, refuse_other_fold


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
    given = {
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
