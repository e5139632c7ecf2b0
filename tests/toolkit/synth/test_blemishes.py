"""Shapes, looks and the strength of blemishes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.synth import SURFACES, looks, shapes
from toolkit.synth.canvas import Surface, Window
from toolkit.synth.patch import Border, Site, find_border
from toolkit.synth.picture import FAINTEST_VISIBILITY, damage
from toolkit.synth.registry import DEFECTS

SIZE = (96, 112)
NEW = list(DEFECTS)[9:]


def scene(surface: str = "painted", seed: int = 3) -> Surface:
    return SURFACES[surface](np.random.default_rng(seed), np.random.default_rng(seed), SIZE)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("band", [False, True])
def test_a_divided_picture_has_the_share_that_was_asked_for(share: float, band: bool) -> None:
    for seed in range(4):
        _, coverage = shapes.divided(rng(seed), scene(), None, share, ragged=3, band=band)
        assert (coverage >= 0.5).mean() == pytest.approx(share, abs=0.05)


def test_a_soft_border_leaves_the_mask_as_it_was() -> None:
    window, hard = shapes.island(rng(), scene(), (50, 50), 20, ragged=0.2)
    soft = shapes.softened(hard, 6)
    np.testing.assert_array_equal(soft >= 0.5, hard >= 0.5)
    assert ((soft > 0) & (soft < 1)).sum() > 3 * ((hard > 0) & (hard < 1)).sum()
    assert window.size == hard.shape


@pytest.mark.parametrize("heading", [0.0, 1.0, math.pi / 2])
def test_streaks_are_long_along_their_heading(heading: float) -> None:
    window, coverage = shapes.streaks(
        rng(), scene(), (56, 48), heading, length=60, width=6, count=1
    )
    rows, columns = np.nonzero(coverage >= 0.5)
    points = np.stack([columns + window.left, rows + window.top]).astype(float)
    values, vectors = np.linalg.eigh(np.cov(points))
    assert values[1] > 20 * values[0]
    assert abs(vectors[:, 1] @ (math.cos(heading), math.sin(heading))) > 0.98


@pytest.mark.parametrize("surface", ["painted", "turned_disc"])
def test_what_grows_from_a_border_touches_it(surface: str) -> None:
    plain = scene(surface)
    for seed in range(6):
        border = find_border(rng(seed), plain)
        window, coverage = shapes.eaten(rng(seed), plain, border, depth=6, reach=25)
        depth = shapes.from_border(plain, window, border.site.allowed)
        inside = shapes.clipped(border.site, (window, coverage)) >= 0.5
        assert inside.any() and depth[inside].min() < 2


def test_a_tongue_points_the_way_it_is_told() -> None:
    border = Border(Site(0.0, 48.0, None), 0.0)
    window, coverage = shapes.tongue(rng(), scene(), border, length=50, width=20, ragged=0.0)
    columns = np.nonzero((coverage >= 0.5).any(axis=0))[0] + window.left
    assert columns.min() == 0 and 45 <= columns.max() <= 58


@pytest.mark.parametrize("look", looks.LOOKS)
@pytest.mark.parametrize("surface", ["painted", "weave", "rolled_steel"])
def test_a_look_changes_the_surface_about_as_much_as_asked(look: looks.Look, surface: str) -> None:
    plain, window = scene(surface), Window(8, 10, 60, 70)
    below = plain.image[window.area]
    amount = 2 * looks.noticeable(below)
    changes = []
    for seed in range(6):
        changed = look(rng(seed), plain, window, amount)
        assert changed.shape == below.shape and changed.dtype == np.float32
        assert changed.min() >= 0 and changed.max() <= 1
        changes.append(np.abs(changed - below).mean())
    assert 0.2 * amount < np.mean(changes) < 3 * amount


@pytest.mark.parametrize("kind", ["hole", "stain", *NEW])
def test_strength_fades_the_pixels_and_leaves_the_mask(kind: str) -> None:
    plain = scene("turned_disc")
    full, mask = damage(rng(4), plain, kind)
    faint, same = damage(rng(4), plain, kind, strength=0.5)
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_allclose(
        faint.image - plain.image, 0.5 * (full.image - plain.image), atol=1e-5
    )


def test_the_weakest_defect_can_still_be_measured() -> None:
    plain = scene("weave")
    for kind in ("spot", "patch", "uneven"):
        damaged, mask = damage(rng(2), plain, kind, strength=0.01)
        assert np.abs(damaged.image - plain.image)[mask].mean() > 0.3 * FAINTEST_VISIBILITY * 0.04


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        damage(rng(), scene(), "spot", strength=strength)


def test_misprints_are_ink_of_one_colour() -> None:
    plain = scene("painted")
    damaged, mask = damage(rng(1), plain, "print_error")
    change = (damaged.image - plain.image)[mask]
    assert np.abs(change.mean(axis=0)).max() > 2 * change.std(axis=0).min() or len(change) < 30


def test_spots_are_small_and_patches_large() -> None:
    def areas(kind: str) -> list[float]:
        plain = scene()
        return [float(damage(rng(seed), plain, kind)[1].mean()) for seed in range(25)]

    assert max(areas("spot")) < 0.03
    assert max(areas("patch")) > 0.15
    assert 0.03 < float(np.median(areas("uneven"))) < 0.5
