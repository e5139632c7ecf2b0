"""Whether pictures show the same scene: parts that always lie alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SAME_SCENE = 0.6
"""Median correlation of pictures at a glance from which the parts on them lie alike."""

Glance = npt.NDArray[np.float32]
"""A picture at a glance: grey, small, of mean 0 and length 1; products are correlations."""

_GLANCE = 24


def glance(pixels: npt.NDArray[Any]) -> Glance:
    """A picture at a glance, shape (24, 24)."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey.astype(np.float32), (_GLANCE, _GLANCE), interpolation=cv2.INTER_AREA)
    small -= small.mean()
    return np.asarray(small / max(1e-6, float(np.linalg.norm(small))), np.float32)


def lie_alike(glances: Sequence[Glance]) -> bool:
    """Whether parts lie on all pictures as they do on the others, at least two of them."""
    flat = np.stack([each.ravel() for each in glances])
    pairs = np.triu_indices(len(flat), 1)
    return bool(np.median((flat @ flat.T)[pairs]) >= SAME_SCENE)
