from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from converters.dataset import SPLITS, Image, Instance
from converters.errors import InputError
from converters.split import Assignment, SplitOptions, split


def images(counts: dict[str, int], *, sourced: bool = False) -> list[Image]:
    found = []
    for label, count in counts.items():
        for number in range(count):
            name = f"{label}_{number:03d}.png"
            instance = Instance(label, (0, 0, 2, 2), np.ones((2, 2), bool))
            instances = () if label.startswith("good") else (instance,)
            source = None
            if sourced:
                source = "train" if label == "good_train" else "test"
            found.append(Image(name, Path(name), 9, 9, instances, name, source))
    return sorted(found, key=lambda image: image.file_name)


def labels(assignment: Assignment, part: str) -> Counter[str]:
    return Counter(image.labels[0] for image in assignment[part])


def alone(found: list[Image]) -> list[int]:
    return list(range(len(found)))


def test_stratified_follows_the_fractions_in_every_class() -> None:
    found = images({"good": 50, "hole": 20, "scratch": 5})
    (assignment,) = split(found, alone(found), SplitOptions()).assignments
    assert labels(assignment, "train") == {"good": 30, "hole": 12, "scratch": 3}
    assert labels(assignment, "val") == {"good": 10, "hole": 4, "scratch": 1}
    assert labels(assignment, "test") == {"good": 10, "hole": 4, "scratch": 1}


def test_every_image_is_in_exactly_one_part() -> None:
    found = images({"good": 11, "hole": 7})
    (assignment,) = split(found, alone(found), SplitOptions()).assignments
    names = [image.file_name for part in SPLITS for image in assignment[part]]
    assert sorted(names) == [image.file_name for image in found]


def test_three_images_reach_all_three_parts() -> None:
    found = images({"good": 3, "hole": 3})
    (assignment,) = split(found, alone(found), SplitOptions()).assignments
    assert [labels(assignment, part)["hole"] for part in SPLITS] == [1, 1, 1]


def test_groups_stay_together() -> None:
    found = images({"hole": 24, "good": 12})
    group_of = [index // 4 for index in range(len(found))]
    (assignment,) = split(found, group_of, SplitOptions()).assignments
    side = {image.file_name: part for part in SPLITS for image in assignment[part]}
    for group in set(group_of):
        members = [i.file_name for i, g in zip(found, group_of, strict=True) if g == group]
        assert len({side[name] for name in members}) == 1


def test_the_order_of_images_does_not_count_but_the_seed_does() -> None:
    found = images({"good": 20, "hole": 20})
    first = split(found, alone(found), SplitOptions(seed=1)).assignments
    backwards = split(found[::-1], alone(found), SplitOptions(seed=1)).assignments
    other = split(found, alone(found), SplitOptions(seed=2)).assignments
    assert first == backwards
    assert first != other


def test_known_assignment_of_seed_zero() -> None:
    """A split is part of a result: a new version may not deal it out differently."""
    found = images({"hole": 6})
    (assignment,) = split(found, alone(found), SplitOptions()).assignments
    numbers = {part: [int(i.file_name[5:8]) for i in assignment[part]] for part in SPLITS}
    assert numbers == {"train": [1, 2, 3, 4], "val": [0], "test": [5]}


def test_folds_hold_every_image_out_exactly_once() -> None:
    found = images({"good": 13, "hole": 9, "scratch": 4})
    options = SplitOptions("folds", folds=4)
    assignments = split(found, alone(found), options).assignments
    tested = Counter(i.file_name for fold in assignments for i in fold["test"])
    assert tested == Counter(image.file_name for image in found)
    for fold in assignments:
        parts = [{i.file_name for i in fold[part]} for part in SPLITS]
        assert sum(map(len, parts)) == len(found) == len(set.union(*parts))
        assert labels(fold, "test")["scratch"] == 1


def test_general_knows_m_defects_of_all_types() -> None:
    found = images({"good_train": 30, "good_test": 8, "hole": 10, "scratch": 10}, sourced=True)
    options = SplitOptions("general", shots=5)
    (assignment,) = split(found, alone(found), options).assignments
    known = labels(assignment, "train") + labels(assignment, "val")
    assert known["hole"] + known["scratch"] == 5
    assert abs(known["hole"] - known["scratch"]) == 1
    assert labels(assignment, "val")["hole"] + labels(assignment, "val")["scratch"] >= 1
    assert labels(assignment, "test")["hole"] + labels(assignment, "test")["scratch"] == 15
    assert all("good_train" not in image.file_name for image in assignment["test"])
    assert labels(assignment, "test")["good"] == 8


def test_general_with_one_shot_says_that_val_has_no_defect() -> None:
    found = images({"good_train": 9, "hole": 4}, sourced=True)
    result = split(found, alone(found), SplitOptions("general", shots=1))
    assert [finding.code for finding in result.findings] == ["no-val-defects"]


def test_hard_knows_one_type_only() -> None:
    found = images({"good": 10, "hole": 6, "scratch": 6})
    (assignment,) = split(found, alone(found), SplitOptions("hard", known="hole")).assignments
    assert labels(assignment, "test")["scratch"] == 6
    assert labels(assignment, "test")["hole"] == 0
    assert labels(assignment, "train")["hole"] + labels(assignment, "val")["hole"] == 6


@pytest.mark.parametrize("protocol", ["stratified", "folds"])
def test_a_class_with_one_image_cannot_be_split(protocol) -> None:
    found = images({"good": 10, "hole": 1})
    with pytest.raises(InputError, match=r"class 'hole' has 1 image, and .* needs 3: add pictures"):
        split(found, alone(found), SplitOptions(protocol))


def test_six_images_of_one_photograph_cannot_be_split() -> None:
    found = images({"hole": 6})
    with pytest.raises(InputError, match="6 images of 1 photograph,"):
        split(found, [0] * 6, SplitOptions())


def test_an_unknown_known_type_is_named() -> None:
    found = images({"hole": 6, "good": 3})
    with pytest.raises(InputError, match=r"'dent': no such class: hole"):
        split(found, alone(found), SplitOptions("hard", known="dent"))
