"""The source domain: endless, repeatable, and labelled by what is to be seen."""

from __future__ import annotations

import numpy as np
import pytest

from converters.errors import InputError
from toolkit.synth import source
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


def test_what_the_camera_lost_is_not_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def labelled(least: float, ratio: float) -> list[int]:
        monkeypatch.setattr(source, "FAINTEST_CHANGE", least)
        monkeypatch.setattr(source, "FAINTEST_RATIO", ratio)
        return [len(DOMAIN.draw(4, index).instances) for index in range(40)]

    everything, usual, nothing = labelled(0, 0), labelled(3, 0.3), labelled(256, 0)
    assert sum(nothing) == 0
    assert 0 < sum(usual) < sum(everything)


@pytest.mark.parametrize(("change", "shows"), [(0, False), (2, False), (30, True)])
def test_a_defect_shows_where_the_photograph_changes(change: int, shows: bool) -> None:
    clean = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:9, 5:9] = True
    photo = clean + np.uint8(change) * mask[..., None].astype(np.uint8)

    assert source._shows(clean, photo, mask) is shows


def test_easy_pictures_give_way_to_all_others() -> None:
    """At the start of a ramp pictures differ from those without one; after it they are the same."""
    ramped = SourceDomain(64, ramp=10)

    plain = SourceDomain(64)
    same = [
        np.array_equal(ramped.draw(0, index).image, plain.draw(0, index).image)
        for index in (0, 10, 11)
    ]
    assert same == [False, True, True]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="unknown defect 'rust'"):
        SourceDomain.of(96, ("rust",))
