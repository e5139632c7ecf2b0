"""CLIP's text encoder from files of every kind, none of which runs code unasked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from converters.errors import InputError
from toolkit.detect.clip import TextEncoder

PHRASES = ["bent lead", "a lead of a transistor that is bent", "Ölfleck, 3 mm"]


def _pickled(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def test_an_official_archive_gives_what_ultralytics_computes(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    clip_files.pretend_official(
        monkeypatch, clip_files.write_archive(Path("weights/ViT-B-32.pt"), clip_state)
    )

    vectors = TextEncoder.load("clip-vit-b-32")(PHRASES)

    expected = clip_files.reference(clip_state, PHRASES)
    assert vectors.dtype == torch.float32 and vectors.shape == (3, 512)
    assert torch.allclose(vectors, expected, atol=1e-6)
    assert (expected @ expected.T - torch.eye(3)).max() < 0.99  # phrases do come out apart


def test_tokens_are_those_of_openai(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    encoder = TextEncoder.load(str(_pickled(tmp_path / "clip.pt", clip_state)))
    tokens = encoder._tokenizer(["a photo of a cat"], context_length=77)
    assert tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "nested", "text prefix", "tower"])
def test_plain_state_dicts_are_read_without_trust(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    single = {name: tensor.float() for name, tensor in clip_state.items()}
    tower = {name: tensor for name, tensor in single.items() if not name.startswith("visual.")}
    path = tmp_path / "clip.pt"
    if kind == "safetensors":
        path = tmp_path / "open_clip_model.safetensors"
        save_file(single, path)
    elif kind == "nested":
        _pickled(path, {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in single.items()}})
    elif kind == "text prefix":
        _pickled(path, {f"text.{name}": tensor for name, tensor in tower.items()})
    else:
        _pickled(path, single if kind == "state dict" else tower)

    found = TextEncoder.load(str(path))(PHRASES)

    assert torch.allclose(found, clip_files.reference(clip_state, PHRASES), atol=1e-6)


def test_an_archive_that_is_not_the_official_one_needs_trust(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "ViT-B-32.pt"
    digest = clip_files.write_archive(path, clip_state)

    with pytest.raises(InputError, match=f"could run any code .* {digest}, not 40d36571.*--trust"):
        TextEncoder.load(str(path))
    found = TextEncoder.load(str(path), trust=True)(PHRASES)
    assert torch.allclose(found, clip_files.reference(clip_state, PHRASES), atol=1e-6)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_is_more_than_tensors_is_not_run(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = _pickled(tmp_path / "clip.pt", {**clip_state, "extra": _Payload(tmp_path / "hacked")})
    with pytest.raises(InputError, match=r"could run any code when it is loaded"):
        TextEncoder.load(str(path))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("name", ["clip.pt", "clip.safetensors"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_file_is_one_line(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path, name: str, cut: bool
) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        _pickled(path, clip_state)
    else:
        save_file(clip_state, path)
    path.write_bytes(path.read_bytes()[:-100_000] if cut else b"<html>Please log in</html>")
    with pytest.raises(InputError, match=rf"{name}: is damaged or no file of CLIP: get it again$"):
        TextEncoder.load(str(path))


def test_missing_weights_say_what_to_bring_from_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        TextEncoder.load("clip-vit-b-32")
    line = str(caught.value)
    sha256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert line.startswith("weights/ViT-B-32.pt: no such file") and "\n" not in line
    for part in (
        "`toolkit weights get clip-vit-b-32`",
        f"https://openaipublic.azureedge.net/clip/models/{sha256}/ViT-B-32.pt",
        f"SHA-256 {sha256}",
        "put it at weights/ViT-B-32.pt",
        "`toolkit prompts make",
    ):
        assert part in line
    with pytest.raises(InputError, match=r"^elsewhere/clip\.pt: no such file"):
        TextEncoder.load("elsewhere/clip.pt")


def test_without_the_library_a_line_says_how_to_get_it(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _pickled(tmp_path / "clip.pt", clip_state)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r'pip install "defect-toolkit\[clip\]"'):
        TextEncoder.load(str(path))


def test_another_clip_is_refused(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "clip.pt"
    finer = dict(clip_state)
    name = "transformer.resblocks.0.attn.in_proj_weight"
    finer[name] = finer[name].float() * (1 + 2**-20)
    for content, message in (
        (clip_files.state(patch=16), "patches of 16 pixels"),
        (clip_files.state(size=768), "gives 768 numbers, not 512"),
        (finer, "finer than half precision, .* another training of CLIP"),
        ({"model.weight": torch.ones(2)}, "has no text encoder of CLIP's"),
        ({k: v for k, v in clip_state.items() if k != "ln_final.bias"}, "no whole text encoder"),
        (
            {**clip_state, "ln_final.bias": torch.full((128,), torch.nan)},
            "values that are not finite",
        ),
        ([torch.ones(2)], "holds a list, not weights by name"),
    ):
        with pytest.raises(InputError, match=message):
            TextEncoder.load(str(_pickled(path, content)))


def test_a_phrase_that_would_be_cut_is_refused(
    clip_files: Any, clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    encoder = TextEncoder.load(str(_pickled(tmp_path / "clip.pt", clip_state)))
    assert encoder(["crack " * 75]).shape == (1, 512)
    with pytest.raises(InputError, match=r"the phrase 'crack crack .*…' has 76 tokens"):
        encoder(["crack " * 76])
