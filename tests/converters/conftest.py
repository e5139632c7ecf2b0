"""Small sources in the layouts that can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

SIZE = (40, 48)  # height, width


def noise(seed: int, size: tuple[int, int] = SIZE) -> PilImage.Image:
    """A picture that no other seed's resembles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return PilImage.fromarray(pixels)


def blob(seed: int, size: tuple[int, int] = SIZE) -> PilImage.Image:
    """A mask of one rectangle, 0 and 255."""
    mask = np.zeros(size, np.uint8)
    y, x = np.random.default_rng(seed).integers(0, 20, 2)
    mask[y : y + 7, x : x + 5] = 255
    return PilImage.fromarray(mask)


@pytest.fixture
def mvtec(tmp_path: Path) -> Callable[..., Path]:
    """Make one MVTec category: good pictures and six of each of two kinds of defect."""

    def make(name: str = "part", *, good: int = 6, per_kind: int = 6, first: int = 0) -> Path:
        root = tmp_path / name
        seed = first
        for folder in ("train/good", "test/good", "test/hole", "test/scratch"):
            (root / folder).mkdir(parents=True)
        for kind in ("hole", "scratch"):
            (root / "ground_truth" / kind).mkdir(parents=True)
            for number in range(per_kind):
                seed += 1
                noise(seed).save(root / "test" / kind / f"{number:03d}.png")
                blob(seed).save(root / "ground_truth" / kind / f"{number:03d}_mask.png")
        for folder in ("train/good", "test/good"):
            for number in range(good):
                seed += 1
                noise(seed).save(root / folder / f"{number:03d}.png")
        return root

    return make


@pytest.fixture
def tiles(tmp_path: Path) -> Callable[[], Path]:
    """Make a Magnetic Tile source: two types and good tiles, masks of lossy grey."""

    def make() -> Path:
        root = tmp_path / "tiles"
        seed = 1000
        for kind in ("Blowhole", "Crack", "Free"):
            folder = root / f"MT_{kind}" / "Imgs"
            folder.mkdir(parents=True)
            for number in range(4):
                seed += 1
                name = f"exp1_num_{seed * 1000}"
                noise(seed).convert("L").save(folder / f"{name}.jpg", quality=95)
                mask = np.asarray(blob(seed)).astype(np.int16)
                mask = np.where(mask > 0, 250 - number, 3 + number).astype(np.uint8)
                mask[0, 0] = 60  # what a lossy step leaves behind, on either side of the threshold
                if kind == "Free":
                    mask[:] = 0
                PilImage.fromarray(mask).save(folder / f"{name}.png")
        return root

    return make
