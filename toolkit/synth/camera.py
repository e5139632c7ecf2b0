"""What the camera adds: uneven light, exposure, lens blur and sensor noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import FloatImage, rgb, tinted
from toolkit.synth.noise import blurred, white


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
