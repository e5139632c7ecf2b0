"""Putting a defect into a picture so that the seam does not give it away."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

from converters.dataset import BinaryMask
from toolkit.balance.objects import Pixels

Blend: TypeAlias = Literal["hard", "feather", "poisson"]
"""The defect's pixels as they are; fading out at its rim; or its gradients alone."""

BLENDS: tuple[Blend, ...] = get_args(Blend)

MARGIN = 6
"""Pixels around a mask that blending may change, at most."""

_Float: TypeAlias = npt.NDArray[np.float32]

_GAIN = (0.6, 1.6)
"""Least and most that contrast is changed by to match a host."""

_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)

_SAME = 1.1
"""Grain that differs by less than this factor is left as it is."""


def blend(
    host: Pixels,
    patch: Pixels,
    mask: BinaryMask,
    corner: tuple[int, int],
    how: Blend,
) -> None:
    """Put a patch into a picture, which is changed.

    Nothing farther than ``MARGIN`` from the mask changes.

    Args:
        host: the picture; for "poisson" of 8 bits.
        patch: of the host's type and channels, shape (h, w, …).
        mask: the defect on it, shape (h, w).
        corner: column and row of the patch's top left corner on the host, which may lie outside.
        how: of what kind the seam is.
    """
    host_window, window = _overlap(host, patch, corner)
    under, over, inside = host[host_window], patch[window], mask[window]
    if how == "poisson":
        host[host_window] = _poisson(under, over, inside)
        return
    share = inside.astype(np.float32) if how == "hard" else _fade(mask)[window]
    if host.ndim == 3:
        share = share[..., None]
    mixed = under + share * (over.astype(np.float32) - under)
    host[host_window] = np.where(share > 0, _to_type(mixed, host.dtype), under)


def match_host(
    patch: Pixels,
    clean: BinaryMask,
    host: Pixels,
    usable: BinaryMask,
    rng: np.random.Generator,
) -> Pixels:
    """The patch with the brightness, contrast and grain of the place that it goes to.

    Brightness and contrast are matched between what surrounds the defect and what it will cover,
    channel by channel. Grain is how strongly neighbouring pixels differ (Immerkaer, "Fast Noise
    Variance Estimation", CVIU 1996), sharpness and noise in one: a patch with more of it is
    blurred, one with less gets noise.

    Args:
        patch: shape (h, w, …).
        clean: shape (h, w), where it shows no defect.
        host: what it will cover, of the same shape and type.
        usable: shape (h, w), where that shows no defect and lies on the picture.
        rng: source of the noise.
    """
    if clean.sum() < 16 or usable.sum() < 16:
        return patch
    planes = _planes(patch)
    targets = _planes(host)
    matched = np.empty_like(planes)
    for index in range(planes.shape[2]):
        mine, theirs = planes[..., index][clean], targets[..., index][usable]
        gain = np.clip((theirs.std() + 1e-3) / (mine.std() + 1e-3), *_GAIN)
        matched[..., index] = (planes[..., index] - mine.mean()) * gain + theirs.mean()
    wanted = grain(targets.mean(axis=2), usable)
    matched = _regrain(matched, clean, wanted, rng)
    return _to_type(matched.reshape(patch.shape), patch.dtype)


def grain(plane: _Float, where: BinaryMask) -> float:
    """Standard deviation of noise as Immerkaer estimates it, on some pixels."""
    inner = cv2.erode(where.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.bool_)
    if not inner.any():
        return 0.0
    response = cv2.filter2D(plane.astype(np.float32), -1, _NOISE_KERNEL)
    return float(np.abs(response[inner]).mean() * np.sqrt(np.pi / 2) / 6)


def _regrain(planes: _Float, clean: BinaryMask, wanted: float, rng: np.random.Generator) -> _Float:
    mine = grain(planes.mean(axis=2), clean)
    if mine > wanted * _SAME:
        for sigma in np.arange(0.3, 2.01, 0.1):
            blurred = cv2.GaussianBlur(planes, (0, 0), float(sigma)).reshape(planes.shape)
            if grain(blurred.mean(axis=2), clean) <= wanted * _SAME:
                break
        return np.asarray(blurred, np.float32)
    if wanted > mine * _SAME:
        missing = np.sqrt(wanted**2 - mine**2)
        noise = rng.normal(0, missing, planes.shape[:2]).astype(np.float32)
        return planes + noise[..., None]
    return planes


def _fade(mask: BinaryMask) -> _Float:
    """1 well inside of the mask, a half at its edge, 0 from ``MARGIN`` on; on it a half or more."""
    width = float(np.clip(0.04 * np.sqrt(mask.sum()), 0.6, MARGIN / 3))
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    # The edge runs between pixels, half a pixel from the centres on either side.
    depth = np.where(mask, inside - 0.5, 0.5 - outside) / width
    share = (1 + np.tanh(depth)) / 2
    return np.where(outside > 3 * width, 0, share).astype(np.float32)


def _poisson(under: Pixels, over: Pixels, inside: BinaryMask) -> Pixels:
    """The gradients of one where the mask and a margin are, the other around (seamlessClone)."""
    region = cv2.dilate(
        np.pad(inside.astype(np.uint8), MARGIN),
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (MARGIN - 1, MARGIN - 1)),
    )
    # OpenCV takes the mask's bounding box for its place and needs room around it.
    left, top, width, height = cv2.boundingRect(region)
    centre = (left + width // 2, top + height // 2)
    source, target = (_three(plane) for plane in (over, under))
    pad = (MARGIN,) * 4
    source, target = (cv2.copyMakeBorder(p, *pad, cv2.BORDER_REFLECT_101) for p in (source, target))
    cloned = cv2.seamlessClone(source, target, region * np.uint8(255), centre, cv2.NORMAL_CLONE)
    cut = cloned[MARGIN:-MARGIN, MARGIN:-MARGIN]
    keep = region[MARGIN:-MARGIN, MARGIN:-MARGIN] > 0
    result = under.copy()
    result[keep] = (cut if under.ndim == 3 else cut[..., 0])[keep]
    return result


def _overlap(host: Pixels, patch: Pixels, corner: tuple[int, int]) -> tuple[Any, Any]:
    """Where the patch lies on the host, and which part of it does."""
    left, top = corner
    height, width = patch.shape[:2]
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(host.shape[1], left + width), min(host.shape[0], top + height)
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]


def _planes(pixels: Pixels) -> _Float:
    return np.asarray(pixels[..., None] if pixels.ndim == 2 else pixels, np.float32)


def _three(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(
        np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    )


def _to_type(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> Pixels:
    rounded: Pixels = np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)
    return rounded
