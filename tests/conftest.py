"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: threads that spin while they wait take turns with whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import pytest
import yaml

from converters.dataset import Dataset, Image, Instance
from converters.formats.coco import write_coco
from converters.geometry import connected_regions

MakeDataset = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs as on a factory floor: nothing but this machine can be reached."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"asked for the network: {arguments[-1]}")

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family == getattr(socket, "AF_UNIX", None):
            return connect(self, address)  # type: ignore[arg-type]
        return refuse(address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def no_user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the toolkit keeps for later runs is kept for this test alone."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "toolkit_cache"))


def _draw(rng: np.random.Generator, size: int, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """A grey noisy picture, and the mask of a bright disc ("spot") or a dark line ("scratch")."""
    image = rng.normal(120, 4, (size, size)).astype(np.float32)
    mask = np.zeros((size, size), np.uint8)
    if kind == "spot":
        centre = rng.integers(size // 4, 3 * size // 4, 2).tolist()
        cv2.circle(mask, centre, int(rng.integers(size // 12, size // 6)), 1, -1)
        image[mask > 0] += 90
    elif kind == "scratch":
        x, y = rng.integers(size // 8, size // 3, 2).tolist()
        length = int(rng.integers(size // 4, size // 2))
        cv2.line(mask, (x, y), (x + length, y + length // 2), 1, max(1, size // 32))
        image[mask > 0] -= 90
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(bool)


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Write a small dataset folder (spots, scratches and good pictures) and return its path."""

    def make(
        *, size: int = 64, good: int = 2, per_kind: int = 3, seed: int = 0, name: str = "dataset"
    ) -> Path:
        root = tmp_path / name
        (root / "images").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        image_id = annotation_id = 0
        for split in ("train", "val", "test"):
            images = []
            kinds: list[str | None] = [None] * good + ["scratch", "spot"] * per_kind
            for number, kind in enumerate(kinds):
                pixels, mask = _draw(rng, size, kind)
                image_id += 1
                file_name = f"{split}_{kind or 'good'}_{number:03d}.png"
                cv2.imwrite(str(root / "images" / file_name), pixels)
                instances = []
                for box, crop in connected_regions(mask):
                    annotation_id += 1
                    instances.append(Instance(str(kind), box, crop, annotation_id))
                path = root / "images" / file_name
                images.append(
                    Image(file_name, path, size, size, tuple(instances), file_name, id=image_id)
                )
            write_coco(root / f"{split}.json", Dataset(name, ("scratch", "spot"), tuple(images)))
        card = {"name": name, "categories": ["scratch", "spot"]}
        (root / "dataset.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
        return root

    return make
