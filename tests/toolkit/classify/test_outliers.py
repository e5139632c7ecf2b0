"""Outliers are pictures of anything else: what is read, and what is refused."""

from __future__ import annotations

import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.classify import finetune_classifier, outliers
from toolkit.classify.losses import undecided
from toolkit.classify.outliers import read_outliers
from toolkit.classify.scores import OF_THE_UNKNOWN, suspicion
from toolkit.config import FinetuneClassifierConfig
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
    return read_outliers(given, datasets, 32, **{"workers": 2, "seed": 0, **options})


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


def _auroc(low, high):
    """Share of the pairs in which the second is the higher."""
    return float((high[None] > low[:, None]).mean() + (high[None] == low[:, None]).mean() / 2)


def _unknown_found(seed, weight):
    """AUROC of both scores against unseen outliers, of a network with outlier exposure or without.

    Three classes in eight dimensions; outliers of training lie on a shell around them, unseen ones
    anywhere in a cube.
    """
    rng = np.random.default_rng(seed)
    centres = 3 * np.eye(3, 8)
    labels = np.arange(120) % 3

    def draw(label):
        return torch.from_numpy(centres[label] + 0.6 * rng.normal(size=(len(label), 8))).float()

    known, held_out = draw(labels), draw(labels)
    shell = rng.normal(size=(120, 8))
    shell = torch.from_numpy(6 * shell / np.linalg.norm(shell, axis=1, keepdims=True)).float()
    strange = torch.from_numpy(rng.uniform(-4, 4, (120, 8))).float()
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        loss = F.cross_entropy(network(known), torch.from_numpy(labels))
        loss = loss + weight * undecided(network(shell))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        inside, outside = (network(x).numpy() for x in (held_out, strange))
    assert (inside.argmax(axis=1) == labels).mean() > 0.9
    return [_auroc(suspicion(inside, 1, k), suspicion(outside, 1, k)) for k in OF_THE_UNKNOWN]


def test_exposure_to_outliers_finds_others_that_were_not_seen():
    """At the default weight, over five seeds; the interval is that of the paired difference."""
    gains = np.array(
        [np.subtract(_unknown_found(seed, 0.5), _unknown_found(seed, 0.0)) for seed in range(5)]
    )
    half = 2.78 * gains.std(axis=0, ddof=1) / np.sqrt(5)  # Student's quantile, 4 degrees of freedom
    assert (gains.mean(axis=0) - half > 0.02).all(), (gains.mean(axis=0), half)


@pytest.mark.usefixtures("narrow")
def test_a_run_learns_from_outliers_and_refuses_its_own_pictures(
    make_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(outliers, "SYNTH_PICTURES", 8)
    data = make_dataset()
    options = {"data": data, "epochs": 1, "batch": 4, "image_size": 32, "device": "cpu"}
    options |= {"workers": 0, "pictures": False}
    run = finetune_classifier(
        FinetuneClassifierConfig(out=tmp_path / "run", outliers="synth", **options)
    )
    assert '"outlier_loss"' in (run.root / "log.jsonl").read_text()
    config = FinetuneClassifierConfig(out=tmp_path / "refused", outliers=data / "images", **options)
    with pytest.raises(InputError, match="of the dataset"):
        finetune_classifier(config)
    assert not (tmp_path / "refused").exists()
