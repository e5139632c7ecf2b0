from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as PilImage

from converters.check import check
from converters.convert import ConvertOptions, convert
from converters.dataset import GOOD, SPLITS, Image, Instance
from converters.errors import InputError
from converters.folder import DatasetFolder
from converters.layouts import find_layout, recognised
from converters.read import ReadOptions
from converters.split import SplitOptions, split

Make = Callable[..., Path]

SIZE = (40, 48)  # height, width


def save_noise(path: Path) -> None:
    """A picture that resembles none of another path."""
    rng = np.random.default_rng(list(path.as_posix().encode()))
    PilImage.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Make:
    """Write pictures into the folders that are named, so many into each."""

    def make(counts: dict[str, int], name: str = "classes") -> Path:
        root = tmp_path / name
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True)
            for number in range(count):
                save_noise(root / folder / f"{number:03d}.png")
        return root

    return make


def codes(root: Path) -> Counter[str]:
    return Counter(finding.code for finding in check(root))


def test_a_folder_is_a_class_and_good_is_none(classes: Make) -> None:
    root = classes({"good": 2, "hole": 3, "scratch": 1})
    listing = find_layout(root).list(root, "defect")
    assert Counter(r.label for r in listing.records) == {None: 2, "hole": 3, "scratch": 1}
    assert {r.source_split for r in listing.records} == {None}
    assert not any(r.masks for r in listing.records)


@pytest.mark.parametrize("name", ["good", "Good", "OK", "normal"])
def test_names_of_good_folders(classes: Make, name: str) -> None:
    root = classes({name: 2, "hole": 3})
    listing = find_layout(root).list(root, "defect")
    assert Counter(r.label for r in listing.records) == {None: 2, "hole": 3}
    (said,) = [f for f in listing.findings if f.code == "good-class"]
    assert f"{name}/" in said.message


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_splits_of_the_source_are_read(classes: Make, val: str) -> None:
    root = classes({f"{part}/{name}": 2 for part in ("train", val, "test") for name in "ab"})
    listing = find_layout(root).list(root, "defect")
    assert {(r.image.parent.parent.name, r.source_split) for r in listing.records} == {
        ("train", "train"),
        (val, "val"),
        ("test", "test"),
    }
    assert "source-splits" in {f.code for f in listing.findings}


def test_pictures_further_down_belong_to_the_class_as_torchvision_has_it(classes: Make) -> None:
    from torchvision.datasets import ImageFolder

    root = classes({"a": 2, "b": 1, "b/monday/early": 2})
    records = find_layout(root).list(root, "defect").records
    theirs = ImageFolder(str(root))
    assert [(str(r.image), r.label) for r in records] == [
        (path, theirs.classes[index]) for path, index in theirs.samples
    ]


@pytest.mark.parametrize(
    ("naming", "names"),
    [("defect", {"a", "b"}), ("category-defect", {"bolt-a", "bolt-b"}), ("single", {"defect"})],
)
def test_naming_of_classes(classes: Make, naming, names) -> None:
    root = classes({"ok": 1, "a": 1, "b": 1}, "bolt")
    records = find_layout(root).list(root, naming).records
    assert {r.label for r in records} - {None} == names


def test_each_layout_is_taken_for_what_it_is(mvtec, tiles, classes: Make) -> None:
    split = {f"{part}/{name}": 2 for part in ("train", "test") for name in ("good", "hole")}
    assert find_layout(mvtec()).name == "mvtec"
    assert find_layout(tiles()).name == "magnetic_tile"
    assert find_layout(classes({"a": 1, "b": 1}, "plain")).name == "image_folder"
    assert find_layout(classes(split, "split")).name == "image_folder"
    # Without masks, but with nothing but good pictures to learn from.
    halved = {"train/good": 2, "test/good": 2, "test/hole": 2}
    assert find_layout(classes(halved, "halved")).name == "mvtec"


@pytest.mark.parametrize(
    "counts",
    [
        {"images": 2, "masks": 2},
        {"train/images": 2, "train/labels": 2, "val/images": 2},
        {"test/a": 2, "test/b": 2},
        {"deep/down/here": 2},
    ],
)
def test_other_folders_of_pictures_are_not_taken_for_classes(classes: Make, counts) -> None:
    assert recognised(classes(counts)) is None


@pytest.mark.parametrize(
    "files",
    [
        # Roboflow's COCO, and its Pascal VOC
        [f"{part}/{n}" for part in ("train", "valid") for n in ("a.jpg", "_annotations.coco.json")],
        ["bolts/a.jpg", "bolts/a.xml"],
        ["train/10000.png", "train/10000_GT.png", "test/20000.png", "test/20000_GT.png"],  # SDD2
        ["Class1/Train/1.PNG", "Class1/Train/Label/1_label.PNG", "Class1/Test/2.PNG"],  # DAGM
        ["Train/1.PNG", "Train/Label/1_label.PNG", "Test/2.PNG", "Test/Label/2_label.PNG"],
        ["kos01/Part0.jpg", "kos01/Part0_label.bmp", "kos02/Part0.jpg", "kos02/Part0_label.bmp"],
        ["train2017/1.jpg", "val2017/2.jpg", "annotations.txt"],
        ["training/1.jpg", "more/2.jpg"],
        ["img/1.jpg", "msk/1.png"],
        ["pictures/1.jpg", "gt/1.png"],
        ["pictures/1.jpg", "pictures/1_mask.png"],
        ["obj_train_data/1.png", "obj_train_data/1.txt", "obj.names"],  # darknet
    ],
)
def test_what_says_where_defects_are_is_another_layout(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        path = tmp_path / "other" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert recognised(tmp_path / "other") is None


@pytest.mark.parametrize("val", ["val", "Valid", "validation"])
def test_a_val_folder_is_kept_where_train_is_all_good(classes: Make, val: str) -> None:
    root = classes({"train/good": 2, f"{val}/good": 1, f"{val}/hole": 3, "test/hole": 2})
    listing = find_layout(root).list(root, "defect")
    assert find_layout(root).name == "image_folder"
    assert Counter(record.source_split for record in listing.records)["val"] == 4


def test_names_that_only_begin_like_a_split_are_classes(classes: Make) -> None:
    assert (
        recognised(classes({"valve": 1, "testing_marks": 1, "trained": 1, "masked": 1})) is not None
    )


def test_what_is_odd_is_found(classes: Make) -> None:
    root = classes({"good": 2, "hole": 2, "nothing": 0})
    save_noise(root / "loose.png")
    (root / "hole/notes.txt").write_text("x")
    (root / "hole/000.png").write_text("no picture")
    found = codes(root)
    assert found == {
        "empty-class": 1,
        "image-without-class": 1,
        "not-an-image": 1,
        "unreadable-image": 1,
        "good-class": 1,
    }
    with pytest.raises(InputError, match=r"hole/000\.png: cannot be read as image"):
        convert(root, root.parent / "d", ConvertOptions())
    assert not (root.parent / "d").exists()


def test_what_lies_beside_the_splits_is_found(classes: Make) -> None:
    root = classes({"train/a": 1, "train/b": 1, "test/a": 1, "more/a": 1})
    (left_out,) = [f for f in check(root) if f.code == "folder-left-out"]
    assert left_out.file == "more"


@pytest.mark.parametrize("name", ["good", "hole"])
def test_one_class_alone_is_refused(classes: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"all pictures are '{name}': add a folder"):
        convert(classes({name: 3}), tmp_path / "d", ConvertOptions())


def test_labels_are_of_whole_pictures(classes: Make, tmp_path: Path) -> None:
    root = classes({"good": 5, "hole": 5, "scratch": 5})
    (root / "LICENSE").write_text("CC0\n")
    convert(root, tmp_path / "d", ConvertOptions())
    folder = DatasetFolder.open(tmp_path / "d")
    assert folder.has_image_labels and folder.card["licence"] == "CC0"
    for name in SPLITS:
        dataset = folder.read(name)
        expected = [image.source.split("/")[0] for image in dataset.images]
        assert dataset.image_labels() == expected
        for image in dataset.images:
            boxes = [(instance.box, instance.mask) for instance in image.instances]
            whole = ((0, 0, SIZE[1], SIZE[0]), None)
            assert boxes == ([] if image.is_good else [whole])
    assert set(codes(tmp_path / "d")) == {"few-images", "good-class"}


def test_labels_of_masks_stay_what_they_were(mvtec, tmp_path: Path) -> None:
    convert(mvtec(), tmp_path / "d", ConvertOptions())
    folder = DatasetFolder.open(tmp_path / "d")
    assert not folder.has_image_labels
    folder.require_places("a detector")
    card = yaml.safe_load((tmp_path / "d/dataset.yaml").read_text())
    del card["labels"]  # as earlier versions wrote it
    (tmp_path / "d/dataset.yaml").write_text(yaml.safe_dump(card))
    assert not DatasetFolder.open(tmp_path / "d").has_image_labels


def test_yolo_labels_are_refused(classes: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave --yolo out"):
        convert(classes({"a": 5, "b": 5}), tmp_path / "d", ConvertOptions(yolo=True))


def test_a_source_in_place_of_a_dataset_is_told_how_to_become_one(classes: Make) -> None:
    root = classes({"a": 1, "b": 1})
    with pytest.raises(InputError, match=f"make one with `toolkit convert {root} DEST`"):
        DatasetFolder.open(root)


def test_the_order_of_directory_entries_does_not_count(
    classes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes({"good": 5, "b": 5, "a": 5})
    options = ConvertOptions(read=ReadOptions(near_duplicates=False))
    convert(root, tmp_path / "one", options)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path) -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("converters.layouts.base.os.scandir", Backwards)
    convert(root, tmp_path / "two", options)
    for name in ("train.json", "val.json", "test.json", "dataset.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


SOURCE = SplitOptions(protocol="source")


def test_splits_of_the_source_are_kept(classes: Make, tmp_path: Path) -> None:
    root = classes({f"{part}/{n}": 3 for part in SPLITS for n in (GOOD, "hole")})
    convert(root, tmp_path / "d", ConvertOptions(split=SOURCE))
    folder = DatasetFolder.open(tmp_path / "d")
    for name in SPLITS:
        sources = [image.source for image in folder.read(name).images]
        assert len(sources) == 6
        assert all(source.startswith(f"{name}/") for source in sources)
    assert folder.card["split"]["protocol"] == "source"


def test_val_comes_out_of_train_where_the_source_has_none(classes: Make, tmp_path: Path) -> None:
    root = classes({f"{part}/{name}": 8 for part in ("train", "test") for name in ("good", "hole")})
    convert(root, tmp_path / "d", ConvertOptions(split=SOURCE))
    folder = DatasetFolder.open(tmp_path / "d")
    counts = {name: folder.read(name).count_images() for name in SPLITS}
    assert counts == {
        "train": {"good": 6, "hole": 6},
        "val": {"good": 2, "hole": 2},
        "test": {"good": 8, "hole": 8},
    }
    assert all(image.source.startswith("test/") for image in folder.read("test").images)


def test_a_source_without_splits_has_none_to_keep(classes: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in no split of the source: choose --split"):
        convert(classes({"a": 3, "b": 3}), tmp_path / "d", ConvertOptions(split=SOURCE))


def sourced(part: str, number: int) -> Image:
    instance = Instance("hole", (0, 0, 2, 2), None)
    name = f"{part}_{number}.png"
    return Image(name, Path(name), 9, 9, (instance,), name, part)


def test_a_photograph_on_two_sides_of_the_source_is_told() -> None:
    images = [sourced(part, number) for part in ("test", "train", "val") for number in range(2)]
    # Of test, train and val two each: the first of test shows what the first of train does.
    result = split(images, [0, 1, 0, 2, 3, 3], SOURCE)
    (finding,) = result.findings
    assert (finding.code, finding.file) == ("source-leak", "test_0.png")
    assert {name: len(found) for name, found in result.assignments[0].items()} == {
        "train": 2,
        "val": 2,
        "test": 2,
    }


def test_val_out_of_train_parts_no_photograph() -> None:
    images = [sourced("train", number) for number in range(9)] + [sourced("test", 9)]
    groups = [number // 3 for number in range(9)] + [9]
    (assignment,) = split(images, groups, SOURCE).assignments
    group_of = {image.file_name: group for image, group in zip(images, groups, strict=True)}
    sides = [{group_of[image.file_name] for image in assignment[name]} for name in SPLITS]
    assert sides[1] and not sides[0] & sides[1]
