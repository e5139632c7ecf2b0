"""A conversion as a whole: exact, reproducible, all or nothing; every bad input of the list."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import supervision
import yaml
from PIL import Image as PilImage
from pycocotools.coco import COCO

from converters import convert as convert_module
from converters.convert import ConvertOptions, convert
from converters.dataset import SPLITS
from converters.errors import InputError
from converters.folder import DatasetFolder
from converters.read import ReadOptions
from converters.split import SplitOptions

FIRST = "test/hole/000.png"
MASK = "ground_truth/hole/000_mask.png"


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def save(pixels: np.ndarray, path: Path) -> None:
    PilImage.fromarray(pixels).save(path)


# ------------------------------------------------------------------------------- the contract


def test_annotations_equal_the_source_masks(mvtec, tmp_path) -> None:
    source, dest = mvtec(), tmp_path / "dest"
    convert(source, dest, ConvertOptions())
    seen = 0
    for split in SPLITS:
        coco = COCO(dest / f"{split}.json")
        for annotation in coco.loadAnns(coco.getAnnIds()):
            image = coco.loadImgs(annotation["image_id"])[0]
            kind, name = image["source"].split("/")[1:]
            truth = np.asarray(
                PilImage.open(source / "ground_truth" / kind / name.replace(".png", "_mask.png"))
            )
            assert np.array_equal(coco.annToMask(annotation), truth // 255)
            ys, xs = np.nonzero(truth)
            assert annotation["bbox"] == [
                xs.min(),
                ys.min(),
                xs.max() - xs.min() + 1,
                ys.max() - ys.min() + 1,
            ]
            assert annotation["area"] == (truth > 0).sum()
            assert annotation["iscrowd"] == 0 and annotation["id"] >= 1
            assert coco.loadCats(annotation["category_id"])[0]["name"] == kind
            seen += 1
    assert seen == 12


def test_supervision_loads_what_was_written(mvtec, tmp_path) -> None:
    convert(mvtec(), tmp_path / "dest", ConvertOptions())
    dataset = supervision.DetectionDataset.from_coco(
        str(tmp_path / "dest/images"), str(tmp_path / "dest/train.json"), force_masks=True
    )
    expected = DatasetFolder.open(tmp_path / "dest").read("train")
    assert len(dataset) == len(expected.images)
    assert sum(len(detections) for _, _, detections in dataset) == sum(
        expected.count_instances().values()
    )


def test_good_pictures_are_listed_without_annotations(mvtec, tmp_path) -> None:
    convert(mvtec(), tmp_path / "dest", ConvertOptions())
    folder = DatasetFolder.open(tmp_path / "dest")
    assert sum(folder.read(split).count_images()["good"] for split in SPLITS) == 12


def test_images_keep_their_bytes_and_a_readable_name(mvtec, tmp_path) -> None:
    source, dest = mvtec(), tmp_path / "dest"
    convert(source, dest, ConvertOptions())
    assert (dest / "images/test__hole__000.png").read_bytes() == (source / FIRST).read_bytes()
    assert len(list((dest / "images").iterdir())) == 24  # 000.png is in four folders


def test_names_that_differ_only_by_ending_or_case_stay_apart(mvtec, tmp_path) -> None:
    source, dest = mvtec(), tmp_path / "dest"
    shutil.copy(source / "train/good/001.png", source / "train/good/000.bmp.png")
    PilImage.open(source / "train/good/002.png").save(source / "train/good/000.bmp")
    convert(source, dest, ConvertOptions(read=ReadOptions(near_duplicates=False)))
    stems = [path.stem.casefold() for path in (dest / "images").iterdir()]
    assert len(stems) == 26 == len(set(stems))


def test_unicode_and_spaces_in_names(mvtec, tmp_path) -> None:
    source, dest = mvtec(), tmp_path / "de st ü"
    (source / FIRST).rename(source / "test/hole/Kratzer Ä 日本.png")
    (source / MASK).rename(source / "ground_truth/hole/Kratzer Ä 日本_mask.png")
    convert(source, dest, ConvertOptions(yolo=True))
    images = [i for s in SPLITS for i in DatasetFolder.open(dest).read(s).images]
    (found,) = [image for image in images if "日本" in image.file_name]
    assert found.path.is_file() and len(found.instances) == 1


def test_card_says_what_was_done(mvtec, tmp_path) -> None:
    source = mvtec()
    (source / "license.txt").write_text("CC0\n")
    convert(source, tmp_path / "dest", ConvertOptions(split=SplitOptions(seed=7), name="bolts"))
    card = yaml.safe_load((tmp_path / "dest/dataset.yaml").read_text())
    assert (card["name"], card["layout"], card["licence"]) == ("bolts", "mvtec", "CC0")
    assert card["categories"] == ["hole", "scratch"]
    assert card["split"] == {"protocol": "stratified", "fractions": [0.6, 0.2, 0.2], "seed": 7}
    assert card["counts"]["train"]["classes"]["hole"] == {"images": 4, "instances": 4}
    assert len(card["source"]["files_sha256"]) == 64


def test_folds_have_three_files_each_and_one_numbering(mvtec, tmp_path) -> None:
    options = ConvertOptions(split=SplitOptions("folds", folds=3), yolo=True)
    convert(mvtec(), tmp_path / "dest", options)
    ids = []
    for fold in range(3):
        folder = DatasetFolder.open(tmp_path / "dest", fold)
        ids.append({(i.file_name, i.id) for s in SPLITS for i in folder.read(s).images})
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == 24
    for fold in range(3):
        tested = (tmp_path / f"dest/fold{fold}_test.txt").read_text().split()
        folder = DatasetFolder.open(tmp_path / "dest", fold)
        assert tested == [f"./images/{i.file_name}" for i in folder.read("test").images]
    with pytest.raises(InputError, match="has folds 0 to 2: name one with --fold"):
        DatasetFolder.open(tmp_path / "dest")
    with pytest.raises(InputError, match="fold 5 is not there"):
        DatasetFolder.open(tmp_path / "dest", 5)


def test_several_parts_can_be_one_instance(mvtec, tmp_path) -> None:
    source = mvtec()
    mask = np.zeros((40, 48), np.uint8)
    mask[2:5, 2:5] = mask[2:5, 8:11] = mask[30:33, 40:43] = 255
    save(mask, source / MASK)
    for number, (read, count) in enumerate(
        [
            (ReadOptions(), 3),
            (ReadOptions(merge_distance=3), 2),
            (ReadOptions(instances="image"), 1),
        ]
    ):
        dest = tmp_path / f"dest{number}"
        convert(source, dest, ConvertOptions(read=read))
        images = [i for s in SPLITS for i in DatasetFolder.open(dest).read(s).images]
        (image,) = [image for image in images if image.source == FIRST]
        assert len(image.instances) == count
        assert sum(instance.area for instance in image.instances) == 27


def test_pictures_of_one_photograph_stay_on_one_side(mvtec, tmp_path) -> None:
    source, dest = mvtec(), tmp_path / "dest"
    rng = np.random.default_rng(0)
    for number in range(6):  # six pairs: the same picture, then darker and as JPEG
        fine = rng.integers(60, 200, (96, 96), dtype=np.uint8)
        save(fine, source / f"train/good/9{number}.png")
        darker = PilImage.fromarray((fine * 0.7).astype(np.uint8))
        darker.save(source / f"train/good/8{number}.jpg", quality=90)
    convert(source, dest, ConvertOptions())
    side = {
        Path(image.source).stem: split
        for split in SPLITS
        for image in DatasetFolder.open(dest).read(split).images
        if "train/good" in image.source
    }
    assert all(side[f"8{number}"] == side[f"9{number}"] for number in range(6))
    card = yaml.safe_load((dest / "dataset.yaml").read_text())
    assert len(card["same_photograph"]) == 6


# --------------------------------------------------------------------------- reproducibility


def test_twice_and_in_another_order_of_directory_entries(mvtec, tmp_path, monkeypatch) -> None:
    source = mvtec()
    copy = tmp_path / "copy" / source.name
    for path in sorted(source.rglob("*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    convert(source, tmp_path / "one", ConvertOptions(yolo=True))
    convert(source, tmp_path / "two", ConvertOptions(yolo=True, read=ReadOptions(workers=1)))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str = ".") -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list:
            return self.entries

        def __exit__(self, *error: object) -> None: ...

        def __iter__(self):
            return iter(self.entries)

    monkeypatch.setattr("converters.layouts.base.os.scandir", Backwards)
    convert(copy, tmp_path / "three", ConvertOptions(yolo=True))
    monkeypatch.undo()
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


# --------------------------------------------------------------------------------- bad input


def mask_without_image(source: Path) -> None:
    (source / FIRST).unlink()


def image_without_mask(source: Path) -> None:
    (source / MASK).unlink()


def mask_of_another_size(source: Path) -> None:
    save(np.full((20, 20), 255, np.uint8), source / MASK)


def truncated_image(source: Path) -> None:
    (source / FIRST).write_bytes((source / FIRST).read_bytes()[:2000])


def truncated_mask(source: Path) -> None:
    (source / MASK).write_bytes((source / MASK).read_bytes()[:60])


def text_named_png(source: Path) -> None:
    (source / FIRST).write_text("not a picture")


def empty_file(source: Path) -> None:
    (source / FIRST).write_bytes(b"")


def good_with_a_defect(source: Path) -> None:
    (source / "ground_truth/good").mkdir()
    shutil.copy(source / MASK, source / "ground_truth/good/000_mask.png")


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (mask_without_image, MASK, "is a mask without its image: add the image"),
        (image_without_mask, FIRST, "shows a defect but has no mask: add ground_truth/hole/000_m"),
        (mask_of_another_size, MASK, "is 20x20 pixels, its image 48x40: export the mask at"),
        (truncated_image, FIRST, "cannot be read as image"),
        (truncated_mask, MASK, "cannot be read as mask"),
        (text_named_png, FIRST, "cannot be read as image"),
        (empty_file, FIRST, "cannot be read as image"),
        (good_with_a_defect, "test/good/000.png", "is called good, but its mask shows a defect"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_unusable_files_stop_the_work(mvtec, tmp_path, spoil, file, message) -> None:
    source, dest = mvtec(), tmp_path / "out" / "dest"
    spoil(source)
    with pytest.raises(InputError) as caught:
        convert(source, dest, ConvertOptions())
    assert file in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "excluded"),
    [
        (image_without_mask, 1),
        (mask_of_another_size, 1),
        (truncated_image, 1),
        (truncated_mask, 1),
        (mask_without_image, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_unusable_files_are_left_out_and_listed_on_request(
    mvtec, tmp_path, spoil, excluded
) -> None:
    source, dest = mvtec(), tmp_path / "dest"
    spoil(source)
    result = convert(source, dest, ConvertOptions(skip_invalid=True))
    assert len(result.dataset.images) == 23
    card = yaml.safe_load((dest / "dataset.yaml").read_text())
    assert list(card["excluded"]) == [FIRST] * excluded
    assert card["findings"]["list"][0]["severity"] == "error"


def test_magnetic_tile_masks_of_lossy_grey(tiles, tmp_path) -> None:
    result = convert(tiles(), tmp_path / "dest", ConvertOptions())
    assert {finding.code for finding in result.findings} == {"grey-mask"}
    assert result.dataset.count_instances() == {"Blowhole": 4, "Crack": 4}
    assert all(i.area == 35 for image in result.dataset.images for i in image.instances)
    assert result.dataset.count_images()["good"] == 4


@pytest.mark.parametrize("near_duplicates", [True, False])
def test_a_truncated_jpeg_stops_the_work(tiles, tmp_path, near_duplicates) -> None:
    source = tiles()
    image = sorted(source.rglob("*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:900])
    options = ConvertOptions(read=ReadOptions(near_duplicates=near_duplicates))
    with pytest.raises(InputError, match=rf"{image.name}: cannot be read as image"):
        convert(source, tmp_path / "dest", options)
    assert not (tmp_path / "dest").exists()


def test_magnetic_tile_pairs_are_complete(tiles, tmp_path) -> None:
    source = tiles()
    defect = sorted((source / "MT_Crack/Imgs").glob("*.jpg"))[0]
    defect.with_suffix(".png").unlink()
    with pytest.raises(InputError, match="shows a defect but has no mask"):
        convert(source, tmp_path / "dest", ConvertOptions())
    defect.unlink()
    sorted((source / "MT_Blowhole/Imgs").glob("*.jpg"))[0].unlink()
    with pytest.raises(InputError, match="is a mask without its image"):
        convert(source, tmp_path / "dest", ConvertOptions())


def test_the_first_of_many_is_named_and_the_rest_counted(mvtec, tmp_path) -> None:
    source = mvtec()
    for number in range(3):
        (source / f"ground_truth/hole/00{number}_mask.png").unlink()
    with pytest.raises(InputError, match=r"000\.png: shows a defect .* \(and 2 more: `toolkit ch"):
        convert(source, tmp_path / "dest", ConvertOptions())


@pytest.mark.parametrize(
    ("pixels", "code", "images"),
    [
        pytest.param(np.zeros((40, 48), np.uint8), "empty-mask", 23, id="empty"),
        pytest.param(
            np.tile(np.arange(48, dtype=np.uint8) * 5, (40, 1)), "grey-mask", 24, id="grey"
        ),
        pytest.param(np.full((40, 48, 3), 255, np.uint8), "colour-mask", 24, id="RGB"),
    ],
)
def test_odd_masks_are_found_and_counted(mvtec, tmp_path, pixels, code, images) -> None:
    source = mvtec()
    save(pixels, source / MASK)
    result = convert(source, tmp_path / "dest", ConvertOptions())
    assert [finding.code for finding in result.findings] == [code]
    assert len(result.dataset.images) == images
    assert list(result.excluded) == ([FIRST] if code == "empty-mask" else [])


def test_the_reason_given_is_the_one_that_counts(mvtec, tmp_path) -> None:
    source = mvtec()
    save(np.tile(np.arange(48, dtype=np.uint8), (40, 1)), source / MASK)  # grey, none above 127
    result = convert(source, tmp_path / "dest", ConvertOptions())
    assert [finding.code for finding in result.findings] == ["empty-mask", "grey-mask"]
    assert result.excluded == {FIRST: "is called 'hole', but its mask is empty"}


def test_sixteen_bit_image_and_stray_files_are_found(mvtec, tmp_path) -> None:
    source = mvtec()
    deep = np.random.default_rng(3).integers(0, 65536, (40, 48), dtype=np.uint16)
    save(deep, source / FIRST)
    (source / "test/hole/notes.txt").write_text("x")
    result = convert(source, tmp_path / "dest", ConvertOptions())
    assert {finding.code for finding in result.findings} == {"16-bit", "not-an-image"}
    assert len(result.dataset.images) == 24


def test_a_category_without_defects_is_found(mvtec, tmp_path) -> None:
    mvtec("root/bolt")
    nut = mvtec("root/nut", first=500)
    shutil.rmtree(nut / "test/hole")
    shutil.rmtree(nut / "test/scratch")
    shutil.rmtree(nut / "ground_truth")
    result = convert(tmp_path / "root", tmp_path / "dest", ConvertOptions())
    assert [(f.code, f.file) for f in result.findings] == [("no-defects", "nut")]
    with pytest.raises(InputError, match="has no picture of a defect"):
        convert(nut, tmp_path / "other", ConvertOptions())


def test_a_class_with_one_image(mvtec, tmp_path) -> None:
    with pytest.raises(InputError, match="class 'hole' has 1 image"):
        convert(mvtec(per_kind=1), tmp_path / "dest", ConvertOptions())
    assert not (tmp_path / "dest").exists()


def test_a_destination_that_is_not_empty_is_left_alone(mvtec, tmp_path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        convert(mvtec(), dest, ConvertOptions())
    assert files(dest) == {"thesis.txt": b"mine"}


def test_an_empty_destination_is_used(mvtec, tmp_path) -> None:
    (tmp_path / "dest").mkdir()
    convert(mvtec(), tmp_path / "dest", ConvertOptions())
    assert (tmp_path / "dest/train.json").is_file()


def test_a_destination_that_cannot_be_written(mvtec, tmp_path, monkeypatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    source = mvtec()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"dest: cannot be written \(Read-only file system\)"):
        convert(source, tmp_path / "dest", ConvertOptions())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_while_writing_leaves_no_destination(mvtec, tmp_path, number) -> None:
    source, dest = mvtec(), tmp_path / "out" / "dest"
    script = f"""
import os, sys
from converters import convert as module
write = module.write_coco
def killed(path, *args, **kwargs):
    write(path, *args, **kwargs)
    if path.name == "val.json":
        os.kill(os.getpid(), {int(number)})
module.write_coco = killed
from toolkit.cli import main
main(["convert", {str(source)!r}, {str(dest)!r}])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert process.returncode in (-number, 128 + number)
    assert not dest.exists()
    if number == signal.SIGTERM:
        assert not (tmp_path / "out").exists()
    convert(source, dest, ConvertOptions())  # what the killed one left is cleared away
    assert [path.name for path in dest.parent.iterdir()] == ["dest"]


def test_pictures_are_copied_where_links_fail(mvtec, tmp_path, monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(convert_module.os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    convert(mvtec(), tmp_path / "dest", ConvertOptions())
    image = tmp_path / "dest/images/test__hole__000.png"
    assert image.is_file() and not image.is_symlink() and image.stat().st_nlink == 1


def test_json_is_valid_and_compact(mvtec, tmp_path) -> None:
    convert(mvtec(), tmp_path / "dest", ConvertOptions())
    text = (tmp_path / "dest/train.json").read_text(encoding="utf-8")
    assert set(json.loads(text)) == {"info", "licenses", "images", "annotations", "categories"}
