"""The source domain as a PyTorch data set that never ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain

B = TypeVar("B")

VALIDATION = 10**9
"""Added to a seed for pictures that training never sees."""


class SynthBatches(IterableDataset[B], Generic[B]):
    """Batches of pictures from ``start`` on, the same ones whatever the number of workers.

    Batch ``n`` holds the pictures ``n * batch`` to ``(n + 1) * batch - 1`` of the seed, so a run
    that was stopped after batch ``n`` goes on exactly with ``start = n + 1``. Worker ``w`` of ``k``
    makes the batches ``start + w``, ``start + w + k``, …, and ``DataLoader`` asks them in turn.

    Args:
        domain: what is drawn.
        collate: makes a batch of its pictures and its number; runs in the workers.
        batch: pictures per batch.
        seed: of the pictures.
        start: number of the first batch.
        count: batches before the stream ends; None for no end.
        chosen: of these batches, from 0, the ones to make; all of them where not given.
    """

    def __init__(
        self,
        domain: SourceDomain,
        collate: Callable[[Sequence[Sample], int], B],
        *,
        batch: int,
        seed: int,
        start: int = 0,
        count: int | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self.domain, self.collate = domain, collate
        self.batch, self.seed, self.start, self.count = batch, seed, start, count
        self.chosen = chosen

    def __iter__(self) -> Iterator[B]:
        """The batches of this worker, or all of them outside of workers."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        every = itertools.count() if self.count is None else range(self.count)
        chosen = every if self.chosen is None else self.chosen
        for offset in itertools.islice(chosen, first, None, step):
            number = self.start + offset
            pictures = range(number * self.batch, (number + 1) * self.batch)
            yield self.collate([self.domain.draw(self.seed, index) for index in pictures], number)


def load(batches: SynthBatches[B], workers: int) -> Iterator[B]:
    """The batches in order, drawn ahead of their use by ``workers`` processes (0: when asked)."""
    loader: DataLoader[B] = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    """Keep a worker to one core: the others train."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
