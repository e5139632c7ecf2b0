from __future__ import annotations

import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from toolkit.evaluate.bootstrap import ratio
from toolkit.evaluate.rules import Rules, open_sheet
from toolkit.evaluate.seeds import mean_difference, mean_figure
from toolkit.evaluate.sheet import Sheet

NAME = "image.accuracy"


def _dataset(count: int = 60, first: int = 0) -> Dataset:
    instance = Instance("dent", (0.0, 0.0, 1.0, 1.0), np.ones((1, 1), np.bool_), 1)
    images = tuple(
        Image(f"{i}.png", None, 8, 8, (instance,) * (i % 2), f"{i}.png", id=i + 1)
        for i in range(first, first + count)
    )
    return Dataset("made up", ("dent",), images)


@pytest.fixture(scope="module")
def blank() -> Sheet:
    return open_sheet(_dataset(), Rules(resamples=400), "none", 1)


def _sheet(blank: Sheet, right: np.ndarray) -> Sheet:
    """A sheet with the accuracy of verdicts that are right or not, shape (images,)."""
    sheet = Sheet(blank.dataset, blank.weights, blank.protocol)
    sheet.add(NAME, ratio(right.astype(np.int64), np.ones(len(right), np.int64), blank.weights))
    return sheet


def _verdicts(
    rng: np.random.Generator, seeds: int, spread: float, images: int = 60
) -> list[np.ndarray]:
    """Verdicts of trainings that are good or bad by chance, on pictures that are easy or hard."""
    easy = rng.normal(1, 1, images)
    luck = rng.normal(0, spread, (seeds, 1))
    return list(rng.random((seeds, images)) < 1 / (1 + np.exp(-(easy + luck))))


def test_one_seed_is_the_plain_interval(blank) -> None:
    sheet = _sheet(blank, np.arange(60) % 3 > 0)
    assert mean_figure([sheet], NAME) == sheet.metrics().figures[NAME]


def test_equal_seeds_add_nothing(blank) -> None:
    sheet = _sheet(blank, np.arange(60) % 3 > 0)
    assert mean_figure([sheet] * 3, NAME) == sheet.metrics().figures[NAME]
    same = mean_difference([sheet] * 3, [sheet] * 3, NAME)
    assert same is not None
    assert (same.value, same.ci95) == (0, (0, 0))


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.93), (0.4, 0.93), (0.8, 0.82)])
def test_intervals_hold_the_truth_of_other_pictures_and_other_seeds(blank, spread, least) -> None:
    rng = np.random.default_rng(3)
    many = [_verdicts(rng, 1, spread, 200)[0].mean() for _ in range(2000)]
    truth = float(np.mean(many))
    held = plain = 0
    rounds = 200
    for _ in range(rounds):
        sheets = [_sheet(blank, right) for right in _verdicts(rng, 3, spread)]
        figure = mean_figure(sheets, NAME)
        alone = sheets[0].metrics().figures[NAME]
        assert figure is not None and figure.ci95 is not None and alone.ci95 is not None
        held += figure.ci95[0] <= truth <= figure.ci95[1]
        plain += alone.ci95[0] <= truth <= alone.ci95[1]
    assert held / rounds > least
    if spread > 0.5:
        assert (held - plain) / rounds > 0.1  # which is why seeds have to be drawn, too


@pytest.mark.parametrize("seeds", [2, 3])
def test_many_pictures_do_not_make_few_seeds_sure(seeds) -> None:
    many = open_sheet(_dataset(300), Rules(resamples=100), "none", 1)
    rng = np.random.default_rng(7)
    truth = float(np.mean([_verdicts(rng, 1, 0.72, 300)[0].mean() for _ in range(2000)]))
    held = 0
    rounds = 60
    for _ in range(rounds):
        pair = [[_sheet(many, v) for v in _verdicts(rng, seeds, 0.72, 300)] for _ in range(2)]
        figure, between = mean_figure(pair[0], NAME), mean_difference(*pair, NAME)
        assert figure is not None and figure.ci95 is not None
        assert between is not None and between.ci95 is not None
        held += figure.ci95[0] <= truth <= figure.ci95[1]
        held += between.ci95[0] <= 0 <= between.ci95[1]
    assert held / rounds / 2 > 0.84  # 0.78 by the degrees of freedom of the pictures alone


def test_seeds_that_hardly_differ_hardly_widen(blank) -> None:
    right = np.arange(60) % 3 > 0
    other = right ^ (np.arange(60) == 0)
    alone, both = (
        mean_figure(each, NAME)
        for each in ([_sheet(blank, right)] * 2, [_sheet(blank, right), _sheet(blank, other)])
    )
    assert alone is not None and alone.ci95 is not None
    assert both is not None and both.ci95 is not None
    assert np.ptp(both.ci95) < 1.1 * np.ptp(alone.ci95)


def test_differences_are_paired_by_picture_and_seed(blank) -> None:
    rng = np.random.default_rng(5)
    first = _verdicts(rng, 3, 1.0)
    second = [right | (np.arange(60) % 10 == 0) for right in first]
    sheets = [[_sheet(blank, right) for right in rights] for rights in (first, second)]
    paired = mean_difference(*sheets, NAME)
    figures = [mean_figure(each, NAME) for each in sheets]
    assert paired is not None and paired.ci95 is not None
    assert figures[0] is not None and figures[0].ci95 is not None and figures[1] is not None
    assert paired.value == pytest.approx(figures[1].value - figures[0].value)
    assert np.ptp(paired.ci95) < np.ptp(figures[0].ci95) / 2


def test_what_cannot_be_had_is_none(blank) -> None:
    sheet = _sheet(blank, np.ones(60, np.bool_))
    assert mean_figure([], NAME) is None
    assert mean_figure([sheet], "image.AUROC") is None
    assert mean_difference([sheet], [], NAME) is None


def test_other_images_are_refused(blank) -> None:
    others = open_sheet(_dataset(first=2), Rules(resamples=400), "none", 1)
    sheets = [_sheet(each, np.ones(60, np.bool_)) for each in (blank, others)]
    with pytest.raises(InputError, match="not the same in both runs"):
        mean_figure(sheets, NAME)
    with pytest.raises(InputError, match="not the same in both runs"):
        mean_difference([sheets[0]], [sheets[1]], NAME)
