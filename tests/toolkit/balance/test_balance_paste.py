"""Cutting out, turning, placing and blending of defects."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.dataset import Image, Instance
from converters.geometry import region_from_mask
from toolkit.balance.blend import BLENDS, MARGIN, blend, grain, match_host
from toolkit.balance.donors import Donor, Turn, cut_out, draw_turn, turn
from toolkit.balance.objects import coherence, find_object
from toolkit.balance.place import Ground, find_place
from toolkit.balance.states import Seen, find_states, look_at
from toolkit.scene import glance, lie_alike


def noise(seed: int, shape: tuple[int, ...], level: float = 120, sigma: float = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(level, sigma, shape), 0, 255).astype(np.uint8)


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    return cv2.circle(np.zeros(shape, np.uint8), centre, radius, 1, -1).astype(bool)


def donor_of(mask: np.ndarray, pixels: np.ndarray | None = None) -> Donor:
    box, crop = region_from_mask(mask)
    height, width = mask.shape
    image = Image("a.png", Path("a.png"), width, height, (Instance("dent", box, crop, 7),), id=3)
    return cut_out(noise(1, mask.shape) if pixels is None else pixels, image, 0)


@pytest.mark.parametrize("how", BLENDS)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_what_changes_is_the_mask_and_at_most_a_margin(how, channels) -> None:
    host = noise(0, (80, 90, *channels))
    patch = noise(1, (40, 40, *channels), level=40)
    mask = disc((40, 40), (20, 20), 9)
    before = host.copy()
    blend(host, patch, mask, (25, 30), how)
    changed = (host != before).reshape(80, 90, -1).any(axis=-1)
    there = np.zeros((80, 90), bool)
    there[30:70, 25:65] = mask
    near = cv2.dilate(there.astype(np.uint8), np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0
    assert not changed[~near].any()
    assert changed[there].mean() > 0.9
    if how == "hard":
        assert np.array_equal(host[there], patch[mask])
        assert not changed[~there].any()
    if how != "poisson":
        inner = cv2.erode(there.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert abs(float(host[inner].mean()) - 40) < 6


@pytest.mark.parametrize("corner", [(-12, -10), (70, 60), (30, -20)])
@pytest.mark.parametrize("how", BLENDS)
def test_a_patch_may_reach_over_the_side(how, corner) -> None:
    host = noise(0, (80, 90, 3))
    before = host.copy()
    blend(host, noise(1, (40, 40, 3), level=40), disc((40, 40), (20, 20), 12), corner, how)
    assert (host != before).any()


@pytest.mark.parametrize("how", ["hard", "feather", "poisson"])
@pytest.mark.parametrize("radius", [4, 15])
def test_a_defect_keeps_its_contrast(how, radius) -> None:
    host = noise(0, (100, 100), 150, 6)
    mask = disc((60, 60), (30, 30), radius)
    patch = noise(1, (60, 60), 130, 6)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1)
    patch = np.clip(patch - 60 * soft, 0, 255).astype(np.uint8)
    blend(host, patch, mask, (20, 20), how)
    placed = np.zeros((100, 100), bool)
    placed[20:80, 20:80] = mask
    around = cv2.dilate(placed.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    around &= cv2.dilate(placed.astype(np.uint8), np.ones((15, 15), np.uint8)) == 0
    assert host[around].mean() - host[placed].mean() > 35


def test_poisson_of_a_picture_into_itself_changes_nothing() -> None:
    host = cv2.GaussianBlur(noise(0, (80, 90, 3), sigma=40), (0, 0), 3)
    before = host.astype(int)
    blend(host, host[20:60, 30:70].copy(), disc((40, 40), (17, 22), 9), (30, 20), "poisson")
    assert np.abs(host - before).max() <= 2


def test_a_patch_takes_on_its_hosts_light_and_grain() -> None:
    rng = np.random.default_rng(0)
    clean = ~disc((60, 60), (30, 30), 10)
    everywhere = np.ones((60, 60), bool)
    for level, sigma in ((60, 3), (180, 12)):
        host = noise(5, (60, 60, 3), level, sigma)
        matched = match_host(noise(6, (60, 60, 3), 120, 6), clean, host, everywhere, rng)
        assert abs(float(matched[clean].mean()) - level) < 2
        mine, theirs = (
            grain(plane.mean(axis=2).astype(np.float32), everywhere) for plane in (matched, host)
        )
        assert 0.75 < mine / theirs < 1.3


def test_grain_is_the_noise() -> None:
    ramp = np.tile(np.linspace(0, 255, 100, dtype=np.float32), (100, 1))
    everywhere = np.ones(ramp.shape, bool)
    assert grain(ramp, everywhere) < 0.01
    rng = np.random.default_rng(0)
    noisy = (ramp + rng.normal(0, 5, ramp.shape)).astype(np.float32)
    assert grain(noisy, everywhere) == pytest.approx(5, rel=0.1)


def test_flips_and_quarter_turns_lose_nothing() -> None:
    mask = np.zeros((60, 80), bool)
    mask[20:32, 30:35] = True
    mask[20, 30:50] = True
    donor = donor_of(mask)
    flipped, _ = turn(donor, Turn(flip=True))
    assert np.array_equal(flipped.mask, donor.mask[:, ::-1])
    assert np.array_equal(flipped.pixels, donor.pixels[:, ::-1])
    turned, _ = turn(donor, Turn(angle=180.0))
    assert turned.mask.sum() == mask.sum()


@pytest.mark.parametrize("angle", [17.0, 45.0, 133.0])
def test_a_scratch_one_pixel_wide_survives_turning(angle) -> None:
    mask = np.zeros((80, 80), bool)
    mask[40, 10:60] = True
    turned, how = turn(donor_of(mask), Turn(angle=angle, scale=0.8))
    assert 0.7 * 50 * how.scale**2 < turned.mask.sum() < 1.4 * 50
    assert how.angle in (angle, 0.0, 90.0, 180.0, 270.0)


def test_a_thick_defect_is_turned_and_scaled_as_asked() -> None:
    donor = donor_of(disc((100, 100), (50, 50), 15))
    turned, how = turn(donor, Turn(angle=30.0, scale=1.2))
    assert how == Turn(angle=30.0, scale=1.2)
    assert turned.mask.sum() == pytest.approx(1.44 * donor.mask.sum(), rel=0.05)


def test_a_defect_at_the_side_goes_to_the_side() -> None:
    mask = disc((60, 60), (0, 30), 8)
    donor = donor_of(mask)
    assert donor.sides == (True, False, False, False)
    rng = np.random.default_rng(0)
    ground = Ground(np.ones((100, 120), bool), np.zeros((100, 120), bool))
    for flip, column in ((False, 0), (True, 119)):
        assert draw_turn(rng, donor, rotate=180, scale=1.2, flip=False).angle == 0
        turned, _ = turn(donor, Turn(flip=flip))
        x, _ = find_place(rng, turned, ground, "anywhere", 0.0)
        columns = np.nonzero(turned.mask)[1] + x
        assert (columns.max() if flip else columns.min()) == column


def test_places() -> None:
    part = np.zeros((100, 100), bool)
    part[:, 60:] = True
    ground = Ground(part, np.zeros((100, 100), bool))
    donor = donor_of(disc((60, 60), (20, 40), 5))
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = find_place(rng, donor, ground, "foreground", 0.0)
        rows, columns = np.nonzero(donor.mask)
        assert part[rows + y, columns + x].mean() >= 2 / 3
        x, y = find_place(rng, donor, ground, "near-edge", 0.0)
        assert (columns + x).min() <= 63 or (columns + x).max() >= 96 or y + rows.min() <= 3
        x, y = find_place(rng, donor, ground, "same-place", 0.0)
        centre = (columns + x).mean(), (rows + y).mean()
        assert centre == pytest.approx((100 * 20 / 60, 100 * 40 / 60), abs=6)


def test_there_is_no_place_on_a_taken_or_too_small_host() -> None:
    donor = donor_of(disc((60, 60), (30, 30), 12))
    rng = np.random.default_rng(0)
    everywhere, nowhere = np.ones((50, 50), bool), np.zeros((50, 50), bool)
    assert find_place(rng, donor, Ground(everywhere, everywhere), "anywhere", 0.5) is None
    assert find_place(rng, donor, Ground(nowhere, nowhere), "foreground", 0.0) is None
    small = np.ones((20, 20), bool)
    assert find_place(rng, donor, Ground(small, ~small), "anywhere", 0.0) is None
    assert find_place(rng, donor, Ground(everywhere, nowhere), "anywhere", 0.0) is not None


@pytest.mark.parametrize("bright", [True, False])
def test_the_part_is_what_differs_from_the_rim(bright) -> None:
    part = disc((120, 160), (80, 60), 40)
    levels = (200, 60) if bright else (40, 170)
    pixels = np.where(part, noise(0, part.shape, levels[0], 6), noise(1, part.shape, levels[1], 6))
    pixels[55:65, 75:85] = levels[1]  # a hole
    found = find_object(pixels.astype(np.uint8))
    assert (found & part).sum() / (found | part).sum() > 0.95


def test_a_surface_that_fills_the_picture_is_all_part() -> None:
    assert find_object(noise(0, (100, 120, 3))).all()
    sloping = np.tile(np.linspace(40, 220, 120), (100, 1)).astype(np.uint8)
    assert find_object(sloping).all()


def test_parts_that_lie_alike_are_seen() -> None:
    part = disc((120, 160), (80, 60), 40)
    alike = [np.where(part, 200, noise(seed, part.shape, 60, 10)) for seed in range(4)]
    assert lie_alike([glance(pixels.astype(np.uint8)) for pixels in alike])
    assert not lie_alike([glance(noise(seed, (120, 160), 120, 30)) for seed in range(4)])


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_brushed_textures_have_a_direction_and_grain_has_none(channels, dtype) -> None:
    grain = noise(0, (300, 400), 120, 30).astype(np.float32)
    brushed = cv2.blur(grain, (1, 31))
    slanted = cv2.warpAffine(
        brushed, cv2.getRotationMatrix2D((200, 150), 30, 1.5), (400, 300), borderMode=2
    )

    def stored(plane):
        pixels = (plane * (np.iinfo(dtype).max // 255)).astype(dtype)
        return np.repeat(pixels[..., None], channels, axis=2) if channels else pixels

    assert coherence(stored(grain)) < 0.1
    assert coherence(stored(brushed)) > 0.7
    assert coherence(stored(slanted)) > 0.7
    assert coherence(np.full((50, 60), 7, dtype)) == 0


def test_states_of_the_whole_part_are_found() -> None:
    part = disc((100, 100), (50, 50), 40)

    def seen(name: str, mask: np.ndarray) -> Seen:
        box, crop = region_from_mask(mask)
        return look_at(Instance(name, box, crop), part)

    states = find_states(
        ("dent", "turned", "missing", "absent"),
        [
            seen("dent", disc((100, 100), (50, 50), 5)),
            seen("turned", disc((100, 100), (50, 50), 30)),
            seen("missing", disc((100, 100), (4, 4), 4)),
        ],
    )
    assert states == {
        "turned": "it covers 56% of the part",
        "missing": "100% of it lies beside the part",
    }
