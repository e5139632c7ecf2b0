"""Outline everything on a picture: segment-anything's automatic masks, from a grid of points.

Source: Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix B, and the library's
``SamAutomaticMaskGenerator``, with three differences. A model that has learnt to give one mask is
asked for that one, not for three that nothing has trained. Boxes that tell duplicates apart are
half-open, where the library's are a pixel narrower, so that it takes no two outlines of a
one-pixel scratch for the same. And on large pictures fewer points are asked at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import nms

from converters.dataset import Dataset
from converters.errors import InputError
from converters.geometry import rle_from_segmentation
from converters.rle import Rle, areas, tight_boxes
from toolkit.console import track
from toolkit.images import RgbImage, read_image
from toolkit.known_weights import located
from toolkit.predictions import Result
from toolkit.segment.sam import Sam, SegmentAnything
from toolkit.segment.segmenter import Segmenter
from toolkit.training import memory_told

SAME = 0.7
"""IoU of boxes from which the less sure of two outlines is left out, as in the library."""

POINTS_PER_CALL = 64
MASK_PIXELS_PER_CALL = 2**27
"""Most points, and most pixels of all their masks, that are decoded at once: 512 MiB of logits."""


@dataclass(frozen=True)
class Everything:
    """What counts as something.

    Attributes:
        points_per_side: points of the grid along each side of a picture.
        min_iou: least estimate of the IoU, 0 to 1.
        min_stability: least IoU of the masks at the logits 1 above and 1 below the threshold, 0 to
            1; 0 asks for nothing.
        several: whether the decoder's three masks are asked for, or its one.
    """

    points_per_side: int = 32
    min_iou: float = 0.0
    min_stability: float = 0.95
    several: bool = False


def has_three_masks(source: Path, segmenter: Segmenter) -> bool:
    """Whether the decoder's three masks are trained: in official files, and where a run did."""
    return segmenter.usage.several or located(str(source)).is_file()


def check_everything(segmenter: Segmenter) -> None:
    """Refuse a model that cannot be asked for everything.

    Raises:
        InputError: it is a SAM 2, or has never learnt what points mean.
    """
    if not isinstance(segmenter.sam, SegmentAnything):
        raise InputError(
            f"everything: segment-anything's generator of masks takes no {segmenter.architecture}: "
            "give a run of nano, vit_t, vit_b, vit_l or vit_h, or points"
        )
    segmenter.check_points()


def predict_everything(segmenter: Segmenter, dataset: Dataset, what: Everything) -> list[Result]:
    """Outline everything on the pictures of a dataset that has one category.

    Returns:
        in the order of the pictures, surest first on each; the box is that of the mask, the score
        the estimate of the IoU, 0 to 1.

    Raises:
        InputError: as of ``check_everything``, or a picture cannot be read, or memory is too small.
    """
    check_everything(segmenter)
    results: list[Result] = []
    for image in track(dataset.images, "outlining", len(dataset.images)):
        pixels = read_image(image.path)
        try:
            with memory_told(segmenter.sam.device, "smaller pictures (or cut them into tiles)"):
                found = everything_on(segmenter.sam, pixels, what)
        except InputError as error:
            raise InputError(f"{image.path}: {error}") from error
        for rle, estimate in found:
            results.append(
                {
                    "image_id": image.id,
                    "category_id": 1,
                    "bbox": tight_boxes([rle])[0].tolist(),
                    "score": estimate,
                    "segmentation": rle,
                    "predicted_iou": estimate,
                }
            )
    return results


def everything_on(sam: Sam, image: RgbImage, what: Everything) -> list[tuple[Rle, float]]:
    """Masks on one picture, with the estimate of their IoU, 0 to 1, surest first."""
    height, width = image.shape[:2]
    at_once = MASK_PIXELS_PER_CALL // (height * width * (3 if what.several else 1))
    generator = _Generator(
        sam,
        what.several,
        points_per_side=what.points_per_side,
        points_per_batch=min(POINTS_PER_CALL, max(1, at_once)),
        pred_iou_thresh=what.min_iou,
        stability_score_thresh=what.min_stability,
        box_nms_thresh=1.0,  # no two boxes overlap by more: duplicates are found below
        output_mode="uncompressed_rle",
    )
    found = generator.generate(image)
    rles = [rle_from_segmentation(each["segmentation"], height, width) for each in found]
    estimates = np.array([each["predicted_iou"] for each in found], np.float64)
    boxes = tight_boxes(rles)
    boxes[:, 2:] += boxes[:, :2]
    filled = np.flatnonzero(areas(rles))
    kept = nms(torch.from_numpy(boxes[filled]), torch.from_numpy(estimates[filled]), SAME)
    return [(rles[k], float(np.clip(estimates[k], 0, 1))) for k in filled[kept.numpy()].tolist()]


class _Generator(SamAutomaticMaskGenerator):  # type: ignore[misc]
    def __init__(self, sam: Sam, several: bool, **options: Any) -> None:
        super().__init__(sam, **options)
        self.predictor = _Predictor(sam, several)


class _Predictor(SamPredictor):  # type: ignore[misc]
    """Gives the masks that are trained, whatever the generator asks for."""

    def __init__(self, sam: Sam, several: bool) -> None:
        super().__init__(sam)
        self.transform = _Transform(sam.image_encoder.img_size)
        self._several = several

    def predict_torch(self, *arguments: Any, **options: Any) -> Any:
        return super().predict_torch(*arguments, **{**options, "multimask_output": self._several})


class _Transform(ResizeLongestSide):  # type: ignore[misc]
    """In single precision: Apple's GPUs know no other."""

    def apply_coords(self, *arguments: Any) -> Any:
        return super().apply_coords(*arguments).astype(np.float32)
