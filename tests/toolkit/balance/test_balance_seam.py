"""The seam test: it sees what gives a paste away, and nothing where there is nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance, Pasted
from converters.errors import InputError
from toolkit.balance import seam
from toolkit.balance.seam import seam_test


@pytest.fixture
def make_pairs(tmp_path: Path):
    """Pictures of blurred discs and their "copies", which shine by ``mark`` more."""

    def make(mark: int, count: int = 30) -> Dataset:
        rng = np.random.default_rng(0)
        images = []
        for number in range(1, 2 * count + 1):
            pixels = cv2.GaussianBlur(rng.normal(120, 20, (64, 64, 3)), (0, 0), 2)
            cv2.circle(pixels, (32, 32), 10, (60, 60, 60), -1)
            copied = number > count
            if copied and mark:
                cv2.circle(pixels, (32, 32), 11, (60 + mark,) * 3, 1)
            path = tmp_path / f"{mark}_{number}.png"
            cv2.imwrite(str(path), np.clip(pixels, 0, 255).astype(np.uint8))
            of = Pasted(number - count, number - count, (0,), {"blend": "hard"}) if copied else None
            instance = Instance("dent", (22, 22, 21, 21), np.ones((21, 21), bool), number, of)
            copy_of = number - count if copied else 0
            images.append(Image(path.name, path, 64, 64, (instance,), id=number, copy_of=copy_of))
        return Dataset("d", ("dent",), tuple(images))

    return make


def test_a_bright_rim_is_seen_and_no_rim_is_not(make_pairs, monkeypatch) -> None:
    monkeypatch.setattr(seam, "_STEPS", 80)
    seen, unseen = (seam_test(make_pairs(mark))["hard"] for mark in (150, 0))
    assert seen.n == unseen.n == 60
    assert seen.value > 0.9
    assert 0.25 < unseen.value < 0.75
    assert unseen.ci95[0] < 0.5 < unseen.ci95[1]


def test_too_few_donors_are_refused(make_pairs) -> None:
    with pytest.raises(InputError, match="hard: 4 donors were pasted, too few to test the seams"):
        seam_test(make_pairs(0, count=4))
