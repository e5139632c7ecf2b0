from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import CompareConfig, EvaluateConfig, ExperimentConfig
from toolkit.evaluate import compare, evaluate
from toolkit.experiment import experiment, run_plan
from toolkit.experiment.folder import ExperimentFolder
from toolkit.experiment.plan import plan_runs
from toolkit.experiment.render import to_csv, to_html, to_markdown
from toolkit.experiment.scores import accuracy_and_loss
from toolkit.experiment.table import Extent
from toolkit.predictions import ImageProbabilities

from .conftest import with_folds

TWO = {"plain": None, "mixed": {"mixup": 0.2}}


def test_figures_are_those_of_evaluate_pooled_over_folds(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, resamples=50)
    with_folds(plan.data[""])
    runs = plan_runs(plan)
    assert list(runs) == [f"{v}/fold-{k}/seed-0" for k in (0, 1) for v in TWO]
    for run in runs.values():
        finish(plan, run)
    (group,) = run_plan(plan, table_only=True).table.groups
    paths = [tuple(plan.out / "runs" / v / f"fold-{k}" / "seed-0" for k in (0, 1)) for v in TWO]
    plain, mixed = group.rows
    for row, given in zip(group.rows, paths, strict=True):
        metrics = evaluate(
            EvaluateConfig(
                data=plan.data[""], predictions=given, resamples=50, out=plan.out / "m.json"
            )
        )
        assert row.figures == {name: metrics.figures[name] for name in row.figures}
        assert (row.finished, row.planned) == (2, 2)
    pair = compare(CompareConfig(data=plan.data[""], first=paths[0], second=paths[1], resamples=50))
    for name, difference in mixed.differences.items():
        assert difference == pair.differences[name].difference
    assert plain.differences == {}


def test_figures_are_means_over_seeds(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, seeds=[0, 1, 2], resamples=50, figures=["image.accuracy"])
    for run in plan_runs(plan).values():
        finish(plan, run)
    (group,) = run_plan(plan, table_only=True).table.groups
    values = {
        variant: [
            json.loads((plan.out / f"runs/{variant}/seed-{seed}/metrics.json").read_text("utf-8"))[
                "image.accuracy"
            ]["value"]
            for seed in (0, 1, 2)
        ]
        for variant in TWO
    }
    means = {variant: sum(each) / 3 for variant, each in values.items()}
    assert len(set(values["plain"])) > 1
    for row in group.rows:
        figure = row.figures["image.accuracy"]
        assert figure is not None and figure.ci95 is not None
        assert figure.value == pytest.approx(means[row.variant])
        assert figure.ci95[0] <= figure.value <= figure.ci95[1]
        assert row.accuracy["test"] == pytest.approx(means[row.variant])
    difference = group.rows[1].differences["image.accuracy"]
    assert difference is not None
    assert difference.value == pytest.approx(means["mixed"] - means["plain"])


def test_a_table_of_what_is_finished_says_how_much_that_is(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, seeds=[0, 1], grid={"labels": [None, 5]}, resamples=20)
    runs = plan_runs(plan)
    empty = run_plan(plan, table_only=True)
    assert "0 of 8 runs are finished" in empty.to_markdown()
    for place in ("plain/seed-0", "plain/seed-1", "mixed/seed-1"):
        finish(plan, runs[f"labels-5/{place}"])
    table = run_plan(plan, table_only=True).table
    assert [group.title for group in table.groups] == ["labels default", "labels 5"]
    plain, mixed = table.groups[1].rows
    assert [(row.finished, row.planned) for row in (plain, mixed)] == [(2, 2), (1, 2)]
    accuracy, other = (
        evaluate(
            EvaluateConfig(
                data=plan.data[""],
                predictions=(plan.out / "runs" / "labels-5" / variant / "seed-1",),
            )
        ).figures["image.accuracy"]
        for variant in ("mixed", "plain")
    )
    difference = mixed.differences["image.accuracy"]
    assert difference is not None  # of the seed that both have
    assert difference.value == pytest.approx(accuracy.value - other.value)
    text = to_markdown(table)
    assert "1 of 2" in text and "3 of 8 runs are finished" in text
    assert all(row.figures["image.accuracy"] is None for row in table.groups[0].rows)


def test_figures_say_what_they_rest_on(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, seeds=[0, 1], resamples=20, figures=["image.accuracy"])
    with_folds(plan.data[""])
    runs = plan_runs(plan)
    whole = ("plain/fold-0/seed-0", "plain/fold-1/seed-0", "plain/fold-0/seed-1")
    for place in (*whole, "mixed/fold-1/seed-0", "mixed/fold-0/seed-1", "mixed/fold-1/seed-1"):
        finish(plan, runs[place])
    table = run_plan(plan, table_only=True).table
    plain, mixed = table.groups[0].rows
    lacks = "1 of 2 seeds"
    assert (plain.extent, mixed.extent) == (Extent(1, 2, 2, 2, lacks),) * 2
    # Seed 0 has both folds of the baseline alone, and seed 1 of the variant alone.
    assert plain.difference_extent is None
    assert mixed.difference_extent == Extent(1, 1, 2, 2, "1 of 2 seeds, 1 of 2 folds")
    difference = mixed.differences["image.accuracy"]
    assert difference is not None
    before, after = (
        evaluate(
            EvaluateConfig(
                data=plan.data[""], predictions=(plan.out / f"runs/{variant}/fold-1/seed-0",)
            )
        ).figures["image.accuracy"]
        for variant in TWO
    )
    assert difference.value == pytest.approx(after.value - before.value)
    assert difference.n == after.n
    for text in (to_markdown(table), to_html(table)):
        assert text.count(f"] ({lacks})") == 2 and text.count(f"] ({lacks}, 1 of 2 folds)") == 1
        assert "rests on fewer seeds or folds than planned" in text
    record = list(csv.DictReader(io.StringIO(to_csv(table))))[1]
    assert (record["seeds"], record["planned_seeds"], record["lacks"]) == ("1", "2", lacks)
    assert (record["difference.folds"], record["difference.image.accuracy.n"]) == (
        "1",
        str(after.n),
    )
    row = json.loads((plan.out / "results.json").read_text("utf-8"))["groups"][0]["rows"][1]
    assert row["difference_extent"]["lacks"] == "1 of 2 seeds, 1 of 2 folds"
    assert row["figures"]["image.accuracy"]["n"] > after.n


def test_a_difference_that_cannot_be_had_says_why(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, seeds=[0, 1], resamples=20)
    runs = plan_runs(plan)
    for place in ("plain/seed-0", "mixed/seed-1"):
        finish(plan, runs[place])
    text = run_plan(plan, table_only=True).to_markdown()
    assert text.count("- (no seed and fold in common)") == 3


def test_a_whole_table_has_no_marks(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, seeds=[0, 1], resamples=20)
    for run in plan_runs(plan).values():
        finish(plan, run)
    result = run_plan(plan, table_only=True)
    assert result.table.groups[0].rows[1].difference_extent == Extent(2, 1, 2, 1, "")
    assert "fewer" not in result.to_markdown() and " of 2 seeds" not in result.to_markdown()


def test_columns_say_how_a_variant_was_trained(make_plan, finish) -> None:
    plan = make_plan(
        base={"epochs": 3, "batch": 8, "learning_rate": 1e-3, "augment": ["flip", "light"]},
        variants={"plain": None, "head": {"after": "plain", "train": "head", "augment": []}},
        resamples=20,
    )
    for run in plan_runs(plan).values():
        finish(plan, run, seconds=10 if run.variant == "plain" else 2)
    plain, head = run_plan(plan, table_only=True).table.groups[0].rows
    assert (plain.augment, head.augment) == ("flip+light", "none")
    assert (plain.weights, head.weights) == ("none", "of plain")
    assert (plain.batch, plain.learning_rate, plain.optimizer) == ("8", "0.001", "AdamW")
    assert (plain.epochs, plain.epochs_asked) == (3, "3")
    assert (plain.seconds, head.seconds) == (10, 12)  # with the run that it starts from
    assert head.settings == "after plain, train head, augment none"
    assert plain.accuracy["train"] == 0.8  # at the epoch with the best val score
    assert plain.loss["train"] == 0.5


def test_stages_are_no_rows_but_their_seconds_count(make_plan, finish) -> None:
    plan = make_plan(
        base={"epochs": 1, "loss": "focal"},
        variants={
            "adapted": {"command": "adapt", "source": "synth"},
            "plain": None,
            "tuned": {"after": "adapted"},
        },
        baseline="plain",
        resamples=20,
    )
    runs = plan_runs(plan)
    assert runs["adapted/seed-0"].config.epochs == 1  # of the base, what the stage knows
    for run in runs.values():
        finish(plan, run)
    rows = run_plan(plan, table_only=True).table.groups[0].rows
    assert [(row.variant, row.seconds) for row in rows] == [("plain", 10), ("tuned", 20)]


def test_loss_is_that_of_the_true_class(make_plan) -> None:
    plan = make_plan()
    dataset = DatasetFolder.open(plan.data[""]).read("test")
    labels = dataset.image_labels()
    values = [[0.5, 0.25, 0.25] for _ in labels]
    names = tuple(image.file_name for image in dataset.images)
    scores = accuracy_and_loss(
        dataset, ImageProbabilities(("good", "scratch", "spot"), names, np.array(values))
    )
    good = labels.count("good") / len(labels)
    assert scores["accuracy"] == pytest.approx(good)
    assert scores["loss"] == pytest.approx(good * math.log(2) + (1 - good) * math.log(4))


def test_files_hold_what_the_table_does(make_plan, finish) -> None:
    plan = make_plan(variants=TWO, resamples=20)
    for run in plan_runs(plan).values():
        finish(plan, run)
    result = run_plan(plan, table_only=True)
    table = result.table
    records = list(csv.DictReader(io.StringIO((plan.out / "table.csv").read_text("utf-8"))))
    assert [record["variant"] for record in records] == list(TWO)
    figure = table.groups[0].rows[1].figures["image.accuracy"]
    assert figure is not None and figure.ci95 is not None
    assert float(records[1]["image.accuracy"]) == figure.value
    assert float(records[1]["image.accuracy.high"]) == figure.ci95[1]
    assert records[0]["difference.image.accuracy"] == ""
    stored = json.loads((plan.out / "results.json").read_text("utf-8"))
    assert stored["groups"][0]["rows"][1]["figures"]["image.accuracy"]["value"] == figure.value
    assert (plan.out / "table.md").read_text("utf-8") == to_markdown(table)
    assert (plan.out / "table.csv").read_text("utf-8") == to_csv(table)
    page = (plan.out / "table.html").read_text("utf-8")
    assert page == to_html(table)
    assert f"{figure.value:.3f}" in page
    assert (
        "http:" not in page and "https:" not in page and "src=" not in page
    )  # needs no other file
    for line in to_markdown(table).splitlines():
        if line.startswith("|"):
            assert line.count("|") == to_markdown(table).splitlines()[0].count("|")


def test_figures_that_no_run_has_are_named(make_plan, finish) -> None:
    plan = make_plan(figures=["image.accuracy", "box.AP50"], resamples=20)
    for run in plan_runs(plan).values():
        finish(plan, run)
    text = run_plan(plan, table_only=True).to_markdown()
    assert "No finished run has box.AP50." in text


def test_a_run_of_another_configuration_is_refused(make_plan, finish, tmp_path) -> None:
    plan = make_plan(variants=TWO, resamples=20)
    runs = plan_runs(plan)
    for run in runs.values():
        finish(plan, run)
    changed = make_plan(variants={"plain": None, "mixed": {"mixup": 0.4}}, resamples=20)
    refused = r"mixed/seed-0: was begun with mixup 0.2, not 0.4: choose another out, or remove"
    with pytest.raises(InputError, match=refused):
        run_plan(changed, table_only=True)
    # One that was begun and not finished is known by what it was told.
    folder = ExperimentFolder(plan.out)
    folder.write_job(runs["mixed/seed-0"], runs, 20)
    (folder.run("mixed/seed-0") / "result.json").unlink()
    with pytest.raises(InputError, match=refused):
        run_plan(changed)
    assert (plan.out / "experiment.yaml").exists() is False


@pytest.mark.parametrize("what", ["data", "weights"])
def test_a_run_on_files_that_have_changed_is_refused(make_plan, finish, tmp_path, what) -> None:
    weights = tmp_path / "some.pth"
    weights.write_bytes(b"before")
    plan = make_plan(base={"weights": str(weights)}, resamples=20)
    for run in plan_runs(plan).values():
        finish(plan, run)
    assert run_plan(plan, table_only=True).table.finished == 1
    changed = plan.data[""] / "train.json" if what == "data" else weights
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(InputError, match=f"plain/seed-0: was begun with other {what}: choose"):
        run_plan(plan, table_only=True)


def test_a_file_is_read_once(make_plan, monkeypatch) -> None:
    plan = make_plan(variants=TWO, seeds=[0, 1])
    with_folds(plan.data[""])
    read = []
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *given, **named: read.append(path) or opened(path, *given, **named),
    )
    contents = {run.fold: run.contents for run in plan_runs(plan).values()}
    annotations = [path for path in read if path.suffix == ".json"]
    assert len(annotations) == len(set(annotations)) == 6
    assert contents[0] != contents[1]


def test_flags_win_over_the_file(make_plan, finish, tmp_path) -> None:
    plan = make_plan(seeds=[0, 1, 2], resamples=20)
    other = plan.model_copy(update={"out": tmp_path / "elsewhere"})
    finish(other, plan_runs(other)["plain/seed-1"])
    result = experiment(
        ExperimentConfig(
            experiment=tmp_path / "experiment.yaml",
            out=tmp_path / "elsewhere",
            seeds=(1,),
            table=True,
        )
    )
    assert (result.root, result.table.planned, result.table.finished) == (other.out, 1, 1)
