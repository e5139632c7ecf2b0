from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from converters.geometry import region_from_mask, rle_from_mask
from toolkit.images import read_image
from toolkit.report.pictures import comparison_sheet, draw_results, draw_truth, write_picture


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def line(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 2, width // 4 : width // 2] = True
    return mask


def image(path: Path, mask: np.ndarray | None) -> Image:
    height, width = (400, 900) if mask is None else mask.shape
    instances = () if mask is None else (Instance("crack", *region_from_mask(mask)),)
    return Image(path.name, path, width, height, instances, id=1)


@pytest.mark.parametrize("scale", [None, 0.3, 1.0])
def test_a_thin_line_is_seen_at_any_size(scale) -> None:
    truth = image(Path("a.png"), line(400, 900))
    drawn = draw_truth(grey(400, 900), truth, ["crack"], scale)
    factor = scale or 1.0
    row = drawn[round(200 * factor) - 2 : round(200 * factor) + 3].astype(int)
    middle = row[:, round(400 * factor)]
    assert (np.ptp(middle, axis=1) > 40).any()  # colour on a grey picture


def test_boxes_are_drawn_where_there_are_no_masks() -> None:
    result = {"image_id": 1, "category_id": 1, "bbox": [100.0, 50.0, 200.0, 100.0], "score": 0.7}
    drawn = draw_results(grey(400, 900), [result], ["crack"], 1.0)
    assert np.ptp(drawn[100, 100].astype(int)) > 40 and np.ptp(drawn[100, 200].astype(int)) == 0


def test_a_picture_without_results_stays_as_it_is() -> None:
    assert np.array_equal(draw_results(grey(400, 900), [], ["crack"]), grey(400, 900))


def test_a_sheet_shows_only_what_reaches_the_threshold(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), grey(400, 900))
    dataset = Dataset(
        "d",
        ("crack",),
        (image(tmp_path / "a.png", line(400, 900)), image(tmp_path / "b.png", None)),
    )
    mask = np.zeros((400, 900), bool)
    mask[50:350, 100:800] = True
    result = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [100.0, 50.0, 700.0, 300.0],
        "score": 0.5,
        "segmentation": rle_from_mask(mask),
    }
    shown = comparison_sheet(dataset, [result], threshold=0.4, rows=4)
    hidden = comparison_sheet(dataset, [result], threshold=0.6, rows=4)
    third = shown.shape[1] // 3
    assert np.array_equal(shown[28:, : 2 * third], hidden[28:, : 2 * third])
    assert not np.array_equal(shown[28:, 2 * third :], hidden[28:, 2 * third :])
    assert comparison_sheet(dataset, [], threshold=0.4, rows=1).shape[0] < shown.shape[0]


def test_what_is_written_is_read_back_in_the_same_colours(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write_picture(tmp_path / "ä b.png", picture)
    assert np.array_equal(read_image(tmp_path / "ä b.png"), picture)


def test_sixteen_bits_are_scaled_to_eight(tmp_path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 32768, 65535]], np.uint16))
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 128, 255]


def test_what_is_no_picture_is_refused(tmp_path) -> None:
    (tmp_path / "a.png").write_text("text")
    (tmp_path / "empty.png").touch()
    for name in ("a.png", "empty.png"):
        with pytest.raises(InputError, match="is not a readable picture"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "nowhere.png")
