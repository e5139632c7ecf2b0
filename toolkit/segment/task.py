"""What SAM fine-tuning is to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from converters.dataset import Image
from toolkit.segment.cache import EmbeddingCache
from toolkit.segment.data import (
    Batch,
    ImageStore,
    ImageView,
    Prompt,
    Sampler,
    by_image,
    frozen_views_of,
)
from toolkit.segment.learning import Learns, choose, encoder_learns
from toolkit.segment.losses import sam_losses
from toolkit.segment.model import decode, encode, mask_size
from toolkit.segment.segmenter import encode_views, outline
from toolkit.segment.views import View, views_of
from toolkit.training import memory_told

Criterion: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]
"""From logits, estimates, targets and what is inside to losses, as ``sam_losses``."""


class SamTask:
    """Box prompts in, outlines out; a ``toolkit.training.Task``.

    With a frozen encoder every view is encoded once and its embedding kept in half precision
    (2 MiB for the official sizes), on disk or in memory: see ``EmbeddingCache``. With a learning
    one, every view of every batch is encoded.
    """

    def __init__(
        self,
        sam: Sam,
        zoom: float | None,
        train: Sequence[Prompt],
        val: Sequence[Prompt],
        *,
        learns: Learns,
        batch: int,
        repeat: int = 1,
        factors: Mapping[str, float] | None = None,
        jitter: float,
        cache: EmbeddingCache | None = None,
        cache_views: int = 1,
        seed: int,
        workers: int,
    ) -> None:
        """Freeze what shall not learn, and encode the images if the encoder is frozen.

        Args:
            sam: the model, on its device; it is trained in place.
            zoom: of its architecture.
            train: prompts with masks to learn from.
            val: prompts with masks to choose the best epoch by.
            learns: what learns; for "lora" the model has its adapters.
            batch: prompts per step.
            repeat: times each prompt counts in an epoch.
            factors: how often the prompts of a picture come on average, by its file name.
            jitter: standard deviation of the noise on training boxes, as a share of the side.
            cache: where a frozen encoder's embeddings go; by default into memory.
            cache_views: of each group of prompts that a frozen encoder encodes.
            seed: everything random derives from it.
            workers: threads that make batches.
        """
        self.model = sam
        self._zoom = zoom
        self._store = ImageStore()
        self._val = by_image(val)
        self._cells = loss_cells(sam)
        choose(sam, learns)
        self._cache: EmbeddingCache | None = None
        if not encoder_learns(learns):
            self._cache = cache or EmbeddingCache(sam, workers=workers)
            with memory_told(sam.device):
                self._cache.build(frozen_views(train, val, zoom, cache_views))
        self._sampler = Sampler(
            train,
            self._store,
            side=sam.image_encoder.img_size,
            cells=self._cells,
            zoom=zoom,
            batch=batch,
            repeat=repeat,
            factors=factors,
            jitter=jitter,
            recall=self._cache.recall if self._cache else None,
            frozen_views=cache_views,
            seed=seed,
            workers=workers,
        )
        self.steps = self._sampler.steps

    def batches(self, epoch: int) -> Iterator[Batch]:
        """All training prompts once."""
        return self._sampler.batches(epoch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of SAM on one decoder call for the whole batch."""
        return batch_losses(self.model, self._embed(batch), batch)

    def validate(self) -> dict[str, float]:
        """Mean IoU over the val instances, from exact boxes, in pixels of the images."""
        if self._cache is not None:
            self._cache.report()
        ious = []
        for image, instances in self._val:
            masks, _ = outline(
                self.model,
                self._zoom,
                partial(self._embed_views, image),
                [instance.box for instance in instances],
                image.height,
                image.width,
            )
            for mask, instance in zip(masks, instances, strict=True):
                truth = instance.to_mask(image.height, image.width)
                ious.append(np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth))
        return {"val_iou": float(np.mean(ious))}

    def _embed(self, batch: Batch) -> Tensor:
        if batch.pixels:
            return encode(self.model, batch.pixels)
        return self._stack(batch.embeddings)

    def _embed_views(self, image: Image, views: Sequence[View]) -> Tensor:
        """Embeddings of views of an image, from the cache where the encoder is frozen."""
        if self._cache is not None:
            return self._stack(self._cache.recall([(image.file_name, view) for view in views]))
        return encode_views(self.model, self._store.read(image), views)

    def _stack(self, embeddings: Sequence[Tensor]) -> Tensor:
        # One by one: stacked in half precision, autocast refuses them on a CPU.
        return torch.stack([each.to(self.model.device).float() for each in embeddings])


def frozen_views(
    train: Sequence[Prompt], val: Sequence[Prompt], zoom: float | None, count: int
) -> list[tuple[Image, View]]:
    """Every view, once, that a frozen encoder is asked for.

    Args:
        train: prompts to learn from.
        val: prompts to validate on, in the views of prediction.
        zoom: of the architecture.
        count: views of each group of training prompts.
    """
    found: dict[ImageView, Image] = {}
    for _, (image, _), views in frozen_views_of(train, zoom, count):
        found |= {(image.file_name, view): image for view in views}
    for image, instances in by_image(val):
        views, _ = views_of([i.box for i in instances], image.height, image.width, zoom)
        found |= {(image.file_name, view): image for view in views}
    return [(image, view) for (_, view), image in found.items()]


def batch_losses(
    sam: Sam, embeddings: Tensor, batch: Batch, criterion: Criterion = sam_losses
) -> dict[str, Tensor]:
    """The losses on a batch whose views have these embeddings; see ``sam_losses``."""
    device = sam.device
    logits, estimates = decode(sam, embeddings[batch.owner.to(device)], batch.boxes.to(device))
    targets, inside = batch.targets.to(device), batch.inside.to(device)
    return criterion(enlarge(logits, targets.shape[-1]), estimates, targets, inside)


def loss_cells(sam: Sam) -> int:
    """Side of the square that masks are compared on: twice the decoder's, at most the input's.

    Compared on the decoder's own cells, a scratch thinner than a cell is best predicted as a
    probability under one half, that is, not at all. Compared on an enlarged grid, as masks are
    when they are used, logits learn to place edges between their own centres.
    """
    return min(int(sam.image_encoder.img_size), 2 * mask_size(sam))


def enlarge(logits: Tensor, cells: int) -> Tensor:
    """Interpolate mask logits of shape (n, h, w) to (n, cells, cells)."""
    size = (cells, cells)
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
