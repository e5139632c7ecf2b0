"""Configurations of scoring and of what shows the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from toolkit.config.base import Config, Fraction, NotNegative, NotNegativeNumber, Positive


class ScoringConfig(Config):
    """What scoring one run and comparing two have in common."""

    data: Path
    """Dataset folder."""
    fold: NotNegative | None = None
    """Fold of the dataset, where it has folds and the runs do not say theirs."""
    split: Literal["train", "val", "test"] = "test"
    """Split that is scored."""
    threshold: Fraction | None = None
    """Score threshold for F1, IoU, Dice and image verdicts; chosen on val where not given."""
    goal: Literal["F1", "recall", "cost"] = "F1"
    """What thresholds are chosen for on val: the best F1, a recall, or the least cost."""
    recall_floor: Annotated[float, Field(gt=0, le=1)] = 0.99
    """For goal recall: least share of val's defects to find, with as few detections as possible."""
    miss_cost: NotNegativeNumber = 10.0
    """For goal cost: what a missed defect costs."""
    alarm_cost: NotNegativeNumber = 1.0
    """For goal cost: what a false alarm costs."""
    per_class: bool = False
    """Choose a threshold for each class."""
    iou: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """IoU from which a detection counts as found in F1."""
    boundary_tolerance: NotNegativeNumber = 2.0
    """Pixels by which an outline may be off and still count in mask.boundary_F1."""
    max_detections: Positive = 100
    """Detections that count in AP, AR and F1 per image and class, the surest."""
    backend: Literal["arrays", "pycocotools"] = "arrays"
    """Who matches detections to defects: both give the same, pycocotools takes longer."""
    resamples: NotNegative = 1000
    """Bootstrap resamples of the images; 0 leaves the intervals out."""
    seed: NotNegative = 0
    """Seed of the bootstrap."""


class EvaluateConfig(ScoringConfig):
    """Score predictions on held-out pictures, with 95 % bootstrap intervals."""

    predictions: tuple[Path, ...] = ()
    """Run folder, COCO results file, folder of YOLO text files, or CSV file of image-level
    probabilities; of several, figures are pooled over their folds."""
    maps: Path | None = None
    """Folder of score maps, one per picture, each named like it: .png, .npy or .safetensors."""
    fpr_limit: Annotated[float, Field(gt=0, le=1)] = 0.3
    """False-positive rate of pixels that pixel.AUPRO goes up to."""
    out: Path | None = None
    """Metrics file; by default metrics.json (metrics_val.json for val, …) in the run folder, or in
    the folder of maps where there are no predictions."""

    @field_validator("predictions", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return several_paths(value)

    @model_validator(mode="after")
    def _something_is_scored(self) -> EvaluateConfig:
        if not self.predictions and self.maps is None:
            raise ValueError(
                "predictions: nothing to score: give predictions, a folder of score maps "
                "(maps), or both"
            )
        return self


class CompareConfig(ScoringConfig):
    """Compare two runs on the same pictures: differences, their intervals, p-values."""

    first: tuple[Path, ...]
    """Run folder or predictions, as of `evaluate`; several, separated by commas, are pooled."""
    second: tuple[Path, ...]
    """The run to compare it with."""
    out: Path | None = None
    """JSON file to write the comparison to."""

    @field_validator("first", "second", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return several_paths(value)


def several_paths(value: object) -> object:
    """One path, or several separated by commas, as a list of them."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    return [value] if isinstance(value, Path) else value


class ReportConfig(Config):
    """Write one HTML page about a run, or several side by side: figures, curves, mistakes."""

    runs: tuple[Path, ...]
    """Run folders, with predictions on the split."""
    out: Path | None = None
    """Page to write; report.html in the first run folder by default."""
    data: Path | None = None
    """Dataset folder; by default the one that each run was made on."""
    fold: NotNegative | None = None
    """Fold of the dataset, where it has folds and the runs do not say theirs."""
    split: Literal["train", "val", "test"] = "test"
    """Split that the page is about."""
    examples: NotNegative = 24
    """Most pictures in a gallery of mistakes; 0 leaves pictures out."""

    @field_validator("runs", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return several_paths(value)
