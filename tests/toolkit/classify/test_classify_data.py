from __future__ import annotations

import numpy as np
import pytest
import torch

from converters.folder import DatasetFolder
from toolkit.classify.augment import auto_augment, draw_light, move
from toolkit.classify.data import (
    PADDING,
    Pictures,
    Sampler,
    letterbox,
    read_pictures,
    suited,
    to_input,
)

MEAN_COLOUR = (124, 116, 104)


def _pictures(count, side=8):
    pixels = np.zeros((count, side, side, 3), np.uint8)
    pixels += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Pictures(pixels, np.arange(count))


@pytest.mark.parametrize(("shape", "rows", "columns"), [((20, 40), 16, 32), ((40, 20), 32, 16)])
def test_a_picture_keeps_its_proportions_in_the_square(shape, rows, columns):
    square = letterbox(np.full((*shape, 3), 200, np.uint8), 32)
    inside = (square == 200).all(axis=2)
    padding = (square == MEAN_COLOUR).all(axis=2)
    assert square.shape == (32, 32, 3)
    assert (inside.any(axis=1).sum(), inside.any(axis=0).sum()) == (rows, columns)
    assert (inside ^ padding).all()


def test_a_square_picture_of_the_right_size_is_left_alone():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(letterbox(picture, 32), picture)


def test_padding_is_nothing_to_the_network():
    padding = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).expand(1, 4, 4, 3)
    assert to_input(padding).shape == (1, 3, 4, 4)
    assert to_input(padding).abs().max() < 0.02


def test_a_split_is_read_with_its_labels(make_dataset):
    dataset = DatasetFolder.open(make_dataset()).read("train")
    pictures = read_pictures(dataset, ("good", "scratch", "spot"), 32, workers=2, name="train")
    assert pictures.pixels.shape == (8, 32, 32, 3)
    expected = ["good", "scratch", "spot"]
    for image, label in zip(dataset.images, pictures.labels, strict=True):
        assert expected[label] in image.file_name


@pytest.mark.parametrize(("count", "batch", "repeat"), [(10, 4, 1), (10, 4, 3), (3, 2, 1)])
def test_an_epoch_shows_every_picture_as_often_as_it_repeats(count, batch, repeat):
    sampler = Sampler(
        _pictures(count),
        batch=batch,
        repeat=repeat,
        factors=[1.0] * count,
        augment=(),
        seed=0,
    )
    batches = list(sampler.batches(0))
    assert len(batches) == sampler.steps
    shown = torch.cat([b.labels for b in batches])
    assert torch.bincount(shown).tolist() == [repeat] * count
    for b in batches:
        assert 2 <= len(b.labels) <= batch + 1
        assert torch.equal(b.pixels[:, 0, 0, 0].long(), b.labels)
        assert (b.contrast == 1).all() and (b.brightness == 0).all()


def test_epochs_differ_and_repeat_themselves():
    sampler = _sampler(_pictures(12), "flip", "turn", "rotate", "light", "autoaugment")
    first, again, second = (list(sampler.batches(epoch)) for epoch in (0, 0, 1))
    for name in ("labels", "pixels", "contrast", "brightness"):
        a, b, c = (torch.cat([getattr(each, name) for each in of]) for of in (first, again, second))
        assert torch.equal(a, b) and not torch.equal(a, c)


def _sampler(pictures, *augment, **options):
    count = len(pictures.labels)
    values = {"batch": 4, "repeat": 1, "factors": [1.0] * count, "seed": 0, **options}
    return Sampler(pictures, augment=augment, **values)


def _noise(count, side=16, labels=0):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Pictures(pixels, np.full(count, labels))


def _changed(pictures, *augment, **options):
    """The pictures of an epoch, and what augmentation made of each."""
    [batch] = _sampler(pictures, *augment, batch=len(pictures.labels), **options).batches(0)
    [before] = _sampler(pictures, batch=len(pictures.labels), **options).batches(0)
    return before.pixels.numpy(), batch.pixels.numpy(), batch


def test_each_change_is_made_alone_where_it_alone_is_asked_for():
    noise = _noise(40)
    before, flipped, _ = _changed(noise, "flip")
    mirrored = before[:, :, ::-1]
    kinds = [
        (f == b).all() + 2 * (f == m).all()
        for f, b, m in zip(flipped, before, mirrored, strict=True)
    ]
    assert set(kinds) == {1, 2}

    before, turned, _ = _changed(noise, "turn")
    quarters = [np.rot90(before, k, axes=(1, 2)) for k in range(4)]
    kinds = [[(t == q[i]).all() for q in quarters] for i, t in enumerate(turned)]
    assert np.sum(kinds, axis=1).tolist() == [1] * 40 and np.all(np.any(kinds, axis=0))

    before, same, batch = _changed(noise, "light")
    assert np.array_equal(before, same) and len(batch.contrast.unique()) > 10

    before, same, batch = _changed(noise)
    assert np.array_equal(before, same) and (batch.contrast == 1).all()


@pytest.mark.parametrize("largest", [2.0, 90.0])
def test_pictures_are_rotated_by_no_more_than_is_asked_for(largest):
    """A bar's direction, by the moments of what is bright."""
    bar = np.zeros((64, 64, 3), np.uint8)
    bar[30:34, 12:52] = 255
    rng = np.random.default_rng(0)
    angles = []
    for _ in range(60):
        y, x = np.nonzero(move(bar, rng, ("rotate",), largest)[..., 0] > 127)
        covariance = np.cov(np.stack([x, y]))
        difference = covariance[0, 0] - covariance[1, 1]
        angles.append(np.degrees(0.5 * np.arctan2(2 * covariance[0, 1], difference)))
    assert 0.7 * largest < np.abs(angles).max() <= largest + 1


def test_auto_augment_gives_each_picture_a_change_of_its_own_from_the_generator_alone():
    picture = _noise(1).pixels
    same = np.repeat(picture, 12, axis=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = auto_augment(same, np.random.default_rng(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (auto_augment(same, np.random.default_rng(seed)) for seed in (3, 4))
    assert first.dtype == np.uint8 and first.shape == same.shape
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len({each.tobytes() for each in first}) > 6


def test_each_batch_gets_as_many_outliers_and_is_otherwise_as_without_them():
    plain = _sampler(_noise(10), "flip", "light")
    strange = _sampler(_noise(10), "flip", "light", outliers=_pictures(100, side=16))
    seen = set()
    for a, b in zip(plain.batches(0), strange.batches(0), strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.contrast, b.contrast)
        assert a.outliers is None and b.outliers.pixels.shape == b.pixels.shape
        seen.update(b.outliers.labels.tolist())
    assert len(seen) > 5
    assert (torch.cat([b.outliers.contrast for b in strange.batches(0)]) != 1).any()
    again = [b.outliers.labels for b in strange.batches(0)]
    assert torch.equal(again[0], next(strange.batches(0)).outliers.labels)
    assert torch.equal(again[1], next(strange.batches(0, [1])).outliers.labels)


def test_moves_keep_a_defect_in_the_middle_and_all_eight_turns_occur():
    rng = np.random.default_rng(0)
    picture = np.random.default_rng(1).integers(0, 200, (33, 33, 3), dtype=np.uint8)
    picture[15:18, 15:18] = 255
    moved = [move(picture, rng) for _ in range(200)]
    assert all((m[16, 16] >= 225).all() and m.shape == picture.shape for m in moved)
    turns = {np.rot90(p, k).tobytes() for p in (picture, picture[:, ::-1]) for k in range(4)}
    exact = {m.tobytes() for m in moved} & turns
    assert len(exact) == 8
    assert sum(m.tobytes() in turns for m in moved) in range(70, 130)


def test_light_changes_within_its_limits():
    rng = np.random.default_rng(0)
    drawn = np.array([draw_light(rng) for _ in range(300)])
    assert 0.8 <= drawn[:, 0].min() < 0.85 and 1.15 < drawn[:, 0].max() <= 1.2
    assert -0.1 <= drawn[:, 1].min() < -0.08 and 0.08 < drawn[:, 1].max() <= 0.1
    assert 100 < np.sum(drawn[:, 0] == 1) < 200


def test_what_always_lies_one_way_is_not_turned():
    """A part in the middle of each picture, or texture at random; padding alike on both."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    texture[:, :8] = texture[:, 24:] = PADDING
    parts = texture // 8
    parts[:, 12:20, 4:20] = 220
    assert suited(("auto",), parts) == ("rotate", "light")
    assert suited(("auto",), texture) == ("flip", "turn", "rotate", "light")
    assert suited(("flip",), parts) == ("flip",)
    assert suited(("auto",), parts[:1]) == ("flip", "turn", "rotate", "light")
