"""The source domain: endless, repeatable, and labelled by what is to be seen."""

from __future__ import annotations

import numpy as np
import pytest

from converters.errors import InputError
from toolkit.synth.registry import DEFECTS
from toolkit.synth.source import FEWEST_PIXELS, SourceDomain

DOMAIN = SourceDomain(96)


def test_a_picture_depends_on_its_seed_and_number_alone() -> None:
    first = DOMAIN.draw(3, 5)
    DOMAIN.draw(3, 6)
    again = DOMAIN.draw(3, 5)

    assert np.array_equal(first.image, again.image)
    assert [i.kind for i in first.instances] == [i.kind for i in again.instances]
    for one, other in zip(first.instances, again.instances, strict=True):
        assert np.array_equal(one.mask, other.mask)


def test_seeds_and_numbers_give_different_pictures() -> None:
    images = [DOMAIN.draw(seed, index).image for seed in (0, 1) for index in (0, 1)]

    assert len({image.tobytes() for image in images}) == 4


def test_the_longer_side_is_the_one_asked_for() -> None:
    for index in range(20):
        image = DOMAIN.draw(0, index).image
        assert image.dtype == np.uint8 and image.shape[2] == 3
        assert max(image.shape[:2]) == 96 and min(image.shape[:2]) >= 48


def test_masks_lie_on_the_picture_and_are_never_empty() -> None:
    for index in range(40):
        picture = DOMAIN.draw(1, index)
        for instance in picture.instances:
            assert instance.kind in DEFECTS
            assert instance.mask.shape == picture.image.shape[:2]
            assert np.count_nonzero(instance.mask) >= FEWEST_PIXELS


def test_some_pictures_are_good_and_some_have_several_defects() -> None:
    counts = [len(DOMAIN.draw(2, index).instances) for index in range(120)]

    assert 0.1 < np.mean([count == 0 for count in counts]) < 0.45
    assert max(counts) >= 3


def test_only_the_kinds_that_were_asked_for_are_drawn() -> None:
    domain = SourceDomain(64, ("hole", "crack"))

    kinds = {i.kind for index in range(30) for i in domain.draw(0, index).instances}
    assert kinds == {"hole", "crack"}


def test_defects_can_be_seen() -> None:
    """What is labelled differs from the same picture without defects, give or take the camera."""
    damaged, good = SourceDomain(96, good=0.0), SourceDomain(96, good=1.0)

    changed = []
    for index in range(12):
        with_defects, without = damaged.draw(4, index), good.draw(4, index)
        if not with_defects.instances or with_defects.image.shape != without.image.shape:
            continue
        changed.append(not np.array_equal(with_defects.image, without.image))
    assert changed and all(changed)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="unknown defect 'rust'"):
        SourceDomain.of(96, ("rust",))
