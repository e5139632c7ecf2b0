"""Starter weights: packed small, refused in one line where they are missing or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from toolkit import starter
from toolkit.classify.model import build_resnet
from toolkit.classify.weights import load_backbone
from toolkit.config import PredictConfig
from toolkit.predict import predict
from toolkit.predictions import read_results
from toolkit.report.pictures import write_picture
from toolkit.synth import sample

TENSORS = {"weight": torch.tensor([[0.5, -1.25]]), "count": torch.tensor(7)}


def test_a_packed_model_is_half_as_large_and_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    starter.write_packed(path, TENSORS, {"architecture": "nano"})

    assert load_file(path)["weight"].dtype == torch.float16
    tensors, description = starter.read_packed(path)
    assert description == {"architecture": "nano"}
    assert tensors["weight"].dtype == torch.float32
    assert torch.equal(tensors["weight"], TENSORS["weight"])
    assert torch.equal(tensors["count"], TENSORS["count"])


def test_a_package_without_starters_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(starter, "FOLDER", tmp_path)

    with pytest.raises(InputError, match="no starter weights: give --weights none"):
        starter.starter_path("sam_nano")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\0" * 64])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(InputError, match="is damaged or no packed model"):
        starter.read_packed(path)


def test_a_plain_safetensors_file_is_no_packed_model(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "plain.safetensors")

    with pytest.raises(InputError, match="no packed model"):
        starter.read_packed(tmp_path / "plain.safetensors")


def test_what_is_packaged_is_small_and_has_cards() -> None:
    files = sorted(starter.FOLDER.glob("*.safetensors"))

    assert files
    assert sum(path.stat().st_size for path in files) <= 40e6
    for path in files:
        card = path.with_suffix(".md").read_text(encoding="utf-8")
        for heading in ("**Data**", "**Command**", "**Licence**", "## On real pictures"):
            assert heading in card, f"{path.name}: its card lacks {heading}"


def test_the_packaged_detector_finds_defects_on_pictures_of_no_dataset(tmp_path: Path) -> None:
    """No training, no classes: only "defect", and boxes inside the picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        picture = sample(seed, size=(120, 160), surface="painted", defects=["thread"])
        write_picture(folder / f"{seed}.png", picture.image)

    predict(
        PredictConfig(
            source=folder,
            out=tmp_path / "found",
            detector=Path("starter"),
            segmenter=Path("starter"),
            max_detections=3,
            device="cpu",
        )
    )

    images = json.loads((tmp_path / "found/predictions/images.json").read_text("utf-8"))
    results = read_results(tmp_path / "found/predictions/pictures.json")
    assert [category["name"] for category in images["categories"]] == ["defect"]
    assert results
    for result in results:
        x, y, w, h = result["bbox"]
        assert x >= 0 and y >= 0 and x + w <= 160 and y + h <= 120
        assert result["segmentation"]["size"] == [120, 160]


def _features(model: torch.nn.Module, surface: str, seeds: range) -> torch.Tensor:
    """What a ResNet says of pictures of a surface, before its head."""
    pixels = [sample(seed, size=(128, 128), surface=surface, defects=[]).image for seed in seeds]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    body = torch.nn.Sequential(*list(model.children())[:-1]).eval()
    with torch.inference_mode():
        return body((batch - 0.45) / 0.225).flatten(1)


def test_the_packaged_classifier_sees_more_than_a_random_one() -> None:
    """Three pictures of each surface are enough to know it again; by random features they are not.

    Nearest mean in standardised features, on pictures of other seeds.
    """
    surfaces = ("brushed_metal", "leather", "weave", "wood", "board", "cast_grain")
    right = {}
    for weights in ("starter", "none"):
        torch.manual_seed(0)
        model = build_resnet("resnet18", 4)
        if weights == "starter":
            model, found = load_backbone("starter", None, ("good", "bent", "cut", "scratch"))
            assert (found, model.fc.out_features) == ("resnet18", 4)
        known = torch.stack([_features(model, name, range(3)) for name in surfaces])
        new = torch.stack([_features(model, name, range(100, 110)) for name in surfaces])
        spread = known.flatten(0, 1).std(dim=0) + 1e-3
        far = ((new[:, :, None] - known.mean(dim=1)[None, None]) / spread).norm(dim=-1)
        right[weights] = float(
            (far.argmin(dim=-1) == torch.arange(len(surfaces))[:, None]).float().mean()
        )
    assert right["starter"] >= 0.8, right
    assert right["starter"] >= right["none"] + 0.2, right
