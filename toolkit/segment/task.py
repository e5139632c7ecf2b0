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

from converters.dataset import Image, Instance
from toolkit.console import track
from toolkit.segment.data import Batch, ImageStore, ImageView, Prompt, Sampler, by_image
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
    (2 MiB for the official sizes); with a learning one, every view of every batch is encoded.
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
        seed: int,
        workers: int,
    ) -> None:
        """Freeze what shall not learn, and encode the images if the encoder is frozen.

        Args:
            sam: the model, on its device; it is trained in place.
            zoom: of its architecture.
            train: prompts with masks to learn from.
            val: prompts with masks to choose the best epoch by; a process that does not validate
                needs none.
            learns: what learns; for "lora" the model has its adapters.
            batch: prompts per step.
            repeat: times each prompt counts in an epoch.
            factors: how often the prompts of a picture come on average, by its file name.
            jitter: standard deviation of the noise on training boxes, as a share of the side.
            seed: everything random derives from it.
            workers: threads that make batches.
        """
        self.model = sam
        self._zoom = zoom
        self._store = ImageStore()
        self._val = by_image(val)
        self._cells = loss_cells(sam)
        choose(sam, learns)
        self._embeddings: dict[ImageView, Tensor] = {}
        if not encoder_learns(learns):
            with memory_told(sam.device):
                self._embeddings = self._encode_once([*by_image(train), *self._val])
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
            augment=encoder_learns(learns),
            seed=seed,
            workers=workers,
        )
        self.steps = self._sampler.steps

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """All training prompts once, or the batches with these numbers."""
        return self._sampler.batches(epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of SAM on one decoder call for the whole batch."""
        return batch_losses(self.model, self._embed(batch), batch)

    def validate(self) -> dict[str, float]:
        """Mean IoU over the val instances, from exact boxes, in pixels of the images."""
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
        return self._recall(batch.views)

    def _embed_views(self, image: Image, views: Sequence[View]) -> Tensor:
        """Embeddings of views of an image, from memory where they are kept."""
        if self._embeddings:
            return self._recall([(image.file_name, view) for view in views])
        return encode_views(self.model, self._store.read(image), views)

    def _recall(self, views: Sequence[ImageView]) -> Tensor:
        # One by one: stacked in half precision, autocast refuses them on a CPU.
        device = self.model.device
        return torch.stack([self._embeddings[view].to(device).float() for view in views])

    @torch.no_grad()
    def _encode_once(
        self, prompts: Sequence[tuple[Image, list[Instance]]]
    ) -> dict[ImageView, Tensor]:
        """Every view that a frozen encoder is asked for, in half precision."""
        kept: dict[ImageView, Tensor] = {}
        for image, instances in track(prompts, "encoding images", total=len(prompts)):
            boxes = [instance.box for instance in instances]
            views, _ = views_of(boxes, image.height, image.width, self._zoom)
            for view, embedding in zip(views, self._embed_views(image, views), strict=True):
                kept[image.file_name, view] = embedding.half().cpu()
        return kept


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
