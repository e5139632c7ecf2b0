from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from converters.errors import InputError
from toolkit.config import ExperimentPlan, build, to_yaml
from toolkit.experiment.folder import ExperimentFolder
from toolkit.experiment.plan import digest, lineage, plan_runs
from toolkit.experiment.table import wanted_figures

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "experiments").glob("*.yaml"))


def test_every_run_has_its_place_and_its_configuration(make_plan, tmp_path) -> None:
    plan = make_plan(
        seeds=[3, 4],
        base={"epochs": 5, "mixup": 0.1, "image_size": 32},
        variants={"plain": None, "mixed": {"mixup": 0.2}, "unmixed": {"mixup": None}},
    )
    runs = plan_runs(plan)
    assert list(runs) == [
        f"{variant}/seed-{seed}" for seed in (3, 4) for variant in ("plain", "mixed", "unmixed")
    ]
    mixed = runs["mixed/seed-4"].config
    assert (mixed.mixup, mixed.epochs, mixed.seed) == (0.2, 5, 4)
    assert mixed.out == tmp_path / "out" / "runs" / "mixed" / "seed-4"
    assert runs["plain/seed-3"].config.mixup == 0.1
    assert runs["unmixed/seed-3"].config.mixup == 0.0  # null is the field's default


def test_a_variant_starts_from_the_run_of_the_same_data_grid_fold_and_seed(make_plan) -> None:
    plan = make_plan(
        seeds=[0, 1],
        grid={"labels": [5, None]},
        variants={"head": {"after": "plain", "train": "head"}, "plain": None},
        baseline="plain",
    )
    runs = plan_runs(plan)
    assert list(runs)[:2] == ["labels-5/plain/seed-0", "labels-5/head/seed-0"]
    head = runs["labels-default/head/seed-1"]
    assert head.after == "labels-default/plain/seed-1"
    assert head.config.weights == str(plan.out / "runs" / head.after)
    assert head.config.labels is None
    assert runs["labels-5/head/seed-1"].config.labels == 5
    assert [run.variant for run in lineage(head, runs)] == ["head", "plain"]


def test_a_change_is_a_change_of_all_that_starts_from_it(make_plan) -> None:
    def digests(**fields: object) -> dict[str, str]:
        variants = {
            "plain": fields,
            "head": {"after": "plain", "train": "head"},
            "other": {"mixup": 1},
        }
        runs = plan_runs(make_plan(variants=variants))
        return {run.variant: digest(run, runs) for run in runs.values()}

    before, after = digests(), digests(epochs=3)
    assert {name for name in before if before[name] != after[name]} == {"plain", "head"}
    assert digests(device="cpu", workers=0) == before  # where it runs is no change


def test_several_datasets_are_told_apart(make_plan, make_dataset) -> None:
    data = {"bolts": str(make_dataset(name="b")), "nuts": str(make_dataset(name="n"))}
    runs = plan_runs(make_plan(data=data))
    assert list(runs) == ["bolts/plain/seed-0", "nuts/plain/seed-0"]
    assert runs["nuts/plain/seed-0"].config.data == Path(data["nuts"])


def test_what_is_written_is_read_back(make_plan, tmp_path) -> None:
    plan = make_plan(grid={"labels": [5, None]}, seeds=[1, 2], submitit={"timeout_min": 5})
    (tmp_path / "again.yaml").write_text(to_yaml(plan), encoding="utf-8")
    assert build(ExperimentPlan, tmp_path / "again.yaml", {}) == plan


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"varients": {}}, r"unknown field 'varients': did you mean 'variants'\?"),
        ({"command": "finetune lasso"}, "field 'command': input should be 'finetune classifier'"),
        (
            {"variants": {"plain": {}, "mix": {"mixupp": 1}}},
            r"variant 'mix': unknown field 'mixupp': did you mean 'mixup'\?",
        ),
        ({"variants": {"plain": {"mixup": -1}}}, "variant 'plain': field 'mixup': input should be"),
        ({"base": {"lerning_rate": 1}}, r"variant 'plain': .* did you mean 'learning_rate'\?"),
        ({"variants": {"plain": {"seed": 1}}}, "'plain': seed: the experiment sets it: leave it"),
        ({"grid": {"seed": [1, 2]}}, "grid: seed: the experiment sets it: leave it .* give seeds"),
        ({"grid": {"fold": [0]}}, "grid: fold: the experiment sets it: leave it .* give folds"),
        ({"base": {"fold": 2}}, "base: fold: the experiment sets it: leave it out"),
        ({"base": {"data": "x"}}, "base: data: the experiment sets it: leave it out"),
        ({"base": {"out": "y"}}, "base: out: the experiment sets it: leave it out"),
        ({"base": {"seed": 7}}, "base: seed: the experiment sets it: leave it out"),
        (
            {"variants": {"plain": {}, "b": {"after": "plane"}}},
            r"variant 'b': after: there is no variant 'plane': did you mean 'plain'\?",
        ),
        (
            {"variants": {"a": {"after": "b"}, "b": {"after": "c"}, "c": {"after": "b"}}},
            r"after: goes in a circle \(. after . after .\): break it",
        ),
        (
            {"variants": {"plain": {}, "b": {"after": "plain", "weights": "starter"}}},
            "variant 'b': weights: the experiment sets it",
        ),
        ({"variants": {"plain": {"command": "convert"}}}, "command: 'convert' cannot be"),
        ({"baseline": "plane"}, r"baseline: there is no variant 'plane': did you mean 'plain'\?"),
        ({"grid": {"labels": [5], "mixup": []}}, "grid: mixup has no values"),
        (
            {"grid": {"mixup": [0, 1]}, "variants": {"a": {"mixup": 1}}},
            "variant 'a': mixup is in the grid, too",
        ),
        ({"grid": {"labels": [5, 5]}}, "grid: two of its values are the folder labels-5/plain"),
        ({"variants": {"a/b": {}}}, "'a/b': cannot be the name of a folder"),
        ({"variants": {}}, "field 'variants': .* at least 1"),
        ({"data": {}}, "field 'data': .* at least 1"),
        ({"data": None}, "field 'data' is missing: give it"),
        (
            {"variants": {"a": {}, "b": {"after": ["a"]}}},
            r"variant 'b': after: \['a'\] is not the name of a variant",
        ),
        ({"variants": {True: {}}}, "True .*put it in quotes"),
        ({"variants": {1: {}, "1": {}}}, "'1' is given twice"),
        ({"base": {"image-size": 32, "image_size": 64}}, "'image_size' is given twice"),
        ({"seeds": [0, 0]}, "seeds: give each once"),
        ({"folds": [7]}, "has no folds: fold 7 is not there"),
        ({"figures": ["image.acuracy"]}, r"unknown 'image.acuracy': did you mean 'image.accuracy'"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(make_plan, fields, message) -> None:
    with pytest.raises(InputError, match=message) as error:
        plan = make_plan(**fields)
        plan_runs(plan, "experiment.yaml")
        wanted_figures(plan, "experiment.yaml")
    assert "\n" not in str(error.value)
    assert "experiment.yaml: " in str(error.value) or "folds" in fields


def test_names_may_be_numbers(make_plan, make_dataset) -> None:
    data = {1: str(make_dataset(name="one")), 2.5: str(make_dataset(name="two"))}
    variants = {1: None, 2: {"after": 1, "train": "head"}}
    runs = plan_runs(make_plan(data=data, variants=variants, baseline=1))
    assert list(runs) == [f"{d}/{v}/seed-0" for d in ("1", "2.5") for v in ("1", "2")]
    assert runs["1/2/seed-0"].after == "1/1/seed-0"


def test_what_is_left_empty_is_the_default(make_plan) -> None:
    empty = dict.fromkeys(("base", "grid", "seeds", "folds", "jobs", "figures", "submitit"))
    assert make_plan(**empty) == make_plan()


def test_fields_may_be_hyphenated_everywhere(make_plan) -> None:
    plan = make_plan(
        base={"image-size": 32},
        grid={"learning-rate": [1e-3]},
        variants={"plain": None, "large": {"image-size": 64}},
    )
    sizes = {run.variant: run.config.image_size for run in plan_runs(plan).values()}
    assert sizes == {"plain": 32, "large": 64}
    assert {run.config.learning_rate for run in plan_runs(plan).values()} == {1e-3}


def test_what_a_run_is_told_is_what_was_asked_for(make_plan) -> None:
    plan = make_plan(command="finetune yolo", base={"arch": "yolo11s", "tile": None})
    runs = plan_runs(plan)
    folder = ExperimentFolder(plan.out)
    for place, run in runs.items():
        folder.write_job(run, runs, 20)
        told = build(type(run.config), folder.job(place).with_suffix(".yaml"), {})
        assert told == run.config
        assert told.model_fields_set == run.config.model_fields_set < set(type(told).model_fields)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_can_be_run(preset, make_dataset, monkeypatch, tmp_path) -> None:
    make_dataset(name="dataset")
    monkeypatch.chdir(tmp_path)
    plan = build(ExperimentPlan, preset, {})
    wanted_figures(plan, str(preset))
    runs = plan_runs(plan, str(preset))
    values = 1
    for choices in plan.grid.values():
        values *= len(choices)
    assert len(runs) == len(plan.variants) * len(plan.seeds) * values
    assert yaml.safe_load(preset.read_text("utf-8"))["command"] == plan.command


def test_there_are_presets() -> None:
    assert {path.stem for path in PRESETS} >= {
        "carpet",
        "detectors",
        "rare_classes",
        "transistor",
    }
