from __future__ import annotations

import numpy as np
import pytest
import yaml

from converters.errors import InputError
from toolkit.config import FinetuneSamConfig
from toolkit.predictions import (
    ImageProbabilities,
    PredictionCard,
    read_card,
    read_probabilities,
    read_results,
    write_predictions,
    write_probabilities,
)
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


def test_probabilities_come_back_to_the_last_digit(tmp_path) -> None:
    odds = np.exp(np.random.default_rng(0).normal(0, 9, (3, 3)))
    names = ("a.png", 'b, "quoted".png', "ä\nb.png")
    classes = ("good", "bent, lead", "hole")
    written = ImageProbabilities(classes, names, odds / odds.sum(axis=1, keepdims=True))
    card = PredictionCard(boxes="none", masks=False, classifier="resnet18")
    write_probabilities(tmp_path / "p", {"test": written}, card)
    found = read_probabilities(tmp_path / "p/test_images.csv")
    assert (found.classes, found.file_names) == (classes, names)
    assert np.array_equal(found.values, written.values)
    assert read_card(tmp_path / "p") == card
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "card.yaml",
        "test_images.csv",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its header is missing: it must be file_name,good and then"),
        ("a,0.5,0.5\n", "its header is a,0.5,0.5: it must be"),
        ("file_name,dent,good\na,0.5,0.5\n", "its header is file_name,dent,good: it must be"),
        ("file_name,good\na,1\n", "its header is file_name,good: it must be"),
        ("file_name,good,dent,dent\n", "its header is file_name,good,dent,dent: it must be"),
        ("file_name,good,dent\na,1\n", "a: has 2 columns, the header 3"),
        ("file_name,good,dent\na,1,0,0\n", "a: has 4 columns, the header 3"),
        ("file_name,good,dent\na,1,x\n", "a: dent is 'x', not a probability from 0 to 1"),
        ("file_name,good,dent\na,nan,1\n", "a: good is 'nan', not a probability"),
        ("file_name,good,dent\na,1.2,-0.2\n", "a: good is '1.2', not a probability"),
        ("file_name,good,dent\na,0.5,0.4\n", "a: the probabilities add up to 0.9, not to 1"),
        ("file_name,good,dent\na,1,0\na,1,0\n", "a comes 2 times: keep one of its rows"),
    ],
)
def test_what_is_no_file_of_probabilities(tmp_path, text, message) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_probabilities(tmp_path / "p.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'p.csv'}: ")


def test_probabilities_that_are_not_text_or_not_there(tmp_path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"p\.csv: is not readable CSV"):
        read_probabilities(tmp_path / "p.csv")
    with pytest.raises(InputError, match="no such file"):
        read_probabilities(tmp_path / "q.csv")


def test_a_spreadsheet_may_have_saved_the_probabilities(tmp_path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbffile_name,good,dent\r\na,0.25,0.75\r\n\r\n")
    found = read_probabilities(tmp_path / "p.csv")
    assert (found.classes, found.file_names) == (("good", "dent"), ("a",))


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
