"""How many instances every class should have, and how it comes to them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance
from toolkit.balance.plan import Limits, Plan, make_plan
from toolkit.sampling import repeat_factors

KINDS = ("many", "some", "few")


def train(counts: dict[str, int], good: int = 20, source: str = "") -> Dataset:
    """Pictures with one instance each, and good ones."""
    labels = [name for name, count in counts.items() for _ in range(count)] + [None] * good
    images = []
    for number, label in enumerate(labels, start=1):
        mask = np.ones((5, 6), bool)
        instances = () if label is None else (Instance(label, (3, 4, 6, 5), mask, number),)
        name = f"{number}.png"
        images.append(Image(name, Path(name), 40, 30, instances, f"{source}{name}", id=number))
    return Dataset("train", KINDS, tuple(images))


LONG_TAIL = {"many": 40, "some": 10, "few": 4}


def plan(dataset: Dataset, target, method="both", never=None, **limits) -> Plan:
    return make_plan(
        dataset, target, method=method, limits=Limits(**limits), never_paste=never or {}, seed=0
    )


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("equal", (40, 40, 40)),
        ("sqrt", (40, 20, round(math.sqrt(160)))),
        (15, (40, 15, 15)),
    ],
)
def test_targets(target, wanted) -> None:
    planned = plan(train(LONG_TAIL), target, per_host=9)
    assert tuple(each.wanted for each in planned.classes) == wanted
    assert tuple(each.after for each in planned.classes) == wanted
    assert planned.classes[0].pasted == planned.classes[0].repeated == 0


def test_lvis_repeats_by_the_square_root_of_rarity() -> None:
    dataset = train(LONG_TAIL, good=0)
    factors = repeat_factors(dataset)
    assert factors[0] == 1
    assert factors[40] == pytest.approx(math.sqrt(40 / 10))
    assert factors[50] == pytest.approx(math.sqrt(40 / 4))
    assert repeat_factors(dataset, 4 / 54)[40] == 1  # as frequent as the threshold, or more
    planned = plan(dataset, "lvis", "oversample")
    assert tuple(each.after for each in planned.classes) == (40, 20, round(4 * math.sqrt(10)))
    assert not planned.pastes


def test_limits_hold_and_what_stays_below_is_said() -> None:
    dataset = train(LONG_TAIL, good=3)
    planned = plan(dataset, "equal", per_donor=2, per_host=2, per_picture=2, repeats=1)
    donors = Counter(donor for _, donors in planned.pastes for donor in donors)
    hosts = Counter(host for host, _ in planned.pastes)
    assert max(donors.values()) <= 2
    assert max(hosts.values()) <= 2
    assert max(len(donors) for _, donors in planned.pastes) <= 2
    assert set(planned.repeats.values()) == {1}
    assert all(dataset.images[host].is_good for host in hosts)
    few = planned.classes[2]
    assert few.after < few.wanted == 40
    assert few.note == "the limits are reached"


def test_a_class_that_cannot_be_pasted_is_listed_again() -> None:
    planned = plan(train(LONG_TAIL), 12, "paste", never={"few": "it covers 40% of the part"})
    some, few = planned.classes[1:]
    assert (some.pasted, some.repeated) == (2, 0)
    assert (few.pasted, few.repeated) == (0, 8)
    assert few.note == "not pasted: it covers 40% of the part"


def test_a_class_without_a_donor_is_said() -> None:
    planned = plan(train({"many": 9, "some": 3}), "equal")
    assert planned.classes[2].after == 0
    assert planned.classes[2].note == "it has no instance in train"


def test_specks_are_no_donors() -> None:
    planned = plan(train(LONG_TAIL), "equal", smallest=31)
    assert not planned.pastes
    assert planned.classes[2].repeated == 20


def test_defects_stay_on_their_product() -> None:
    bottle = train({"many": 12}, 6, "bottle/test/x/")
    cable = train({"few": 3}, 6, "cable/test/x/")
    both = bottle.subset((*bottle.images, *cable.images))
    planned = plan(both, "equal", "paste", per_host=2, per_picture=1)
    assert planned.classes[2].pasted == 9
    for host, donors in planned.pastes:
        products = {both.images[index].source[:5] for index in (host, *(p for p, _ in donors))}
        assert products == {"cable"}


def test_without_good_pictures_others_are_hosts() -> None:
    planned = plan(train(LONG_TAIL, good=0), 12, "paste")
    assert planned.classes[2].pasted == 8


def test_repeats_do_not_add_more_of_the_frequent_than_of_the_rare() -> None:
    mask = np.ones((5, 6), bool)

    def image(number: int, *kinds: str) -> Image:
        instances = tuple(Instance(kind, (3, 4, 6, 5), mask, number) for kind in kinds)
        return Image(f"{number}.png", Path("x"), 40, 30, instances, id=number)

    crowded = image(1, "few", "many", "many")
    even = image(2, "few", "many")
    dataset = Dataset("d", KINDS, (crowded, even, *(image(n, "many") for n in range(3, 30))))
    assert set(plan(dataset, 6, "oversample").repeats) == {1}  # the second picture alone
