"""A fine-tuned SAM at work: outline what is in given boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from converters.dataset import BinaryMask, Box, Dataset
from converters.geometry import rle_from_mask
from toolkit.console import track
from toolkit.devices import resolve_device
from toolkit.images import RgbImage, read_image
from toolkit.predictions import Result
from toolkit.segment.frames import FloatArray, Frame
from toolkit.segment.model import ARCHITECTURES, ArchitectureName, decode, encode
from toolkit.segment.sam import Sam
from toolkit.segment.views import View, views_of
from toolkit.segment.weights import load_sam

PROMPTS_PER_CALL = 64
"""Boxes that are decoded in one call."""

VIEWS_PER_CALL = 16
"""Windows that are encoded in one call."""

Embed: TypeAlias = Callable[[Sequence[View]], Tensor]
"""Gives the embeddings (n, channels, grid, grid) of n views of one image."""


class Segmenter:
    """Outlines defects in boxes.

    ::

        segmenter = Segmenter.load(Path("runs/sam"))
        masks, scores = segmenter(image, boxes)
    """

    def __init__(self, sam: Sam, architecture: ArchitectureName) -> None:
        """Wrap a SAM, on whatever device it is."""
        self.sam = sam
        self.architecture = architecture

    @classmethod
    def load(cls, source: Path, device: str = "auto") -> Segmenter:
        """Open a run of ``finetune sam``, or an official SAM file.

        Raises:
            InputError: it is neither, it is damaged, or the machine has no such device.
        """
        where = resolve_device(device)
        sam, architecture = load_sam(source)
        return cls(sam.to(where), architecture)

    @torch.no_grad()
    def __call__(
        self, image: RgbImage, boxes: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.bool_], FloatArray]:
        """Outline the one object in each box.

        The image is encoded once, or, for an architecture that zooms, a window around each box.

        Args:
            image: shape (height, width, 3), RGB, 0 to 255.
            boxes: shape (n, 4), ``(x, y, width, height)`` in pixels of the image.

        Returns:
            masks of shape (n, height, width), and SAM's own estimate of each one's IoU with the
            truth, shape (n,), which may lie a little outside 0 to 1.
        """
        zoom = ARCHITECTURES[self.architecture].zoom
        found = [
            (x, y, w, h)
            for x, y, w, h in np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist()
        ]
        embed = partial(encode_views, self.sam, image)
        return outline(self.sam, zoom, embed, found, image.shape[0], image.shape[1])


def encode_views(sam: Sam, image: RgbImage, views: Sequence[View]) -> Tensor:
    """Embeddings of views of an image, shape (n, channels, grid, grid)."""
    side = sam.image_encoder.img_size
    pixels = [Frame(*view.size, side, sam.stretches).image(view.image(image)) for view in views]
    starts = range(0, len(pixels), VIEWS_PER_CALL)
    return torch.cat([encode(sam, pixels[start : start + VIEWS_PER_CALL]) for start in starts])


@torch.no_grad()
def outline(
    sam: Sam, zoom: float | None, embed: Embed, boxes: Sequence[Box], height: int, width: int
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Outline what is in the boxes of one image, wherever its embeddings come from.

    Args:
        sam: the model.
        zoom: of its architecture.
        embed: gives the embeddings of views of the image.
        boxes: ``(x, y, width, height)`` in pixels of the image.
        height: of the image.
        width: of the image.

    Returns:
        masks of shape (n, height, width), and estimated IoU of shape (n,).
    """
    masks = np.zeros((len(boxes), height, width), dtype=np.bool_)
    estimates = np.zeros(len(boxes), dtype=np.float32)
    if not boxes:
        return masks, estimates
    views, owner = views_of(boxes, height, width, zoom)
    side = sam.image_encoder.img_size
    frames = [Frame(*view.size, side, sam.stretches) for view in views]
    prompts = [frames[k].boxes(views[k].box(box)) for k, box in zip(owner, boxes, strict=True)]
    embeddings = embed(views)
    for some in torch.split(torch.arange(len(boxes)), PROMPTS_PER_CALL):
        corners = torch.from_numpy(np.concatenate([prompts[n] for n in some.tolist()]))
        shown = embeddings[torch.tensor(owner)[some].to(embeddings.device)]
        logits, ious = decode(sam, shown, corners.to(embeddings.device))
        estimates[some.numpy()] = ious.cpu().numpy()
        for n, mask in zip(some.tolist(), logits, strict=True):
            view, frame = views[owner[n]], frames[owner[n]]
            full = sam.postprocess_masks(mask[None, None], frame.resized, view.size)[0, 0]
            window = masks[n, view.y : view.y + view.height, view.x : view.x + view.width]
            window[:] = (full > sam.mask_threshold).cpu().numpy()
    return masks, estimates


def predict_given_boxes(segmenter: Segmenter, dataset: Dataset) -> list[Result]:
    """Outline the defects of a dataset from their ground-truth boxes.

    Only the outlines are predicted: each result answers its annotation (``annotation_id``), has
    its box and its category, and SAM's estimate of the IoU, clipped to 0 to 1, as score.
    """
    results: list[Result] = []
    for image in track(dataset.images, "outlining", total=len(dataset.images)):
        if image.is_good:
            continue
        boxes = [instance.box for instance in image.instances]
        masks, estimates = segmenter(read_image(image.path), boxes)
        for instance, mask, estimate in zip(image.instances, masks, estimates, strict=True):
            results.append(
                {
                    "image_id": image.id,
                    "category_id": dataset.category_id(instance.category),
                    "bbox": [float(value) for value in instance.box],
                    "score": float(np.clip(estimate, 0, 1)),
                    "segmentation": rle_from_mask(cast(BinaryMask, mask)),
                    "annotation_id": instance.id,
                }
            )
    return results
