"""What cannot be reported ends in one line, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from converters.errors import InputError
from toolkit import cli
from toolkit.config import ReportConfig
from toolkit.report.page import report


def test_no_run_and_the_same_run_twice(make_run) -> None:
    run = make_run()
    with pytest.raises(InputError, match="no run: give one run folder or several"):
        report(ReportConfig(runs=()))
    with pytest.raises(InputError, match=r"is given twice: give every run once"):
        report(ReportConfig(runs=(run, run / ".." / run.name)))


def test_what_is_no_run(tmp_path, data) -> None:
    with pytest.raises(InputError, match="nowhere: no such run folder"):
        report(ReportConfig(runs=(tmp_path / "nowhere",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not say what it was made on: give --data DATASET"):
        report(ReportConfig(runs=(tmp_path / "empty",)))
    with pytest.raises(InputError, match="no such predictions: run `toolkit predict`"):
        report(ReportConfig(runs=(tmp_path / "empty",), data=data))
    assert not list((tmp_path / "empty").iterdir())


def test_a_dataset_that_is_gone_is_named(make_run, data) -> None:
    run = make_run()
    moved = shutil.move(data, data.with_name("elsewhere"))
    with pytest.raises(InputError, match=r"names the dataset .*dataset, which is not there"):
        report(ReportConfig(runs=(run,)))
    assert report(ReportConfig(runs=(run,), data=Path(moved))).is_file()


def test_predictions_that_are_gone(make_run, data) -> None:
    run = make_run()
    (run / "predictions" / "test.json").unlink()
    with pytest.raises(InputError, match=r"test\.json: no such predictions: restore them"):
        report(ReportConfig(runs=(run,)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"metrics\.json: is not readable JSON"),
        ("[]", r"metrics\.json: is not what `toolkit evaluate` writes"),
        ('{"per_class": {}}', r"metrics\.json: is not what `toolkit evaluate` writes"),
    ],
)
def test_damaged_metrics(make_run, content, message) -> None:
    run = make_run()
    (run / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=message):
        report(ReportConfig(runs=(run,)))


def test_metrics_of_another_dataset(make_run, data) -> None:
    run = make_run()
    content = json.loads((data / "test.json").read_text())
    content["images"].pop(0)  # a good one
    (data / "test.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"test with 8 images .* test with 7 images .* evaluate"):
        report(ReportConfig(runs=(run,)))


def test_a_picture_that_is_gone_stops_the_page_and_can_be_left_out(make_run, data) -> None:
    run = make_run()
    for path in (data / "images").glob("test_*"):
        path.unlink()
    with pytest.raises(InputError, match=r"cannot be read .*leave pictures out with --examples 0"):
        report(ReportConfig(runs=(run,)))
    assert not list(run.glob("*report*"))
    assert "Pictures were left out." in report(ReportConfig(runs=(run,), examples=0)).read_text()


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_the_command_takes_several_runs(make_run, tmp_path, capsys) -> None:
    out = tmp_path / "page.html"
    assert call("report", make_run(), make_run("outlines", "sam"), "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(out), "bytes": out.stat().st_size}
    assert call("report") == 2
    assert call("report", tmp_path / "nowhere") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: field 'runs' is missing: give it"
    assert lines[1].startswith(f"error: {tmp_path / 'nowhere'}: no such run folder: give the --out")
