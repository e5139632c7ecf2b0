"""Random fields have the statistics that textures rely on."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.synth.noise import fractal, relief, rotated, rotation_canvas, smooth, soft_step, white


def test_white_noise_is_normal_and_independent() -> None:
    field = white(np.random.default_rng(0), (200, 300))
    assert field.shape == (200, 300) and field.dtype == np.float32
    assert field.mean() == pytest.approx(0, abs=0.02)
    assert field.std() == pytest.approx(1, abs=0.02)
    assert (np.abs(field) < 1).mean() == pytest.approx(0.683, abs=0.01)
    assert np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1] == pytest.approx(
        0, abs=0.02
    )


@pytest.mark.parametrize("cell", [2.0, 9.0, 40.0])
def test_fields_have_about_unit_deviation(cell: float) -> None:
    fields = [fractal(np.random.default_rng(seed), (128, 160), cell) for seed in range(20)]
    assert np.std(fields) == pytest.approx(1, abs=0.3)


def test_a_long_cell_makes_streaks() -> None:
    field = smooth(np.random.default_rng(0), (128, 128), (1.0, 60.0))
    along, across = np.diff(field, axis=1).std(), np.diff(field, axis=0).std()
    assert across > 8 * along


def test_relief_lights_the_slope_that_faces_the_lamp() -> None:
    ramp = np.tile(np.arange(16, dtype=np.float32), (16, 1))
    assert relief(ramp, (-1.0, 0.0))[8, 8] == pytest.approx(1)
    assert relief(ramp, (1.0, 0.0))[8, 8] == pytest.approx(-1)
    assert relief(ramp, (0.0, -1.0))[8, 8] == pytest.approx(0)


@pytest.mark.parametrize("angle", [0.3, 1.0, 2.5])
def test_a_rotated_canvas_leaves_no_empty_corner(angle: float) -> None:
    size = (40, 90)
    turned = rotated(np.ones(rotation_canvas(size), np.float32), size, angle)
    assert turned.shape == size and turned.min() == pytest.approx(1)


def test_soft_step_is_a_ramp_between_zero_and_one() -> None:
    field = np.array([[0.0, 0.4, 0.5, 0.6, 1.0]], np.float32)
    np.testing.assert_allclose(soft_step(field, 0.5, 0.4), [[0, 0.25, 0.5, 0.75, 1]], atol=1e-6)
