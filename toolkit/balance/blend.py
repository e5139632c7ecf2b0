"""Putting a defect into a picture so that the seam does not give it away."""

from __future__ import annotations

from bisect import bisect_left
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

_BLURS = tuple(round(0.1 * tenths, 1) for tenths in range(3, 21))
"""Standard deviations in pixels by which a patch with too much grain may be blurred."""

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
    near, corner = _near(mask, corner)
    patch, mask = patch[near], mask[near]
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
    mine, mine_spread = _light_of(patch, clean)
    theirs, their_spread = _light_of(host, usable)
    gain = np.clip((their_spread + 1e-3) / (mine_spread + 1e-3), *_GAIN)
    matched = _planes(patch) * gain + (theirs - mine * gain)
    wanted = grain(_mean_plane(_planes(host)), usable)
    matched = _regrain(matched, clean, wanted, rng)
    return _to_type(matched.reshape(patch.shape), patch.dtype)


def _light_of(pixels: Pixels, where: BinaryMask) -> tuple[_Float, _Float]:
    """Mean and standard deviation of some pixels, a number per channel."""
    mean, spread = cv2.meanStdDev(np.ascontiguousarray(pixels), mask=where.astype(np.uint8))
    return mean.ravel().astype(np.float32), spread.ravel().astype(np.float32)


def grain(plane: _Float, where: BinaryMask) -> float:
    """Standard deviation of noise as Immerkaer estimates it, on some pixels."""
    inner = cv2.erode(where.astype(np.uint8), np.ones((3, 3), np.uint8))
    count = cv2.countNonZero(inner)
    if not count:
        return 0.0
    response = cv2.filter2D(plane.astype(np.float32), -1, _NOISE_KERNEL)
    return float(cv2.norm(response, cv2.NORM_L1, inner) / count * np.sqrt(np.pi / 2) / 6)


def _regrain(planes: _Float, clean: BinaryMask, wanted: float, rng: np.random.Generator) -> _Float:
    mean = _mean_plane(planes)
    mine = grain(mean, clean)
    if mine > wanted * _SAME:
        # The mildest blur that is enough; more of it never leaves more grain.
        mildest = bisect_left(
            _BLURS[:-1],
            True,
            key=lambda sigma: grain(_blur(mean, sigma), clean) <= wanted * _SAME,
        )
        return _blur(planes, _BLURS[mildest]).reshape(planes.shape)
    if wanted > mine * _SAME:
        missing = np.sqrt(wanted**2 - mine**2)
        noise = rng.normal(0, missing, planes.shape[:2]).astype(np.float32)
        return planes + noise[..., None]
    return planes


def _blur(planes: _Float, sigma: float) -> _Float:
    return np.asarray(cv2.GaussianBlur(planes, (0, 0), sigma), np.float32)


def _mean_plane(planes: _Float) -> _Float:
    channels = planes.shape[2]
    if channels == 1:
        return planes[..., 0]
    return np.asarray(cv2.transform(planes, np.full((1, channels), 1 / channels)), np.float32)


def _near(mask: BinaryMask, corner: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """The part of a patch that can end up on the host, and where its corner goes."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    around = MARGIN + 1
    left, top = max(0, x - around), max(0, y - around)
    near = np.s_[top : y + h + around, left : x + w + around]
    return near, (corner[0] + left, corner[1] + top)


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
    # OpenCV takes three pixels off the region before it starts: without them the defect's own rim
    # would lie outside, and with its rim a defect loses its contrast.
    side = 2 * MARGIN + 1
    region = cv2.dilate(
        np.pad(inside.astype(np.uint8), MARGIN),
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)),
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
