"""Distractors change the picture, repeatably, and nothing else of the surface."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.synth.canvas import Size, Surface
from toolkit.synth.registry import DISTRACTORS, SURFACES


def scene(family: str, size: Size = (72, 96)) -> Surface:
    return SURFACES[family](np.random.default_rng(1), np.random.default_rng(2), size)


@pytest.mark.parametrize("family", ["painted", "turned_disc"])
@pytest.mark.parametrize("name", DISTRACTORS)
def test_a_distractor_changes_the_image_alone(name: str, family: str) -> None:
    before = scene(family)
    pixels = before.image.copy()
    changed = 0
    for seed in range(6):
        after = DISTRACTORS[name](np.random.default_rng(seed), before)
        again = DISTRACTORS[name](np.random.default_rng(seed), before)
        assert after.image.tobytes() == again.image.tobytes()
        assert after.image.shape == pixels.shape and after.image.dtype == np.float32
        assert np.isfinite(after.image).all()
        assert after.image.min() >= -0.1 and after.image.max() <= 1.3
        assert after.part is before.part and after.light == before.light
        changed += bool(np.abs(after.image - pixels).max() > 0.05)
    assert changed >= 4
    np.testing.assert_array_equal(before.image, pixels)


@pytest.mark.parametrize("size", [(32, 32), (32, 200), (333, 40)])
@pytest.mark.parametrize("name", DISTRACTORS)
def test_any_size(name: str, size: Size) -> None:
    before = scene("gradient", size)
    for seed in range(12):
        assert DISTRACTORS[name](np.random.default_rng(seed), before).image.shape == (*size, 3)


@pytest.mark.parametrize("name", ["seam", "step_edge", "stripe"])
def test_tool_marks_stay_on_the_part(name: str) -> None:
    before = scene("turned_disc")
    assert before.part is not None
    for seed in range(6):
        after = DISTRACTORS[name](np.random.default_rng(seed), before)
        assert np.abs(after.image - before.image)[before.part == 0].max() < 1e-6
