"""Datasets on disk: layout, repeatability, counts, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from converters.errors import InputError
from toolkit.synth import write_mvtec
from toolkit.synth.mvtec import tail_counts

SMALL: dict[str, Any] = {
    "category": "plate",
    "surface": "brushed_metal",
    "defects": ["hole", "scratch"],
    "train_good": 2,
    "test_good": 1,
    "per_defect": 2,
    "size": (48, 64),
    "seed": 5,
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout_is_that_of_mvtec_ad(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data", **SMALL)
    written = files(tmp_path / "data" / "plate")
    assert list(written) == [
        "ground_truth/hole/000_mask.png",
        "ground_truth/hole/001_mask.png",
        "ground_truth/scratch/000_mask.png",
        "ground_truth/scratch/001_mask.png",
        "license.txt",
        "test/good/000.png",
        "test/hole/000.png",
        "test/hole/001.png",
        "test/scratch/000.png",
        "test/scratch/001.png",
        "train/good/000.png",
        "train/good/001.png",
    ]
    assert b"CC0" in written["license.txt"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["plate"]


def test_masks_are_one_channel_black_and_white(tmp_path: Path) -> None:
    write_mvtec(tmp_path, **SMALL)
    for path in (tmp_path / "plate" / "ground_truth").rglob("*.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask is not None and mask.shape == (48, 64) and mask.dtype == np.uint8
        assert np.unique(mask).tolist() == [0, 255]
    image = cv2.imread(str(tmp_path / "plate/test/good/000.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.shape == (48, 64, 3)


def test_colours_reach_the_disk_as_rgb(tmp_path: Path) -> None:
    # Timber is redder than blue in every product; swapped channels would be bluer.
    write_mvtec(tmp_path, **{**SMALL, "surface": "wood"})
    image = cv2.imread(str(tmp_path / "plate/train/good/000.png"), cv2.IMREAD_COLOR)
    assert image is not None
    blue, _, red = image.reshape(-1, 3).mean(axis=0)
    assert red > blue + 10


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    arguments = {**SMALL, "surface": None}
    write_mvtec(tmp_path / "a", **arguments)
    write_mvtec(tmp_path / "b", **arguments)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    write_mvtec(tmp_path / "c", **{**arguments, "seed": 6})
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_more_pictures_and_kinds_extend_a_dataset(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "few", **SMALL)
    more = {"train_good": 4, "per_defect": 3, "defects": ["stain", "scratch", "hole"]}
    write_mvtec(tmp_path / "many", **{**SMALL, **more})
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert few.items() <= many.items()
    assert len(many) == 1 + 4 + 1 + 2 * 9


def test_no_two_pictures_are_alike(tmp_path: Path) -> None:
    write_mvtec(tmp_path, **{**SMALL, "train_good": 6, "test_good": 6})
    pictures = [data for name, data in files(tmp_path).items() if "ground_truth" not in name]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize(
    ("most", "kinds", "ratio", "counts"),
    [
        (16, 5, 16, [16, 8, 4, 2, 1]),
        (100, 3, 100, [100, 10, 1]),
        (5, 4, 1000, [5, 1, 1, 1]),  # never below one
        (7, 3, None, [7, 7, 7]),
        (7, 3, 1, [7, 7, 7]),
        (7, 1, 10, [7]),
        (0, 3, 10, [0, 0, 0]),
    ],
)
def test_counts_of_a_long_tail(
    most: int, kinds: int, ratio: float | None, counts: list[int]
) -> None:
    assert tail_counts(most, kinds, ratio) == counts


def test_the_long_tail_reaches_the_disk(tmp_path: Path) -> None:
    kinds = ["hole", "scratch", "stain"]
    write_mvtec(tmp_path, **{**SMALL, "defects": kinds, "per_defect": 4, "long_tail": 4})
    test = tmp_path / "plate" / "test"
    assert [len(list((test / kind).iterdir())) for kind in kinds] == [4, 2, 1]


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_mvtec(tmp_path, **SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]


def test_an_existing_category_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plate").mkdir()
    (tmp_path / "plate" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="plate: exists and is not empty"):
        write_mvtec(tmp_path, **SMALL)
    assert list(files(tmp_path)) == ["plate/mine.txt"]


def test_an_empty_category_and_other_categories_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "plate").mkdir()
    write_mvtec(tmp_path, **SMALL)
    write_mvtec(tmp_path, **{**SMALL, "category": "other"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "plate"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mvtec(tmp_path / "new" / "data", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "a/b"}, "category 'a/b'"),
        ({"category": ".."}, "category '..'"),
        ({"surface": "cheese"}, "unknown surface 'cheese'"),
        ({"defects": ["rust"]}, "unknown defect 'rust'"),
        ({"defects": ["hole", "hole"]}, "a kind is named twice"),
        ({"train_good": -1}, "count -1"),
        ({"long_tail": 0.5}, "long_tail 0.5"),
        ({"long_tail": float("nan")}, "long_tail nan"),
        ({"size": (8, 64)}, "size 8x64"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_mvtec(tmp_path / "data", **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []
