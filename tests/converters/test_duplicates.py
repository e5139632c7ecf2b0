"""Same photograph, or another part in the same pose?"""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from converters.duplicates import (
    fingerprint,
    groups,
    near_duplicate_pairs,
    near_duplicates_between,
)
from toolkit.synth import sample


def surface(seed: int) -> np.ndarray:
    picture = sample(seed, size=(256, 256), surface="brushed_metal").image
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(PilImage.open(buffer))


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(near_duplicate_pairs([fingerprint(a, 0.75), fingerprint(b, 0.75)]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: image.copy(), id="copied"),
        pytest.param(jpeg, id="saved as JPEG"),
        pytest.param(lambda image: (image * 0.6).astype(np.uint8), id="shorter exposure"),
        pytest.param(lambda image: np.roll(image, (1, 2), (0, 1)), id="shifted"),
        pytest.param(lambda image: image[4:, 4:], id="cropped"),
    ],
)
def test_the_same_photograph_is_found(change) -> None:
    for seed in range(5):
        assert alike(surface(seed), change(surface(seed)))


def test_other_parts_in_the_same_pose_are_not() -> None:
    """The same chip on the same board, photographed part by part: hashes agree, grain does not."""
    from toolkit.synth.picture import shoot

    boards = [
        cv2.cvtColor(
            shoot(
                7, np.random.default_rng(seed), size=(256, 256), surface="board", defects=[]
            ).image,
            cv2.COLOR_RGB2GRAY,
        )
        for seed in range(6)
    ]
    assert near_duplicate_pairs([fingerprint(board, 0.75) for board in boards]) == []


def test_neighbours_in_a_capture_sequence_need_no_equal_hash() -> None:
    image = surface(1)
    flipped_light = (255 - np.linspace(0, 200, 256)[None] + image * 0.2).clip(0, 255)
    other = flipped_light.astype(np.uint8)
    captured = [fingerprint(i, 0.75, ("camera", n)) for n, i in enumerate((image, other))]
    apart = [fingerprint(i, 0.75, ("camera", n * 5000)) for n, i in enumerate((image, other))]
    assert near_duplicate_pairs(captured) == [(0, 1)]
    assert near_duplicate_pairs(apart) == []


def test_the_number_of_threads_does_not_count() -> None:
    prints = [fingerprint(surface(seed % 4), 0.75) for seed in range(8)]
    pairs = near_duplicate_pairs(prints, workers=1)
    assert pairs == near_duplicate_pairs(prints, workers=4) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_groups_are_transitive() -> None:
    assert groups(6, [(0, 3), (3, 5), (1, 2)]) == [0, 1, 1, 0, 4, 0]


def test_flat_pictures_are_no_duplicates_of_each_other() -> None:
    assert not alike(np.full((200, 200), 90, np.uint8), np.full((200, 200), 91, np.uint8))


def test_between_two_sets_only_pairs_across_count() -> None:
    prints = [fingerprint(surface(seed), 0.75) for seed in range(4)]
    copies = [fingerprint(jpeg(surface(seed)), 0.75) for seed in (7, 2, 2, 0)]
    assert near_duplicates_between(prints, copies) == [(0, 3), (2, 1), (2, 2)]
    assert near_duplicates_between(prints, []) == near_duplicates_between([], copies) == []
