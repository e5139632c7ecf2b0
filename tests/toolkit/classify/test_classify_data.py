from __future__ import annotations

import numpy as np
import pytest
import torch

from converters.folder import DatasetFolder
from toolkit.classify.augment import draw_light, move
from toolkit.classify.data import Pictures, Sampler, letterbox, read_pictures, to_input
from toolkit.classify.task import balance

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
        augment=False,
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
    sampler = Sampler(_pictures(12), batch=4, repeat=1, factors=[1.0] * 12, augment=True, seed=0)
    first, again, second = (
        torch.cat([b.labels for b in sampler.batches(epoch)]) for epoch in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, second)


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


def test_classes_weigh_by_their_inverse_frequency_up_to_a_limit():
    labels = np.repeat([0, 1, 2], [1000, 200, 10])
    weights = balance(labels, 4).numpy()
    assert weights[1] / weights[0] == pytest.approx(5)
    assert weights[2] / weights[0] == pytest.approx(10)  # not 100
    assert weights[3] == 0
    assert weights[labels].mean() == pytest.approx(1)
