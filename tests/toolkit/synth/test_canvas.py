"""Windows, shapes and the exactness of their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.synth.canvas import Blob, Window, mix

SQUARE = np.array([[10.5, 8.0], [20.5, 8.0], [20.5, 18.0], [10.5, 18.0]])


def test_a_pixel_is_covered_by_the_share_that_the_shape_takes() -> None:
    coverage = Window(0, 0, 32, 32).fill([SQUARE])
    assert (coverage[9:17, 12:20] == 1).all()
    assert coverage[:7].max() == coverage[:, :9].max() == 0
    # The left edge halves column 10; an eighth of a pixel is the renderer's tolerance.
    assert coverage[9:17, 10] == pytest.approx(0.5, abs=0.13)
    assert coverage.sum() == pytest.approx(100, rel=0.06)


def test_windows_draw_the_same_pixels_wherever_they_lie() -> None:
    whole = Window(0, 0, 32, 32).fill([SQUARE])
    part = Window(5, 7, 16, 20)
    np.testing.assert_array_equal(part.fill([SQUARE]), whole[part.area])


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 4, math.pi / 2])
@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.75])
def test_the_thinnest_line_has_a_mask_along_its_whole_length(angle: float, shift: float) -> None:
    along = 12 * np.array([math.cos(angle), math.sin(angle)])
    middle = np.array([20 + shift, 20 + shift])
    line = np.stack([middle - along, middle + along])
    coverage = Window(0, 0, 40, 40).stroke([(line, np.full(2, 1.2))])
    steps = middle + np.linspace(-1, 1, 25)[:, None] * along * 0.9
    columns, rows = np.floor(steps).astype(int).T
    near = [
        coverage[r - 1 : r + 2, c - 1 : c + 2].max() for r, c in zip(rows, columns, strict=True)
    ]
    assert min(near) >= 0.5


@pytest.mark.parametrize(
    "points",
    [
        [[-5.0, -5.0], [3.0, 4.0]],  # across the corner
        [[-9.0, -9.0], [-5.0, -6.0]],  # outside
        [[100.0, 100.0], [120.0, 130.0]],  # far outside
    ],
)
def test_a_window_never_leaves_the_picture(points: list[list[float]]) -> None:
    window = Window.around(np.array(points), 2, (30, 40))
    assert window.height >= 1 and window.width >= 1
    assert np.zeros((30, 40))[window.area].shape == window.size


def test_rho_is_one_on_the_outline_and_zero_in_the_middle() -> None:
    blob = Blob.random(np.random.default_rng(1), (32.0, 30.0), 15, stretch=1.8)
    window = Window(0, 0, 64, 64)
    rho, inside = blob.rho(window), window.fill([blob.points])
    assert rho[30, 32] < 0.1
    assert rho[inside == 1].max() < 1.05
    assert rho[inside == 0].min() > 0.95


def test_mix_weighs_per_pixel() -> None:
    below = np.zeros((1, 2, 3), np.float32)
    mixed = mix(below, (0.2, 0.4, 0.8), np.array([[0.0, 0.5]], np.float32))
    assert mixed.ravel().tolist() == pytest.approx([0, 0, 0, 0.1, 0.2, 0.4])
