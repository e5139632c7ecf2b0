from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as PilImage

from converters import crops as module
from converters.check import check
from converters.convert import ConvertOptions, convert
from converters.crops import CropOptions, crop, window_around
from converters.dataset import SPLITS, Dataset, Image, Instance, Pasted
from converters.errors import InputError
from converters.folder import DatasetFolder, fold_numbers
from converters.formats.coco import write_coco
from converters.read import ReadOptions
from converters.split import SplitOptions

CATEGORIES = ("hole", "scratch")

Write = Callable[..., Path]


def blob(category: str, x: int, y: int, w: int, h: int) -> Instance:
    """An L: its mask is not its box."""
    mask = np.ones((h, w), bool)
    mask[: h // 2, w // 2 + 1 :] = False
    return Instance(category, (x, y, w, h), mask)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one train split of pictures of noise that hold these instances."""

    def make(
        pictures: Sequence[Sequence[Instance]],
        *,
        size: tuple[int, int] = (80, 100),
        photographs: Sequence[int] = (),
        mode: str = "RGB",
    ) -> Path:
        root = tmp_path / "source"
        (root / "images").mkdir(parents=True)
        rng = np.random.default_rng(0)
        images = []
        annotation = 0
        for number, instances in enumerate(pictures, start=1):
            name = f"{number:03}.{'tif' if mode == 'CMYK' else 'png'}"
            pixels = rng.integers(0, 256, (*size, len(mode.split(";")[0])), dtype=np.uint8)
            picture = PilImage.fromarray(pixels[..., 0].astype(np.uint16) * 250)
            if mode in ("RGB", "CMYK"):
                picture = PilImage.fromarray(pixels, mode="CMYK" if mode == "CMYK" else "RGB")
            picture.save(root / "images" / name)
            numbered = []
            for instance in instances:
                annotation += 1
                numbered.append(replace(instance, id=annotation))
            photograph = photographs[number - 1] if photographs else number
            path, of = root / "images" / name, tuple(numbered)
            images.append(
                Image(name, path, size[1], size[0], of, name, id=number, photograph=photograph)
            )
        write_coco(root / "train.json", Dataset("source", CATEGORIES, tuple(images)))
        (root / "dataset.yaml").write_text(yaml.safe_dump({"name": "source", "licence": "CC0"}))
        return root

    return make


def window_of(image: Image) -> tuple[int, int, int, int]:
    x, y, w, h = map(int, image.source.split("#xywh=")[1].split(","))
    return x, y, w, h


def masks(image: Image, categories: Sequence[str]) -> np.ndarray:
    """What of the picture each category covers, shape (categories, height, width)."""
    covered = np.zeros((len(categories), image.height, image.width), bool)
    for instance in image.instances:
        own = instance.to_mask(image.height, image.width)
        covered[categories.index(instance.category)] |= own
    return covered


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(PilImage.open(path))


def test_pixels_and_masks_are_those_of_the_window(make_dataset, tmp_path) -> None:
    data = make_dataset()
    crop(data, tmp_path / "d", CropOptions())
    for split in SPLITS:
        source = {i.source: i for i in DatasetFolder.open(data).read(split).images}
        made = DatasetFolder.open(tmp_path / "d").read(split)
        for image in made.images:
            x, y, w, h = window_of(image)
            whole = source[image.source.split("#")[0]]
            inside = slice(y, y + h), slice(x, x + w)
            assert (image.height, image.width) == (h, w)
            assert np.array_equal(pixels_of(image.path), pixels_of(whole.path)[inside])
            expected = masks(whole, made.categories)[:, inside[0], inside[1]]
            assert np.array_equal(masks(image, made.categories), expected)


def test_one_window_for_each_instance_and_as_many_good_ones_alike(make_dataset, tmp_path) -> None:
    data = make_dataset(good=2, per_kind=4)
    crop(data, tmp_path / "d", CropOptions())
    before, after = DatasetFolder.open(data), DatasetFolder.open(tmp_path / "d")
    for split in SPLITS:
        instances = before.read(split).count_instances()
        made = after.read(split)
        labels = Counter(made.image_labels())
        assert labels == {**instances, "good": sum(instances.values())}
        sizes = {
            good: sorted((i.width, i.height) for i in made.images if i.is_good is good)
            for good in (True, False)
        }
        assert sizes[True] == sizes[False]


def test_good_windows_are_cut_from_good_pictures_alone(make_dataset, tmp_path) -> None:
    data = make_dataset(good=3)
    crop(data, tmp_path / "d", CropOptions(good=2.5))
    good = {i.source for s in SPLITS for i in DatasetFolder.open(data).read(s).images if i.is_good}
    found = [
        image.source.split("#")[0]
        for split in SPLITS
        for image in DatasetFolder.open(tmp_path / "d").read(split).images
        if image.is_good
    ]
    assert set(found) == good
    assert len(found) == 3 * 15
    assert max(Counter(found).values()) - min(Counter(found).values()) <= 1


@pytest.mark.parametrize("protocol", ["stratified", "folds"])
def test_splits_and_folds_are_kept(mvtec, tmp_path, protocol) -> None:
    options = ConvertOptions(
        split=SplitOptions(protocol, folds=3), read=ReadOptions(near_duplicates=False)
    )
    convert(mvtec(), tmp_path / "source", options)
    crop(tmp_path / "source", tmp_path / "d", CropOptions(min_side=16))
    folds = fold_numbers(tmp_path / "source")
    assert fold_numbers(tmp_path / "d") == folds
    seen: dict[str, Image] = {}
    for fold in folds or [None]:
        before = DatasetFolder.open(tmp_path / "source", fold)
        after = DatasetFolder.open(tmp_path / "d", fold)
        assert after.splits() == before.splits()
        for split in before.splits():
            side = {image.source for image in before.read(split).images}
            made = after.read(split)
            assert {image.source.split("#")[0] for image in made.images} <= side
            labels = Counter(made.image_labels())
            assert labels.pop("good") == sum(labels.values())
            assert labels == before.read(split).count_instances()
            for image in made.images:
                assert seen.setdefault(image.file_name, image).id == image.id
    assert len({i.id for image in seen.values() for i in image.instances}) == len(
        [i for image in seen.values() for i in image.instances]
    )


def test_check_finds_no_error(make_dataset, tmp_path) -> None:
    crop(make_dataset(size=128, good=4, per_kind=4), tmp_path / "d", CropOptions())
    assert [f for f in check(tmp_path / "d") if f.severity == "error"] == []


@pytest.mark.parametrize("seed", range(20))
def test_a_window_holds_its_box_and_stays_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(10, 200, 2))
    image = Image("", Path(), width, height)
    x, y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
    w, h = rng.uniform(0.5, width - x), rng.uniform(0.5, height - y)
    options = CropOptions(context=float(rng.uniform(1, 3)), min_side=int(rng.integers(1, 60)))
    left, top, wide, high = window_around((x, y, w, h), image, options)
    assert 0 <= left <= x and x + w <= left + wide <= width
    assert 0 <= top <= y and y + h <= top + high <= height
    side = max(options.min_side, options.context * max(w, h))
    assert wide >= min(width, side) and high >= min(height, side)
    assert wide <= side + 2 * options.context + 1 and high <= side + 2 * options.context + 1
    assert wide == high or width < side + 4 or height < side + 4


def test_the_label_is_that_of_the_windows_own_instance(write, tmp_path) -> None:
    small, large = blob("hole", 40, 30, 8, 8), blob("scratch", 30, 36, 40, 30)
    result = crop(write([[small, large]]), tmp_path / "d", CropOptions(min_side=40))
    dataset = DatasetFolder.open(tmp_path / "d").read("train")
    assert sorted(dataset.image_labels()) == ["hole", "scratch"]
    by_label = dict(zip(dataset.image_labels(), dataset.images, strict=True))
    # More of the scratch lies in the hole's window than of the hole, but not the other way round.
    assert Counter(i.category for i in by_label["hole"].instances) == {"hole": 1}
    assert Counter(i.category for i in by_label["scratch"].instances) == {"hole": 1, "scratch": 1}
    assert result.left_out == 1


def test_windows_of_one_photograph_share_it(write, tmp_path) -> None:
    one = [blob("hole", 10, 10, 8, 8), blob("hole", 60, 50, 8, 8)]
    data = write([one, [blob("scratch", 40, 30, 9, 5)], [], one], photographs=[1, 1, 3, 4])
    crop(data, tmp_path / "d", CropOptions())
    dataset = DatasetFolder.open(tmp_path / "d").read("train")
    of = {image.source.split("#")[0]: image.photograph for image in dataset.images}
    assert of["001.png"] == of["002.png"]
    assert len(set(of.values())) == 3
    ids = {image.id for image in dataset.images}
    assert set(of.values()) <= ids
    assert len(set(dataset.photographs())) == 3


def test_boxes_without_masks_are_cut_too(write, tmp_path) -> None:
    box_only = Instance("hole", (90, 70, 10, 10), None)
    crop(write([[box_only], []]), tmp_path / "d", CropOptions(min_side=20))
    (image,) = [i for i in DatasetFolder.open(tmp_path / "d").read("train").images if i.instances]
    assert window_of(image) == (80, 60, 20, 20)
    assert [(i.box, i.mask) for i in image.instances] == [((10, 10, 10, 10), None)]


def test_without_good_pictures_there_are_no_good_windows(write, tmp_path) -> None:
    result = crop(write([[blob("hole", 10, 10, 8, 8)]]), tmp_path / "d", CropOptions(good=3))
    assert (result.defects, result.good, result.short) == (1, 0, 3)
    card = yaml.safe_load((tmp_path / "d/dataset.yaml").read_text())
    assert card["crops"]["good_windows_missing"] == 3


def test_every_second_good_window_lies_where_defects_do(write, tmp_path) -> None:
    defects = [[blob("hole", 2, 2, 8, 8)] for _ in range(20)]
    crop(write([*defects, *[[] for _ in range(20)]]), tmp_path / "d", CropOptions(min_side=10))
    images = DatasetFolder.open(tmp_path / "d").read("train").images
    near = sum(max(window_of(image)[:2]) <= 8 for image in images if image.is_good)
    assert 10 <= near < 20


def test_the_card_says_how_it_was_made_and_keeps_the_terms(make_dataset, tmp_path) -> None:
    data = make_dataset()
    card = yaml.safe_load((data / "dataset.yaml").read_text())
    card |= {"licence": "CC0", "findings": {"list": [], "counts": {}}, "excluded": {"a": "b"}}
    (data / "dataset.yaml").write_text(yaml.safe_dump(card))
    crop(data, tmp_path / "d", CropOptions(context=2, seed=4))
    made = yaml.safe_load((tmp_path / "d/dataset.yaml").read_text())
    assert (made["licence"], made["name"]) == ("CC0", "dataset-crops")
    assert made["crops"] == {
        "context": 2,
        "min_side": 32,
        "good": 1.0,
        "seed": 4,
        "defects": 18,
        "good_windows": 18,
        "good_windows_missing": 0,
        "instances_left_out": 0,
    }
    assert made["counts"]["val"]["good"] == 6
    assert not {"findings", "excluded"} & set(made)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_same_seed_gives_the_same_files_on_any_number_of_threads(
    make_dataset, tmp_path
) -> None:
    data = make_dataset()
    for name, options in {
        "one": CropOptions(workers=1),
        "two": CropOptions(workers=3),
        "other": CropOptions(seed=1),
    }.items():
        crop(data, tmp_path / name, options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_each_picture_is_decoded_once(write, tmp_path, monkeypatch) -> None:
    two = [blob("hole", 10, 10, 8, 8), blob("scratch", 60, 50, 8, 8)]
    data = write([two, two, []])
    opened: list[Path] = []
    real = PilImage.open
    monkeypatch.setattr(module.PilImage, "open", lambda path: (opened.append(path), real(path))[1])
    crop(data, tmp_path / "d", CropOptions())
    assert sorted(path.name for path in opened) == ["001.png", "002.png", "003.png"]


def test_sixteen_bits_stay_sixteen(write, tmp_path) -> None:
    data = write([[blob("hole", 10, 10, 8, 8)]], mode="I;16")
    crop(data, tmp_path / "d", CropOptions())
    (image,) = DatasetFolder.open(tmp_path / "d").read("train").images
    x, y, w, h = window_of(image)
    whole = pixels_of(data / "images/001.png")
    assert whole.max() > 255
    assert np.array_equal(pixels_of(image.path), whole[y : y + h, x : x + w])


def test_what_png_cannot_hold_becomes_colour(write, tmp_path) -> None:
    crop(write([[blob("hole", 10, 10, 8, 8)]], mode="CMYK"), tmp_path / "d", CropOptions())
    (image,) = DatasetFolder.open(tmp_path / "d").read("train").images
    assert PilImage.open(image.path).mode == "RGB"


def test_a_damaged_picture_stops_it_and_leaves_nothing(write, tmp_path) -> None:
    data = write([[blob("hole", 10, 10, 8, 8)]])
    (data / "images/001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"001\.png: cannot be read"):
        crop(data, tmp_path / "d", CropOptions())
    assert not (tmp_path / "d").exists() and not (tmp_path / ".d.partial").exists()


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([], "has no instance: there is nothing to cut out"),
        ([Instance("hole", (90, 0, 20, 5), None)], "has a box outside of the picture"),
        (
            [replace(blob("hole", 9, 9, 8, 8), pasted=Pasted(1, 1, (0,), {}))],
            "was balanced, .*: crop the dataset that it was made from",
        ),
    ],
)
def test_what_cannot_be_cropped(write, tmp_path, instances, message) -> None:
    with pytest.raises(InputError, match=message):
        crop(write([instances]), tmp_path / "d", CropOptions())
    assert not (tmp_path / "d").exists()
