"""Parts out of place and bent leads: what is shown, and what the mask says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from toolkit.synth.canvas import Lead, Surface, Window
from toolkit.synth.displaced import bent, displaced
from toolkit.synth.parts import board, turned_disc

SIZE = (96, 112)


def scene(surface: str, seed: int = 3, size: tuple[int, int] = SIZE) -> Surface:
    make = {"board": board, "turned_disc": turned_disc}[surface]
    return make(np.random.default_rng(seed), np.random.default_rng(seed), size)


def square() -> Surface:
    """A white square of 20 pixels on black."""
    part = np.zeros(SIZE, np.float32)
    part[30:50, 40:60] = 1
    image = np.repeat(part[..., None], 3, axis=2)
    return Surface(image, np.zeros(3, np.float32), (0.0, -1.0), part=part)


def test_a_displaced_part_is_masked_where_it_belongs_and_where_it_is() -> None:
    plain = square()
    assert plain.part is not None
    for seed in range(12):
        patch = displaced(np.random.default_rng(seed), plain)
        image, mask = plain.image.copy(), np.zeros(SIZE, bool)
        image[patch.window.area], mask[patch.window.area] = patch.pixels, patch.mask
        assert mask[plain.part > 0.5].all()
        bright = image.mean(axis=2) > 0.55
        assert (mask & ~bright & ~(plain.part > 0.5)).mean() < 0.005
        assert not (bright & ~mask).any()


def test_an_absent_part_shows_what_lies_beneath_without_its_shadow() -> None:
    plain = scene("board")
    assert plain.part is not None and plain.shadow is not None
    bare = plain.beneath / plain.shadow[..., None]
    for seed in range(40):
        patch = displaced(np.random.default_rng(seed), plain)
        if not np.array_equal(patch.mask, plain.part[patch.window.area] >= 0.5):
            continue
        where = plain.part[patch.window.area] > 0.99
        shown = np.abs(patch.pixels - bare[patch.window.area])[where]
        assert shown.max() < 1e-4
        return
    pytest.fail("no part was absent in 40 draws")


@pytest.mark.parametrize("surface", ["board", "turned_disc"])
def test_nothing_far_from_the_mask_changes(surface: str) -> None:
    plain = scene(surface)
    for draw in (displaced, bent):
        patch = draw(np.random.default_rng(2), plain)
        assert patch.mask.any()
        outer = patch.coverage == 0
        change = np.abs(patch.pixels - plain.image[patch.window.area]).max(axis=2)
        assert change[outer].mean() < 0.05


def test_boards_know_their_leads() -> None:
    for seed in range(6):
        plain = scene("board", seed)
        assert plain.part is not None and len(plain.leads) >= 3
        for lead in plain.leads:
            columns, rows = np.floor(lead.path.mean(axis=0, keepdims=True)).astype(int).T
            assert plain.part[rows, columns].min() > 0.3


def test_a_bent_lead_leaves_its_place_and_shows_what_lies_beneath() -> None:
    path = np.array([[56.0, 50.0], [56.0, 62.0], [56.0, 80.0]])
    plain = square()
    assert plain.part is not None
    trace = Window(0, 0, *SIZE).stroke([(path, np.full(3, 4.0))])
    image = np.maximum(plain.image, trace[..., None])
    leads = (Lead(path, 4.0, (1.0, 1.0, 1.0)),)
    plain = replace(plain, image=image, part=np.maximum(plain.part, trace), leads=leads)
    for seed in range(10):
        patch = bent(np.random.default_rng(seed), plain)
        mask = np.zeros(SIZE, bool)
        mask[patch.window.area] = patch.mask
        assert mask[78, 56], "the free end is gone from its place"
        end = patch.pixels[78 - patch.window.top, 56 - patch.window.left]
        assert end.max() < 0.2
        assert not mask[:45].any()


@pytest.mark.parametrize("draw", [displaced, bent])
@pytest.mark.parametrize("size", [(32, 32), (40, 300), (300, 40)])
def test_small_and_narrow_pictures(draw: object, size: tuple[int, int]) -> None:
    assert callable(draw)
    for seed in range(5):
        patch = draw(np.random.default_rng(seed), scene("turned_disc", seed, size))
        assert patch.pixels.shape == (*patch.window.size, 3)
        assert np.isfinite(patch.pixels).all()
