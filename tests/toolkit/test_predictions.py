from __future__ import annotations

import pytest
import yaml

from converters.errors import InputError
from toolkit.config import FinetuneSamConfig
from toolkit.predictions import PredictionCard, read_card, read_results, write_predictions
from toolkit.runs import RunFolder

RESULT = {"image_id": 1, "category_id": 2, "bbox": [0.0, 1.0, 2.0, 3.0], "score": 0.5}


def test_predictions_come_back(tmp_path) -> None:
    card = PredictionCard(boxes="detector", masks=False, detector="YOLO-World v2 n")
    write_predictions(tmp_path / "p", {"val": [], "test": [RESULT]}, card)
    assert read_results(tmp_path / "p/test.json") == [RESULT]
    assert read_results(tmp_path / "p/val.json") == []
    assert read_card(tmp_path / "p") == card
    assert read_card(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must be a list"),
        ('[{"image_id": 1}]', "result 0 lacks bbox, category_id, score"),
        ("[1]", "result 0 lacks"),
        ("[", "is not readable JSON"),
    ],
)
def test_what_is_no_results_file(tmp_path, text, message) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_results(tmp_path / "r.json")


def test_a_run_folder_holds_nothing_machine_bound(tmp_path) -> None:
    config = FinetuneSamConfig(data=tmp_path / "data", out=tmp_path / "runs/a")
    run = RunFolder.create(config.out, "finetune sam", config)
    text = (run.root / "config.yaml").read_text()
    assert str(tmp_path) not in text
    assert yaml.safe_load(text)["data"] == "../../data"


def test_a_run_folder_is_not_overwritten(tmp_path) -> None:
    config = FinetuneSamConfig(data=tmp_path / "data", out=tmp_path / "run")
    RunFolder.create(config.out, "finetune sam", config)
    with pytest.raises(InputError, match="exists and is not empty"):
        RunFolder.create(config.out, "finetune sam", config)
    RunFolder.create(config.out, "finetune sam", config, resume=True)


def test_only_a_finished_run_of_the_right_command_opens(tmp_path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        RunFolder.open(tmp_path, "finetune sam")
    config = FinetuneSamConfig(data=tmp_path / "data", out=tmp_path / "run")
    run = RunFolder.create(config.out, "finetune sam", config)
    with pytest.raises(InputError, match="not of `toolkit finetune yolo`"):
        RunFolder.open(run.root, "finetune yolo")
    with pytest.raises(InputError, match="has no checkpoint"):
        RunFolder.open(run.root, "finetune sam")
