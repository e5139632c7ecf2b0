"""From image pixels to the square input of SAM, and back.

SAM resizes an image so that its longer side fills the input, normalises it, and pads it to the
right and below. Images, boxes and masks go through one ``Frame``, by segment-anything's own
``ResizeLongestSide``, so that official checkpoints behave as in ``SamPredictor``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from converters.geometry import Region
from toolkit.images import RgbImage

FloatArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the input.

    Attributes:
        height, width: of the image, in pixels.
        side: of the square input, in pixels.
    """

    height: int
    width: int
    side: int

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width of the image in the input."""
        height, width = ResizeLongestSide.get_preprocess_shape(self.height, self.width, self.side)
        return max(1, height), max(1, width)

    def image(self, image: RgbImage) -> Tensor:
        """The image resized, as ``model.encode`` takes it: uint8, shape (3, height, width).

        The same resampling (PIL, bilinear) as ``ResizeLongestSide.apply_image``.
        """
        height, width = self.resized
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def boxes(self, boxes: npt.ArrayLike) -> FloatArray:
        """Boxes (x, y, width, height) of the image as corners (x0, y0, x1, y1) of the input."""
        x, y, w, h = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
        height, width = self.resized
        across, down = width / self.width, height / self.height
        corners = np.stack([x * across, y * down, (x + w) * across, (y + h) * down], axis=1)
        return corners.astype(np.float32)

    def points(self, points: npt.ArrayLike) -> FloatArray:
        """Points (x, y) of the image in the input; segment-anything's numbers give its masks.

        Args:
            points: shape (n, 2).
        """
        height, width = self.resized
        scale = (width / self.width, height / self.height)
        return (np.asarray(points, dtype=np.float64).reshape(-1, 2) * scale).astype(np.float32)

    def target(self, region: Region, cells: int) -> FloatArray:
        """Share of each mask cell that a region covers, exactly.

        A one-pixel scratch keeps its area, however coarse the cells are.

        Args:
            region: box and mask in pixels of the image.
            cells: side of the square low-resolution mask.

        Returns:
            shape (cells, cells), 0 to 1.
        """
        (x, y, w, h), crop = region
        height, width = self.resized
        top, down = _overlaps(int(y), int(h), height / self.height * cells / self.side)
        left, across = _overlaps(int(x), int(w), width / self.width * cells / self.side)
        target = np.zeros((cells, cells), dtype=np.float32)
        # Rounding may put the last edge a hair beyond the last cell: the slices cut that off.
        shares = (down @ crop.astype(np.float32) @ across.T)[: cells - top, : cells - left]
        target[top : top + shares.shape[0], left : left + shares.shape[1]] = shares
        return target

    def inside(self, cells: int) -> FloatArray:
        """Share of each mask cell that the image covers: 0 in the padding; (cells, cells)."""
        edge = np.arange(cells, dtype=np.float32)[:, None]
        sizes = np.array(self.resized, dtype=np.float32) * (cells / self.side)
        down, across = np.clip(sizes - edge, 0, 1).T
        return np.outer(down, across)


def _overlaps(start: int, count: int, scale: float) -> tuple[int, FloatArray]:
    """How long a piece of each cell each pixel covers, along one axis.

    Args:
        start: the first pixel.
        count: number of pixels.
        scale: cells per pixel.

    Returns:
        the first cell that is touched, and the lengths, shape (touched cells, pixels).
    """
    edges = (start + np.arange(count + 1)) * scale
    cells = np.arange(int(edges[0]), int(np.ceil(edges[-1])))[:, None]
    lengths = np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)
    return int(edges[0]), np.maximum(lengths, 0).astype(np.float32)
