"""Intervals: seeded, around the figure, narrower with more images, within labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance
from toolkit.evaluate import score
from toolkit.evaluate.accumulate import average_precision
from toolkit.evaluate.bootstrap import Basis, image_weights, ratio, to_figure
from toolkit.evaluate.matching import match
from toolkit.predictions import Result

MakeScene = Callable[..., tuple[Dataset, list[Result]]]


def test_resamples_keep_the_number_of_images_of_each_label() -> None:
    labels = ["good"] * 30 + ["dent"] * 5 + ["hole"]
    weights = image_weights(labels, 200, 0)
    assert (weights[0] == 1).all()
    for label, count in (("good", 30), ("dent", 5), ("hole", 1)):
        members = weights[:, np.array(labels) == label]
        assert (members.sum(axis=1) == count).all()
    assert weights[1:, :30].std() > 0.5  # they do vary


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, (0.025, 0.975)),  # no bias: plain percentiles
        (0.45, (0.0, 0.875)),  # resamples lie 0.05 too high: 0.1 lower, but no lower than 0
        (0.55, (0.125, 1.0)),
    ],
)
def test_percentiles_are_moved_by_twice_the_bias(
    value: float, expected: tuple[float, float]
) -> None:
    figure = to_figure(np.array([value, *np.linspace(0, 1, 1001)]), n=100_000)
    assert figure.ci95 == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (10**6, 1.96)],
)
def test_few_degrees_of_freedom_widen_as_students_quantile(freedom: int, quantile: float) -> None:
    basis = Basis(photographs=freedom + 1, freedom=freedom, bounded=False, top=1000)
    samples = np.array([500.0, *np.linspace(490, 510, 1001)])
    low, high = to_figure(samples, n=9, basis=basis).ci95 or (0, 0)
    assert (high - low) / 2 == pytest.approx(9.5 * quantile / 1.96, rel=0.01)


def test_the_scarcer_side_has_the_degrees_of_freedom() -> None:
    labels = ["good"] * 5 + ["dent"] * 9 + ["hole"] * 8
    assert Basis.of(labels, list(range(22))) == Basis(22, 4)
    assert Basis.of(labels[5:], list(range(17))) == Basis(17, 15)
    assert Basis.of(["dent"] * 6, [1, 1, 1, 2, 2, 2]) == Basis(2, 1)


@pytest.mark.parametrize(("value", "expected"), [(1.0, (0.692, 1.0)), (0.0, (0.0, 0.308))])
def test_no_exception_among_ten_photographs_is_no_certainty(
    value: float, expected: tuple[float, float]
) -> None:
    """The interval of Clopper and Pearson: 1 - 0.025 ** (1 / 10)."""
    figure = to_figure(np.full(200, value), n=10)
    assert figure.ci95 == pytest.approx(expected, abs=1e-3)


def test_resamples_vary_as_much_as_new_samples_would() -> None:
    """The variance of a mean of five is a fifth of the sample variance with n - 1."""
    values = np.array([0.0, 1.0, 3.0, 4.0, 9.0])
    weights = image_weights(["x"] * 5, 40_000, 0)[1:]
    assert (weights @ values / 5).var() == pytest.approx(values.var(ddof=1) / 5, rel=0.02)
    assert (weights == 0).any(axis=1).all()


def test_resamples_without_the_figure_do_not_count() -> None:
    assert to_figure(np.array([0.2, np.nan, 0.2, 0.2]), n=7).ci95 == pytest.approx((0.2, 0.2))


def test_a_resample_without_a_class_says_nothing_of_it() -> None:
    side = {"dent": 20, "hole": 5}  # both images of holes are, by area, images of dents
    images = []
    for number in range(1, 7):
        present = ("dent", "hole") if number < 3 else ("dent",)
        instances = tuple(
            Instance(name, (0, 0, side[name], side[name]), None, 10 * number + k)
            for k, name in enumerate(present)
        )
        images.append(Image(f"{number}", Path(f"{number}"), 64, 64, instances, id=number))
    dataset = Dataset("d", ("dent", "hole"), tuple(images))
    results: list[Result] = [
        {
            "image_id": image.id,
            "category_id": dataset.category_id(instance.category),
            "bbox": list(instance.box),
            "score": 0.9,
        }
        for image in images
        for instance in image.instances
    ]
    results.append({"image_id": 6, "category_id": 2, "bbox": [50, 50, 5, 5], "score": 0.8})
    weights = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 3, 1, 1, 1]], np.int16)
    precision = average_precision(match(dataset, results, "box"), weights)[0]
    assert np.isnan(precision[1, :, 1]).all()
    assert not np.isnan(precision[1, :, 0]).any()

    metrics = score(dataset, results, threshold=0.5, resamples=400)
    low, _ = metrics.per_class["hole"]["box.AP"].ci95 or (0, 0)
    assert low == pytest.approx(0.025**0.5)  # found on both images, which are few
    assert metrics.figures["box.AP"].ci95 is not None


def test_one_image_gives_no_interval() -> None:
    assert to_figure(np.array([0.5, 0.5, 0.5]), n=1).ci95 is None


def test_an_interval_for_a_mean_has_the_textbook_width() -> None:
    weights = image_weights(["x"] * 400, 4000, 0)
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = to_figure(weights @ values / 400, n=400).ci95 or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.1)


def test_every_figure_lies_in_its_interval(make_scene: MakeScene) -> None:
    metrics = score(*make_scene(3, good=20, defective=40), val=make_scene(4), resamples=300)
    assert len(metrics.figures) == 40
    for name, figure in metrics.figures.items():
        assert figure.ci95 is not None
        assert figure.ci95[0] <= figure.value <= figure.ci95[1], name
        assert figure.ci95[0] < figure.ci95[1] or name == "baseline.always_good_accuracy"


@pytest.mark.parametrize("name", ["box.AP", "box.F1", "mask.IoU", "image.AUROC"])
def test_more_images_give_narrower_intervals(make_scene: MakeScene, name: str) -> None:
    def width(good: int, defective: int) -> float:
        scene = make_scene(0, good=good, defective=defective)
        low, high = score(*scene, threshold=0.4, resamples=200).figures[name].ci95 or (0, 0)
        return high - low

    assert width(100, 150) < 0.75 * width(10, 15)


def test_the_seed_decides_the_interval_and_not_the_value(make_scene: MakeScene) -> None:
    scene = make_scene(0)
    first = score(*scene, threshold=0.4, resamples=50, seed=1)
    again = score(*scene, threshold=0.4, resamples=50, seed=1)
    other = score(*scene, threshold=0.4, resamples=50, seed=2)
    assert first == again
    assert first.figures["box.AP"].ci95 != other.figures["box.AP"].ci95
    assert first.figures["box.AP"].value == other.figures["box.AP"].value


def test_without_resamples_there_are_no_intervals(make_scene: MakeScene) -> None:
    metrics = score(*make_scene(0), threshold=0.4, resamples=0)
    everything = [*metrics.figures.values()]
    everything += [figure for figures in metrics.per_class.values() for figure in figures.values()]
    assert all(figure.ci95 is None for figure in everything)


def test_pictures_of_one_photograph_are_drawn_together() -> None:
    labels = ["good", "a", "a", "a", "a", "good"]
    weights = image_weights(labels, 300, 0, photographs=[7, 3, 3, 9, 9, 8])
    assert np.array_equal(weights[:, 1], weights[:, 2])
    assert np.array_equal(weights[:, 3], weights[:, 4])
    assert not np.array_equal(weights[:, 1], weights[:, 3])
    assert (weights[:, [0, 5]].sum(axis=1) == 2).all()


def test_six_pictures_of_one_photograph_say_no_more_than_one() -> None:
    labels, found = ["a"] * 60, np.repeat(np.arange(10) % 2, 6)
    apart = ratio(found, np.ones(60, int), image_weights(labels, 2000, 0))
    together = ratio(
        found, np.ones(60, int), image_weights(labels, 2000, 0, list(np.repeat(np.arange(10), 6)))
    )
    narrow, wide = (to_figure(samples, n=60).ci95 for samples in (apart, together))
    assert narrow is not None and wide is not None
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])  # sqrt(6), about 2.4
