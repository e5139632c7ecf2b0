"""Points as prompts: where they are put in training, and what they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.segment.prompts import (
    INSIDE,
    NOTHING,
    OUTSIDE,
    corrective_clicks,
    inner_point,
    random_point,
)

RING = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=bool)


def _pixel(point):
    return int(point[0]), int(point[1])


def test_random_points_reach_every_pixel_of_a_region_and_no_other():
    rng = np.random.default_rng(0)
    found = {_pixel(random_point(((7.0, 5.0, 4.0, 3.0), RING), rng)) for _ in range(400)}
    rows, columns = np.nonzero(RING)
    assert found == {(7 + c, 5 + r) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)}


def test_a_region_without_pixels_has_no_random_point():
    empty = (0.0, 0.0, 2.0, 2.0), np.zeros((2, 2), dtype=bool)
    assert random_point(empty, np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match="empty"):
        inner_point(empty)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.ones((5, 9), dtype=bool), None),  # anywhere on the middle row, two from each end
        (np.eye(6, dtype=bool), None),  # a scratch of single pixels: on it
        (RING, None),  # never in the hole
    ],
)
def test_the_inner_point_is_as_far_from_the_edge_as_can_be(mask, expected):
    x, y = _pixel(inner_point(((20.0, 30.0, mask.shape[1], mask.shape[0]), mask)))
    assert mask[y - 30, x - 20]
    if mask.all():
        assert (y - 30, 2 <= x - 20 <= 6) == (2, True)


def _grids(*masks):
    return torch.tensor(np.stack(masks), dtype=torch.float32)


def test_clicks_say_what_is_missing_and_what_is_too_much():
    """Prompts: an object not found, one found that is not there, one half found."""
    side, cells = 64, 8
    truth = np.zeros((3, cells, cells))
    truth[0, 2:4, 5:7] = 1
    truth[2, :, :4] = 1
    answer = np.full((3, cells, cells), -1.0)
    answer[1, 6, 1] = 1
    answer[2, :, :3] = 1
    torch.manual_seed(0)
    for _ in range(20):
        points, says = corrective_clicks(
            _grids(*answer), _grids(*truth), torch.ones(3, cells, cells), side
        )
        assert points.shape == (3, 1, 2) and says.shape == (3, 1)
        x, y = (points[:, 0] * cells / side).floor().long().unbind(1)
        assert says[:, 0].tolist() == [INSIDE, OUTSIDE, INSIDE]
        assert truth[0, y[0], x[0]] == 1
        assert (y[1], x[1]) == (6, 1)
        assert x[2] == 3


def test_a_right_answer_is_confirmed_and_a_right_nothing_is_left_alone():
    truth = np.zeros((2, 4, 4))
    truth[0, 1, 1:3] = 1
    answer = truth * 2 - 1
    torch.manual_seed(0)
    points, says = corrective_clicks(_grids(*answer), _grids(*truth), torch.ones(2, 4, 4), 4)
    assert says[:, 0].tolist() == [INSIDE, NOTHING]
    assert points[0, 0, 1] == 1.5 and points[0, 0, 0].item() in (1.5, 2.5)


def test_nothing_is_clicked_in_the_padding():
    inside = torch.zeros(1, 4, 4)
    inside[:, :2] = 1
    answer = torch.ones(1, 4, 4)  # wrong everywhere, but below is no image
    for seed in range(20):
        torch.manual_seed(seed)
        points, says = corrective_clicks(answer, torch.zeros(1, 4, 4), inside, 4)
        assert points[0, 0, 1] < 2 and says.item() == OUTSIDE


def test_a_scratch_thinner_than_a_cell_is_never_clicked_away():
    truth = torch.zeros(2, 8, 8)
    truth[:, 3] = 0.14
    right = torch.where(truth[:1] > 0, 4.0, -4.0)
    nothing = torch.full((1, 8, 8), -4.0)
    for seed in range(10):
        torch.manual_seed(seed)
        points, says = corrective_clicks(
            torch.cat([right, nothing]), truth, torch.ones(2, 8, 8), 64
        )
        assert says[:, 0].tolist() == [INSIDE, INSIDE]
        assert (points[:, 0, 1] == 3.5 * 8).all()
