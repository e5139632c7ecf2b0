"""Configuration of class embeddings from phrases."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from toolkit.config.base import Config
from toolkit.known_weights import CLIP


class PromptsMakeConfig(Config):
    """Turn phrases into class embeddings for YOLO-World, where the weights of CLIP are."""

    phrases: Path | None = None
    """YAML file of class names, each with a phrase, a list of phrases (averaged), or nothing (its
    own name); without one, the names of the dataset's classes are the phrases."""
    out: Path
    """safetensors file to make, for --embeddings."""
    dataset: Path | None = None
    """Dataset folder whose classes the phrases must be for."""
    clip: str = CLIP
    """Weights of CLIP ViT-B/32: "clip-vit-b-32" (the official file in weights/), or a file."""
    trust: bool = False
    """Load a file of CLIP that could run code and is not the official one."""

    @model_validator(mode="after")
    def _has_classes(self) -> PromptsMakeConfig:
        if self.phrases is None and self.dataset is None:
            raise ValueError("no classes: give a YAML file of phrases, --dataset, or both")
        if self.out.suffix != ".safetensors":
            raise ValueError(f"out: {self.out} does not end in .safetensors: name it so")
        return self
