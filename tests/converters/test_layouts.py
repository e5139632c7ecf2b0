from __future__ import annotations

from pathlib import Path

import pytest

from converters.errors import InputError
from converters.layouts import find_layout


def listed(root: Path, classes="defect"):
    return find_layout(root).list(root, classes)


def test_mvtec_pairs_images_with_masks(mvtec) -> None:
    root = mvtec()
    listing = listed(root)
    by_label = {record.label for record in listing.records}
    assert by_label == {None, "hole", "scratch"}
    assert len(listing.records) == 24 and not listing.findings
    for record in listing.records:
        if record.label is not None:
            (mask,) = record.masks
            assert mask == root / "ground_truth" / record.label / f"{record.image.stem}_mask.png"


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ("defect", {"hole", "scratch"}),
        ("category-defect", {"bolt-hole", "bolt-scratch", "nut-hole", "nut-scratch"}),
        ("single", {"defect"}),
    ],
)
def test_classes_of_a_root_of_several_categories(mvtec, tmp_path, classes, names) -> None:
    mvtec("root/bolt")
    mvtec("root/nut", first=100)
    records = listed(tmp_path / "root", classes).records
    assert {record.label for record in records if record.label} == names
    assert len(records) == 48


def test_magnetic_tile_pairs_by_stem_and_reads_the_capture_number(tiles) -> None:
    records = listed(tiles()).records
    assert [record.label for record in records].count(None) == 4
    assert all(record.masks[0].stem == record.image.stem for record in records)
    assert records[0].capture == ("camera", 1001000)


def test_auto_finds_each_layout(mvtec, tiles) -> None:
    assert find_layout(mvtec()).name == "mvtec"
    assert find_layout(tiles()).name == "magnetic_tile"


def test_a_folder_of_no_layout_is_refused_with_what_was_seen(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="holds images/, which is not mvtec"):
        find_layout(tmp_path)


def test_a_missing_folder_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_layout(tmp_path / "nowhere")


def test_terms_come_from_the_source(mvtec, tiles) -> None:
    root = mvtec()
    assert find_layout(root).terms(root).licence == ""
    (root / "license.txt").write_text("\nCC0 1.0\nmore\n")
    terms = find_layout(root).terms(root)
    assert (terms.licence, terms.attribution) == ("CC0 1.0", "")
    (root / "readme.txt").write_text("The MVTec dataset")
    assert "CVPR 2019" in find_layout(root).terms(root).attribution
    root = tiles()
    assert "Magnetic" in find_layout(root).terms(root).attribution.title()
