"""A fine-tuned SAM at work: outline what is in given boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from converters.dataset import BinaryMask, Box, Dataset, Image, Instance
from converters.errors import InputError
from converters.geometry import Region, rle_from_region
from toolkit.console import track
from toolkit.devices import resolve_device
from toolkit.images import RgbImage, read_image
from toolkit.predictions import Result
from toolkit.segment.data import zoom_for
from toolkit.segment.frames import FloatArray, Frame
from toolkit.segment.model import (
    ArchitectureName,
    bounded,
    decode,
    decode_several,
    encode,
)
from toolkit.segment.prompts import INSIDE, NOTHING, OUTSIDE, PromptKind, inner_point
from toolkit.segment.sam import Sam
from toolkit.segment.usage import Usage, read_usage
from toolkit.segment.views import View, views_of
from toolkit.segment.weights import load_sam
from toolkit.training import memory_told

PROMPTS_PER_CALL = 64
"""Boxes that are decoded in one call."""

PIXELS_PER_CALL = 16 * 128**2
"""Pixels of input that are encoded in one call: sixteen windows of nano, or one picture of SAM."""

Embed: TypeAlias = Callable[[Sequence[View]], Tensor]
"""Gives the embeddings (n, channels, grid, grid) of n views of one image."""


@dataclass(frozen=True)
class Prompts:
    """What is asked of one image: n prompts, all of one kind.

    Attributes:
        boxes: ``(x, y, width, height)`` of each, in pixels of the image; None where points alone
            prompt.
        points: x and y in pixels of the image, from its top left corner, shape (n, k, 2); None
            where boxes alone prompt.
        labels: what the points say, shape (n, k): 1 inside the object, 0 outside, -1 nothing; by
            default all are inside.
        logits: of an earlier answer to the same prompts with fewer points, shape
            (n, cells, cells): see ``Outline``.
    """

    boxes: Sequence[Box] | None = None
    points: npt.NDArray[np.floating[Any]] | None = None
    labels: npt.NDArray[np.integer[Any]] | None = None
    logits: FloatArray | None = None

    def __len__(self) -> int:
        """How many prompts."""
        if self.boxes is not None:
            return len(self.boxes)
        return 0 if self.points is None else len(self.points)

    @property
    def kind(self) -> PromptKind:
        """What they are made of."""
        if self.points is None:
            return "box"
        return "point" if self.boxes is None else "box+point"

    def check(self, height: int, width: int) -> None:
        """Refuse what cannot be looked at.

        Raises:
            InputError: a box or a point lies outside the image or is no finite number, or the parts
                are of other numbers.
        """
        if self.logits is not None and len(self.logits) != len(self):
            raise InputError(
                f"logits of {len(self.logits)} answers for {len(self)} prompts: give one for each"
            )
        for number, (x, y, w, h) in enumerate(self.boxes or (), start=1):
            seen = w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0
            if not seen:
                raise InputError(
                    f"box {number} ({x:g}, {y:g}, {w:g}, {h:g}): lies outside the image of "
                    f"{width} x {height} pixels, or is empty: give x, y, width, height in pixels"
                )
        if self.points is None:
            return
        if self.points.ndim != 3 or self.points.shape[::2] != (len(self), 2):
            raise InputError(
                f"points of shape {self.points.shape}: give x and y of k points for each of "
                f"{len(self)} prompts, shape ({len(self)}, k, 2)"
            )
        if self.labels is not None and self.labels.shape != self.points.shape[:2]:
            raise InputError(
                f"labels of shape {self.labels.shape}: give one for each of the points, shape "
                f"{self.points.shape[:2]}"
            )
        if self.labels is not None and not np.isin(self.labels, (INSIDE, OUTSIDE, NOTHING)).all():
            raise InputError("labels: say 1 (inside), 0 (outside) or -1 (nothing) of each point")
        outside = ~((self.points >= 0) & (self.points <= (width, height)))
        if self.labels is not None:
            outside &= (self.labels != NOTHING)[:, :, None]
        if outside.any():
            n, k, _ = np.argwhere(outside)[0].tolist()
            x, y = self.points[n, k].tolist()
            raise InputError(
                f"point {k + 1} of prompt {n + 1} ({x:g}, {y:g}): lies outside the image of "
                f"{width} x {height} pixels"
            )


def exact_prompts(instances: Sequence[Instance], kind: PromptKind) -> Prompts:
    """Prompts of a kind as careful people give them: exact boxes, and clicks deep inside.

    A prompt that holds nothing is clicked at in the middle of its box.
    """
    boxes = None if kind == "point" else [instance.box for instance in instances]
    points = None
    if kind != "box":
        points = np.array([[_careful_click(instance)] for instance in instances])
    return Prompts(boxes, points)


def _careful_click(instance: Instance) -> tuple[float, float]:
    x, y, w, h = instance.box
    crop = instance.crop
    if crop is None or not crop.any():
        return x + w / 2, y + h / 2
    return inner_point((instance.box, crop))


class Outline(NamedTuple):
    """One answer.

    Attributes:
        region: where the encoder looked, and the mask in there.
        estimate: SAM's own estimate of the mask's IoU with the truth, which may lie a little
            outside 0 to 1; low where a prompt holds nothing, if the model has learnt that.
        logits: the mask as the decoder gave it, shape (cells, cells), to go on from with another
            point.
    """

    region: Region
    estimate: float
    logits: FloatArray

    @property
    def clipped(self) -> float:
        """The estimate, 0 to 1."""
        return float(np.clip(self.estimate, 0, 1))

    def mask(self, height: int, width: int) -> BinaryMask:
        """The mask in the frame of the image, shape (height, width)."""
        (x, y, w, h), crop = self.region
        whole = np.zeros((height, width), dtype=np.bool_)
        whole[int(y) : int(y + h), int(x) : int(x + w)] = crop
        return whole


class Segmenter:
    """Outlines defects in boxes, and around points where it has learnt what they mean.

    ::

        segmenter = Segmenter.load(Path("runs/sam"))
        masks, scores = segmenter(image, boxes)
    """

    def __init__(
        self, sam: Sam, architecture: ArchitectureName, usage: Usage | None = None
    ) -> None:
        """Wrap a SAM, on whatever device it is; used as its architecture by default."""
        self.sam = sam
        self.architecture = architecture
        self.usage = usage or Usage.of(architecture)

    @classmethod
    def load(cls, source: Path, device: str = "auto") -> Segmenter:
        """Open a run of ``finetune sam``, or an official SAM file.

        Raises:
            InputError: it is neither, it is damaged, or the machine has no such device.
        """
        where = resolve_device(device)
        sam, architecture = load_sam(source)
        return cls(sam.to(where), architecture, read_usage(source, architecture))

    def __call__(
        self, image: RgbImage, boxes: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.bool_], FloatArray]:
        """Outline the one object in each box.

        The image is encoded once, or a window around each box, as the model was trained.

        Args:
            image: shape (height, width, 3), RGB, 0 to 255.
            boxes: shape (n, 4), ``(x, y, width, height)`` in pixels of the image.

        Returns:
            masks of shape (n, height, width), and SAM's own estimate of each one's IoU with the
            truth, shape (n,), which may lie a little outside 0 to 1.

        Raises:
            InputError: a box lies outside the image, or memory is too small.
        """
        height, width = image.shape[:2]
        prompts = Prompts(boxes=boxes_of(boxes))
        masks = np.zeros((len(prompts), height, width), dtype=np.bool_)
        estimates = np.zeros(len(prompts), dtype=np.float32)
        for number, found in enumerate(self.outline(image, prompts)):
            masks[number] = found.mask(height, width)
            estimates[number] = found.estimate
        return masks, estimates

    def outline(self, image: RgbImage, prompts: Prompts) -> Iterator[Outline]:
        """Outline what each prompt asks for, one after the other: large masks need not all fit.

        Args:
            image: shape (height, width, 3), RGB, 0 to 255.
            prompts: boxes, points, or both.

        Raises:
            InputError: a prompt lies outside the image, the model has never learnt what points
                mean, or memory is too small.
        """
        if prompts.points is not None:
            self.check_points()
        prompts.check(*image.shape[:2])
        with memory_told(self.sam.device, "smaller pictures (or cut them into tiles)"):
            yield from outlines(
                self.sam,
                self.usage.context,
                partial(encode_views, self.sam, image),
                prompts,
                image.shape[0],
                image.shape[1],
                several=self.usage.several,
            )

    def check_points(self) -> None:
        """Refuse a model that does not know what points mean.

        Raises:
            InputError: it has been trained with boxes alone.
        """
        if not self.usage.points:
            raise InputError(
                f"points: this SAM {self.architecture} has been trained with boxes alone: "
                "fine-tune it with --prompts box,point, or give boxes"
            )


def boxes_of(boxes: npt.ArrayLike) -> list[Box]:
    """Boxes as tuples, from anything of shape (n, 4)."""
    rows = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist()
    return [(x, y, w, h) for x, y, w, h in rows]


@torch.no_grad()
def encode_views(sam: Sam, image: RgbImage, views: Sequence[View]) -> Tensor:
    """Embeddings of views of an image, shape (n, channels, grid, grid)."""
    side = sam.image_encoder.img_size
    at_once = max(1, PIXELS_PER_CALL // side**2)

    def some(start: int) -> Tensor:
        frames = [(Frame(*v.size, side, sam.stretches), v) for v in views[start : start + at_once]]
        return encode(sam, [frame.image(view.image(image)) for frame, view in frames])

    return torch.cat([some(start) for start in range(0, len(views), at_once)])


@torch.no_grad()
def outlines(
    sam: Sam,
    zoom: float | None,
    embed: Embed,
    prompts: Prompts,
    height: int,
    width: int,
    *,
    several: bool = False,
) -> Iterator[Outline]:
    """Outline what is prompted in one image, wherever its embeddings come from.

    Args:
        sam: the model.
        zoom: window around each box, in its longer sides; None for the whole image, which points
            alone are always shown with.
        embed: gives the embeddings of views of the image.
        prompts: what is asked.
        height: of the image.
        width: of the image.
        several: whether the model gives three masks for a first prompt, the surest of which counts.
    """
    if not len(prompts):
        return
    whole: Box = (0.0, 0.0, float(width), float(height))
    boxes = prompts.boxes or [whole] * len(prompts)
    views, owner = views_of(boxes, height, width, zoom_for(prompts.kind, zoom))
    frames = [Frame(*view.size, sam.image_encoder.img_size, sam.stretches) for view in views]
    asked = _in_frames(prompts, views, frames, owner)
    owners = torch.tensor(owner)
    embeddings = embed(views) if len(views) == 1 else None
    for some in torch.split(torch.arange(len(prompts)), PROMPTS_PER_CALL):
        if embeddings is None:  # a window for each
            shown = embed([views[owner[n]] for n in some.tolist()])
        else:
            shown = embeddings[owners[some].to(embeddings.device)]
        for n, (logits, estimate) in zip(
            some.tolist(), _answer(sam, shown, asked, some, several), strict=True
        ):
            view, frame = views[owner[n]], frames[owner[n]]
            full = sam.postprocess_masks(logits[None, None], frame.resized, view.size)[0, 0]
            mask = (full > sam.mask_threshold).cpu().numpy()
            box = float(view.x), float(view.y), float(view.width), float(view.height)
            yield Outline((box, mask), float(estimate), logits.cpu().numpy())


class _Asked(NamedTuple):
    """Prompts in their input frames, on the CPU."""

    boxes: Tensor | None
    points: Tensor | None
    labels: Tensor | None
    logits: Tensor | None

    def some(self, chosen: Tensor, device: torch.device) -> _Asked:
        """Those with these numbers, on a device."""
        return _Asked(*(None if each is None else each[chosen].to(device) for each in self))


def _in_frames(
    prompts: Prompts, views: Sequence[View], frames: Sequence[Frame], owner: Sequence[int]
) -> _Asked:
    boxes = points = labels = logits = None
    if prompts.boxes is not None:
        pairs = zip(owner, prompts.boxes, strict=True)
        corners = [frames[k].boxes(views[k].box(box)) for k, box in pairs]
        boxes = torch.from_numpy(np.concatenate(corners))
    if prompts.points is not None:
        seen = zip(owner, prompts.points, strict=True)
        places = [frames[k].points(some - (views[k].x, views[k].y)) for k, some in seen]
        points = torch.from_numpy(np.stack(places))
        said = prompts.labels
        labels = torch.full(points.shape[:2], INSIDE) if said is None else torch.from_numpy(said)
    if prompts.logits is not None:
        logits = torch.from_numpy(prompts.logits)
    return _Asked(boxes, points, labels, logits)


def _answer(
    sam: Sam, embeddings: Tensor, asked: _Asked, chosen: Tensor, several: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (cells, cells) and estimate of the chosen prompts, one decoder call for all."""
    some = asked.some(chosen, embeddings.device)
    points = None
    if some.points is not None and some.labels is not None:
        points = some.points, some.labels
    if several and some.logits is None:
        masks, estimates = decode_several(sam, embeddings, some.boxes, points)
        best = estimates.argmax(1)
        numbers = torch.arange(len(best), device=best.device)
        yield from zip(masks[numbers, best], estimates[numbers, best], strict=True)
        return
    earlier = None if some.logits is None else bounded(some.logits)
    yield from zip(*decode(sam, embeddings, some.boxes, points, earlier), strict=True)


def predict_given_boxes(segmenter: Segmenter, dataset: Dataset) -> list[Result]:
    """Outline the defects of a dataset from their ground-truth boxes.

    Only the outlines are predicted: each result answers its annotation (``annotation_id``), has
    its box and its category, and SAM's estimate of the IoU, clipped to 0 to 1, as score.
    """
    results: list[Result] = []
    for image in track(dataset.images, "outlining", total=len(dataset.images)):
        if image.is_good:
            continue
        prompts = Prompts(boxes=[instance.box for instance in image.instances])
        found = outlines_on(segmenter, image, prompts)
        for instance, outline in zip(image.instances, found, strict=True):
            results.append(
                {
                    "image_id": image.id,
                    "category_id": dataset.category_id(instance.category),
                    "bbox": [float(value) for value in instance.box],
                    "score": outline.clipped,
                    "segmentation": rle_from_region(outline.region, image.height, image.width),
                    "predicted_iou": outline.clipped,
                    "annotation_id": instance.id,
                }
            )
    return results


def outlines_on(segmenter: Segmenter, image: Image, prompts: Prompts) -> Iterator[Outline]:
    """As ``Segmenter.outline``, on a picture of a dataset, which messages name.

    Raises:
        InputError: the picture cannot be read; a prompt lies outside it; memory is too small.
    """
    pixels = read_image(image.path)
    try:
        yield from segmenter.outline(pixels, prompts)
    except InputError as error:
        raise InputError(f"{image.path}: {error}") from error
