"""Outliers are pictures of anything else: what is read, and what is refused."""

from __future__ import annotations

import re
import shutil

import cv2
import numpy as np
import pytest

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.classify import outliers
from toolkit.classify.outliers import read_outliers
from toolkit.images import read_image


@pytest.fixture
def datasets(make_dataset):
    folder = DatasetFolder.open(make_dataset())
    return {split: folder.read(split) for split in folder.splits()}


def _pictures(folder, count, *, size=(40, 30), seed=9):
    """Coloured noise, smoothed: nothing like the dataset."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = rng.integers(0, 256, (*size, 3)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 3)
        cv2.imwrite(str(folder / f"{number}.png"), 3 * (smooth - 128) + 128)
    return folder


def _read(given, datasets, **options):
    return read_outliers(str(given), datasets, 32, **{"workers": 2, "seed": 0, **options})


def test_a_folder_is_read_with_the_folders_in_it(datasets, tmp_path):
    folder = _pictures(tmp_path / "other", 3)
    _pictures(folder / "deep" / "deeper", 2, seed=8)
    (folder / "notes.txt").write_text("no picture")
    found = _read(folder, datasets)
    assert found.pixels.shape == (5, 32, 32, 3) and found.pixels.dtype == np.uint8
    assert found.labels.tolist() == [-1] * 5
    # Letterboxed as all pictures are: 40 x 30 leaves four columns of padding on either side.
    assert (found.pixels[0][:, :4] == (124, 116, 104)).all()
    assert not (found.pixels[0][:, 4:-4] == (124, 116, 104)).all()


def test_of_a_dataset_folder_its_train_is_taken(datasets, make_dataset):
    other = make_dataset(name="other", seed=5, good=1, per_kind=2)
    assert len(_read(other, datasets).labels) == 5


def test_of_a_dataset_with_folds_alone_train_of_the_first_is_taken(datasets, make_dataset):
    other = make_dataset(name="other", seed=5, good=1, per_kind=2)
    (other / "folds/0").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (other / f"{split}.json").rename(other / f"folds/0/{split}.json")
    assert len(_read(other, datasets).labels) == 5


def test_procedural_pictures_depend_on_the_seed_alone(datasets, monkeypatch):
    monkeypatch.setattr(outliers, "SYNTH_PICTURES", 12)
    first, again, other = (
        _read("synth", datasets, seed=seed, workers=workers)
        for seed, workers in ((1, 0), (1, 2), (2, 0))
    )
    assert first.pixels.shape == (12, 32, 32, 3)
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)
    assert len(np.unique(first.pixels.reshape(12, -1), axis=0)) == 12


def test_of_very_many_pictures_the_seed_draws_some(datasets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outliers, "MOST", 4)
    folder = _pictures(tmp_path / "other", 9)
    first, again, other = (_read(folder, datasets, seed=seed) for seed in (0, 0, 3))
    assert len(first.labels) == 4
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)
    assert "4 of 9 pictures are taken as outliers" in capsys.readouterr().err


def _as_it_is(source, folder):
    shutil.copy(source, folder / "copy.png")


def _encoded_anew(source, folder):
    cv2.imwrite(str(folder / "copy.bmp"), cv2.imread(str(source)))


def _as_jpeg(source, folder):
    cv2.imwrite(str(folder / "copy.jpg"), cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, 95])


def _darker(source, folder):
    cv2.imwrite(str(folder / "copy.png"), cv2.imread(str(source)) * 0.8)


def _larger(source, folder):
    image = cv2.resize(cv2.imread(str(source)), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "copy.png"), image)


@pytest.mark.parametrize(
    ("copy", "what"),
    [
        (_as_it_is, "is the same picture as"),
        (_encoded_anew, "is the same picture as"),
        (_as_jpeg, "shows the same photograph as"),
        (_darker, "shows the same photograph as"),
        (_larger, "shows the same photograph as"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_picture_of_the_dataset_is_refused_however_it_was_copied(
    datasets, tmp_path, copy, what, split
):
    folder = _pictures(tmp_path / "other", 3)
    image = datasets[split].images[2]
    copy(image.path, folder)
    message = rf"copy\.\w+: {what} {re.escape(image.file_name)} in {split} of the dataset: .*remove"
    with pytest.raises(InputError, match=message) as caught:
        _read(folder, datasets)
    assert "\n" not in str(caught.value)


def test_the_dataset_itself_is_refused_and_how_much_of_it_is_said(datasets):
    root = datasets["train"].images[0].path.parents[1]
    with pytest.raises(InputError, match=r"in train of the dataset, and so are 7 more: outliers"):
        _read(root, datasets)


def test_a_procedural_picture_is_no_copy_of_another(datasets, tmp_path):
    """Products that look alike are not taken for one photograph."""
    other = {
        split: dataset.subset(dataset.images[:0]) if split == "val" else dataset
        for split, dataset in datasets.items()
    }
    folder = tmp_path / "held"
    folder.mkdir()
    for image in datasets["val"].images:
        shutil.copy(image.path, folder / image.file_name)
    assert len(_read(folder, other).labels) == len(datasets["val"].images)
    assert read_image(next(iter(folder.iterdir()))).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"other: no such folder of outliers: give a folder of pictures"),
        (lambda folder: folder.mkdir(), r"other: holds no pictures to take as outliers: give"),
        (lambda folder: folder.write_text("x"), r"other: no such folder of outliers"),
    ],
)
def test_what_is_no_folder_of_pictures_is_named(datasets, tmp_path, make, message):
    make(tmp_path / "other")
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path / "other", datasets)
    assert "\n" not in str(caught.value)


def test_an_unreadable_outlier_is_named(datasets, tmp_path):
    folder = _pictures(tmp_path / "other", 2)
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.jpg: is not a readable picture: replace"):
        _read(folder, datasets)
