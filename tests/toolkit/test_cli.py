from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import cli
from toolkit import config as configs
from toolkit.commands import COMMANDS


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_help_lists_every_command(capsys) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(name.split()[0] in text for name in COMMANDS)
    assert call("finetune", "--help") == 0
    assert {"yolo", "sam"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_has_a_flag_or_a_place(name, capsys) -> None:
    assert call(*name.split(), "--help") == 0
    text = capsys.readouterr().out
    command = COMMANDS[name]
    for field in getattr(configs, command.config).model_fields:
        shown = field.upper() if field in command.positional else "--" + field.replace("_", "-")
        assert shown in text


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, toolkit.cli\n"
        "try: toolkit.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'cv2', 'pydantic', 'rich', 'ultralytics'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "sam", "--epoch", "3"], "error: No such option '--epoch'"),
        (["convert"], "error: field 'source' is missing: give it"),
        (["convert", "a", "b", "--seed", "x"], "error: field 'seed': "),
        (["convert", "nowhere", "b"], "error: nowhere: no such folder"),
        (["evaluate", "--data", "nowhere", "--predictions", "p"], "error: "),
        (["predict", "nowhere", "--out", "o"], "error: no model: give --detector RUN"),
        (["nonsense"], "error: No such command 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys) -> None:
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_synth_convert_check_for_people_and_machines(tmp_path, capsys) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    kinds = "hole,scratch"
    arguments = ["--defects", kinds, "--train-good", 6, "--test-good", 2, "--per-defect", 5]
    assert call("synth", source, *arguments, "--size", 64, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["images"] == {"good": 8, "hole": 5, "scratch": 5}
    assert call("convert", source, dest, "--fractions", "0.5,0.25,0.25", "--yolo") == 0
    assert "scratch" in capsys.readouterr().out
    assert (dest / "data.yaml").is_file()
    assert call("check", dest, "--json") == 0
    assert {finding["code"] for finding in json.loads(capsys.readouterr().out)} == {"few-images"}
    assert call("check", dest, "--strict") == 1
    assert "few-images" in capsys.readouterr().out
    assert call("convert", source, dest) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_crops_for_people_and_machines(make_dataset, tmp_path, capsys) -> None:
    data = make_dataset(per_kind=2, good=1)
    assert call("crop", data, tmp_path / "one", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    counts = {"defects": 12, "good": 12, "good_missing": 0, "instances_left_out": 0}
    assert made == {"dataset": str(tmp_path / "one"), **counts}
    assert call("crop", data, tmp_path / "two", "--good", "0.5") == 0
    assert "12 windows around defects, 6 good ones" in capsys.readouterr().out


def test_a_file_of_fields_and_flags_together(tmp_path, capsys) -> None:
    (tmp_path / "synth.yaml").write_text("size: 64\ntrain_good: 2\ntest_good: 1\nper_defect: 1\n")
    file = tmp_path / "synth.yaml"
    assert call("synth", tmp_path / "s", "--config", file, "--defects", "hole", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"good": 3, "hole": 1}


def test_an_unknown_defect_is_named(tmp_path, capsys) -> None:
    assert call("synth", tmp_path / "s", "--defects", "whole") == 2
    assert "whole" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_command_line_gives_its_configuration_back() -> None:
    config = configs.ConvertConfig(
        source=Path("a b"), dest=Path("c"), seed=4, fractions=(0.5, 0.25, 0.25), yolo=True
    )
    line = COMMANDS["convert"].line("convert", config)
    assert line == "toolkit convert 'a b' c --fractions 0.5,0.25,0.25 --seed 4 --yolo"
    yolo = configs.FinetuneYoloConfig(data=Path("d"), out=Path("r"))
    assert COMMANDS["finetune yolo"].line("finetune yolo", yolo) == (
        "toolkit finetune yolo --data d --out r"
    )
