from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from converters.dataset import Image, Instance
from converters.errors import InputError
from toolkit.segment.data import ImageStore, Sampler
from toolkit.segment.frames import Frame
from toolkit.segment.prompts import LIMIT, jitter_box
from toolkit.segment.views import View, random_view, random_zoomed_view, views_of


def _region(mask):
    rows, columns = np.nonzero(mask)
    x, y = columns.min(), rows.min()
    w, h = columns.max() + 1 - x, rows.max() + 1 - y
    return (float(x), float(y), float(w), float(h)), mask[y : y + h, x : x + w]


def _scratch():
    mask = np.zeros((300, 200), bool)
    mask[40:250, 77] = True
    return mask


class TestFrame:
    def test_boxes_keep_their_share_of_the_image(self):
        frame = Frame(height=300, width=150, side=256)
        assert frame.resized == (256, 128)
        np.testing.assert_allclose(frame.boxes([(15, 30, 60, 90)]), [[12.8, 25.6, 64, 102.4]])

    @pytest.mark.parametrize("cells", [32, 128, 512])
    def test_a_one_pixel_scratch_keeps_its_area_at_any_resolution(self, cells):
        frame = Frame(300, 200, 256)
        target = frame.target(_region(_scratch()), cells)
        pixel = cells / 256 * 256 / 300
        assert target.max() <= 1 + 1e-6
        # 200 px become 171 of 170.67: the library rounds the resized side to whole pixels.
        assert target.sum() == pytest.approx(210 * pixel**2, rel=5e-3)

    def test_the_target_lies_under_its_box(self):
        frame = Frame(300, 200, 256)
        region = _region(_scratch())
        x0, y0, x1, y1 = frame.boxes([region[0]])[0] / 2
        rows, columns = np.nonzero(frame.target(region, 128))
        assert rows.min() == int(y0) and rows.max() == int(np.ceil(y1)) - 1
        assert columns.min() == int(x0) and columns.max() == int(np.ceil(x1)) - 1

    def test_padding_is_outside(self):
        inside = Frame(100, 50, 64).inside(32)
        assert inside[:, :16].min() == 1
        assert inside[:, 16:].max() == 0


class TestJitter:
    def _jitter(self, box, std, times=2000):
        rng = np.random.default_rng(0)
        return np.array([jitter_box(box, std, 512, 1024, rng) for _ in range(times)])

    def test_noise_has_the_published_size(self):
        x, y, w, h = self._jitter((300.0, 200.0, 100.0, 50.0), 0.1).T
        for moved, side in ((x, 100), (x + w, 100), (y, 50), (y + h, 50)):
            assert moved.std() == pytest.approx(0.1 * side, rel=0.1)
        assert np.abs(x - 300).max() == pytest.approx(LIMIT * 1024)
        assert LIMIT * 1024 == 20

    @pytest.mark.parametrize("box", [(0.0, 0.0, 1024.0, 512.0), (100.0, 10.0, 1.0, 400.0)])
    def test_boxes_stay_in_the_image_and_do_not_collapse(self, box):
        x, y, w, h = self._jitter(box, 0.5).T
        assert x.min() >= 0 and (x + w).max() <= 1024
        assert y.min() >= 0 and (y + h).max() <= 512
        assert w.min() >= box[2] / 2 and h.min() >= box[3] / 2

    def test_none_leaves_boxes_exact(self):
        assert np.array_equal(self._jitter((1.0, 2.0, 3.0, 4.0), 0.0, 1), [(1, 2, 3, 4)])


class TestViews:
    @pytest.mark.parametrize("bits", range(8))
    def test_a_mask_turns_with_its_image(self, bits):
        mask = _scratch()
        mask[60:64, 77:90] = True
        view = View(20, 30, 150, 240, bool(bits & 1), bool(bits & 2), bool(bits & 4))
        seen = view.image(np.repeat(mask[..., None], 3, 2).astype(np.uint8))
        assert seen.shape[:2] == view.size
        (x, y, w, h), crop = view.region(_region(mask))
        there = np.zeros(view.size, bool)
        there[int(y) : int(y + h), int(x) : int(x + w)] = crop
        assert np.array_equal(there, seen[..., 0] > 0)

    def test_what_lies_outside_of_the_window_is_cut_off(self):
        mask = np.zeros((100, 100), bool)
        mask[10:50, 20:60] = True
        view = View(30, 0, 40, 40, mirrored=True)
        (x, y, w, h), crop = view.region(_region(mask))
        assert (x, y, w, h) == view.box((20, 10, 40, 40)) == (10, 10, 30, 30)
        assert crop.shape == (30, 30) and crop.all()
        _, nothing = View(80, 80, 20, 20).region(_region(mask))
        assert nothing.size == 0
        assert not Frame(20, 20, 64).target(View(80, 80, 20, 20).region(_region(mask)), 16).any()

    def test_zoom_shows_each_box_in_its_middle_and_none_shows_all_of_the_image(self):
        boxes = [(50.0, 60.0, 20.0, 10.0), (0.0, 0.0, 2.0, 2.0)]
        assert views_of(boxes, 100, 120, None) == ([View(0, 0, 120, 100)], [0, 0])
        views, owner = views_of(boxes, 100, 120, 2.0)
        assert owner == [0, 1]
        assert views == [View(40, 45, 40, 40), View(0, 0, 13, 13)]

    def test_random_zoom_stays_near_the_zoom(self):
        rng = np.random.default_rng(0)
        views = [random_zoomed_view((50, 50, 20, 10), 200, 200, 2.0, rng) for _ in range(200)]
        sides = np.array([view.width for view in views])
        assert 32 <= sides.min() < 36 and 46 < sides.max() <= 52
        assert len({(v.mirrored, v.flipped, v.transposed) for v in views}) == 8

    def test_random_windows_show_all_boxes_and_differ(self):
        rng = np.random.default_rng(0)
        boxes = [(10.0, 20.0, 30.0, 5.0), (60.0, 90.0, 2.0, 8.0)]
        views = [random_view(100, 80, boxes, rng) for _ in range(300)]
        for view in views:
            assert 0 <= view.x <= 10 and 62 <= view.x + view.width <= 80
            assert 0 <= view.y <= 20 and 98 <= view.y + view.height <= 100
        assert len(set(views)) > 60
        assert sum((v.height, v.width) == (100, 80) for v in views) > 50


class _NoPictures(ImageStore):
    def read(self, image):
        return np.zeros((image.height, image.width, 3), np.uint8)


def _prompts(images=5, per_image=6):
    crop = np.ones((3, 4), bool)
    for i in range(images):
        instances = [Instance("spot", (5.0 * k, 9.0, 4.0, 3.0), crop, k) for k in range(per_image)]
        image = Image(f"{i}.png", None, 60, 50, tuple(instances), id=i + 1)
        yield from ((image, instance) for instance in instances)


def _sampler(augment=True, **options):
    settings = {
        "side": 64,
        "cells": 32,
        "zoom": None,
        "batch": 8,
        "jitter": 0.1,
        "seed": 0,
        "workers": 0,
    }
    recall = None if augment else lambda views: [torch.zeros(1) for _ in views]
    return Sampler(list(_prompts()), _NoPictures(), recall=recall, **{**settings, **options})


class TestSampler:
    def test_an_epoch_has_every_prompt_once(self):
        sampler = _sampler(augment=False, jitter=0.0)
        batches = list(sampler.batches(0))
        assert [len(b.boxes) for b in batches] == [8, 8, 8, 6]
        assert sampler.steps == 4
        seen = [
            (b.views[o][0], round(float(box[0]), 3))
            for b in batches
            for o, box in zip(b.owner, b.boxes, strict=True)
        ]
        assert len(set(seen)) == 30

    def test_pictures_of_rare_classes_come_more_often(self):
        names = list(dict.fromkeys(image.file_name for image, _ in _prompts()))
        sampler = _sampler(augment=False, jitter=0.0, factors={names[0]: 3.0, names[1]: 1.5})
        shown = Counter()
        for epoch in range(40):
            batches = list(sampler.batches(epoch))
            assert len(batches) == sampler.steps
            shown.update(b.views[o][0] for b in batches for o in b.owner)
        plain = Counter(image.file_name for image, _ in _prompts())
        means = [shown[name] / plain[name] / 40 for name in names]
        assert means == pytest.approx([3.0, 1.5] + [1.0] * (len(names) - 2), rel=0.15)

    def test_batches_come_again_for_the_same_seed_whatever_the_threads(self):
        first = [b.boxes for b in _sampler().batches(3)]
        again = [b.boxes for b in _sampler(workers=3).batches(3)]
        other = [b.boxes for b in _sampler().batches(4)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])

    def test_prompts_of_one_image_share_a_view(self):
        batch = next(iter(_sampler().batches(0)))
        assert len(batch.pixels) == len(batch.views) < len(batch.boxes)
        assert batch.owner.max() == len(batch.views) - 1

    def test_with_zoom_every_prompt_has_its_own_view_and_target(self):
        batch = next(iter(_sampler(zoom=2.0, cells=64).batches(0)))
        assert len(batch.pixels) == len(batch.views) == len(batch.boxes)
        for box, target in zip(batch.boxes, batch.targets, strict=True):
            # A filled rectangle is its own mask: the nearly right box lies about the target.
            x0, y0, x1, y1 = box.tolist()
            rows, columns = torch.nonzero(target > 0.5, as_tuple=True)
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            side = max(x1 - x0, y1 - y0)
            assert found == pytest.approx((x0, y0, x1, y1), abs=0.5 * side)

    @pytest.mark.parametrize("zoom", [None, 2.0])
    def test_a_frozen_encoder_is_asked_for_the_views_of_the_exact_boxes(self, zoom):
        batch = next(iter(_sampler(augment=False, zoom=zoom).batches(0)))
        assert batch.pixels == ()
        images = {image.file_name: image for image, _ in _prompts()}
        for name, view in batch.views:
            exact = [instance.box for instance in images[name].instances]
            assert view in views_of(exact, 50, 60, zoom)[0]


def test_a_picture_of_another_size_than_its_annotations_is_named(tmp_path):
    import cv2

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png: is 20 x 10 pixels.* 20 x 11"):
        ImageStore().read(Image("a.png", path, 20, 11))
