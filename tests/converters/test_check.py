from __future__ import annotations

import json
import shutil

import pytest

from converters.check import check
from converters.convert import ConvertOptions, convert
from converters.errors import InputError
from converters.split import SplitOptions


@pytest.fixture
def dataset(mvtec, tmp_path):
    source = mvtec()
    (source / "license.txt").write_text("CC0\n")
    convert(source, tmp_path / "dest", ConvertOptions())
    return tmp_path / "dest"


def codes(root) -> set[str]:
    return {finding.code for finding in check(root)}


def test_a_fresh_dataset_has_only_its_size_against_it(dataset) -> None:
    assert codes(dataset) == {"few-images"}


def test_folds_are_checked_each(mvtec, tmp_path) -> None:
    convert(mvtec(), tmp_path / "d", ConvertOptions(split=SplitOptions("folds", folds=3)))
    found = check(tmp_path / "d")
    assert {f.file.split("/")[1] for f in found if f.code == "few-images"} == {"0", "1", "2"}
    assert {f.code for f in found} == {"few-images", "no-licence"}


def test_a_missing_picture_is_an_error(dataset) -> None:
    (dataset / "images/test__hole__000.png").unlink()
    (finding,) = [f for f in check(dataset) if f.severity == "error"]
    assert (finding.code, finding.message) == ("unreadable-image", "is missing")


def test_a_picture_on_two_sides_is_an_error(dataset) -> None:
    train = json.loads((dataset / "train.json").read_text())
    test = json.loads((dataset / "test.json").read_text())
    name, other = train["images"][0]["file_name"], test["images"][0]["file_name"]
    (dataset / "images" / other).unlink()
    shutil.copy(dataset / "images" / name, dataset / "images" / other)
    assert "same-picture-in-two-splits" in codes(dataset)


def test_an_unusable_annotation_is_an_error(dataset) -> None:
    train = json.loads((dataset / "train.json").read_text())
    annotation = train["annotations"][0]
    del annotation["segmentation"]
    annotation["bbox"] = [40, 0, 20, 5]
    annotation["id"] = 0
    (dataset / "train.json").write_text(json.dumps(train))
    assert {"box-outside", "annotation-id"} <= codes(dataset)


def test_findings_of_the_conversion_are_listed(mvtec, tmp_path) -> None:
    source = mvtec()
    (source / "test/hole/notes.txt").write_text("x")
    convert(source, tmp_path / "d", ConvertOptions())
    assert {"not-an-image", "no-licence", "few-images"} == codes(tmp_path / "d")


def test_a_source_is_checked_before_it_is_converted(mvtec) -> None:
    source = mvtec()
    (source / "ground_truth/hole/000_mask.png").unlink()
    (source / "test/scratch/000.png").write_text("no picture")
    assert codes(source) == {"image-without-mask", "unreadable-image"}


def test_neither_source_nor_dataset(tmp_path) -> None:
    with pytest.raises(InputError, match="no folders, which is not mvtec"):
        check(tmp_path)
