"""Plates, strips and plain or repeated textures: the wide families of the source domain.

The functions have the form that `surfaces.py` describes. What a product draws here spans far more
than one material, so that a real surface is one more draw.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from toolkit.synth.canvas import FloatImage, Size, Surface, mix, rgb, tinted, unit_of
from toolkit.synth.noise import (
    fractal,
    log_uniform,
    rotated,
    rotation_canvas,
    smooth,
    soft_step,
    white,
)
from toolkit.synth.surfaces import Colour, blurred_spot, grid, light_from, mixed

_LEVELS = 1024
"""Entries of a tabulated curve: fine enough that no picture shows its steps."""


def ground_tile(product: Generator, rng: Generator, size: Size) -> Surface:
    """A ground or sintered block that nearly fills the picture: streaks, bands, ragged edges."""
    metal = any_colour(product, 0.12, 0.6, grey=0.9)
    upright = product.random() < 0.7
    contrast, grain = log_uniform(product, 0.03, 0.14), product.uniform(0.01, 0.05)
    bands, clouds = product.uniform(0.08, 0.45), product.uniform(0.03, 0.2)
    fine = product.uniform(0.6, 1.8)
    backing = mixed(any_colour(product, 0.01, 0.12, grey=0.9), 0.9, float(product.random() < 0.1))
    light = light_from(product)

    unit = unit_of(size)
    frame = size if upright else (size[1], size[0])
    streaks = smooth(rng, frame, (140 * unit, fine)) + 0.7 * smooth(
        rng, (1, frame[1]), (1, 3 * fine)
    )
    streaks += np.float32(0.6) * smooth(rng, frame, (18 * unit, fine))
    noise = white(rng, frame)
    tone = 1 + np.float32(contrast) * streaks + np.float32(grain) * noise
    tone += np.float32(clouds) * fractal(rng, frame, 90 * unit, 2)
    tone *= _bands(rng, frame, bands)
    coverage, wall = _outline(rng, frame, product.random(4) < 0.6)
    tone = np.maximum(tone, np.float32(0.15)) * wall
    if not upright:
        tone, coverage = np.ascontiguousarray(tone.T), np.ascontiguousarray(coverage.T)
    ground = tinted(1 + np.float32(0.15) * noise.reshape(size), backing)
    image = mix(ground, exposed(tinted(tone, metal)), coverage)
    return Surface(image, exposed(ground), light, part=coverage)


def _bands(rng: Generator, frame: Size, strength: float) -> FloatImage:
    """Relative light that runs along the columns: broad bands, a few sharp lines, soft ends."""
    across = np.float32(strength) * smooth(rng, (1, frame[1]), (1, frame[1] / rng.uniform(2, 7)))
    x = np.linspace(0, 1, frame[1], dtype=np.float32)[None, :]
    for _ in range(rng.integers(0, 4)):
        narrow = np.float32(log_uniform(rng, 0.004, 0.05))
        across += np.float32(rng.normal(0, 0.3)) * np.exp(
            -(((x - np.float32(rng.random())) / narrow) ** 2)
        )
    along = np.float32(0.5 * strength) * smooth(rng, (frame[0], 1), (frame[0] / 2, 1))
    return np.asarray(np.exp(np.clip(across, -1.4, 0.7)) * np.exp(along), np.float32)


def _outline(
    rng: Generator, frame: Size, open_edges: NDArray[np.bool_]
) -> tuple[FloatImage, FloatImage]:
    """Coverage of a block that leaves a gap at `open_edges`, and the relative light on its rims."""
    unit = min(frame) / 256
    coverage, wall = np.ones(frame, np.float32), np.ones(frame, np.float32)
    open_edges[rng.integers(4)] = True
    for edge in np.flatnonzero(open_edges):
        rows = edge < 2
        length, depth = (frame[1], frame[0]) if rows else frame
        gap = rng.uniform(-2, 16) * unit + np.float32(rng.normal(0, 0.012) * length) * np.linspace(
            -0.5, 0.5, length, dtype=np.float32
        )
        ragged = log_uniform(rng, 0.1, 2) * unit
        gap += np.float32(ragged) * fractal(rng, (1, length), 16 * unit, 2)[0]
        rim = rng.uniform(2, 16) * unit
        reach = int(np.clip(gap.max() + 2.5 * rim + 2, 1, depth))
        inward = np.arange(0.5, reach, dtype=np.float32)[:, None] - gap[None, :]
        # A side wall or a chamfer stands at another angle to the lamp than the face does.
        shade = 1 + np.float32(rng.choice([-0.6, -0.4, 0.4, 1.0])) * soft_step(
            -inward, -rim, max(1.0, rng.uniform(0.3, 2) * rim)
        )
        for whole, strip in ((coverage, soft_step(inward, 0, 1.2)), (wall, shade)):
            turned = whole if rows else whole.T
            near = turned[-reach:] if edge % 2 else turned[:reach]
            near *= strip[::-1] if edge % 2 else strip
    return coverage, wall


def hot_strip(product: Generator, rng: Generator, size: Size) -> Surface:
    """Hot-rolled strip: smooth and dark, or coarsely mottled and bright, streaked and banded."""
    coarse = product.random() ** 1.5
    steel = any_colour(product, 0.14 + 0.15 * coarse, 0.5 + 0.4 * coarse, grey=0.92)
    upright = product.random() < 0.5
    contrast = log_uniform(product, 0.01, 0.06) + 0.32 * coarse * product.random()
    cell, stretch = log_uniform(product, 1.2, 7), log_uniform(product, 1, 7)
    fine, banding = product.uniform(0.4, 1.5), product.uniform(0.02, 0.12) + 0.3 * coarse
    comb = product.uniform(0, 0.5)
    light = light_from(product)

    unit = unit_of(size)
    frame = size if upright else (size[1], size[0])
    narrow = max(1.0, cell * unit)
    grain = smooth(rng, frame, (narrow * stretch, narrow)) + np.float32(fine) * white(rng, frame)
    grain += np.float32(0.4) * smooth(rng, frame, (4 * narrow * stretch, 3 * narrow))
    grain += np.float32(comb) * smooth(rng, (1, frame[1]), (1, 2 * narrow))
    tone = 1 + np.float32(contrast / 1.5) * grain
    # Bands run on through the whole strip: a dark field that ends would be a defect.
    bands = smooth(rng, (1, frame[1]), (1, 55 * unit))
    bands = bands if rng.random() < 0.6 else soft_step(bands, 0.3, 0.5)
    tone += np.float32(banding) * (bands + 0.3 * smooth(rng, frame, (160 * unit, 90 * unit)))
    # Bright metal burns out before the dark grain does.
    tone = np.maximum(tone, np.float32(0.12))
    image = exposed(tinted(tone if upright else tone.T, steel))
    return Surface(np.minimum(image, np.float32(1.02)), steel * np.float32(0.35), light)


def spectral(product: Generator, rng: Generator, size: Size) -> Surface:
    """Noise of a random spectrum, folded or cut into tones, in one to three colours."""
    colours = _palette(product)
    slope, ring = product.uniform(0.4, 2.4), log_uniform(product, 0.015, 0.25)
    peaked, stretch = product.random() < 0.4, log_uniform(product, 1, 14)
    angle = product.uniform(0, math.pi)
    fold = product.choice(["plain", "ridges", "waves", "tones", "plain"])
    if fold == "tones":
        # Large fields of another tone would look like stains; small ones repeat and are texture.
        slope, ring = min(slope, 1.5), max(ring, 0.03)
    sharp, strength = log_uniform(product, 0.05, 1), product.uniform(0.15, 1)
    grain, cloud = log_uniform(product, 0.002, 0.05), product.uniform(0, 0.25)
    light = light_from(product)

    unit = unit_of(size)
    gain = _spectrum(size, unit, angle + rng.normal(0, 0.02), stretch, slope, ring, peaked)
    field = _coloured_noise(rng, gain, size)
    if fold == "ridges":
        field = np.asarray(1.4 - 2 * np.minimum(np.abs(field), 1.6), np.float32)
    elif fold == "waves":
        field = np.asarray(1.4 * np.sin(field * np.float32(1 + 3 * sharp)), np.float32)
    elif fold == "tones":
        field = soft_step(field, 0.0, sharp) + soft_step(field, 0.8, sharp) - np.float32(0.7)
    field = np.float32(strength) * field + np.float32(cloud) * smooth(
        rng, size, (100 * unit, 100 * unit)
    )
    image = colours[_index(np.float32(0.5) + np.float32(0.28) * field)]
    image = image * rgb(1 + np.float32(grain) * white(rng, size))
    return Surface(exposed(image), mixed(colours[0], colours[-1] * np.float32(0.3), 0.5), light)


def _palette(product: Generator) -> FloatImage:
    """A colour map (1024x3) through one to three colours; one colour runs from dark to light."""
    base, grey = any_colour(product, 0.15, 0.75), float(product.random() < 0.5)
    count = product.integers(1, 4)
    depth = log_uniform(product, 0.06, 0.6)
    stops = [base * np.float32(1 - depth)]
    stops += [mixed(base, any_colour(product, 0.05, 0.95), 0.7) for _ in range(count - 1)]
    stops += [base * np.float32(1 + depth)]
    known = np.array([mixed(stop, float(stop.mean()), grey) for stop in stops])
    steps = np.linspace(0, 1, _LEVELS)
    channels = [np.interp(steps, np.linspace(0, 1, len(known)), known[:, i]) for i in range(3)]
    return np.asarray(np.stack(channels, axis=1), np.float32)


def _spectrum(
    size: Size, unit: float, angle: float, stretch: float, slope: float, ring: float, peaked: bool
) -> FloatImage:
    """Amplitude (HxW at sizes that transform fast) of each frequency, falling or peaked at `ring`.

    Frequencies are in cycles per design unit; `stretch` draws the pattern out along `angle`.
    """
    rows, columns = (cv2.getOptimalDFTSize(length) for length in size)
    fy = np.fft.fftfreq(rows, 1 / unit).astype(np.float32)[:, None]
    fx = np.fft.fftfreq(columns, 1 / unit).astype(np.float32)[None, :]
    root = math.sqrt(stretch)
    along = (fx * np.float32(math.cos(angle)) + fy * np.float32(math.sin(angle))) * root
    across = (fy * np.float32(math.cos(angle)) - fx * np.float32(math.sin(angle))) / root
    power = along * along + across * across
    if peaked:
        gain = np.exp(-((np.sqrt(power) / np.float32(ring) - 1) ** 2) * 6)
    else:
        gain = cv2.pow(power + np.float32((ring / 3) ** 2), -slope / 2)
    gain[0, 0] = 0
    return np.asarray(gain, np.float32)


def _coloured_noise(rng: Generator, gain: FloatImage, size: Size) -> FloatImage:
    """Noise (HxW) with the spectrum `gain`, mean 0 and deviation 1."""
    transform = cv2.dft(white(rng, (gain.shape[0], gain.shape[1])), flags=cv2.DFT_COMPLEX_OUTPUT)
    shaped = transform * np.repeat(gain[..., None], 2, axis=2)
    field = cv2.dft(shaped, flags=cv2.DFT_INVERSE | cv2.DFT_REAL_OUTPUT)[: size[0], : size[1]]
    mean, deviation = cv2.meanStdDev(field)
    return np.asarray((field - np.float32(mean.item())) / np.float32(deviation.item() + 1e-9))


def gradient(product: Generator, rng: Generator, size: Size) -> Surface:
    """Nearly plain plastic, glass, paper or ceramic: soft shades and reflections, faint texture."""
    base = any_colour(product, 0.08, 0.9)
    slope, gloss = product.uniform(0.05, 0.5), product.uniform(-0.05, 0.35)
    texture, cell = log_uniform(product, 0.004, 0.04), log_uniform(product, 1, 8)
    other = mixed(base, any_colour(product, 0.1, 0.9), product.choice([0, 0, 0.4]))
    light = light_from(product)

    unit = unit_of(size)
    y = np.linspace(-0.5, 0.5, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[None, :]
    turn = math.atan2(light[1], light[0]) + rng.normal(0, 0.2)
    ramp = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    bow = ramp * ramp if product.random() < 0.3 else ramp
    tone = 1 + np.float32(slope) * bow + np.float32(0.04) * smooth(rng, size, (90 * unit,) * 2)
    tone += np.float32(texture) * fractal(rng, size, max(1.0, cell * unit), 2)
    image = mix(tinted(tone, base), tinted(tone, other), soft_step(ramp, 0, 1))
    shine = np.float32(max(gloss, 0)) * blurred_spot(rng, size)
    if gloss > 0.2:
        # A window or soft box mirrored in the gloss: a bright field with an edge.
        shine *= np.float32(0.4) + soft_step(ramp, rng.uniform(-0.3, 0.3), rng.uniform(0.02, 0.2))
    return Surface(exposed(image + rgb(shine)), mixed(base, 0.3, 0.6), light)


def ribs(product: Generator, rng: Generator, size: Size) -> Surface:
    """A profile that repeats: extruded ribs, corrugation, thread flanks or knurling."""
    metal = any_colour(product, 0.15, 0.7)
    pitch = log_uniform(product, 7, 60)
    angle = product.choice([0.0, math.pi / 2, product.uniform(0, math.pi)])
    knurled, bent = product.random() < 0.25, product.random() < 0.4
    curve = _rib_curve(product)
    wear, scale = product.uniform(0.02, 0.08), product.uniform(0.01, 0.05)
    light = light_from(product)

    unit = unit_of(size)
    step = max(4.0, pitch * unit)
    u, v = grid(size, step, angle + rng.normal(0, 0.02), rng.uniform(0, 60, 2))
    tone = _curve_at(curve, u - np.floor(u))
    if knurled:
        tone = np.float32(0.5) * (tone + _curve_at(curve, v - np.floor(v)))
    if bent:
        # Turned parts show their ribs on a cylinder: light falls off to both sides of it.
        bow = np.clip((v - v.mean()) / np.float32(0.55 * np.ptp(v) + 1e-6), -0.95, 0.95)
        tone *= np.float32(0.35) + np.float32(0.75) * np.sqrt(1 - bow * bow)
    canvas = rotation_canvas(size)
    streaks = smooth(rng, canvas, (60 * unit, 1.0)) if not knurled else white(rng, canvas)
    tone *= 1 + np.float32(wear) * rotated(streaks, size, angle)
    tone += np.float32(scale) * white(rng, size)
    image = exposed(tinted(np.maximum(tone, np.float32(0.05)), metal))
    return Surface(image, metal * np.float32(0.35), light)


def _rib_curve(product: Generator) -> FloatImage:
    """Light over one period of a profile (1024 values): its slope, hollows and crests."""
    phase = np.linspace(0, 2 * math.pi, _LEVELS, endpoint=False)
    power = log_uniform(product, 0.5, 8)
    wave = np.tanh(power * np.sin(phase)) / math.tanh(power)
    height = [wave, np.abs(np.sin(phase / 2)), phase / (2 * math.pi), wave][product.integers(4)]
    soft = int(log_uniform(product, 8, 120)) | 1
    ring = np.tile(height, 3).astype(np.float32)[None, :]
    ring = np.asarray(cv2.GaussianBlur(ring, (2 * soft + 1, 1), soft / 2), np.float32)
    slope = np.gradient(ring[0])[_LEVELS : 2 * _LEVELS]
    slope /= np.abs(slope).max() + 1e-9
    hollow = ring[0, _LEVELS : 2 * _LEVELS] - ring.mean()
    sign = product.choice([-1, 1])
    tone = 1 + sign * product.uniform(0.15, 0.6) * slope + product.uniform(0, 0.3) * hollow
    return np.asarray(np.maximum(tone, 0.1), np.float32)


def any_colour(product: Generator, low: float, high: float, grey: float = 0.55) -> Colour:
    """A colour of brightness `low` to `high`, near grey with probability `grey`."""
    level = product.uniform(low, high)
    spread = 0.01 if product.random() < grey else level * log_uniform(product, 0.08, 0.6)
    return np.asarray(np.clip(level + product.normal(0, spread, 3), 0.01, 0.95), np.float32)


def _index(share: FloatImage) -> NDArray[np.intp]:
    return np.asarray(np.clip(share * np.float32(_LEVELS), 0, _LEVELS - 1), np.intp)


def _curve_at(curve: FloatImage, share: FloatImage) -> FloatImage:
    """Values of a tabulated `curve` at `share` (0 to 1) of its length."""
    return np.asarray(curve[_index(share)], np.float32)


def exposed(image: FloatImage) -> FloatImage:
    """`image` within the range that a scene may have."""
    return np.asarray(np.clip(image, 0, 1.2), np.float32)
