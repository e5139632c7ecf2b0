"""Detectors for other programs: ONNX, OpenVINO, TorchScript and TensorRT.

What goes in is ``images``, float32, shape (batch, 3, image_size, image_size): red, green, blue,
each pixel divided by 255. A picture is scaled so that its longer side is ``image_size`` (bilinear),
and stands in the middle of a square filled with 114 of 255::

    scale = image_size / max(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    left = round((image_size - new_width) / 2 - 0.1)
    top = round((image_size - new_height) / 2 - 0.1)

With ``dynamic`` the sides may be any multiples of 32. `toolkit predict` pads to the smallest such
rectangle, so that its answers differ a little from those of the square.

What comes out is one array of shape (batch, 4 + classes, places), float32, without any threshold.
A column is a place in the picture: x and y of the middle of a box, its width and its height, in
pixels of what went in; then a score for each class, 0 to 1, no softmax or sigmoid needed. To get
what `toolkit predict` gives:

1. of every column and class keep (box, class, score) where the score exceeds 0.001;
2. per class, go through the boxes from the highest score, and drop each that overlaps one that was
   kept before with an IoU above 0.7;
3. keep the 100 highest scores of the picture;
4. x = (x - left) / scale, y = (y - top) / scale, cut to the picture.

The same is said, with the numbers and classes of the model, in ``FILE.json`` beside the file, or in
``toolkit.json`` in OpenVINO's folder.

onnxruntime and openvino report to their makers where they run. `toolkit export` keeps them from it;
your own program does with ORT_DISABLE_TELEMETRY=1 and without the package openvino-telemetry.

TorchScript in half precision takes and gives float16. Of a model that has seen procedural pictures
alone ("starter"), `toolkit predict` takes the highest score of all classes, as "defect". Where
``tiles`` is given, a picture goes in as windows of that side, as many as overlap by that share.
"""

from __future__ import annotations

import io
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.engine.exporter import Exporter
from ultralytics.nn.tasks import DetectionModel, WorldModel
from ultralytics.utils.nms import non_max_suppression

from converters.errors import InputError
from converters.files import write_json
from toolkit.architectures import is_transformer
from toolkit.config import ExportConfig
from toolkit.detect.data import STRIDE
from toolkit.detect.embeddings import ANCHOR
from toolkit.detect.modes import is_reparameterised, reparameterise
from toolkit.detect.runtimes import Runtime, open_exported
from toolkit.detect.weights import RunModel, load_trained, with_kinds_only
from toolkit.devices import resolve_device
from toolkit.exporting import (
    PROCEDURAL,
    dataset_pictures,
    publish,
    refuse_existing,
    require_packages,
    scratch_beside,
    told_in_one_line,
)
from toolkit.images import RgbImage
from toolkit.offline import quiet
from toolkit.synth import DEFECTS, sample

MOST_PICTURES = 10
SCORE_FLOOR = 0.01
"""Score from which a place is compared."""
BEST_PLACES = 100
"""Places of every picture that are compared whatever they score, the best."""

_OVERLAP = 0.7
_MOST_BOXES = 100
_SUFFIX = ".toolkit-export"  # ultralytics replaces it wherever it stands in a path


@dataclass(frozen=True)
class Tolerance:
    """By how much an exported model may differ from ours, at any place that is compared.

    Attributes:
        pixels: in x, y, width and height of a box.
        score: in the score of a class.
    """

    pixels: float
    score: float


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with ours on the same inputs.

    Attributes:
        pictures: how many were compared.
        pictures_from: what they are.
        places: compared: those that score above 0.01, and at least the best 100 of every picture.
        boxes: that ours leaves, from score 0.01, after overlapping ones are suppressed.
        exported_boxes: that the exported model leaves.
        pixels: largest difference of x, y, width or height.
        score: largest difference of a score.
        seconds: of ours per picture (median), on the device of the check.
        exported_seconds: of the exported model.
    """

    pictures: int
    pictures_from: str
    places: int
    boxes: int
    exported_boxes: int
    pixels: float
    score: float
    seconds: float
    exported_seconds: float


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: the file, or the folder of openvino.
        description: the file that says what goes in and what comes out.
        format: of the file.
        classes: in the order of their scores.
        image_size: side of the square that goes in.
        agreement: with our model.
        kind: of model.
    """

    path: Path
    description: Path
    format: str
    classes: tuple[str, ...]
    image_size: int
    agreement: Agreement
    kind: Literal["detector"] = "detector"


def export_detector(config: ExportConfig) -> Exported:
    """Export the best model of a run, and check it against ours.

    The class embeddings of the exported model are weights (as of mode reparam), so it needs no text
    and gives the same answers. It is run on up to ten pictures beside the model that `toolkit
    predict` loads. They agree if, at all places that score above 0.01 (and at the best 100 places
    of every picture), boxes differ by at most 0.5 px and scores by 0.001. In half precision, and
    for engines, which round too, a 320th of the side of the input (at least 1 px) and 0.01 are
    allowed. One that differs by more is not left behind.

    Raises:
        InputError: the run is none of a detector, or the format none for them; the destination
            exists or cannot be written; a package is missing; the model cannot be exported; or the
            exported one differs.
    """
    refuse_existing(config.out, _description_of(config))
    _refuse_unfit(config)
    trained = _load(config.run)
    device = _device(config)
    require_packages(config.format)
    size = config.image_size or trained.image_size
    pictures, origin = _pictures(config, size)
    with scratch_beside(config.out) as scratch:
        with _silence(), told_in_one_line(config):
            made = _export(config, trained.model, size, device, scratch)
            exported = open_exported(config.format, made, device)
            ours = _runtime_of(trained.model, device)
            agreement = _compare(ours, exported, _inputs(pictures, size, config), size, origin)
        _refuse_difference(config, agreement, tolerance(config, size))
        described = made / "toolkit.json" if made.is_dir() else scratch / "description"
        write_json(described, _describe(config, trained, size, agreement), indent=2)
        publish(made, config.out, described, _description_of(config))
    description = _description_of(config)
    return Exported(config.out, description, config.format, trained.names, size, agreement)


def tolerance(config: ExportConfig, image_size: int) -> Tolerance:
    """What is allowed: half precision has 11 binary digits, for boxes as for everything else."""
    if config.half or config.format == "engine":
        return Tolerance(max(1.0, image_size / 320), 0.01)
    return Tolerance(0.5, 1e-3)


def _description_of(config: ExportConfig) -> Path:
    if config.format == "openvino":
        return config.out / "toolkit.json"
    return config.out.with_name(config.out.name + ".json")


def _refuse_unfit(config: ExportConfig) -> None:
    if config.format == "segment-anything":
        raise InputError(
            f"{config.run}: is a detector, which segment-anything does not know: choose a --format "
            "of onnx, openvino, torchscript and engine"
        )
    if config.format == "onnx" and not config.out.suffix:
        raise InputError(
            f"{config.out}: a detector of format onnx is one file: try {config.out}.onnx"
        )


def _device(config: ExportConfig) -> torch.device:
    """Where the model is exported and compared."""
    if config.format in ("onnx", "openvino"):
        return torch.device("cpu")
    needs_gpu = config.format == "engine" or config.half
    name = "cpu" if config.device == "auto" and not needs_gpu else config.device
    device = resolve_device(name)
    if needs_gpu and device.type == "cpu":
        half = " in half precision" if config.format == "torchscript" else ""
        raise InputError(f"format {config.format}{half}: needs a GPU, and there is none")
    return device


def _load(run: Path) -> RunModel:
    """The model as `toolkit predict` has it."""
    trained = load_trained(run)
    if is_transformer(trained.arch):
        raise InputError(f"{run}: is {trained.title}: only YOLO detectors are exported so far")
    return with_kinds_only(trained) if trained.pretrained else trained


def _pictures(config: ExportConfig, size: int) -> tuple[list[RgbImage], str]:
    """Pictures for the check, and what they are."""
    found = dataset_pictures(config, MOST_PICTURES)
    if found is None:
        return _procedural_pictures(size), PROCEDURAL
    return [each.pixels for each in found.pictures], found.origin


def _procedural_pictures(size: int) -> list[RgbImage]:
    side = min(size, 640)
    shape = (max(32, side * 3 // 4), side)
    kinds = sorted(DEFECTS)
    return [
        sample(seed, size=shape, defects=[kinds[seed % len(kinds)]]).image
        for seed in range(MOST_PICTURES)
    ]


def _inputs(pictures: Sequence[RgbImage], size: int, config: ExportConfig) -> list[_Batch]:
    """Batches as the exported model takes them, filled up with empty pictures.

    A model of any shapes gets every picture by itself, with an empty one, and every other picture
    cut to its upper half.
    """
    if config.dynamic:
        pictures = [p[: -(-len(p) // 2)] if i % 2 == 0 else p for i, p in enumerate(pictures)]
    fit = LetterBox(size, auto=config.dynamic, stride=STRIDE)
    tensors = [
        torch.from_numpy(np.ascontiguousarray(fit(image=picture).transpose(2, 0, 1))) / 255
        for picture in pictures
    ]
    if config.dynamic:
        length = min(config.batch, 2) if config.format == "engine" else 2
        return [_filled([tensor], length) for tensor in tensors]
    starts = range(0, len(tensors), config.batch)
    return [_filled(tensors[i : i + config.batch], config.batch) for i in starts]


def _filled(tensors: list[Tensor], length: int) -> _Batch:
    empty = [torch.zeros_like(tensors[0])] * (length - len(tensors))
    return _Batch(torch.stack([*tensors, *empty]), len(tensors))


class _Batch(NamedTuple):
    """What goes in at once, of which the first are pictures."""

    pixels: Tensor
    pictures: int


class _SilentExporter(Exporter):  # type: ignore[misc]
    """ultralytics' exporter without its integrations, which are callbacks."""

    def run_callbacks(self, event: str) -> None:
        """Run none."""


def _export(
    config: ExportConfig, model: DetectionModel, size: int, device: torch.device, folder: Path
) -> Path:
    """Let ultralytics write the model into a folder; the path of what it wrote."""
    model = deepcopy(model)
    if isinstance(model, WorldModel) and not is_reparameterised(model):
        reparameterise(model)
    model.task = "detect"
    model.pt_path = str(folder / f"{config.out.stem}{_SUFFIX}")  # ultralytics writes beside it
    options = {
        "mode": "export",
        "task": "detect",
        "format": config.format,
        "imgsz": size,
        "batch": config.batch,
        "dynamic": config.dynamic,
        "quantize": 16 if config.half else None,
        "device": "cpu" if device.type == "cpu" else str(device),
        "verbose": False,
    }
    if config.format in ("onnx", "engine"):
        options["simplify"] = find_spec("onnxslim") is not None
    return Path(_SilentExporter(overrides=options)(model))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep standard output for the result, and standard error for what is wrong."""
    with quiet(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        logging.getLogger("ultralytics").setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")
        yield


@torch.inference_mode()
def _compare(
    ours: Runtime, theirs: Runtime, batches: Sequence[_Batch], size: int, origin: str
) -> Agreement:
    """Run both on the same inputs.

    Raises:
        InputError: the second gives something else than the first altogether.
    """
    found = [_compare_batch(ours, theirs, batch, size) for batch in batches]
    return Agreement(
        pictures=sum(batch.pictures for batch in batches),
        pictures_from=origin,
        places=sum(each.places for each in found),
        boxes=sum(each.boxes for each in found),
        exported_boxes=sum(each.exported_boxes for each in found),
        pixels=max(each.pixels for each in found),
        score=max(each.score for each in found),
        seconds=median(each.seconds for each in found),
        exported_seconds=median(each.exported_seconds for each in found),
    )


def _compare_batch(ours: Runtime, theirs: Runtime, batch: _Batch, size: int) -> Agreement:
    own, seconds = _timed(ours, batch.pixels)
    other, exported_seconds = _timed(theirs, batch.pixels)
    if own.shape != other.shape or not bool(torch.isfinite(other).all()):
        raise InputError(
            f"the exported model gives numbers of shape {tuple(other.shape)}, "
            f"not finite ones of shape {tuple(own.shape)} as ours: nothing was written"
        )
    own, other = own[: batch.pictures], other[: batch.pictures]
    chosen = _compared_places(own, other)
    difference = (own - other).abs()
    return Agreement(
        pictures=batch.pictures,
        pictures_from="",
        places=int(chosen.sum()),
        boxes=_count_boxes(own, size),
        exported_boxes=_count_boxes(other, size),
        pixels=float(difference[:, :4].amax(dim=1)[chosen].max()),
        score=float(difference[:, 4:].amax(dim=1)[chosen].max()),
        seconds=seconds / len(batch.pixels),
        exported_seconds=exported_seconds / len(batch.pixels),
    )


def _runtime_of(model: DetectionModel, device: torch.device) -> Runtime:
    model.to(device).eval()

    def run(pixels: Tensor) -> Tensor:
        answers: Tensor = model(pixels.to(device))[0]
        return answers

    return run


def _timed(run: Runtime, batch: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    answers = run(batch).cpu()
    return answers, time.perf_counter() - start


def _compared_places(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which places of every picture count, shape (pictures, places)."""
    best = ours[:, 4:].amax(dim=1)
    chosen = torch.maximum(best, theirs[:, 4:].amax(dim=1)) > SCORE_FLOOR
    return chosen.scatter(1, best.topk(min(BEST_PLACES, best.shape[1])).indices, True)


def _count_boxes(answers: Tensor, size: int) -> int:
    """Boxes that are left when overlapping ones are suppressed as our detector does."""
    rows = non_max_suppression(
        answers.clone(),
        SCORE_FLOOR,
        _OVERLAP,
        multi_label=True,
        max_det=_MOST_BOXES,
        max_time_img=float("inf"),
        max_wh=2 * size,
    )
    return sum(map(len, rows))


def _refuse_difference(config: ExportConfig, found: Agreement, allowed: Tolerance) -> None:
    if found.pixels <= allowed.pixels and found.score <= allowed.score:
        return
    remedy = "leave out --half" if config.half else "try another --format"
    raise InputError(
        f"{config.out}: the exported model does not give the boxes of {config.run}: on "
        f"{found.pictures_from} they differ by {found.pixels:.3g} px (allowed {allowed.pixels:g}) "
        f"and {found.score:.3g} in score (allowed {allowed.score:g}): nothing was written; {remedy}"
    )


def _describe(
    config: ExportConfig, trained: RunModel, size: int, agreement: Agreement
) -> dict[str, Any]:
    """What someone needs who has the file alone."""
    allowed = tolerance(config, size)
    number, side = _shape_in_words(config, size) if config.dynamic else (config.batch, size)
    classes = list(trained.names)
    number_type = "float16" if config.half and config.format == "torchscript" else "float32"
    description = {
        "format": config.format,
        "classes": classes,
        "image_size": size,
        "half": config.half,
        "run": config.run.name,
        "source": trained.description,
        "input": {
            "name": "images",
            "shape": [number, 3, side, side],
            "type": number_type,
            "values": "red, green, blue; pixel / 255",
            "letterbox": {
                "scale": "image_size / max(height, width), bilinear; sides rounded",
                "left": "round((input width - scaled width) / 2 - 0.1)",
                "top": "round((input height - scaled height) / 2 - 0.1)",
                "fill": 114,
            },
        },
        "output": {
            "shape": [number, 4 + len(classes), "places"],
            "type": number_type,
            "rows": ["x of the middle", "y of the middle", "width", "height", *classes],
            "boxes": "pixels of the input",
            "scores": "0 to 1 per class, after the sigmoid; no threshold, nothing is suppressed",
            "suppression": {"per_class": True, "iou": _OVERLAP, "most_boxes": _MOST_BOXES},
        },
        "check": {
            **asdict(agreement),
            "rule": (
                f"at every place that scores above {SCORE_FLOOR}, and at least at the best "
                f"{BEST_PLACES} of every picture, the boxes and scores of both models differ by no "
                "more than is allowed"
            ),
            "allowed": asdict(allowed),
        },
    }
    if trained.tile is not None:
        description["tiles"] = asdict(trained.tile)
    if trained.pretrained:
        description["found_as"] = {"name": ANCHOR, "score": "the highest of the classes"}
    return description


def _shape_in_words(config: ExportConfig, size: int) -> tuple[str, str]:
    """Pictures and sides that a dynamic model takes; an engine was built for a range."""
    if config.format == "engine":
        return f"1 to {config.batch}", f"multiples of 32 up to {2 * size}"
    return "any", "multiples of 32"
