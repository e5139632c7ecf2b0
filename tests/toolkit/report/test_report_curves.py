"""The lines of the charts, and where they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn

from converters.dataset import Dataset, Image, Instance
from toolkit.evaluate.matching import match
from toolkit.report.chart import HEIGHT, WIDTH, Axis, Mark, line_chart, log_axis
from toolkit.report.curves import (
    Line,
    at_least,
    by_threshold,
    precision_recall,
    receiver_operating,
    training,
)


def three_detections():
    """Two defects; one found with score 0.9, a false alarm with 0.6, the other found with 0.3."""
    boxes = [(0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 10.0, 10.0)]
    instances = tuple(Instance("dent", box, None, n) for n, box in enumerate(boxes, start=1))
    dataset = Dataset("d", ("dent",), (Image("a.png", None, 64, 64, instances, id=1),))
    found = [(boxes[0], 0.9), ((40.0, 40.0, 5.0, 5.0), 0.6), (boxes[1], 0.3)]
    results = [
        {"image_id": 1, "category_id": 1, "bbox": list(box), "score": score} for box, score in found
    ]
    return match(dataset, results, "box")


def test_precision_over_recall() -> None:
    line = precision_recall("all", three_detections())
    assert line.x.tolist() == [0, 0.5, 0.5, 1]
    assert line.y.tolist() == pytest.approx([1, 1, 1 / 2, 2 / 3])


def test_figures_hold_from_the_score_before_to_the_score_itself() -> None:
    f1, precision, recall = by_threshold(three_detections())
    assert f1.x.tolist() == [0, 0.3, 0.3, 0.6, 0.6, 0.9]
    assert f1.y.tolist() == pytest.approx([0.8, 0.8, 0.5, 0.5, 2 / 3, 2 / 3])
    assert precision.y.tolist() == pytest.approx([2 / 3, 2 / 3, 0.5, 0.5, 1, 1])
    assert recall.y.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.5])


def test_share_of_outlines_that_are_at_least_so_good() -> None:
    line = at_least("all", [0.8, 0.2])
    assert line.x.tolist() == [0, 0.2, 0.2, 0.8, 0.8, 1]
    assert line.y.tolist() == [1, 1, 0.5, 0.5, 0, 0]


def test_the_roc_curve_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    bad, suspicion = rng.random(50) < 0.4, np.round(rng.random(50), 1)
    line = receiver_operating("all", bad, suspicion)
    x, y, _ = sklearn.roc_curve(bad, suspicion, drop_intermediate=False)
    assert line.x.tolist() == pytest.approx(x.tolist())
    assert line.y.tolist() == pytest.approx(y.tolist())


@pytest.mark.parametrize(
    ("score", "values", "kept"),
    [
        ("val_iou", [0.1, 0.5, 0.5], 2),  # ours keeps the first of equals
        ("val_ap", [0.1, 0.5, 0.5], 3),  # the detector's trainer the last
        ("val_score", [0.1, float("nan"), 0.3], 3),
        ("val_other", [0.1, 0.5, 0.2], None),
    ],
)
def test_the_epoch_that_was_kept(score, values, kept) -> None:
    log = [{"epoch": n, "loss": 1.0, score: value} for n, value in enumerate(values, start=1)]
    course = training(log)
    assert course is not None
    assert course.kept == kept
    assert list(course.losses) == ["loss"]


def test_points_lie_inside_the_drawing_and_marks_beyond_it_are_left_out() -> None:
    line = Line("a", np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 7.0]))
    marks = [Mark(0.5, 0.5, "in"), Mark(1.5, None, "out")]
    chart = line_chart("t", [line], Axis("x"), Axis("y"), says="s", marks=marks)
    points = [tuple(map(float, p.split())) for p in chart.paths[0].d[1:].split("L")]
    assert points == [
        (chart.left, chart.bottom),
        (chart.x_ticks[-1].at / 2 + 20, chart.top),
        (chart.right, chart.top),
    ]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [mark.label for mark in chart.marks] == ["in"]
    assert [tick.text for tick in chart.x_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_a_long_line_is_thinned_without_losing_its_peaks() -> None:
    x = np.linspace(0, 1, 100_000)
    y = np.zeros(x.size)
    y[31_234] = 1
    chart = line_chart("t", [Line("a", x, y)], Axis("x"), Axis("y"), says="s")
    points = chart.paths[0].d[1:].split("L")
    assert len(points) < 4 * WIDTH
    assert min(float(point.split()[1]) for point in points) == chart.top


def test_small_scores_get_steps_of_ten() -> None:
    axis = log_axis("score", 0.003, 0.4)
    assert (axis.low, axis.high) == (0.001, 1.0)
    chart = line_chart("t", [], axis, Axis("y"), says="s")
    assert [tick.text for tick in chart.x_ticks] == ["0.001", "0.01", "0.1", "1"]
    assert np.diff([tick.at for tick in chart.x_ticks]) == pytest.approx([102.7] * 3, abs=0.2)
