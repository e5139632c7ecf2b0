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
