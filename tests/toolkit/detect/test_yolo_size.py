"""The size of pictures that their small defects ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.dataset import Dataset, Image, Instance
from toolkit.detect.size import small_defect, suggest_image_size


def _train(width: int, height: int, *boxes: tuple[float, float]) -> Dataset:
    instances = tuple(Instance("spot", (0, 0, *box), None) for box in boxes)
    return Dataset("data", ("spot",), (Image("a.png", Path(), width, height, instances),))


@pytest.mark.parametrize(
    ("width", "height", "box", "size"),
    [
        (300, 200, (20, 20), 128),  # 8 / 20 of 300 is 120
        (200, 320, (10, 10), 256),
        (320, 320, (40, 2.5), 256),  # a scratch counts by its area
        (300, 300, (2, 2), 608),  # twice the picture, and no more
        (4000, 3000, (10, 10), 1280),
        (300, 300, (300, 300), 64),
    ],
)
def test_the_small_defect_keeps_eight_pixels(width, height, box, size) -> None:
    train = _train(width, height, (60, 60), box)
    assert suggest_image_size(train) == size
    if 64 < size < min(1280, 2 * max(width, height)):
        assert small_defect(train) * size >= 8 > small_defect(train) * (size - 32)


def test_a_speck_among_twenty_does_not_count() -> None:
    assert suggest_image_size(_train(320, 320, (1, 1), *[(10, 10)] * 21)) == 256
    assert suggest_image_size(_train(320, 320, (1, 1), *[(10, 10)] * 18)) == 640
