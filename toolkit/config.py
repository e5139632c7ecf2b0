"""One typed configuration per command, filled from YAML and from flags alike.

Every command is a function that takes one of these, so a notebook does what the terminal does::

    finetune_sam(FinetuneSamConfig(data="dataset", out="runs/sam", epochs=5))

The docstring under a field is its help text on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from converters.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
ImageSize = Annotated[int, Field(ge=32, le=8192)]


class Config(BaseModel):
    """Immutable, with unknown fields refused and field docstrings as descriptions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class ConvertConfig(Config):
    """Read a folder of pictures and masks; write a dataset folder (COCO), split for training."""

    source: Path
    """Folder of pictures and masks, in one of the layouts."""
    dest: Path
    """Dataset folder to make; must not exist, or be empty."""
    layout: Literal["auto", "mvtec", "magnetic_tile"] = "auto"
    """How the source is laid out; auto looks at its folders."""
    classes: Literal["defect", "category-defect", "single"] = "defect"
    """Name classes by the defect, by product category and defect, or all of them "defect"."""
    instances: Literal["component", "image"] = "component"
    """One instance per 8-connected component of a mask, or per mask."""
    merge_distance: Annotated[float, Field(ge=0)] = 0
    """Join components whose gap is at most this many pixels."""
    split: Literal["stratified", "folds", "general", "hard"] = "stratified"
    """Protocol: fractions per class; K folds; M known defects; one known defect type."""
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


class FinetuneYoloConfig(Config):
    """Fine-tune YOLO-World v2 (ultralytics) to find defects."""

    data: Path
    """Dataset folder."""
    out: Path
    """Run folder to make."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    weights: str = "none"
    """"none" (random), an official .pt file (yolov8s-worldv2.pt), or one of our run folders."""
    scale: Literal["n", "s", "m", "l", "x"] = "n"
    """Model scale, with weights "none"; otherwise the weights' own."""
    embeddings: Path | None = None
    """safetensors file of class embeddings (class name -> 512 numbers)."""
    epochs: Positive = 40
    """Passes over the training images."""
    image_size: ImageSize = 640
    """Pixels of the longer side that the network sees; a multiple of 32."""
    batch: Positive = 16
    """Images per optimiser step."""
    optimizer: Literal["SGD", "AdamW"] | None = None
    """Optimiser; by default AdamW from random weights, SGD from any others."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; by default 2e-3 with AdamW from random weights, 2e-4 with AdamW from
    others, 1e-2 with SGD from random weights, 1e-3 with SGD from others."""
    weight_decay: Fraction = 5e-4
    """Weight decay."""
    close_mosaic: NotNegative | None = None
    """Last epochs without mosaic augmentation; by default a quarter of the epochs from random
    weights, three quarters from any others."""
    patience: Positive = 30
    """Epochs without a better val AP before stopping early."""
    confidence: Fraction = 0.001
    """Lowest score that predictions keep; thresholds are chosen later, on val."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: NotNegative = 2
    """Processes that load images."""
    seed: NotNegative = 0
    """Seed of everything random."""
    trust: bool = False
    """Load a checkpoint that is a pickle and not on the list of known files."""

    @model_validator(mode="after")
    def _size_fits_the_strides(self) -> FinetuneYoloConfig:
        if self.image_size % 32:
            near = max(32, round(self.image_size / 32) * 32)
            raise ValueError(f"image_size: {self.image_size} is not a multiple of 32: try {near}")
        return self


class FinetuneSamConfig(Config):
    """Fine-tune SAM (segment-anything) to outline the defect in a box."""

    data: Path
    """Dataset folder; needs masks."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    model: Literal["nano", "vit_b", "vit_l", "vit_h"] = "nano"
    """Architecture; nano is small enough to train on a CPU."""
    weights: str = "none"
    """"none" (random), an official file (sam_vit_b_01ec64.pth), or one of our run folders."""
    train: Literal["decoder", "all"] | None = None
    """What learns; by default all from random weights, the decoder from any others."""
    epochs: Positive | None = None
    """Passes over the training instances; by default 15, from random weights 40."""
    batch: Positive = 16
    """Box prompts per optimiser step, all decoded in one call."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default decoder 1e-4, all 1e-5, from random weights 2e-3."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay."""
    box_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Standard deviation of the noise on box corners, as a share of the side; at most 20 px."""
    patience: Positive | None = None
    """Epochs without a better val IoU before stopping; by default a third of all, at least 5."""
    resume: bool = False
    """Go on from the last whole checkpoint of the run folder."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: NotNegative = 2
    """Threads that load images."""
    seed: NotNegative = 0
    """Seed of everything random."""


class PredictConfig(Config):
    """Find defects with a detector, outline them with a segmenter, write COCO results."""

    source: Path
    """Dataset folder, a folder of pictures, or one picture."""
    out: Path
    """Folder to write predictions/ into: a run folder, or a new one."""
    detector: Path | None = None
    """Run of `finetune yolo`; without one, ground-truth boxes prompt the segmenter."""
    segmenter: Path | None = None
    """Run of `finetune sam`; without one, predictions are boxes."""
    fold: NotNegative | None = None
    """Fold of the dataset, where it has folds."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("val", "test")
    """Splits of the dataset to predict on."""
    confidence: Fraction = 0.001
    """Lowest score that is kept."""
    max_detections: Positive = 100
    """Most detections per picture."""
    overlays: bool = False
    """Also draw the predictions into overlays/."""
    overlay_threshold: Fraction = 0.25
    """Lowest score that overlays show."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    batch: Positive = 16
    """Pictures per detector call."""


class EvaluateConfig(Config):
    """Score predictions on held-out pictures, with 95 % bootstrap intervals."""

    data: Path
    """Dataset folder."""
    predictions: Path
    """Run folder (predictions/val.json, predictions/test.json) or one COCO results file."""
    fold: NotNegative | None = None
    """Fold of the dataset, where it has folds."""
    split: Literal["train", "val", "test"] = "test"
    """Split that is scored."""
    threshold: Fraction | None = None
    """Score threshold for F1, IoU, Dice and image verdicts; chosen on val where not given."""
    iou: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """IoU from which a detection counts as found in F1."""
    resamples: NotNegative = 1000
    """Bootstrap resamples of the images; 0 leaves the intervals out."""
    seed: NotNegative = 0
    """Seed of the bootstrap."""
    out: Path | None = None
    """Metrics file; metrics.json (metrics_val.json for val, …) in the run folder by default."""


class DemoConfig(Config):
    """Walk the whole path on procedural pictures: synth to evaluated, outlined defects."""

    out: Path = Path("demo")
    """Folder to make."""
    data: Path | None = None
    """Source folder to walk with instead of procedural pictures."""
    image_size: ImageSize = 160
    """Pixels of the longer side that YOLO-World sees; a multiple of 32."""
    yolo_epochs: Positive = 50
    """Passes of YOLO-World over the training images."""
    sam_epochs: Positive = 40
    """Passes of SAM over the training instances."""
    seed: NotNegative = 0
    """Seed of everything random."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""


C = TypeVar("C", bound=Config)


def build(config: type[C], file: Path | None, flags: Mapping[str, Any]) -> C:
    """Fill a configuration from a YAML file, then from flags, which win.

    Args:
        config: the class to fill.
        file: YAML mapping of field names to values; None for none.
        flags: values by field name, as text or typed.

    Raises:
        InputError: a field is unknown (with the nearest right one), missing or ill-typed.
    """
    values = {} if file is None else _read_yaml(file)
    where = "" if file is None else f"{file}: "
    unknown = [name for name in values if name not in config.model_fields]
    unknown += [name for name in flags if name not in config.model_fields]
    if unknown:
        raise InputError(f"{where}{_unknown(unknown[0], config)}")
    try:
        return config.model_validate({**values, **flags})
    except ValidationError as error:
        raise InputError(f"{where}{_first_problem(error)}") from error


def to_yaml(config: Config) -> str:
    """The configuration as YAML that ``build`` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such configuration file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: is not readable YAML ({reason})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: must map field names to values")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _unknown(name: str, config: type[Config]) -> str:
    nearest = difflib.get_close_matches(name, config.model_fields, n=1, cutoff=0.5)
    hint = (
        f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(config.model_fields)}"
    )
    return f"unknown field {name!r}: {hint}"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"field {field!r} is missing: give it"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"field {field!r}: {message}, not {problem['input']!r}"
