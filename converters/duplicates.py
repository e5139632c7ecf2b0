"""Pictures of the same photograph, found so that they stay on one side of a split.

A near-duplicate is the same surface seen again: re-encoded, shifted, cropped, under another
exposure, a video's next frame. Another part in the same pose is not. A perceptual hash alone
cannot tell the two apart on aligned parts (every transistor looks like every other), so a hash's
hit only nominates a pair; the pair is bound when the fine texture of the two pictures agrees.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, cast

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

GreyImage: TypeAlias = npt.NDArray[np.uint8]

HASH_DISTANCE = 12
"""Most differing bits, of 64, at which two perceptual hashes nominate a pair. A shift by 1 % of the
picture changes up to 8 bits of a grainy surface, one by 2 % up to 20, which is missed."""

CAPTURE_DISTANCE = 400
"""Most captures between two pictures of one sequence that nominates them, whatever their hash."""

TEXTURE_CORRELATION = 0.75
"""Least correlation of fine texture that binds a pair that the hash nominated. Measured: pictures
of one magnetic tile at two exposures reach 0.5 to 0.97, different tiles stay below 0.35, different
transistors in one pose below 0.73 (they share the board's pattern), two empty boards 0.86."""

CAPTURE_CORRELATION = 0.45
"""The same for neighbours of one capture sequence, where being alike by chance is unlikely."""

SIDE = 192
"""Longer side, in pixels, at which the typical picture of a dataset is compared."""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a picture to compare it with others.

    Attributes:
        hash: 64-bit perceptual hash of the equalised picture, shape (64,).
        grey: the reduced picture.
        capture: sequence and number of the capture, where known.
    """

    hash: npt.NDArray[np.bool_]
    grey: GreyImage
    capture: tuple[str, int] | None = None


def fingerprint(
    grey: GreyImage, scale: float, capture: tuple[str, int] | None = None
) -> Fingerprint:
    """Fingerprint of a grey picture of shape (height, width).

    The histogram is equalised before hashing, so that exposure does not count.

    Args:
        grey: the picture.
        scale: factor by which it is reduced; the same for all pictures that are to be compared,
            because two crops of one photograph differ in size but not in magnification.
        capture: sequence and number of the capture, where known.
    """
    height, width = (max(8, round(side * scale)) for side in grey.shape)
    small = cast(GreyImage, cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))
    equalised = cv2.equalizeHist(cv2.resize(small, (64, 64), interpolation=cv2.INTER_AREA))
    bits = imagehash.phash(PilImage.fromarray(equalised)).hash.ravel()
    return Fingerprint(np.asarray(bits, dtype=np.bool_), small, capture)


def common_scale(sides: Sequence[int]) -> float:
    """The factor for ``fingerprint``, from the longer sides of all pictures; at most 1."""
    return min(1.0, SIDE / float(np.median(sides))) if sides else 1.0


def near_duplicate_pairs(
    fingerprints: Sequence[Fingerprint], workers: int = 0
) -> list[tuple[int, int]]:
    """Index pairs (i < j) of pictures of the same photograph, sorted.

    Args:
        fingerprints: all made with one scale.
        workers: threads; 0 means one per core. The result does not depend on it.
    """
    nominated = dict.fromkeys(_alike_by_hash(fingerprints), TEXTURE_CORRELATION)
    nominated.update((pair, CAPTURE_CORRELATION) for pair in _neighbours(fingerprints))
    return _bound(fingerprints, nominated, workers)


def near_duplicates_between(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint], workers: int = 0
) -> list[tuple[int, int]]:
    """Pictures of one set that are of the same photograph as one of another set.

    Args:
        first: fingerprints of one set.
        second: of the other one; all are made with one scale.
        workers: threads; 0 means one per core. The result does not depend on it.

    Returns:
        pairs of an index into the first set and one into the second, sorted.
    """
    both = [*first, *second]
    across = ((i, j) for i, j in _alike_by_hash(both, len(first)) if j >= len(first))
    pairs = _bound(both, dict.fromkeys(across, TEXTURE_CORRELATION), workers)
    return [(i, j - len(first)) for i, j in pairs]


def _bound(
    fingerprints: Sequence[Fingerprint], nominated: Mapping[tuple[int, int], float], workers: int
) -> list[tuple[int, int]]:
    """The pairs whose textures correlate as much as each pair needs, sorted."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        needed = sorted({index for pair in nominated for index in pair})
        found = pool.map(lambda index: _texture(fingerprints[index].grey), needed)
        textures = dict(zip(needed, found, strict=True))
        pairs = sorted(nominated)
        alike = pool.map(lambda pair: _correlation(textures[pair[0]], textures[pair[1]]), pairs)
        return [pair for pair, r in zip(pairs, alike, strict=True) if r >= nominated[pair]]


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Number the connected groups: element i of the result is the smallest index bound to i."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for i, j in pairs:
        first, second = sorted((root(i), root(j)))
        parent[second] = first
    return [root(index) for index in range(count)]


def _alike_by_hash(
    fingerprints: Sequence[Fingerprint], firsts: int | None = None
) -> Iterator[tuple[int, int]]:
    """Index pairs (i < j) whose hashes are alike; i among the first few where they are numbered."""
    if not fingerprints:
        return
    bits = np.packbits([entry.hash for entry in fingerprints], axis=1)
    set_bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
    for i in range(len(bits) - 1 if firsts is None else firsts):
        distance = set_bits[bits[i + 1 :] ^ bits[i]].sum(axis=1)
        for offset in np.flatnonzero(distance <= HASH_DISTANCE):
            yield i, i + 1 + int(offset)


def _neighbours(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    captures = sorted(
        (*entry.capture, index)
        for index, entry in enumerate(fingerprints)
        if entry.capture is not None
    )
    for position, (sequence, number, index) in enumerate(captures):
        for other_sequence, other_number, other in captures[position + 1 :]:
            if other_sequence != sequence or other_number - number > CAPTURE_DISTANCE:
                break
            yield min(index, other), max(index, other)


def _texture(grey: GreyImage) -> npt.NDArray[np.float32]:
    """High-pass divided by its local strength, so that edges count no more than grain.

    Where the sensor was saturated or black there is no texture, only zeros.
    """
    image = grey.astype(np.float32)
    fine = image - cv2.GaussianBlur(image, (0, 0), 2)
    strength = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 4))
    texture = fine / (strength + 1)
    texture[(grey < 4) | (grey > 251)] = 0
    return cast("npt.NDArray[np.float32]", texture)


@lru_cache(maxsize=32)
def _window(width: int, height: int) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.float32]", cv2.createHanningWindow((width, height), cv2.CV_32F))


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Pearson correlation of two textures where they overlap after the best shift.

    0 where the overlap is too small, or where there is no texture to compare.
    """
    height, width = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    if height < 8 or width < 8:
        return 0.0
    a, b = a[:height, :width], b[:height, :width]
    (dx, dy), _ = cv2.phaseCorrelate(a, b, _window(width, height))
    shift = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float32)
    left, right = int(np.ceil(max(0, dx))), width + int(np.floor(min(0, dx)))
    top, bottom = int(np.ceil(max(0, dy))), height + int(np.floor(min(0, dy)))
    if (right - left) * (bottom - top) < 0.3 * height * width or right <= left:
        return 0.0
    moved = cv2.warpAffine(a, shift, (width, height))[top:bottom, left:right]
    fixed = b[top:bottom, left:right]
    moved, fixed = moved - moved.mean(), fixed - fixed.mean()
    norm = float(np.sqrt((moved * moved).sum() * (fixed * fixed).sum()))
    has_texture = norm > 1e-3 * moved.size
    return float((moved * fixed).sum()) / norm if has_texture else 0.0
