from __future__ import annotations

from pathlib import Path

import pytest

from converters.errors import InputError
from toolkit import config as configs
from toolkit.commands import COMMANDS
from toolkit.config import (
    ConvertConfig,
    EvaluateConfig,
    ExperimentPlan,
    FinetuneYoloConfig,
    build,
    to_yaml,
)

REQUIRED = {"source": "a", "dest": "b"}


def test_flags_win_over_the_file(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: a\ndest: b\nseed: 3\nskip-invalid: true\n")
    config = build(ConvertConfig, file, {"seed": "5"})
    assert (config.seed, config.skip_invalid, config.source) == (5, True, Path("a"))


def test_what_is_written_is_read_back(tmp_path) -> None:
    config = build(ConvertConfig, None, {**REQUIRED, "fractions": ["0.5", "0.25", "0.25"]})
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert build(ConvertConfig, tmp_path / "c.yaml", {}) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, r"unknown field 'sed': did you mean 'seed'\?"),
        ({"seed": "x"}, r"field 'seed': .*valid integer.*, not 'x'"),
        ({"seed": -1}, r"field 'seed': .*greater than or equal to 0, not -1"),
        ({"layout": "mvtek"}, r"field 'layout': .*'mvtec'"),
        ({"fractions": [0.6, 0.6, 0.2]}, "must add up to 1"),
        ({"split": "hard"}, "needs the defect type that is known"),
    ],
)
def test_wrong_fields_are_refused_by_name(values, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(ConvertConfig, None, {**REQUIRED, **values})
    assert "\n" not in str(caught.value)


def test_a_wrong_field_in_a_file_names_the_file(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("learning_rat: 1\n")
    with pytest.raises(InputError, match=r"c\.yaml: unknown field .* 'learning_rate'"):
        build(FinetuneYoloConfig, file, {"data": "a", "out": "b"})


@pytest.mark.parametrize("text", ["- a list\n", "a: [1\n", "\x00"])
def test_a_file_that_is_no_mapping(tmp_path, text) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml: "):
        build(ConvertConfig, tmp_path / "c.yaml", REQUIRED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nlayout: mvtec\nseed: 2\n", "line 3: 'seed' is given twice: keep one"),
        ("skip-invalid: true\nskip_invalid: false\n", "'skip_invalid' is given twice: keep one"),
    ],
)
def test_a_key_that_is_there_twice(tmp_path, text, message) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml: " + message) as caught:
        build(ConvertConfig, tmp_path / "c.yaml", REQUIRED)
    assert "\n" not in str(caught.value)


def test_a_merged_mapping_may_be_overridden(tmp_path) -> None:
    text = "data: &all {b: x}\nout: o\nvariants: {v: {}}\nbase: {<<: *all, b: y}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert build(ExperimentPlan, tmp_path / "c.yaml", {}).base == {"b": "y"}


def test_home_is_spelt_out_in_every_path(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("source: ~/a\ndest: ~no-such-user/b\n")
    config = build(ConvertConfig, tmp_path / "c.yaml", {})
    assert (config.source, config.dest) == (tmp_path / "a", Path("~no-such-user/b"))
    assert build(EvaluateConfig, None, {"data": "d", "predictions": ["~/p"]}).predictions == (
        tmp_path / "p",
    )
    plan = build(ExperimentPlan, None, {"data": {"x": "~/d"}, "out": "~", "variants": {"v": {}}})
    assert (plan.data, plan.out) == ({"x": tmp_path / "d"}, tmp_path)


def test_a_missing_field_and_a_missing_file() -> None:
    with pytest.raises(InputError, match="field 'dest' is missing"):
        build(ConvertConfig, None, {"source": "a"})
    with pytest.raises(InputError, match="no such configuration file"):
        build(ConvertConfig, Path("nowhere.yaml"), {})


def test_image_size_that_is_no_multiple_of_32() -> None:
    with pytest.raises(InputError, match="100 is not a multiple of 32: try 96"):
        build(FinetuneYoloConfig, None, {"data": "a", "out": "b", "image_size": 100})


def test_a_frozen_network_needs_weights() -> None:
    with pytest.raises(InputError, match="train: head leaves random weights as they are: give"):
        build(configs.FinetuneClassifierConfig, None, {"data": "a", "out": "b", "train": "head"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "lora"}, "train: lora leaves random weights as they are: give weights, or"),
        ({"lora_rank": 8}, "lora_rank: is for adapters: give train lora as well"),
        ({"train": "decoder", "lora_alpha": 8, "weights": "starter"}, "lora_alpha: is for adapt"),
        ({"layer_decay": 0}, "layer_decay': input should be greater than 0"),
        ({"average": 1}, "average': input should be less than 1"),
    ],
)
def test_options_of_sam_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(configs.FinetuneSamConfig, None, {"data": "a", "out": "b", **options})
    assert "\n" not in str(error.value)


def test_every_field_of_every_command_is_described() -> None:
    names = [n for n in configs.__all__ if n.endswith("Config") and n != "Config"]
    commands = [getattr(configs, name) for name in names]
    assert {command.config for command in COMMANDS.values()} <= set(names)
    for command in commands:
        assert command.__doc__
        for name, field in command.model_fields.items():
            assert field.description, f"{command.__name__}.{name}"


def test_a_name_that_is_no_configuration_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'NoConfig'"):
        configs.NoConfig  # noqa: B018


def test_presets_are_valid() -> None:
    folder = Path(__file__).parents[2] / "configs"
    of_command = {
        "yolo": FinetuneYoloConfig,
        "sam": configs.FinetuneSamConfig,
        "classifier": configs.FinetuneClassifierConfig,
        "pretrain_yolo": configs.PretrainYoloConfig,
        "pretrain_sam": configs.PretrainSamConfig,
        "pretrain_classifier": configs.PretrainClassifierConfig,
        "adapt": configs.AdaptConfig,
    }
    presets = sorted(folder.glob("*.yaml"))
    assert presets
    for preset in presets:
        config = max((n for n in of_command if preset.stem.startswith(n)), key=len)
        required = {"out": "b"} if config.startswith("pretrain") else {"data": "a", "out": "b"}
        build(of_command[config], preset, required)
