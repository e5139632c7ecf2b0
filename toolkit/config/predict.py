"""Configurations of prediction, and of the walk from pictures to figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.config.base import (
    Config,
    Device,
    Fraction,
    ImageSize,
    NotNegative,
    Overlap,
    Positive,
)
from toolkit.known_weights import CLIP


class PredictConfig(Config):
    """Find defects with a detector, outline them with a segmenter, write COCO results.

    A segmenter alone outlines what is in the ground-truth boxes of a dataset, what points mark, or
    everything.
    """

    source: Path
    """Dataset folder, a folder of pictures, or one picture."""
    out: Path
    """Folder to write predictions/ into: a run folder, or a new one."""
    detector: Path | None = None
    """Run of `finetune yolo`, or "starter", which finds "defect" on pictures that it has never been
    trained for; with embeddings also an official file (yolov8s-worldv2.pt); without one,
    ground-truth boxes prompt the segmenter, or points, or everything."""
    embeddings: Path | None = None
    """What to look for, with a detector whose vocabulary is open (an official file, "starter", a
    run with --open-vocabulary): a .yaml file of phrases, which needs the weights of CLIP, or a
    safetensors file of class embeddings."""
    clip: str = CLIP
    """Weights of CLIP ViT-B/32 for phrases: "clip-vit-b-32" (the official file in weights/), or a
    file."""
    segmenter: Path | None = None
    """Run of `finetune sam`, or "starter"; without one, predictions are boxes."""
    points: Path | None = None
    """Without a detector: CSV file of the points that mark objects, for a segmenter that has learnt
    points: file_name,prompt,x,y and, where wanted, label (1 inside, 0 outside) and category; rows
    with the same prompt on a picture mark one object."""
    everything: bool = False
    """Without a detector: outline everything, from a grid of points (segment-anything's automatic
    masks), with a SAM or MobileSAM that has learnt points; what is found has no class."""
    points_per_side: Annotated[int, Field(gt=0, le=512)] = 32
    """For everything: points of the grid along each side of a picture."""
    min_stability: Fraction = 0.95
    """For everything: least IoU of the masks at logits 1 above and 1 below the threshold; the
    default fits the official models, 0 keeps all."""
    min_iou: Fraction = 0.0
    """Lowest IoU, as the segmenter estimates it (predicted_iou), that is kept; 0 keeps all. Choose
    it on val: for points and everything the score is that estimate, so the threshold that `toolkit
    evaluate` chooses is one; with a detector, compare a few with `toolkit evaluate --split val`."""
    fold: NotNegative | None = None
    """Fold of the dataset, where it has folds."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("val", "test")
    """Splits of the dataset to predict on."""
    confidence: Fraction = 0.001
    """Lowest score that is kept."""
    max_detections: Positive = 100
    """Most detections per picture."""
    tile: Annotated[int, Field(ge=0, le=8192)] | None = None
    """Cut pictures into windows of so many pixels for the detector, at least 32; 0: leave them
    whole. By default as the pictures that it was trained on."""
    tile_overlap: Overlap | None = None
    """Share of a window's side that neighbours have in common, 0 to 0.9; by default as in training,
    else 0.2."""
    overlays: bool = False
    """Also draw the predictions into overlays/."""
    overlay_threshold: Fraction = 0.25
    """Lowest score that overlays show."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    batch: Positive = 16
    """Pictures per detector call."""
    trust: bool = False
    """Load a file of a detector or of CLIP that is a pickle and not on the list of known files."""

    @model_validator(mode="after")
    def _somebody_looks(self) -> PredictConfig:
        if self.embeddings is not None and self.detector is None:
            raise ValueError("embeddings: say what a detector looks for: give --detector with them")
        return self

    @model_validator(mode="after")
    def _segmenter_is_asked_one_way(self) -> PredictConfig:
        ways = {"points": self.points is not None, "everything": self.everything}
        for name in (name for name, asked in ways.items() if asked):
            if self.segmenter is None:
                raise ValueError(f"{name}: a segmenter outlines them: give --segmenter RUN")
            if self.detector is not None:
                raise ValueError(f"{name}: take the place of a detector: leave --detector out")
        if all(ways.values()):
            raise ValueError("everything: needs no points: give one of --points and --everything")
        if not self.everything and (self.points_per_side != 32 or self.min_stability != 0.95):
            name = "points_per_side" if self.points_per_side != 32 else "min_stability"
            raise ValueError(f"{name}: is for everything: give --everything, or leave it out")
        if self.min_iou and self.segmenter is None:
            raise ValueError("min_iou: a segmenter estimates it: give --segmenter RUN")
        if self.min_iou and self.detector is None and not any(ways.values()):
            raise ValueError(
                "min_iou: every ground-truth box has to be answered, so none can be left out: "
                "give a detector, points or everything"
            )
        return self

    @model_validator(mode="after")
    def _tiles_can_be_cut(self) -> PredictConfig:
        if self.tile is not None and 0 < self.tile < 32:
            raise ValueError(
                f"tile: {self.tile} is too small: give at least 32 pixels, or 0 for whole pictures"
            )
        if self.detector is None and (self.tile is not None or self.tile_overlap is not None):
            raise ValueError("tile: pictures are cut for a detector: give detector as well")
        return self


class DemoConfig(Config):
    """Walk the whole path on procedural pictures: synth to evaluated, outlined defects."""

    out: Path = Path("demo")
    """Folder to make."""
    data: Path | None = None
    """Source folder to walk with instead of procedural pictures."""
    weights: Literal["starter", "none"] = "starter"
    """What both models start from: our pretrained weights, or random ones."""
    image_size: ImageSize = 160
    """Pixels of the longer side that YOLO-World sees; a multiple of 32."""
    yolo_epochs: Positive | None = None
    """Passes of YOLO-World over the training images; by default 30, from random weights 50."""
    sam_epochs: Positive | None = None
    """Passes of SAM over the training instances; by default 10, from random weights 40."""
    seed: NotNegative = 0
    """Seed of everything random."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
