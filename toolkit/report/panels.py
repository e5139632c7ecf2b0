"""Pictures for a page: a detail as it is, with its truth, and with what was found.

No letters are drawn: what a picture shows is said beside it, where it can be read aloud, enlarged
and translated.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from converters.dataset import BinaryMask, Box, Image, Instance
from converters.errors import InputError
from converters.geometry import mask_from_segmentation
from toolkit.images import RgbImage, read_image
from toolkit.report.mistakes import Example
from toolkit.report.pictures import resize, resize_mask

THUMB, LARGE = 240, 800
"""Longest side of a small and of an enlarged picture, in pixels."""

_LEAST = 120
"""Longest side below which a picture is not made smaller, whatever it takes."""

TRUTH, FOUND, WHITE, BLACK = (0, 214, 160), (255, 150, 30), (255, 255, 255), (0, 0, 0)

MOST_DRAWN = 8
"""Predictions on one picture, the surest; more hide it."""

_CONTEXT = 4
"""Sides of a detail, in sides of what it is about."""

_SMALLEST = 64
"""Least side of a detail, in pixels."""

_WHOLE = 0.7
"""Share of the picture's longer side from which a detail is the whole picture."""

_ZOOM = 12
"""Most that a detail is enlarged."""

Colour = tuple[int, int, int]

Window = tuple[int, int, int, int]
"""``x, y, width, height`` of a detail, in whole pixels of the picture."""


@dataclass(frozen=True)
class Panel:
    """One picture of an example.

    Attributes:
        title: "Picture", "Ground truth" or "Found".
        alt: what is on it, in words.
        thumb, large: data URIs.
        width, height: of the thumb, in pixels.
    """

    title: str
    alt: str
    thumb: str
    large: str
    width: int
    height: int


@dataclass(frozen=True)
class Shape:
    """Something to draw.

    Attributes:
        box: in pixels of the picture.
        mask: full size; None where there is only the box.
        thin: whether it is drawn thinly.
    """

    box: Box
    mask: BinaryMask | None
    thin: bool = False


def window_around(image: Image, box: Box | None) -> Window:
    """The detail around a box, with context: the whole picture unless the box is small in it."""
    if box is None:
        return 0, 0, image.width, image.height
    x, y, w, h = box
    side = max(_CONTEXT * max(w, h), _SMALLEST)
    if side >= _WHOLE * max(image.width, image.height):
        return 0, 0, image.width, image.height
    width, height = min(round(side), image.width), min(round(side), image.height)
    left = min(max(round(x + w / 2 - width / 2), 0), image.width - width)
    top = min(max(round(y + h / 2 - height / 2), 0), image.height - height)
    return left, top, width, height


def make_panels(example: Example, most: int) -> list[Panel]:
    """The pictures of an example.

    Args:
        example: what to show.
        most: characters that all of them together may take, enlarged ones included.

    Raises:
        InputError: the picture cannot be read, or is not as large as annotated.
    """
    image = example.image
    pixels = _open(image.path, (image.height, image.width))
    window = window_around(image, example.box)
    truth = [_true(i, image) for i in image.instances if _overlap(i.box, window)]
    kinds: list[tuple[str, str, list[Shape], Colour]] = [
        ("Picture", _where(image, window), [], TRUTH),
        ("Ground truth", f"Ground truth: {_say_truth(image)}", truth, TRUTH),
    ]
    if example.box is not None:
        shapes = _found_shapes(example, window)
        kinds.append(("Found", f"Found: {example.found_words}", shapes, FOUND))
    share = most // len(kinds)
    return [
        _panel(title, alt, pixels, window, shapes, colour, example.box, share)
        for title, alt, shapes, colour in kinds
    ]


def file_panel(path: Path, title: str, alt: str, sides: tuple[int, int], most: int) -> Panel:
    """A picture that is a file already.

    Args:
        path: of the file.
        title: of the panel.
        alt: what is on it, in words.
        sides: longest side on the page and enlarged, in pixels; it is never made larger.
        most: characters that both together may take.

    Raises:
        InputError: it cannot be read.
    """
    pixels = read_image(path)

    def draw(side: int) -> RgbImage:
        return resize(pixels, min(1.0, side / max(pixels.shape[:2])))

    small, thumb = _encode(draw, sides[0], most // 2)
    _, large = _encode(draw, sides[1], max(1, most - len(thumb)))
    return Panel(title, alt, thumb, large, small.shape[1], small.shape[0])


def _true(instance: Instance, image: Image) -> Shape:
    mask = None if instance.mask is None else instance.to_mask(image.height, image.width)
    return Shape(instance.box, mask)


def _found_shapes(example: Example, window: Window) -> list[Shape]:
    """What was found in the window, and thinly what lies beside it."""
    shapes = []
    for results, thin in ((example.beside, True), (example.found, False)):
        seen = [result for result in results if _overlap(result["bbox"], window)]
        for result in seen[:MOST_DRAWN]:
            x, y, w, h = result["bbox"]
            mask = None
            if "segmentation" in result:
                size = example.image.height, example.image.width
                mask = mask_from_segmentation(result["segmentation"], *size)
            shapes.append(Shape((x, y, w, h), mask, thin))
    return shapes


def _overlap(box: Sequence[float], window: Window) -> bool:
    (x, y, w, h), (left, top, width, height) = box, window
    return x < left + width and left < x + w and y < top + height and top < y + h


def _where(image: Image, window: Window) -> str:
    _, _, width, height = window
    if (width, height) == (image.width, image.height):
        return f"{image.file_name}, the whole picture"
    return f"{image.file_name}, a detail of {width} × {height} pixels"


def _say_truth(image: Image) -> str:
    names = [instance.category for instance in image.instances]
    counts = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
    return ", ".join(counts) or "no defect"


def _open(path: Path, size: tuple[int, int]) -> RgbImage:
    remedy = "restore it, or leave pictures out with --examples 0"
    try:
        pixels = read_image(path)
    except InputError as error:
        raise InputError(f"{error}: {remedy}") from error
    if pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise InputError(
            f"{path}: is {width} x {height} pixels, annotated as {size[1]} x {size[0]}: {remedy}"
        )
    return pixels


def _panel(
    title: str,
    alt: str,
    pixels: RgbImage,
    window: Window,
    shapes: Sequence[Shape],
    colour: Colour,
    box: Box | None,
    most: int,
) -> Panel:
    def draw(side: int) -> RgbImage:
        return draw_detail(pixels, window, shapes, colour, box, side)

    small, thumb = _encode(draw, THUMB, most)
    _, large = _encode(draw, LARGE, max(1, most - len(thumb)))
    return Panel(title, alt, thumb, large, small.shape[1], small.shape[0])


def draw_detail(
    pixels: RgbImage,
    window: Window,
    shapes: Sequence[Shape],
    colour: Colour,
    box: Box | None,
    side: int,
) -> RgbImage:
    """A detail of a picture at a size, with outlines, and corners around what it is about."""
    x, y, width, height = window
    scale = min(side / max(width, height), _ZOOM)
    scene = np.ascontiguousarray(resize(pixels[y : y + height, x : x + width], scale))
    weight = max(2, round(side / 250))
    for shape in shapes:
        rings = _rings(shape, window, scene, scale)
        if shape.thin:
            cv2.polylines(scene, rings, True, colour, weight // 2, cv2.LINE_AA)
            continue
        for ink, extra in ((BLACK, 2), (colour, 0)):
            cv2.polylines(scene, rings, True, ink, weight + extra, cv2.LINE_AA)
    if box is not None:
        for ink, extra in ((BLACK, 2), (WHITE, 0)):
            cv2.polylines(scene, _corners(box, window, scale), False, ink, weight + extra)
    return scene


def _rings(
    shape: Shape, window: Window, scene: RgbImage, scale: float
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    """What to draw of a shape, in pixels of the scene: the outline of its mask, or its box."""
    left, top, width, height = window
    if shape.mask is None:
        x, y, w, h = shape.box
        x, y = (x - left) * scale, (y - top) * scale
        corners = [(x, y), (x + w * scale, y), (x + w * scale, y + h * scale), (x, y + h * scale)]
        return [np.array(corners).round().astype(np.int32)]
    detail = resize_mask(shape.mask[top : top + height, left : left + width], scene)
    rings, _ = cv2.findContours(detail.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(ring, np.int32) for ring in rings]


def _corners(
    box: Box, window: Window, scale: float
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    """Four angles a little outside of a box, in pixels of the scene."""
    x, y, w, h = box
    gap = max(6.0, 0.025 * max(window[2:]) * scale)
    left, right = (x - window[0]) * scale - gap, (x + w - window[0]) * scale + gap
    top, bottom = (y - window[1]) * scale - gap, (y + h - window[1]) * scale + gap
    most_right, most_down = window[2] * scale - 3, window[3] * scale - 3
    left, right = max(left, 2.0), min(right, most_right)
    top, bottom = max(top, 2.0), min(bottom, most_down)
    arm = max(5.0, 0.2 * min(right - left, bottom - top))
    angles = []
    for column, inward in ((left, arm), (right, -arm)):
        for row, down in ((top, arm), (bottom, -arm)):
            angle = [(column + inward, row), (column, row), (column, row + down)]
            angles.append(np.array(angle).round().astype(np.int32))
    return angles


def _encode(draw: Callable[[int], RgbImage], side: int, most: int) -> tuple[RgbImage, str]:
    """A picture as a data URI of at most so many characters, as good and as large as fits."""
    while True:
        picture = draw(side)
        for quality in (80, 55):
            content = io.BytesIO()
            # Method 1 of 6: a quarter of the time, and a twentieth larger.
            PIL.Image.fromarray(picture).save(content, "WEBP", quality=quality, method=1)
            uri = "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode("ascii")
            if len(uri) <= most or side < _LEAST:
                return picture, uri
        side = round(side * 0.7)
