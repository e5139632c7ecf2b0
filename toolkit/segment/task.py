"""What SAM fine-tuning is to the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from converters.dataset import GOOD, Image, Instance
from toolkit.evaluate.verdicts import auroc
from toolkit.segment.cache import EmbeddingCache
from toolkit.segment.data import (
    Batch,
    ImageStore,
    ImageView,
    Prompt,
    Sampler,
    by_image,
    frozen_views_of,
    zoom_for,
)
from toolkit.segment.learning import Learns, choose, encoder_learns
from toolkit.segment.losses import Criterion
from toolkit.segment.model import bounded, decode, decode_several, encode, mask_size
from toolkit.segment.prompts import PromptKind, corrective_clicks
from toolkit.segment.sam import Points, Sam
from toolkit.segment.segmenter import encode_views, exact_prompts, outlines
from toolkit.segment.views import View, views_of
from toolkit.training import memory_told

Answer: TypeAlias = tuple[float | None, float]
"""IoU of an outline with the truth, None where the prompt holds nothing, and its estimate."""


@dataclass(frozen=True)
class Prompting:
    """How defects are prompted in training.

    Attributes:
        kinds: what first prompts are made of; the first of them chooses the best epoch.
        jitter: standard deviation of the noise on box corners, as a share of the side.
        clicks: corrective clicks after the first answer, one at a time, each with a new answer
            that starts from the one before.
        negative_share: prompts that hold nothing, for each that holds a defect.
        several: whether a first prompt gives three masks, the best of which learns.
    """

    kinds: tuple[PromptKind, ...] = ("box",)
    jitter: float = 0.1
    clicks: int = 0
    negative_share: float = 0.0
    several: bool = False


@dataclass(frozen=True)
class Material:
    """What is learnt from, and what chooses the best epoch.

    Attributes:
        train, val: prompts on defects, all of them with masks.
        train_negatives, val_negatives: prompts that hold nothing.
    """

    train: Sequence[Prompt]
    val: Sequence[Prompt]
    train_negatives: Sequence[Prompt] = ()
    val_negatives: Sequence[Prompt] = ()


class SamTask:
    """Prompts in, outlines out; a ``toolkit.training.Task``.

    With a frozen encoder every view is encoded once and its embedding kept in half precision
    (2 MiB for SAM's official sizes, 8 for SAM 2), on disk or in memory: see ``EmbeddingCache``.
    With a learning one, every view of every batch is encoded.
    """

    def __init__(
        self,
        sam: Sam,
        zoom: float | None,
        material: Material,
        prompting: Prompting,
        *,
        learns: Learns,
        batch: int,
        repeat: int = 1,
        factors: Mapping[str, float] | None = None,
        criterion: Criterion,
        cache: EmbeddingCache | None = None,
        cache_views: int = 1,
        seed: int,
        workers: int,
    ) -> None:
        """Freeze what shall not learn, and encode the images if the encoder is frozen.

        Args:
            sam: the model, on its device; it is trained in place.
            zoom: window around each box, in its longer sides; None for the whole image.
            material: what it learns from; a process that does not validate needs no val.
            prompting: how it is asked.
            learns: what learns; for "lora" the model has its adapters.
            batch: prompts per step.
            repeat: times each prompt counts in an epoch.
            factors: how often the prompts of a picture come on average, by its file name.
            criterion: what is minimised.
            cache: where a frozen encoder's embeddings go; by default into memory.
            cache_views: of each group of prompts that a frozen encoder encodes.
            seed: everything random derives from it.
            workers: threads that make batches.
        """
        self.model = sam
        self._zoom = zoom
        self._store = ImageStore()
        self._prompting = prompting
        self._criterion = criterion
        self._val = by_image([*material.val, *material.val_negatives])
        self._cells = loss_cells(sam)
        choose(sam, learns)
        self._cache: EmbeddingCache | None = None
        if not encoder_learns(learns):
            self._cache = cache or EmbeddingCache(sam, workers=workers)
            with memory_told(sam.device):
                views = frozen_views(material, prompting.kinds, zoom, cache_views)
                self._cache.build(views)
        self._sampler = Sampler(
            material.train,
            self._store,
            side=sam.image_encoder.img_size,
            cells=self._cells,
            stretches=sam.stretches,
            zoom=zoom,
            batch=batch,
            repeat=repeat,
            factors=factors,
            kinds=prompting.kinds,
            negatives=material.train_negatives,
            negative_share=prompting.negative_share,
            jitter=prompting.jitter,
            recall=self._cache.recall if self._cache else None,
            frozen_views=cache_views,
            seed=seed,
            workers=workers,
        )
        self.steps = self._sampler.steps

    def batches(self, epoch: int, numbers: Sequence[int] | None = None) -> Iterator[Batch]:
        """All training prompts once, or the batches with these numbers."""
        return self._sampler.batches(epoch, numbers)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Means over the first answers and those to the corrective clicks, a decoder call each."""
        return batch_losses(
            self.model,
            self._embed(batch),
            batch,
            self._criterion,
            clicks=self._prompting.clicks,
            several=self._prompting.several,
        )

    def validate(self) -> dict[str, float]:
        """Mean IoU over the val instances, from exact boxes or careful clicks, in image pixels.

        ``val_iou`` is of the first kind of prompts, ``val_iou_KIND`` of each other. Where there are
        prompts that hold nothing, also the AUROC of the estimated IoU between prompts of the first
        kind on defects and these.
        """
        if self._cache is not None:
            self._cache.report()
        first, *others = self._prompting.kinds
        answers = [each for image, some in self._val for each in self._answers(image, some, first)]
        metrics = {"val_iou": _mean_iou(answers)}
        if any(iou is None for iou, _ in answers):
            metrics["val_rejection_auroc"] = _auroc(answers)
        for kind in others:
            defects = [(image, _defects(some)) for image, some in self._val if _defects(some)]
            found = [each for image, some in defects for each in self._answers(image, some, kind)]
            metrics[f"val_iou_{kind}"] = _mean_iou(found)
        return metrics

    def _answers(
        self, image: Image, instances: Sequence[Instance], kind: PromptKind
    ) -> Iterator[Answer]:
        """What the model says to exact prompts of a kind on one image."""
        found = outlines(
            self.model,
            self._zoom,
            partial(self._embed_views, image),
            exact_prompts(instances, kind),
            image.height,
            image.width,
            several=self._prompting.several,
        )
        for outline, instance in zip(found, instances, strict=True):
            iou = None
            if instance.category != GOOD:
                mask = outline.mask(image.height, image.width)
                truth = instance.to_mask(image.height, image.width)
                iou = np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)
            yield iou, outline.estimate

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
    material: Material, kinds: Sequence[PromptKind], zoom: float | None, count: int
) -> list[tuple[Image, View]]:
    """Every view, once, that a frozen encoder is asked for.

    Args:
        material: prompts to learn from, and to validate on in the views of prediction.
        kinds: what the prompts are made of.
        zoom: window around each box, in its longer sides; None for the whole image.
        count: views of each group of training prompts.
    """
    found: dict[ImageView, Image] = {}
    for window in {zoom_for(kind, zoom): None for kind in kinds}:
        for prompts in (material.train, material.train_negatives):
            for _, (image, _), views in frozen_views_of(prompts, window, count):
                found |= {(image.file_name, view): image for view in views}
        for image, instances in by_image([*material.val, *material.val_negatives]):
            views, _ = views_of([i.box for i in instances], image.height, image.width, window)
            found |= {(image.file_name, view): image for view in views}
    return [(image, view) for (_, view), image in found.items()]


def batch_losses(
    sam: Sam,
    embeddings: Tensor,
    batch: Batch,
    criterion: Criterion,
    *,
    clicks: int = 0,
    several: bool = False,
) -> dict[str, Tensor]:
    """The losses on a batch whose views have these embeddings; see ``losses.Criterion``.

    Source of the clicks: arXiv 2304.02643, appendix A ("Training algorithm"): each next to all
    that was asked before, with the logits of the answer before it, without gradients through them.

    Args:
        sam: the model.
        embeddings: of the batch's views, shape (views, channels, grid, grid).
        batch: prompts, and what they should give.
        criterion: what is minimised.
        clicks: corrective clicks after the first answer; all answers count alike.
        several: whether the first answer is three masks.
    """
    device = sam.device
    shown = embeddings[batch.owner.to(device)]
    targets, inside = batch.targets.to(device), batch.inside.to(device)
    boxes = None if batch.boxes is None else batch.boxes.to(device)
    first = batch.clicks()
    points = None if first is None else (first[0].to(device), first[1].to(device))
    cells = targets.shape[-1]

    def answer(logits: Tensor, estimates: Tensor) -> dict[str, Tensor]:
        return criterion(enlarge(logits, cells), estimates, targets, inside)

    if several:
        masks, estimates = decode_several(sam, shown, boxes, points)
    else:
        masks, estimates = (each[:, None] for each in decode(sam, shown, boxes, points))
    answers = [answer(masks, estimates)]
    for _ in range(clicks):
        best = estimates.argmax(1)
        logits = masks.detach()[torch.arange(len(masks), device=device), best]
        large = enlarge(logits[:, None], cells)[:, 0]
        clicked = corrective_clicks(large, targets, inside, sam.image_encoder.img_size)
        points = clicked if points is None else _joined(points, clicked)
        masks, estimates = (
            each[:, None] for each in decode(sam, shown, boxes, points, bounded(logits))
        )
        answers.append(answer(masks, estimates))
    return {name: torch.stack([each[name] for each in answers]).mean(0) for name in answers[0]}


def _joined(points: Points, more: Points) -> Points:
    return torch.cat([points[0], more[0]], dim=1), torch.cat([points[1], more[1]], dim=1)


def _defects(instances: Sequence[Instance]) -> list[Instance]:
    return [instance for instance in instances if instance.category != GOOD]


def _mean_iou(answers: Sequence[Answer]) -> float:
    return float(np.mean([iou for iou, _ in answers if iou is not None]))


def _auroc(answers: Sequence[Answer]) -> float:
    """Chance that a prompt on a defect has a higher estimate than one on nothing."""
    holds = np.array([iou is not None for iou, _ in answers], dtype=np.int64)
    scores = np.array([estimate for _, estimate in answers])
    return float(auroc(holds, scores, np.ones((1, len(scores))))[0])


def loss_cells(sam: Sam) -> int:
    """Side of the square that masks are compared on: twice the decoder's, at most the input's.

    Compared on the decoder's own cells, a scratch thinner than a cell is best predicted as a
    probability under one half, that is, not at all. Compared on an enlarged grid, as masks are
    when they are used, logits learn to place edges between their own centres.
    """
    return min(int(sam.image_encoder.img_size), 2 * mask_size(sam))


def enlarge(logits: Tensor, cells: int) -> Tensor:
    """Interpolate mask logits of shape (n, m, h, w) to (n, m, cells, cells)."""
    return F.interpolate(logits, (cells, cells), mode="bilinear", align_corners=False)
