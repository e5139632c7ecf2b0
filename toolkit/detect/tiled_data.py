"""Windows of pictures as ultralytics trains on them, cut out in memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from ultralytics.utils.patches import imread

from converters.dataset import Dataset
from converters.errors import InputError
from toolkit.detect.data import DefectImages
from toolkit.detect.tiles import Window

_Pixels = npt.NDArray[np.uint8]
_RECENT = 2**28
"""Bytes of whole pictures that every worker keeps, so that their next windows are at hand."""


def is_tiled(dataset: Dataset) -> bool:
    """Whether a dataset is one of windows."""
    return any(isinstance(image, Window) for image in dataset.images)


class TiledImages(DefectImages):
    """``DefectImages`` of windows: from ``toolkit.detect.tiles.tile_dataset``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._recent: OrderedDict[str, _Pixels] = OrderedDict()
        self.labels: list[dict[str, Any]]
        self.im_files: list[str]
        super().__init__(*arguments, **options)

    def get_labels(self) -> list[dict[str, Any]]:
        """Boxes of every window, and which window it is: validation puts them in another order."""
        labels = super().get_labels()
        for label, image in zip(labels, self.truth.images, strict=True):
            window = cast(Window, image)
            # No more than that: labels are copied whenever a picture is shown.
            label["frame"] = (window.left, window.top, window.width, window.height)
        return labels

    def update_labels_info(self, label: dict[str, Any]) -> dict[str, Any]:
        """As ultralytics has it, which knows of no windows."""
        del label["frame"]
        return cast(dict[str, Any], super().update_labels_info(label))

    def set_rectangle(self) -> None:
        """Order windows by shape, as ultralytics does, and those of one shape by picture.

        Its own order within a shape is none: every window would be read with another picture.
        """
        super().set_rectangle()
        order = sorted(range(self.ni), key=lambda i: _place(self.labels[i]))
        self.labels = [self.labels[i] for i in order]
        self.im_files = [self.im_files[i] for i in order]

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[_Pixels, tuple[int, int], tuple[int, int]]:
        """A window, its longer side (or both sides) resized to the size that the network sees.

        Returns:
            pixels (BGR), height and width before, height and width after.
        """
        if self.ims[i] is not None:
            return self.ims[i], self.im_hw0[i], self.im_hw[i]
        left, top, width, height = self.labels[i]["frame"]
        pixels = self._picture(self.im_files[i])[top : top + height, left : left + width]
        before = (height, width)
        if self.squares:
            height = width = self.imgsz
        else:
            scale = self.imgsz / max(before)
            height, width = (min(math.ceil(side * scale), self.imgsz) for side in before)
        if (height, width) != before:
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
        else:
            pixels = pixels.copy()  # the buffer would hold the whole picture
        after = (int(pixels.shape[0]), int(pixels.shape[1]))
        if self.augment:
            self.ims[i], self.im_hw0[i], self.im_hw[i] = pixels, before, after
            self.buffer.append(i)
            if len(self.buffer) >= self.max_buffer_length:
                oldest = self.buffer.pop(0)
                self.ims[oldest] = self.im_hw0[oldest] = self.im_hw[oldest] = None
        return pixels, before, after

    def _picture(self, path: str) -> _Pixels:
        """A whole picture, BGR."""
        found = self._recent.pop(path, None)
        if found is None:
            found = imread(path, flags=self.cv2_flag)
            if found is None:
                raise InputError(f"{path}: is not a readable picture any more")
        self._recent[path] = found
        while len(self._recent) > 1 and sum(p.nbytes for p in self._recent.values()) > _RECENT:
            self._recent.popitem(last=False)
        return found


def _place(label: dict[str, Any]) -> tuple[float, str, int, int]:
    left, top, width, height = label["frame"]
    return (height / width, label["im_file"], top, left)
