from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

from converters.dataset import Dataset, Image
from converters.errors import InputError
from toolkit.classify import Classifier, finetune_classifier
from toolkit.classify.data import Pictures, Sampler, letterbox, to_input
from toolkit.classify.generate import latent, lro, make_generator, pictures
from toolkit.classify.generate.base import grow
from toolkit.classify.generate.latent import LatentSpace, content
from toolkit.classify.generate.pictures import grown_pictures
from toolkit.classify.model import build_resnet
from toolkit.classify.task import predict_logits
from toolkit.config import FinetuneClassifierConfig
from toolkit.processes import Place
from toolkit.runs import RunFolder

pytestmark = pytest.mark.usefixtures("narrow", "hasty")

CPU = torch.device("cpu")
CLASSES = ("good", "spot")
STEPS = 24


@pytest.fixture
def hasty(monkeypatch):
    """Fewer steps: what is made is coarser."""
    monkeypatch.setattr(latent, "_STEPS", 60)
    monkeypatch.setattr(lro, "_STEPS", 20)
    monkeypatch.setattr("toolkit.classify.generate.autoencoder._STEPS", 30)


def spotted(rng, good, spots, side=32):
    """Grey pictures of smooth noise, the last ones with a bright spot of any place and size."""
    noise = rng.normal(0, 1, (good + spots, side, side)).astype(np.float32)
    pixels = np.stack([cv2.GaussianBlur(each, (0, 0), 1.5) for each in noise]) * 60 + 110
    for picture in pixels[good:]:
        centre = rng.integers(6, side - 6, 2).tolist()
        cv2.circle(picture, centre, int(rng.integers(2, 5)), float(rng.uniform(165, 205)), -1)
    pixels += rng.normal(0, 4, pixels.shape)
    grey = np.clip(pixels, 0, 255).astype(np.uint8)
    return Pictures(np.repeat(grey[..., None], 3, axis=3), np.repeat([0, 1], [good, spots]))


@cache
def _right(seed, generator):
    """Shares of spots and of good pictures that are found; 5 spots to learn from, 200 good."""
    train = spotted(np.random.default_rng([seed, 0]), 200, 5)
    test = spotted(np.random.default_rng([seed, 1]), 100, 100)
    if generator:
        made = grow(make_generator(generator, seed), train.pixels, train.labels, CLASSES, 1.0, CPU)
        train = Pictures(
            np.concatenate([train.pixels, made.values]), np.concatenate([train.labels, made.labels])
        )
    torch.manual_seed(seed)
    model = build_resnet("resnet18", 2)
    factors = [1.0] * len(train.labels)
    sampler = Sampler(
        train,
        batch=32,
        repeat=6,
        factors=factors,
        augment=("flip", "turn", "rotate", "light"),
        rotation=10.0,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _, batch in zip(range(STEPS), sampler.batches(0), strict=False):
        loss = F.cross_entropy(model(to_input(batch.pixels)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = predict_logits(model, test.pixels).argmax(axis=1)
    return (said == 1)[test.labels == 1].mean(), (said == 0)[test.labels == 0].mean()


@pytest.mark.parametrize("generator", ["autoencoder", "lro"])
def test_a_rare_class_is_found_more_often_with_pictures_that_were_made(generator):
    """No weights of classes, and as many steps with them as without."""
    without, grown = (np.array([_right(s, name) for s in range(5)]) for name in (None, generator))
    for gain in (grown[:, 0] - without[:, 0], grown.mean(axis=1) - without.mean(axis=1)):
        # Student's t of five pairs, 95 %: 2.776 standard errors.
        assert gain.mean() - 2.776 * gain.std(ddof=1) / np.sqrt(len(gain)) > 0, (without, grown)


def _dataset(train):
    names = [f"{CLASSES[label]}_{number}.png" for number, label in enumerate(train.labels)]
    images = [Image(name, Path(name), 32, 32, (), name) for name in names]
    return Dataset("spotted", CLASSES[1:], tuple(images))


def _config(data, out, **options):
    values = {"epochs": 1, "batch": 8, "image_size": 32, "device": "cpu", "workers": 0, **options}
    return FinetuneClassifierConfig(data=data, out=out, pictures=False, **values)


def _grown(root, train, *, here=Place(), **options):  # noqa: B008
    config = _config(Path("data"), root, generate="autoencoder", **options)
    return grown_pictures(config, RunFolder(root), train, _dataset(train), CLASSES, CPU, here)


@pytest.fixture
def train():
    return spotted(np.random.default_rng(0), 8, 3)


def test_made_pictures_follow_those_of_train_and_the_run_says_where_they_come_from(tmp_path, train):
    grown = _grown(tmp_path, train, generate_to=0.75)
    assert np.array_equal(grown.pixels[:11], train.pixels)
    assert grown.labels.tolist() == [0] * 8 + [1] * 3 + [1] * 3
    table = list(csv.DictReader((tmp_path / "generated/provenance.csv").open(encoding="utf-8")))
    assert [(row["class"], row["number"]) for row in table] == [("spot", str(n)) for n in (1, 2, 3)]
    spots = {"spot_8.png", "spot_9.png", "spot_10.png"}
    assert all(set(row["parents"].split(";")) <= spots for row in table)
    assert {row["parents"].split(";")[0] for row in table} == spots
    sheet = cv2.imread(str(tmp_path / "generated/sheet.png"))
    assert sheet.shape == (30 + 3 * (22 + 128), 1280, 3)


def test_a_run_that_goes_on_and_other_processes_take_what_is_there(tmp_path, train, monkeypatch):
    state = torch.get_rng_state()
    first = _grown(tmp_path, train)
    assert torch.equal(torch.get_rng_state(), state)
    path = tmp_path / "generated/grown.safetensors"
    before = path.stat().st_mtime_ns, path.read_bytes()
    monkeypatch.setattr(pictures, "make_generator", None)
    monkeypatch.setattr("toolkit.processes._barrier", lambda: None)
    for here in (Place(), Place(rank=1, world=2)):
        again = _grown(tmp_path, train, here=here)
        assert np.array_equal(again.pixels, first.pixels)
        assert np.array_equal(again.labels, first.labels)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("labels"), "is damaged: remove it to make"),
        (lambda content: content.update(labels=content["labels"] + 1), "is damaged"),
        (lambda content: content.update(pixels=content["pixels"][:1]), "is damaged"),
        (lambda content: content.update(parents=content["parents"] + 9), "of other pictures|other"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, train, change, message):
    path = tmp_path / "generated/grown.safetensors"
    path.parent.mkdir()
    content = {
        "pixels": train.pixels[8:],
        "labels": train.labels[8:],
        "parents": np.array([[8, 9], [9, 10], [10, pictures.NOBODY]]),
    }
    save_file(content, path)
    assert _grown(tmp_path, train).pixels.shape == (14, 32, 32, 3)
    change(content)
    save_file(content, path)
    with pytest.raises(InputError, match=message) as caught:
        _grown(tmp_path, train)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"grown\.safetensors: is damaged"):
        _grown(tmp_path, train)


def test_too_few_pictures_are_said_and_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="no rare class has the 2 train pictures that it needs"):
        _grown(tmp_path, spotted(np.random.default_rng(0), 5, 1))
    assert not (tmp_path / "generated").exists()


def test_padding_stays_padding_and_grey_stays_grey():
    wide = spotted(np.random.default_rng(0), 6, 4).pixels[:, 8:-8]
    pixels = np.stack([letterbox(picture, 32) for picture in wide])
    space = LatentSpace(pixels, np.repeat([0, 1], [6, 4]), 2, CPU, 0)
    assert content(pixels[0]) == (slice(8, 24), slice(0, 32))
    change = space.changes(np.array([9]), space.codes[[8]])[0]
    made = space.picture(9, change)
    assert np.abs(made[8:24].astype(int) - pixels[9, 8:24]).max() > 5
    assert (made[8:24] == made[8:24, :, :1]).all()
    assert np.array_equal(made[:8], pixels[9, :8]) and np.array_equal(made[24:], pixels[9, 24:])


def test_made_pictures_are_as_sharp_as_real_ones():
    """Blurred ones would teach that what is rare is blurred."""
    train = spotted(np.random.default_rng(0), 20, 6)
    made = grow(make_generator("lro", 0), train.pixels, train.labels, CLASSES, 1.0, CPU)

    def sharpness(pixels):
        return np.mean([cv2.Laplacian(each[..., 0], cv2.CV_64F).var() for each in pixels])

    assert sharpness(made.values) > 0.8 * sharpness(train.pixels[train.labels == 1])


@pytest.mark.parametrize("generator", ["autoencoder", "lro"])
def test_a_run_from_end_to_end_never_looks_at_val_to_make_pictures(
    make_dataset, tmp_path, generator
):
    data = make_dataset(good=6)
    runs = []
    for name in ("a", "b"):
        if name == "b":
            for path in (data / "images").glob("val_*"):
                cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
        config = _config(data, tmp_path / name, generate=generator, class_weights="none")
        runs.append(finetune_classifier(config))
    files = [(run.root / "generated/grown.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]
    made = load_file(runs[0].root / "generated/grown.safetensors")
    assert made["labels"].tolist() == [1, 1, 1, 2, 2, 2]
    assert Classifier.load(runs[0].root, "cpu").classes == ("good", "scratch", "spot")
    rows = csv.DictReader((runs[0].root / "generated/provenance.csv").open(encoding="utf-8"))
    assert all(f"train_{row['class']}" in row["parents"] for row in rows)
