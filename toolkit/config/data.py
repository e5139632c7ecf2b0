"""Configurations of the commands that make and check dataset folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.config.base import Config, Fraction, NotNegative, NotNegativeNumber, Positive


class ConvertConfig(Config):
    """Read pictures and masks, or a folder per class; write a dataset folder (COCO), split."""

    source: Path
    """Folder of pictures and masks, or of a folder of pictures per class, in one of the layouts."""
    dest: Path
    """Dataset folder to make; must not exist, or be empty."""
    layout: Literal["auto", "mvtec", "magnetic_tile", "image_folder"] = "auto"
    """How the source is laid out; auto looks at its folders."""
    classes: Literal["defect", "category-defect", "single"] = "defect"
    """Name classes by the defect, by product category and defect, or all of them "defect"."""
    instances: Literal["component", "image"] = "component"
    """One instance per 8-connected component of a mask, or per mask."""
    merge_distance: Annotated[float, Field(ge=0)] = 0
    """Join components whose gap is at most this many pixels."""
    split: Literal["stratified", "folds", "general", "hard", "source"] = "stratified"
    """Protocol: fractions per class; K folds; M known defects; one known defect type; or as the
    source has it (val out of train where it has none)."""
    fractions: tuple[Fraction, Fraction, Fraction] = (0.6, 0.2, 0.2)
    """Shares of train, val and test (stratified; for general and hard, of what is known)."""
    folds: Annotated[int, Field(ge=3)] = 5
    """Number of folds (folds): each defect image is held out exactly once."""
    shots: Positive = 10
    """Defect images that are known, train and val together (general)."""
    known: str | None = None
    """The defect type that is known (hard); all others are test."""
    near_duplicates: bool = True
    """Keep pictures of the same photograph on one side of the split."""
    seed: NotNegative = 0
    """Seed of the split."""
    yolo: bool = False
    """Also write YOLO labels (labels/, data.yaml), good pictures as background images."""
    skip_invalid: bool = False
    """Leave out files that cannot be used, and list them in the card, instead of stopping."""
    name: str | None = None
    """Name of the dataset; the source folder's by default."""
    workers: NotNegative = 0
    """Threads that read files; 0 means one per core."""

    @model_validator(mode="after")
    def _fractions_add_up(self) -> ConvertConfig:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions: {self.fractions} must add up to 1")
        if self.split == "hard" and self.known is None:
            raise ValueError("known: a hard split needs the defect type that is known")
        return self


class CheckConfig(Config):
    """List what is wrong with a dataset folder, or with a source before it is converted."""

    dataset: Path
    """Dataset folder, or a source folder in one of the layouts."""
    near_duplicates: bool = True
    """Also look for pictures of one photograph on two sides of a split."""
    strict: bool = False
    """Exit with 1 on warnings too, not on errors alone."""


class CropConfig(Config):
    """Cut every instance out into a picture of its own, and good pictures into as large ones."""

    dataset: Path
    """Dataset folder, with or without folds."""
    dest: Path
    """Dataset folder to make; must not exist, or be empty."""
    context: Annotated[float, Field(ge=1, le=20)] = 1.5
    """Side of a window, as a multiple of the longer side of the instance's box."""
    min_side: Positive = 32
    """Least side of a window, in pixels."""
    good: NotNegativeNumber = 1.0
    """Windows of good pictures for each one of a defect, in every split."""
    workers: NotNegative = 0
    """Threads; 0 for one per core."""
    seed: NotNegative = 0
    """Seed of the places on good pictures."""


class SynthConfig(Config):
    """Write procedural pictures of surfaces with defects, in the MVTec layout."""

    dest: Path
    """Folder to make; must not exist, or be empty."""
    category: str = "synth"
    """Name of the product category, which is the folder below dest."""
    surface: str | None = None
    """Texture family; drawn by the seed where not given."""
    defects: tuple[str, ...] = ()
    """Kinds of defects; all of them where not given."""
    train_good: NotNegative = 40
    """Good pictures in train/."""
    test_good: NotNegative = 10
    """Good pictures in test/."""
    per_defect: Positive = 10
    """Pictures of each kind of defect (of the most frequent one with long_tail)."""
    long_tail: Annotated[float, Field(ge=1)] | None = None
    """Ratio between the most frequent and the rarest kind; all equal where not given."""
    size: Annotated[int, Field(ge=32, le=4096)] = 256
    """Width and height in pixels."""
    seed: NotNegative = 0
    """Seed; the same seed gives the same files."""


class BalanceConfig(Config):
    """Give a train split enough of every class: paste defects onto good pictures, or list again."""

    dataset: Path
    """Dataset folder."""
    dest: Path | None = None
    """Dataset folder to make; must not exist, or be empty. Not needed with dry_run."""
    target: Literal["equal", "sqrt", "lvis"] | Positive = "sqrt"
    """Instances per class: as many as the largest, half-way to it (sqrt), lvis, or at least N."""
    method: Literal["paste", "oversample", "both"] = "both"
    """Paste defects, list pictures again, or paste and then list again what is still missing."""
    dry_run: bool = False
    """Print the plan and write nothing."""
    fold: NotNegative | None = None
    """Fold to balance; all of them where the dataset has folds and none is named."""
    never_paste: tuple[str, ...] = ()
    """Classes that are not pasted, besides those found to be states of the whole part."""
    blend: Literal["hard", "feather", "poisson", "mixed"] = "feather"
    """How the seam is hidden; mixed draws one way per paste."""
    place: Literal["auto", "anywhere", "foreground", "near-edge", "same-place"] = "auto"
    """Anywhere; two thirds on the part; at its edge too; where it was on its own picture; or auto:
    where it was if parts lie alike on all pictures, else on the part."""
    rotate: Annotated[float, Field(ge=0, le=180)] | None = None
    """Most degrees that a defect is rotated by, in either direction; by default 180, and 10 where
    the texture runs one way (brushed, rolled)."""
    scale: Annotated[float, Field(ge=1, le=4)] = 1.25
    """Most that a defect's lengths grow or shrink by."""
    flip: bool = True
    """Whether defects are flipped."""
    photometric: bool = True
    """Whether a defect's brightness and contrast vary a little."""
    match: bool = True
    """Whether a defect takes on the brightness, contrast and grain of its host."""
    max_overlap: Fraction = 0.0
    """Most of the smaller of two defects that they may share."""
    objects: Path | None = None
    """Folder of masks of the parts (PICTURE.png); found on the pictures where not given."""
    per_donor: Positive = 10
    """Most pastes of one defect."""
    per_host: Positive = 3
    """Most new pictures from one host."""
    per_picture: Positive = 2
    """Most pastes on one new picture."""
    repeats: Positive = 5
    """Most further entries of one picture."""
    vary: bool = False
    """Write pictures that are listed again once more, a little different: flipped, moved, in other
    light."""
    smallest: Positive = 10
    """Fewest pixels of a defect that is pasted."""
    seam_test: bool = False
    """Then see how well a small network tells pasted defects from real ones (some minutes)."""
    lvis_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of pictures below which LVIS repeats a class; that of the most frequent by default."""
    workers: NotNegative = 0
    """Threads; 0 for one per core."""
    seed: NotNegative = 0
    """Seed; the same seed gives the same files."""
