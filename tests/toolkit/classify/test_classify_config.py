from __future__ import annotations

import pytest

from converters.errors import InputError
from toolkit import cli
from toolkit.config import FinetuneClassifierConfig, FinetuneSamConfig, FinetuneYoloConfig, build

PATHS = {"data": "a", "out": "b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "synth"}, "source: needs the other one, too: give --adapt"),
        ({"adapt": "mmd"}, "adapt: needs the other one, too: give --source"),
        ({"focal_gamma": 1}, "focal_gamma: nothing depends on it: give --loss focal, or"),
        ({"generate_to": 0.5}, "generate_to: nothing depends on it: give --generate, or"),
        ({"outlier_weight": 1}, "outlier_weight: nothing depends on it: give --outliers, or"),
        ({"augment": ["flip"], "rotation": 5}, "rotation: nothing depends on it: give --augment"),
        ({"augment": ["flip", "flip"]}, "augment: give each change once"),
        ({"augment": ["flop"]}, "field 'augment.0': .*'autoaugment'"),
        ({"optimizer": "LBFGS"}, "field 'optimizer': .*'SGD'"),
        ({"label_smoothing": 1}, "field 'label_smoothing': .*less than 1, not 1"),
        ({"mixup": -1}, "field 'mixup': .*greater than or equal to 0, not -1"),
        ({"focal_gamma": "inf", "loss": "focal"}, "field 'focal_gamma': .*finite"),
        ({"labels": 0}, "field 'labels': .*greater than 0, not 0"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        build(FinetuneClassifierConfig, None, {**PATHS, **options})
    assert "\n" not in str(error.value)


def test_what_depends_on_another_field_may_be_given_with_it():
    given = {
        "loss": "focal",
        "focal_gamma": 1.0,
        "outliers": "synth",
        "outlier_weight": 1.0,
        "generate": "lro",
        "generate_to": 0.5,
        "source": "synth",
        "adapt": "mmd",
    }
    config = build(FinetuneClassifierConfig, None, {**PATHS, **given})
    assert config.model_dump(include=set(given)) == given


@pytest.mark.parametrize("config", [FinetuneYoloConfig, FinetuneSamConfig])
def test_detectors_and_segmenters_know_no_balanced_sampling(config):
    """A picture may show several kinds of defects, so that nothing shows all kinds alike."""
    with pytest.raises(InputError, match=r"field 'sampling': .*'uniform' or 'repeat-factor'"):
        build(config, None, {**PATHS, "sampling": "balanced"})
    assert build(FinetuneClassifierConfig, None, {**PATHS, "sampling": "balanced"})


@pytest.mark.parametrize(("text", "expected"), [("", ()), ("flip,light", ("flip", "light"))])
def test_no_augmentation_is_an_empty_text_on_the_command_line(text, expected):
    flags = cli._given(FinetuneClassifierConfig, {"augment": text})
    assert build(FinetuneClassifierConfig, None, {**PATHS, **flags}).augment == expected
