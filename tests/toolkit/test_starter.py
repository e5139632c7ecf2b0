"""Starter weights: packed small, refused in one line where they are missing or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from toolkit import starter
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
