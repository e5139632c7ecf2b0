"""`toolkit balance`, from a dataset folder to a dataset folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from converters.check import check
from converters.dataset import Dataset
from converters.errors import InputError
from converters.folder import DatasetFolder
from converters.formats.coco import write_coco
from toolkit.balance import Balanced, balance
from toolkit.balance.blend import MARGIN
from toolkit.cli import cli
from toolkit.config import BalanceConfig


def edit(data: Path, change: Callable[[Dataset], Dataset], split: str = "train") -> None:
    dataset = DatasetFolder.open(data).read(split)
    write_coco(data / f"{split}.json", change(dataset))


def drop(dataset: Dataset, label: str, keep: int) -> Dataset:
    """Leave out all but so many pictures with a label."""
    seen: Counter[str] = Counter()
    images = []
    for image in dataset.images:
        seen[image.labels[0]] += 1
        if image.labels[0] != label or seen[label] <= keep:
            images.append(image)
    return dataset.subset(tuple(images))


@pytest.fixture
def tail(make_dataset) -> Path:
    """Eight scratches, two spots and six good pictures in train."""
    data = make_dataset(good=6, per_kind=8, size=96)
    edit(data, lambda train: drop(train, "spot", 2))
    return data


def run(data: Path, name: str = "balanced", **options) -> tuple[Path, Balanced]:
    dest = data.parent / name
    return dest, balance(BalanceConfig(dataset=data, dest=dest, **options))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_counts_reach_the_plan_and_nothing_else_changes(tail) -> None:
    before = digests(tail)
    dest, result = run(tail, target="equal")
    assert digests(tail) == before
    folder = DatasetFolder.open(dest)
    assert folder.read("train").count_instances() == {"scratch": 8, "spot": 8}
    assert [(each.category, each.after) for each in result.plans[None].classes] == [
        ("scratch", 8),
        ("spot", 8),
    ]
    for split in ("val", "test"):
        assert folder.read(split).images == tuple(
            image.__class__(**{**_fields(image), "path": dest / "images" / image.file_name})
            for image in DatasetFolder.open(tail).read(split).images
        )
    card = yaml.safe_load((dest / "dataset.yaml").read_text())
    assert card["balance"]["train_instances"] == {"scratch": 8, "spot": 8}
    assert cv2.imread(str(dest / "balance.png")) is not None
    assert [f for f in check(dest, near_duplicates=False) if f.severity == "error"] == []


def _fields(image) -> dict[str, object]:
    return {name: getattr(image, name) for name in image.__slots__}


@pytest.mark.parametrize("blend", ["hard", "feather", "poisson", "mixed"])
def test_masks_are_the_pixels_that_changed(tail, blend) -> None:
    dest, _ = run(tail, target="equal", blend=blend, place="anywhere", method="paste")
    coco = COCO(dest / "train.json")
    made = [image for image in coco.loadImgs(coco.getImgIds()) if "copy_of" in image]
    assert made
    for image in made:
        host = coco.loadImgs([image["copy_of"]])[0]
        old, new = (
            cv2.imread(str(dest / "images" / entry["file_name"]), cv2.IMREAD_UNCHANGED)
            for entry in (host, image)
        )
        changed = old != new
        there = np.zeros(changed.shape, bool)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            ys, xs = np.nonzero(mask)
            tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["bbox"] == tight
            assert annotation["area"] == mask.sum()
            there |= mask
        near = cv2.dilate(there.astype(np.uint8), np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0
        assert not changed[~near].any()
        assert changed[there].mean() > 0.7


def test_every_paste_says_where_it_comes_from(tail) -> None:
    dest, _ = run(tail, target="equal", method="paste")
    train = DatasetFolder.open(dest).read("train")
    camera = {i.id: image for image in train.images for i in image.instances if i.pasted is None}
    pasted = [i for image in train.images for i in image.instances if i.pasted is not None]
    assert len(pasted) == 6
    for instance in pasted:
        assert camera[instance.pasted.donor].id == instance.pasted.donor_image
        assert instance.pasted.transform["blend"] == "feather"
        assert len(instance.pasted.seed) == 3
    ids = [i.id for image in train.images for i in image.instances]
    assert len(ids) == len(set(ids))
    assert len({image.id for image in train.images}) == len(train.images)


def test_the_number_of_workers_changes_no_byte(tail) -> None:
    one, _ = run(tail, "one", target="equal", blend="mixed", workers=1)
    two, _ = run(tail, "two", target="equal", blend="mixed", workers=2)
    other, _ = run(tail, "other", target="equal", blend="mixed", seed=1)
    ours, theirs = digests(one), digests(two)
    ours.pop("dataset.yaml"), theirs.pop("dataset.yaml")
    assert ours == theirs
    assert digests(other) != digests(one)
    assert (one / "dataset.yaml").read_text() == (two / "dataset.yaml").read_text()


@pytest.mark.parametrize("method", ["paste", "oversample"])
def test_what_was_made_is_not_copied_again(tail, method) -> None:
    once, _ = run(tail, "once", target="equal", method=method)
    twice, _ = run(once, "twice", target=12, method=method)
    train = DatasetFolder.open(twice).read("train")
    assert train.count_instances()["spot"] > 8
    made = {image.id for image in train.images if image.copy_of}
    assert not made & {image.copy_of for image in train.images}
    assert [f for f in check(twice, near_duplicates=False) if f.severity == "error"] == []


def test_oversampling_lists_again_and_copies_no_file(tail) -> None:
    dest, result = run(tail, target="equal", method="oversample")
    assert result.pictures == 0
    assert sorted(path.name for path in (dest / "images").iterdir()) == sorted(
        path.name for path in (tail / "images").iterdir() if _is_used(tail, path.name)
    )
    train = DatasetFolder.open(dest).read("train")
    again = [image for image in train.images if image.copy_of]
    assert len(again) == 6
    names = {image.id: image.file_name for image in train.images}
    assert all(image.file_name == names[image.copy_of] for image in again)


def test_what_is_listed_again_may_differ(tail) -> None:
    options = {"target": "equal", "method": "oversample", "vary": True}
    one, result = run(tail, "one", workers=1, **options)
    two, _ = run(tail, "two", workers=2, **options)
    assert digests(one) == digests(two)
    assert result.pictures == 6
    train = DatasetFolder.open(one).read("train")
    assert train.count_instances() == {"scratch": 8, "spot": 8}
    made = [image for image in train.images if image.copy_of]
    assert len({image.path.read_bytes() for image in made}) == 6
    assert all(image.file_name.startswith("varied_") for image in made)
    assert [f for f in check(one, near_duplicates=False) if f.severity == "error"] == []


def _is_used(data: Path, name: str) -> bool:
    folder = DatasetFolder.open(data)
    return any(i.file_name == name for s in folder.splits() for i in folder.read(s).images)


def test_a_dry_run_writes_nothing(tail, capsys) -> None:
    before = sorted(tail.parent.rglob("*"))
    assert cli.main(["balance", str(tail), "--dry-run"], standalone_mode=False) == 0
    assert sorted(tail.parent.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "spot" in printed
    assert "nothing was written" in printed


@pytest.mark.parametrize(("brushed", "most"), [(True, 10), (False, 180)])
def test_defects_of_brushed_surfaces_keep_their_direction(tail, brushed, most) -> None:
    if brushed:
        for path in (tail / "images").glob("*_good_*"):
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), cv2.blur(pixels, (1, 41)))
    dest, _ = run(tail, target=30, method="paste", per_donor=20, per_host=20, place="anywhere")
    pasted = [
        i.pasted for image in DatasetFolder.open(dest).read("train").images for i in image.instances
    ]
    angles = [abs(p.transform["angle"]) for p in pasted if p is not None]
    assert len(angles) > 20
    assert max(angles) <= most
    assert brushed or max(angles) > 45


def test_what_is_covered_is_cut(make_dataset) -> None:
    data = make_dataset(good=0, per_kind=8, size=96)
    edit(data, lambda train: drop(train, "spot", 3))
    dest, _ = run(data, target="equal", method="paste", max_overlap=1.0, place="anywhere", scale=2)
    train = DatasetFolder.open(dest).read("train")
    whole = {image.id: image for image in train.images if not image.copy_of}
    cut = 0
    for image in train.images:
        if not image.copy_of:
            continue
        masks = [i.to_mask(image.height, image.width) for i in image.instances]
        assert np.sum(masks, axis=0).max() == 1  # nothing lies on top of another
        old = sum(i.area for i in whole[image.copy_of].instances)
        cut += sum(i.area for i in image.instances if i.pasted is None) < old
    assert cut


def test_folds_are_balanced_each_for_itself(tail) -> None:
    for fold in ("0", "1"):
        (tail / "folds" / fold).mkdir(parents=True)
        for split in ("train", "val", "test"):
            (tail / "folds" / fold / f"{split}.json").write_text(
                (tail / f"{split}.json").read_text()
            )
    for split in ("train", "val", "test"):
        (tail / f"{split}.json").unlink()
    dest, result = run(tail, target="equal")
    assert set(result.plans) == {0, 1}
    for fold in (0, 1):
        train = DatasetFolder.open(dest, fold).read("train")
        assert train.count_instances() == {"scratch": 8, "spot": 8}
        made = [image.file_name for image in train.images if image.file_name.startswith("pasted")]
        assert made
        assert all(name.startswith(f"pasted_fold{fold}_") for name in made)
    alone = balance(BalanceConfig(dataset=tail, fold=1, dry_run=True))
    assert set(alone.plans) == {1}


def test_deep_and_grey_pictures(tail) -> None:
    for path in (tail / "images").iterdir():
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels.ndim == 2
        cv2.imwrite(str(path), pixels.astype(np.uint16) * 257)
    dest, _ = run(tail, target="equal")
    made = next((dest / "images").glob("pasted_*"))
    assert cv2.imread(str(made), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    with pytest.raises(InputError, match="has 16 bits, and poisson blends 8: choose --blend fea"):
        run(tail, "poisson", target="equal", blend="poisson", method="paste")
    assert not (tail.parent / "poisson").exists()


def test_a_donor_larger_than_its_host_is_shrunk_or_said_to_have_no_place(tail) -> None:
    def shrink_hosts(train: Dataset) -> Dataset:
        images = []
        for image in train.images:
            if image.is_good:
                pixels = cv2.imread(str(image.path), cv2.IMREAD_UNCHANGED)
                cv2.imwrite(str(image.path), pixels[:12, :12])
                image = image.__class__(**{**_fields(image), "width": 12, "height": 12})
            images.append(image)
        return train.subset(tuple(images))

    edit(tail, shrink_hosts)
    dest, result = run(tail, target="equal", method="paste")
    train = DatasetFolder.open(dest).read("train")
    assert train.count_instances()["spot"] + result.not_placed.get("spot", 0) == 8
    for image in train.images:
        for instance in image.instances:
            x, y, w, h = instance.box
            assert 0 <= x < x + w <= image.width
            assert 0 <= y < y + h <= image.height


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"never_paste": ("crack",)}, "never_paste: 'crack' is no class of .*: its classes are"),
        ({"fold": 3}, "has no folds: fold 3 is not there"),
        ({"objects": Path("nowhere")}, "no mask of the part on"),
    ],
)
def test_bad_input_is_one_line(tail, options, message) -> None:
    with pytest.raises(InputError, match=message):
        run(tail, **options)
    assert not (tail.parent / "balanced").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [("paste", "feather: 2 donors were pasted, too few"), ("oversample", "nothing was pasted")],
)
def test_a_seam_test_that_cannot_be_made_leaves_nothing(tail, method, message) -> None:
    with pytest.raises(InputError, match=message):
        run(tail, target="equal", method=method, seam_test=True)
    assert not (tail.parent / "balanced").exists()


def test_a_train_split_without_defects_is_refused(tail) -> None:
    edit(tail, lambda train: drop(drop(train, "spot", 0), "scratch", 0))
    with pytest.raises(InputError, match="has no defect: there is nothing to balance"):
        run(tail)


def test_a_destination_is_needed_and_must_be_free(tail) -> None:
    with pytest.raises(InputError, match="dest: name the dataset folder to make"):
        balance(BalanceConfig(dataset=tail))
    with pytest.raises(InputError, match="exists and is not empty"):
        balance(BalanceConfig(dataset=tail, dest=tail))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (
            lambda train, test: test["annotations"][0].update(pasted=_pasted(train)["pasted"]),
            "made-in-held-out",
        ),
        (lambda train, test: _made(train).update(copy_of=test["images"][0]["id"]), "host-not-in"),
        (
            lambda train, test: _pasted(train)["pasted"].update(donor=test["annotations"][0]["id"]),
            "donor-not-in-train",
        ),
    ],
)
def test_check_sees_what_came_from_the_held_out_side(tail, change, code) -> None:
    dest, _ = run(tail, target="equal", method="paste")
    train, test = (json.loads((dest / f"{split}.json").read_text()) for split in ("train", "test"))
    change(train, test)
    (dest / "train.json").write_text(json.dumps(train))
    (dest / "test.json").write_text(json.dumps(test))
    codes = [f.code for f in check(dest, near_duplicates=False) if f.severity == "error"]
    assert any(found.startswith(code) for found in codes), codes


def _pasted(train) -> dict:
    return next(a for a in train["annotations"] if "pasted" in a)


def _made(train) -> dict:
    return next(i for i in train["images"] if "copy_of" in i)
