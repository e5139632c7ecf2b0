"""Starter weights: packed small, refused in one line where they are missing or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from toolkit import starter

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
