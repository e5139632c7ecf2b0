"""Pictures with labels alone: the classifier takes them, what needs boxes does not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.dataset import SPLITS
from converters.errors import InputError
from toolkit.balance import balance
from toolkit.classify import finetune_classifier
from toolkit.config import (
    BalanceConfig,
    ConvertConfig,
    CropConfig,
    EvaluateConfig,
    FinetuneClassifierConfig,
    FinetuneSamConfig,
    FinetuneYoloConfig,
    PredictConfig,
)
from toolkit.data import convert_dataset, crop_dataset
from toolkit.evaluate import evaluate
from toolkit.predictions import PredictionCard, write_predictions


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Bright and dark pictures, sorted into splits and classes by somebody else."""
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for name, level in {"OK": 120, "bright": 220, "dark": 30}.items():
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = rng.normal(level, 8, (40, 48)).clip(0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{number}.png"), pixels)
    options = {"split": "source", "near_duplicates": False}
    convert_dataset(ConvertConfig(source=tmp_path / "source", dest=tmp_path / "dataset", **options))
    return tmp_path / "dataset"


def test_a_classifier_learns_and_is_scored(dataset: Path, tmp_path: Path, narrow: None) -> None:
    run = finetune_classifier(
        FinetuneClassifierConfig(
            data=dataset,
            out=tmp_path / "run",
            model="resnet18",
            weights="none",
            image_size=32,
            epochs=1,
            batch=4,
            device="cpu",
            workers=0,
        )
    )
    metrics = evaluate(EvaluateConfig(data=dataset, predictions=(run.root,), resamples=20))
    assert metrics.protocol.images == 12
    assert metrics.figures["image.balanced_accuracy"].n == 12


def needs_places(name: str, data: Path, tmp_path: Path) -> None:
    from toolkit.detect import finetune_yolo
    from toolkit.predict import predict
    from toolkit.segment import finetune_sam

    out = tmp_path / "out"
    if name == "yolo":
        finetune_yolo(FinetuneYoloConfig(data=data, out=out, device="cpu"))
    elif name == "sam":
        finetune_sam(FinetuneSamConfig(data=data, out=out, device="cpu"))
    elif name == "balance":
        balance(BalanceConfig(dataset=data, dest=out))
    elif name == "crop":
        crop_dataset(CropConfig(dataset=data, dest=out))
    elif name == "predict":
        predict(PredictConfig(source=data, segmenter="starter", out=out, device="cpu"))
    else:
        card = PredictionCard("detector", masks=False)
        write_predictions(tmp_path / "run/predictions", {"test": []}, card)
        evaluate(EvaluateConfig(data=data, predictions=(tmp_path / "run",), out=out))


@pytest.mark.parametrize("name", ["yolo", "sam", "balance", "crop", "predict", "evaluate"])
def test_what_needs_places_is_refused(name: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels of whole pictures") as caught:
        needs_places(name, dataset, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_listing_pictures_again_needs_no_places(dataset: Path, tmp_path: Path) -> None:
    config = BalanceConfig(dataset=dataset, dest=tmp_path / "b", method="oversample", target=6)
    assert balance(config).written
    with pytest.raises(InputError, match="labels of whole pictures"):
        crop_dataset(CropConfig(dataset=tmp_path / "b", dest=tmp_path / "c"))
