"""Outlines that need no learning, and how well any outline fits.

What a segmenter has to beat: the box itself, filled; the ellipse in it; and OpenCV's GrabCut, which
tells colours inside the box from those around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from converters.dataset import BinaryMask, Box, Image, Instance
from toolkit.images import RgbImage, read_image
from toolkit.segment.views import zoomed_view

Outliner: TypeAlias = Callable[[RgbImage, Sequence[Box]], npt.NDArray[np.bool_]]
"""From a picture and boxes ``(x, y, width, height)`` to masks of shape (n, height, width)."""

Fits: TypeAlias = list[tuple[float, float]]
"""IoU and Dice of instances, one by one."""

GRABCUT_WINDOW = 2.0
"""Side of the square that GrabCut sees, in longer sides of the box."""
GRABCUT_ITERATIONS = 5


def fits(
    outline: Outliner,
    prompts: Sequence[tuple[Image, Sequence[Instance]]],
    boxes: Sequence[Sequence[Box | None]],
) -> Fits:
    """How well the instances of some images are outlined.

    Args:
        outline: from one image, and boxes on it.
        prompts: the images, with instances that have masks.
        boxes: of each image, one for each instance; None where there is none, which scores 0.
    """
    found: Fits = []
    for (image, instances), given in zip(prompts, boxes, strict=True):
        known = [box for box in given if box is not None]
        masks = iter(outline(read_image(image.path), known) if known else ())
        for instance, box in zip(instances, given, strict=True):
            truth = instance.to_mask(image.height, image.width)
            found.append((0.0, 0.0) if box is None else fit(next(masks), truth))
    return found


def fit(mask: BinaryMask, truth: BinaryMask) -> tuple[float, float]:
    """IoU and Dice of a mask with the true one, which is not empty."""
    both, together = np.count_nonzero(mask & truth), np.count_nonzero(mask | truth)
    return both / together, 2 * both / (both + together)


def filled_boxes(image: RgbImage, boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """Every box, filled."""
    masks = np.zeros((len(boxes), *image.shape[:2]), np.bool_)
    for mask, box in zip(masks, boxes, strict=True):
        left, top, right, bottom = pixels_of(box, *image.shape[:2])
        mask[top:bottom, left:right] = True
    return masks


def ellipses(image: RgbImage, boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """The ellipse that touches all sides of every box: pixels whose centre lies in it."""
    masks = np.zeros((len(boxes), *image.shape[:2]), np.bool_)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
        across = (columns + 0.5 - x - w / 2) / (w / 2)
        down = (rows + 0.5 - y - h / 2) / (h / 2)
        mask[:] = across**2 + down**2 <= 1
    return masks


def grabcut(image: RgbImage, boxes: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """GrabCut in a window around every box.

    Where the box fills its window, so that there is nothing around it to compare with, or where
    GrabCut finds nothing in the box, the box is filled: so would a user do.

    Source: Rother et al., "GrabCut", SIGGRAPH 2004, as OpenCV has it.
    """
    masks = filled_boxes(image, boxes)
    height, width = image.shape[:2]
    for mask, box in zip(masks, boxes, strict=True):
        view = zoomed_view(box, height, width, GRABCUT_WINDOW)
        left, top, right, bottom = pixels_of(box, height, width)
        rectangle = left - view.x, top - view.y, right - left, bottom - top
        if rectangle[2] * rectangle[3] == view.width * view.height:
            continue
        cv2.setRNGSeed(0)
        labels = np.zeros((view.height, view.width), np.uint8)
        around, within = np.zeros((1, 65)), np.zeros((1, 65))
        window = np.ascontiguousarray(view.image(image)[..., ::-1])
        mode = cv2.GC_INIT_WITH_RECT
        cv2.grabCut(window, labels, rectangle, around, within, GRABCUT_ITERATIONS, mode)
        inside = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if inside.any():
            mask[view.y : view.y + view.height, view.x : view.x + view.width] = inside
    return masks


def pixels_of(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel edge next to those of a box; at least one pixel."""
    x, y, w, h = box
    left = min(math.floor(x + 0.5), width - 1)
    top = min(math.floor(y + 0.5), height - 1)
    right = min(max(math.floor(x + w + 0.5), left + 1), width)
    bottom = min(max(math.floor(y + h + 0.5), top + 1), height)
    return left, top, right, bottom
