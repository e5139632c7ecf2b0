"""What the camera adds: uneven light, exposure, lens blur, sensor noise, tones and compression."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import FloatImage, rgb, tinted
from toolkit.synth.noise import blurred, log_uniform, smooth, white

_TONES = 4096
"""Entries of the tone curve, so that dark tones keep their steps apart."""


def photograph(product: Generator, rng: Generator, image: FloatImage) -> NDArray[np.uint8]:
    """A photograph (HxWx3 uint8, RGB) of a scene (HxWx3 float32, RGB in [0, 1]).

    `product` fixes the camera (lens, sensor, lamp), `rng` what changes from shot to shot. Nothing
    moves: a mask of the scene is a mask of the photograph.
    """
    blur, noise = product.uniform(0.3, 0.7), product.uniform(0.004, 0.018)
    vignette, tilt = product.uniform(0, 0.22), product.normal(0, 0.07, 2)
    tint = 1 + product.normal(0, 0.015, 3)

    lens = blurred(image, blur)
    gain = tint * (1 + rng.normal(0, 0.035))
    lit = lens * tinted(_light(rng, image.shape[0], image.shape[1], vignette, tilt), gain)
    # Sensor noise, mostly alike in the three channels after demosaicing; stronger where bright.
    grain = np.float32(noise) * white(rng, (image.shape[0], image.shape[1]))
    lit += rgb(grain) * (np.float32(0.6) + lit)
    lit += np.float32(noise / 2) * _chroma(rng, image.shape[0], image.shape[1])
    return np.asarray(cv2.convertScaleAbs(np.maximum(lit, 0), alpha=255), np.uint8)


def _light(
    rng: Generator, height: int, width: int, vignette: float, tilt: NDArray[np.float64]
) -> FloatImage:
    """Relative light on each pixel: brighter to one side, darker in the corners."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope = (tilt + rng.normal(0, 0.02, 2)).astype(np.float32)
    light = 1 + slope[0] * x + slope[1] * y - np.float32(vignette / 2) * (x * x + y * y)
    return np.asarray(light, np.float32)


def _chroma(rng: Generator, height: int, width: int) -> FloatImage:
    """Colour noise, HxWx3: uniform bytes, as nobody sees their distribution."""
    raw = np.frombuffer(rng.bytes(height * width * 3), np.uint8).reshape(height, width, 3)
    return (raw.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 74)


def snapshot(rng: Generator, image: FloatImage) -> NDArray[np.uint8]:
    """A photograph (HxWx3 uint8, RGB) of a scene (HxWx3 float32) by any camera under any lamp.

    Far wider than `photograph`: dark, flat, burnt out, tinted, grey (three equal channels, with
    probability 0.55), blurred, noisy, sharpened or compressed. Nothing moves here either.
    """
    size = (image.shape[0], image.shape[1])
    grey = rng.random() < 0.55
    lit = _as_grey(image, rng) if grey else image
    if rng.random() < 0.75:
        light = _uneven(rng, size)
        lit = lit * (light if grey else rgb(light))
    if not grey and rng.random() < 0.6:
        lit = lit * np.asarray(np.exp(rng.normal(0, 0.1, 3)), np.float32)
    lit = _noisy(rng, _through_lens(rng, lit))
    photo = _toned(rng, lit)
    if rng.random() < 0.2:
        photo = _sharpened(photo, rng.uniform(0.6, 1.6), rng.uniform(0.3, 1.2))
    if rng.random() < 0.5:
        photo = _compressed(photo, int(rng.integers(40, 96)))
    return np.asarray(cv2.cvtColor(photo, cv2.COLOR_GRAY2RGB) if grey else photo, np.uint8)


def _as_grey(image: FloatImage, rng: Generator) -> FloatImage:
    """HxW: the scene as a sensor without colour sees it, whose filter may prefer any channel."""
    weights = np.array([0.3, 0.5, 0.2]) + rng.uniform(0, 0.5, 3)
    return np.asarray(cv2.transform(image, (weights / weights.sum())[None, :]), np.float32)


def _uneven(rng: Generator, size: tuple[int, int]) -> FloatImage:
    """Relative light (HxW): a slope, dark corners, one soft spot, a band, or clouds."""
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None, :]
    turn = rng.choice([0.0, math.pi / 2, rng.uniform(0, math.pi)])
    along = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    strength, kind = np.float32(log_uniform(rng, 0.08, 0.9)), rng.integers(5)
    if kind == 0:
        return np.asarray(np.exp(strength * along * np.float32(rng.choice([-1, 1]))), np.float32)
    if kind == 1:
        return np.asarray(np.exp(-strength * np.float32(0.7) * (x * x + y * y)), np.float32)
    if kind == 2:
        centre, wide = rng.uniform(-1, 1, 2).astype(np.float32), rng.uniform(0.25, 1)
        spot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / np.float32(wide**2))
        return np.asarray(1 + strength * np.float32(rng.choice([-0.8, 1, 1.5])) * spot, np.float32)
    if kind == 3:
        # A cylinder under one lamp: brightest along a line, falling off faster to its sides.
        away = (along - np.float32(rng.uniform(-0.6, 0.6))) / np.float32(rng.uniform(0.3, 1.2))
        return np.asarray(1 - strength + strength * np.float32(1.6) * np.exp(-away * away))
    clouds = smooth(rng, size, (size[0] / 2, size[1] / 2))
    return np.asarray(np.exp(np.float32(0.4) * strength * np.clip(clouds, -2, 2)), np.float32)


def _through_lens(rng: Generator, lit: FloatImage) -> FloatImage:
    """Blur of the lens, seldom of movement; both even to all sides, so that edges stay."""
    sigma = rng.uniform(-0.4, 1.2) if rng.random() < 0.8 else 0.0
    if sigma > 0.25:
        lit = blurred(lit, sigma)
    if rng.random() < 0.07:
        kernel = np.zeros((7, 7), np.float32)
        angle, reach = rng.uniform(0, math.pi), rng.uniform(1, 3)
        move = reach * np.array([math.cos(angle), math.sin(angle)])
        low, high = (np.rint((3 + sign * move) * 16).astype(int).tolist() for sign in (-1, 1))
        cv2.line(kernel, low, high, 1.0, 1, cv2.LINE_8, 4)
        kernel += kernel[::-1, ::-1]
        lit = np.asarray(cv2.filter2D(lit, -1, kernel / kernel.sum()), np.float32)
    return lit


def _noisy(rng: Generator, lit: FloatImage) -> FloatImage:
    """Sensor noise up to 0.04: white, sometimes as coarse as pixels binned; few hot pixels."""
    size = (lit.shape[0], lit.shape[1])
    amount = np.float32(log_uniform(rng, 0.002, 0.04))
    grain = amount * white(rng, size)
    if rng.random() < 0.3:
        grain = np.float32(1.8) * blurred(grain, 0.6)
    if lit.ndim == 3:
        lit = lit + rgb(grain)
        if rng.random() < 0.5:
            lit += np.float32(0.7) * amount * _chroma(rng, *size)
    else:
        lit = lit + grain
    if rng.random() < 0.04:
        hot = rng.integers(0, size[0] * size[1], rng.integers(1, 30))
        lit.reshape(size[0] * size[1], -1)[hot] = np.float32(rng.choice([0.0, 1.2]))
    return np.asarray(lit, np.float32)


def _toned(rng: Generator, lit: FloatImage) -> NDArray[np.uint8]:
    """Bytes under a random exposure, contrast and gamma, set as the mean of the scene asks."""
    channels = 1 if lit.ndim == 2 else 3
    means, deviations = (np.asarray(each)[:channels] for each in cv2.meanStdDev(lit))
    mean, deviation = float(means.mean()), float(deviations.mean())
    target = float(np.clip(mean, 0.08, 0.85)) if rng.random() < 0.4 else rng.uniform(0.13, 0.82)
    gain, contrast = min(target / max(mean, 0.02), 4), log_uniform(rng, 0.55, 2)
    # Little is burnt out or lost in black, or the picture would show less than its labels say.
    room = 0.32 * min(target, 1 - target) + 0.1
    contrast = max(min(contrast, room / (gain * deviation + 1e-6)), min(contrast, 0.4))
    gamma = log_uniform(rng, 0.65, 1.6) if rng.random() < 0.7 else 1.0
    exposed = target + contrast * (gain * np.linspace(0, 2, _TONES) - gain * mean)
    # Gamma turns about the mean as well: it bends tones and leaves the exposure.
    tones = target * (np.maximum(exposed, 0) / target) ** gamma
    curve = np.rint(255 * np.clip(tones, 0, 1)).astype(np.uint8)
    index = np.clip(lit * np.float32((_TONES - 1) / 2), 0, _TONES - 1).astype(np.int32)
    return np.asarray(curve[index], np.uint8)


def _sharpened(photo: NDArray[np.uint8], sigma: float, amount: float) -> NDArray[np.uint8]:
    """Edges with a halo, as cameras add it."""
    soft = cv2.GaussianBlur(photo, (0, 0), sigma)
    return np.asarray(cv2.addWeighted(photo, 1 + amount, soft, -amount, 0), np.uint8)


def _compressed(photo: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """`photo` after JPEG at `quality`."""
    coloured = photo.ndim == 3
    source = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR) if coloured else photo
    _, data = cv2.imencode(".jpg", source, [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = cv2.imdecode(data, cv2.IMREAD_COLOR if coloured else cv2.IMREAD_GRAYSCALE)
    assert back is not None
    return np.asarray(cv2.cvtColor(back, cv2.COLOR_BGR2RGB) if coloured else back, np.uint8)
