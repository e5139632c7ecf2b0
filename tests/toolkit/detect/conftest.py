"""Fixtures of the detector's tests."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit import known_weights


class ClipFiles:
    """Files in the formats of CLIP ViT-B/32, from the architecture itself, small and random."""

    def state(self, patch: int = 32, size: int = 512) -> dict[str, Tensor]:
        """OpenAI's tensors by their names, in half precision, of one and two blocks, not twelve."""
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, convert_weights_to_fp16

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CLIP(
                size,
                CLIPVisionCfg(layers=1, width=64, patch_size=patch, image_size=2 * patch),
                CLIPTextCfg(layers=2, width=128, heads=2),
                quick_gelu=True,
            )
            for name, parameter in model.named_parameters():  # large: phrases come out apart
                if "mlp" in name or "in_proj_weight" in name:
                    nn.init.normal_(parameter, std=0.3)
        convert_weights_to_fp16(model)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def write_archive(self, path: Path, state: dict[str, Tensor]) -> str:
        """A TorchScript archive, as OpenAI publishes; returns its SHA-256."""
        root = nn.Module()
        for name, tensor in state.items():
            *parents, last = name.split(".")
            module = root
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would like other formats better
            torch.jit.script(root).save(str(path))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def pretend_official(self, monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
        """Let a made file be the official one."""
        table = tuple(
            replace(each, sha256=sha256) if each.name == known_weights.CLIP else each
            for each in known_weights.KNOWN
        )
        monkeypatch.setattr(known_weights, "KNOWN", table)

    def reference(self, state: dict[str, Tensor], phrases: list[str]) -> Tensor:
        """What ultralytics computes: ``encode_text`` of the whole CLIP, then of length 1."""
        from open_clip.model import build_model_from_openai_state_dict
        from open_clip.tokenizer import tokenize

        whole: Any = build_model_from_openai_state_dict(dict(state)).float()
        with torch.no_grad():
            vectors: Tensor = whole.encode_text(tokenize(phrases)).float()
        return vectors / vectors.norm(p=2, dim=-1, keepdim=True)


@pytest.fixture(scope="session")
def clip_files() -> ClipFiles:
    return ClipFiles()


@pytest.fixture(scope="session")
def clip_state(clip_files: ClipFiles) -> dict[str, Tensor]:
    """The tensors of a small CLIP, which no test changes."""
    return clip_files.state()
