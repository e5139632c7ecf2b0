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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from converters.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
NotNegativeNumber = Annotated[float, Field(ge=0)]
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
    """"none" (random), "starter" (ours, scale n), an official .pt file (yolov8s-worldv2.pt), or a
    run folder."""
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
    repeat: Positive = 1
    """Times each training image counts in an epoch: fewer validations where images are few."""
    optimizer: Literal["SGD", "AdamW"] | None = None
    """Optimiser; by default AdamW from random weights and starters, SGD from any others."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; by default, with AdamW, 2e-3 from random weights, 1e-3 from starters
    and 2e-4 from others; with SGD, 1e-2 from random weights and starters, 1e-3 from others."""
    weight_decay: Fraction = 5e-4
    """Weight decay."""
    close_mosaic: NotNegative | None = None
    """Last epochs without mosaic augmentation; by default a quarter of the epochs from random
    weights and starters, three quarters from any others."""
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
        check_stride(self.image_size)
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
    """"none" (random), "starter" (ours, nano), an official file (sam_vit_b_01ec64.pth), or a run
    folder."""
    train: Literal["decoder", "all"] | None = None
    """What learns; by default all from random weights and starters, the decoder from others."""
    epochs: Positive | None = None
    """Passes over the training instances; by default 15, from random weights 40."""
    batch: Positive = 16
    """Box prompts per optimiser step, all decoded in one call."""
    repeat: Positive = 1
    """Times each instance counts in an epoch: fewer validations where instances are few."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default 2e-3 from random weights, 5e-4 from starters, and from others
    1e-4 for the decoder and 1e-5 for all."""
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


class FinetuneClassifierConfig(Config):
    """Fine-tune a ResNet (torchvision) to say "good" or which defect for the whole picture."""

    data: Path
    """Dataset folder."""
    out: Path
    """Run folder to make, or to go on with (resume)."""
    fold: NotNegative | None = None
    """Fold to train on, where the dataset has folds."""
    model: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """Architecture, with weights "none"; otherwise the weights' own."""
    weights: str = "none"
    """"none" (random), "starter" (ours, resnet18), a file of torchvision (resnet18-f37072fd.pth), a
    .safetensors file with the same parameter names, or a run folder."""
    train: Literal["all", "layer4", "head"] = "all"
    """What learns: everything, the last stage and the head, or the head alone."""
    epochs: Positive | None = None
    """Passes over the training pictures; by default 30, from random weights 80."""
    batch: Annotated[int, Field(ge=2)] = 32
    """Pictures per optimiser step."""
    image_size: ImageSize = 128
    """Side of the square that the network sees; longer sides are resized to it, the rest padded."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of AdamW; by default all 1e-4, layer4 3e-4, head 1e-3; all from random weights
    1e-3, all from starters 3e-4."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""
    augment: bool = True
    """Change training pictures at random: flips, turns, small zoom, brightness, contrast."""
    class_weights: bool = True
    """Weigh the loss by the classes' inverse frequency, at most ten to one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""
    repeat: Positive = 1
    """Times each training picture counts in an epoch; more on tiny datasets, for fewer, longer
    epochs between validations."""
    patience: Positive | None = None
    """Epochs without a better val score before stopping; by default a third of all, at least 10."""
    resume: bool = False
    """Go on from the last whole checkpoint of the run folder."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: NotNegative = 2
    """Threads that load images."""
    seed: NotNegative = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def _something_was_learnt(self) -> FinetuneClassifierConfig:
        if self.weights == "none" and self.train != "all":
            raise ValueError(
                f"train: {self.train} leaves random weights as they are: give weights, or train all"
            )
        return self


class PretrainConfig(Config):
    """What pretraining on procedural pictures has in common, whatever the model."""

    out: Path
    """Run folder to make, or to go on with (resume)."""
    weights: str = "none"
    """What to go on from: "none" (random), "starter", or a run folder."""
    kinds: tuple[str, ...] = ()
    """Kinds of defects that are drawn; all of them where not given."""
    steps: Positive = 20000
    """Optimiser steps in all, rounded up to whole pieces."""
    ramp: Fraction = 0.3
    """Share of the steps over which easy pictures give way to all others."""
    piece: Positive = 500
    """Optimiser steps between validations, after each of which the run can be resumed."""
    val_pictures: Positive = 256
    """Procedural pictures to validate on, drawn from another seed."""
    batch: Annotated[int, Field(ge=8)] = 32
    """Pictures per optimiser step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak rate of AdamW."""
    weight_decay: Fraction = 0.01
    """Weight decay."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay per step of the moving average of the weights, which is what is kept."""
    resume: bool = False
    """Go on from the last whole piece of the run folder."""
    device: Device = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    workers: NotNegative = 1
    """Processes that draw pictures."""
    seed: NotNegative = 0
    """Seed of everything random."""


class PretrainYoloConfig(PretrainConfig):
    """Pretrain YOLO-World v2 on procedural defects without end."""

    scale: Literal["n", "s", "m", "l", "x"] = "n"
    """Model scale, with weights "none"; otherwise the weights' own."""
    classes: Literal["kinds", "defect"] = "kinds"
    """Tell the kinds of defects apart, or find them all as "defect"."""
    image_size: ImageSize = 160
    """Pixels of the square that the network sees; a multiple of 32."""
    outline_weight: Annotated[float, Field(ge=0)] = 2.0
    """Weight of a second task, in which every cell says whether a defect covers it; 0 for none."""

    @model_validator(mode="after")
    def _size_fits_the_strides(self) -> PretrainYoloConfig:
        check_stride(self.image_size)
        return self


class PretrainSamConfig(PretrainConfig):
    """Pretrain SAM nano on procedural defects without end."""

    picture_size: ImageSize = 192
    """Pixels of the longer side of the pictures that windows are cut from."""
    batch: Annotated[int, Field(ge=8)] = 12
    """Pictures per optimiser step; each has one to four prompts."""
    box_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Standard deviation of the noise on box corners, as a share of the side; at most 20 px."""


class PretrainClassifierConfig(PretrainConfig):
    """Pretrain a ResNet on procedural defects without end."""

    model: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """Architecture."""
    classes: Literal["kinds", "defect"] = "kinds"
    """Tell the kinds of defects apart, or only defective pictures from good ones."""
    image_size: ImageSize = 128
    """Pixels of the square that the network sees."""
    outline_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a second task, in which every cell says whether a defect covers it; 0 for none."""


class PredictConfig(Config):
    """Find defects with a detector, outline them with a segmenter, write COCO results."""

    source: Path
    """Dataset folder, a folder of pictures, or one picture."""
    out: Path
    """Folder to write predictions/ into: a run folder, or a new one."""
    detector: Path | None = None
    """Run of `finetune yolo`, or "starter", which finds "defect" on pictures that it has never been
    trained for; without one, ground-truth boxes prompt the segmenter."""
    segmenter: Path | None = None
    """Run of `finetune sam`, or "starter"; without one, predictions are boxes."""
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


def check_stride(image_size: int) -> None:
    """Raise ValueError unless YOLO-World can take pictures of this size."""
    if image_size % 32:
        near = max(32, round(image_size / 32) * 32)
        raise ValueError(f"image_size: {image_size} is not a multiple of 32: try {near}")


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
