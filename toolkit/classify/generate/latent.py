"""New pictures from old ones by a change of their codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.classify.data import PADDING, Labels
from toolkit.classify.generate.base import Grown, Values
from toolkit.classify.generate.networks import CODE, Autoencoder, seeded, train_autoencoder
from toolkit.images import RgbImage

EACH = 4
"""Candidates for each picture that is made; the best one is kept."""

_LARGEST_SIDE = 64
_STEPS = 300
_SLOTS_PER_CALL = 32

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """What could be made, ``EACH`` for every picture that is wanted.

    Attributes:
        codes: float32, shape (wanted, EACH, CODE).
        parents: rows of train, shape (wanted, EACH, parents); the first is the picture that is
            changed, the same one in all candidates for a picture.
    """

    codes: npt.NDArray[np.float32]
    parents: Rows


class LatentSpace:
    """Train pictures, their codes by an autoencoder, and pictures between them.

    What an autoencoder draws is blurred, and a classifier that is shown blurred pictures of rare
    classes alone learns that blurred means rare. So a picture x with code z is made into one with
    code z' by what changes between the two drawings alone: x + decode(z') - decode(z). Noise and
    fine texture stay the camera's.

    The autoencoder sees pictures without their padding, stretched to a square of at most 64 pixels,
    and in one channel where all are grey: padding stays padding, and grey stays grey, which would
    give away what was made just as well.

    Attributes:
        labels: of the train pictures, shape (n,).
        codes: of them, float32, shape (n, CODE).
        small: them as the autoencoder sees them, of 0 to 1, shape (n, channels, side, side).
        model: the autoencoder.
    """

    def __init__(
        self, pixels: Values, labels: Labels, classes: int, device: torch.device, seed: int
    ) -> None:
        """Train the autoencoder.

        Args:
            pixels: uint8, shape (n, side, side, 3), RGB, letterboxed.
            labels: index into the classes of each.
            classes: how many there are.
            device: to compute on.
            seed: everything random derives from it.
        """
        self.labels = labels
        self._pixels = pixels
        self._side = min(_LARGEST_SIDE, pixels.shape[1] // 8 * 8)
        self._device = device
        parts = [picture[content(picture)] for picture in pixels]
        self._grey = all((part == part[..., :1]).all() for part in parts)
        self.small = self.seen(pixels)
        with seeded(seed):
            self.model = Autoencoder(self.small.mean(0).cpu(), classes).to(device)
            rng = np.random.default_rng([seed, 0])
            train_autoencoder(self.model, self.small, labels, _STEPS, rng)
        with torch.no_grad():
            self.codes = self.model.encode(self.small).cpu().numpy()

    def seen(self, pixels: Values) -> Tensor:
        """Letterboxed pictures as the autoencoder sees them: of 0 to 1, stretched, channels first.

        Args:
            pixels: uint8, shape (n, side, side, 3).
        """
        squares = []
        for picture in pixels:
            part = picture[content(picture)]
            shrinks = max(part.shape[:2]) > self._side
            smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            square = cv2.resize(part, (self._side, self._side), interpolation=smooth)
            squares.append(square[..., :1] if self._grey else square)
        stacked = torch.from_numpy(np.stack(squares)).to(self._device)
        return stacked.permute(0, 3, 1, 2).float().contiguous() / 255

    @torch.no_grad()
    def changes(self, rows: Rows, codes: npt.NDArray[np.float32]) -> Tensor:
        """What to add to train pictures, for other codes of the same class.

        Args:
            rows: of the pictures, shape (n,).
            codes: that they shall have, shape (n, CODE).

        Returns:
            shape (n, channels, side, side); a difference of pictures of 0 to 1.
        """
        known = torch.from_numpy(self.labels[rows]).to(self._device)
        wanted, own = (torch.from_numpy(c).to(self._device) for c in (codes, self.codes[rows]))
        return self.model.decode(wanted, known) - self.model.decode(own, known)

    def changed(self, rows: Rows, codes: npt.NDArray[np.float32]) -> Tensor:
        """Train pictures with other codes, as the autoencoder sees pictures; see ``changes``."""
        seen = self.small[torch.from_numpy(rows).to(self._device)]
        return (seen + self.changes(rows, codes)).clamp(0, 1)

    def picture(self, row: int, change: Tensor) -> RgbImage:
        """A train picture at its own size with a change, shape (channels, side, side)."""
        picture: RgbImage = self._pixels[row].copy()
        own = content(picture)
        height, width = picture[own].shape[:2]
        square = change.cpu().numpy().transpose(1, 2, 0)
        whole = cv2.resize(square, (width, height), interpolation=cv2.INTER_LINEAR)
        whole = whole.reshape(height, width, -1)  # cv2 drops a single channel
        picture[own] = np.clip(np.rint(picture[own] + 255 * whole), 0, 255)
        return picture

    def best(self, candidates: Candidates, score: Callable[[Tensor], Tensor], label: int) -> Grown:
        """Make the best candidate for every picture that is wanted.

        Candidates for one picture change the same parent. The best of all would be those that
        hardly change anything, again and again.

        Args:
            candidates: of one class, for one picture at least.
            score: of pictures as the autoencoder sees them, shape (n,); higher is better.
            label: of the class.
        """
        pictures, parents = [], []
        for start in range(0, len(candidates.codes), _SLOTS_PER_CALL):
            codes = candidates.codes[start : start + _SLOTS_PER_CALL]
            of_each = candidates.parents[start : start + _SLOTS_PER_CALL]
            rows, flat = of_each[..., 0].reshape(-1), codes.reshape(-1, CODE)
            with torch.no_grad():
                chosen = score(self.changed(rows, flat)).reshape(len(codes), EACH).argmax(1).cpu()
            numbers = np.arange(len(codes)) * EACH + chosen.numpy()
            changes = self.changes(rows[numbers], flat[numbers])
            for row, change in zip(rows[numbers], changes, strict=True):
                pictures.append(self.picture(row, change))
            for own, number in zip(of_each, chosen.tolist(), strict=True):
                parents.append(tuple(own[number].tolist()))
        return Grown(np.stack(pictures), np.full(len(pictures), label, np.int64), tuple(parents))


def content(picture: RgbImage) -> tuple[slice, slice]:
    """Rows and columns of a letterboxed picture without its padding."""
    inside = (picture != np.array(PADDING, np.uint8)).any(axis=2)
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, picture.shape[0]), slice(0, picture.shape[1])
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
