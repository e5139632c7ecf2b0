"""Segmenters for other programs: ONNX, and checkpoints of segment-anything.

**segment-anything** is one file, for ``vit_b``, ``vit_l`` and ``vit_h``, that the library itself
opens; it needs nothing of ours::

    from segment_anything import SamPredictor, sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_b"](checkpoint="model.pth"))

**onnx** is a folder: ``encoder.onnx`` looks at pixels, ``decoder.onnx`` outlines what is in boxes,
so that many boxes cost one look. (The weights of ``vit_h`` exceed the 2 GB that one such file
holds; they lie in ``encoder.onnx.data``.) Pixels are normalised inside; everything else is
arithmetic that needs no PyTorch:

1. The view: the whole picture, or, where the model was trained with a context (``nano`` with 1.5,
   others as ``--context`` said), a window around each box (x, y, w, h), cut off at the border of
   the picture::

       side = max(24, context * max(w, h))
       left, right = max(0, floor(x + w / 2 - side / 2)), min(width, ceil(x + w / 2 + side / 2))
       top, bottom = max(0, floor(y + h / 2 - side / 2)), min(height, ceil(y + h / 2 + side / 2))

2. The input. The view is scaled so that its longer side is ``image_size`` (bilinear; a view that
   shrinks is averaged, as Pillow does and OpenCV does not), and stands at the top left of a square
   that is filled with the mean colour (123.675, 116.28, 103.53)::

       scale = image_size / max(view height, view width)
       new_height = max(1, floor(view height * scale + 0.5)), and so for the width

   For ``sam2*`` it is stretched to fill the square: new_height = new_width = image_size.

   ``encoder.onnx`` takes it as ``images``, float32, shape (1, 3, image_size, image_size): red,
   green, blue, 0 to 255. It gives ``embeddings``, shape (1, channels, grid, grid).

3. The boxes. ``decoder.onnx`` takes as ``boxes``, float32, shape (n, 4), for any n, the corners
   x0, y0, x1, y1 of each box in pixels of the input: the box is cut to its view, moved by the
   view's corner, and multiplied by new_width / view width and new_height / view height. With it
   goes ``embeddings``: one for all boxes, shape (1, channels, grid, grid), or one for each, shape
   (n, channels, grid, grid).

4. Points (where the model has learnt what they mean: not ``nano`` without ``--prompts`` or
   ``--clicks``). ``points``, float32, shape (n, k, 2), are
   x and y in pixels of the input, beside the box; ``labels``, float32, shape (n, k), say 1 (inside
   the object), 0 (outside) or -1 (nothing: fills up a row). Without points, k is 0.

5. The masks. ``logits``, float32, shape (n, 4 * grid, 4 * grid), cover the input. Scale them to
   (image_size, image_size), cut off what is right of new_width and below new_height, scale that to
   the view (both times bilinear between the middles of cells, as ``cv2.resize``), and what is above
   0 is the object. For ``sam2*`` scale them to the view in one step. ``iou``, float32, shape (n,),
   is SAM's own estimate of the IoU with the truth, and may lie a little outside 0 to 1.

The same is said, with the numbers of the model, in ``toolkit.json`` in the folder, and of a
checkpoint in ``FILE.json`` beside it. onnxruntime reports to its maker where it runs; with
ORT_DISABLE_TELEMETRY=1 it does not.
"""

from __future__ import annotations

import io
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from torch import Tensor, nn

from converters.dataset import Box
from converters.errors import InputError
from converters.files import write_json
from converters.geometry import region_from_mask
from toolkit.config import ExportConfig
from toolkit.exporting import (
    PROCEDURAL,
    dataset_pictures,
    onnx_session,
    publish,
    refuse_existing,
    require_packages,
    scratch_beside,
    told_in_one_line,
)
from toolkit.images import RgbImage
from toolkit.segment.frames import FloatArray, Frame
from toolkit.segment.model import (
    ARCHITECTURES,
    ArchitectureName,
    decode,
    decode_prompts,
    decode_several,
)
from toolkit.segment.sam import Sam, Sizes
from toolkit.segment.segmenter import encode_views
from toolkit.segment.usage import Usage, read_usage
from toolkit.segment.views import SMALLEST_ZOOM_WINDOW, View, views_of
from toolkit.segment.weights import load_sam
from toolkit.synth import DEFECTS, sample

MOST_PICTURES = 10
"""Pictures of a check where the model looks at windows around boxes, which is quick."""
MOST_WHOLE_PICTURES = 2
"""Pictures of a check where it looks at whole pictures, which takes up to a minute each."""
MOST_BOXES = 4
"""Boxes of a picture that are compared."""

OPSET = 17
"""Of ONNX: what PyTorch 2.6 to 2.15 and onnxruntime from 1.20 on all have."""

MEAN = (123.675, 116.28, 103.53)
"""SAM's mean colour: what is filled with it is 0 when it has been normalised, as SAM pads."""

_ONE_MASK = "multimask_output=False"
_DETECTORS_ALONE = ("image_size", "batch", "dynamic", "half")

Answer: TypeAlias = tuple[FloatArray, FloatArray]
"""Logits, shape (n, cells, cells), and estimates of the IoU, shape (n,)."""


@dataclass(frozen=True)
class Tolerance:
    """By how much an exported model may differ from ours.

    Attributes:
        logits: in the logit of any cell of a mask.
        iou: in the estimate of an IoU.
    """

    logits: float
    iou: float


TOLERANCES = {"segment-anything": Tolerance(1e-4, 1e-4), "onnx": Tolerance(0.01, 1e-3)}
"""The library runs the same operations as we do, onnxruntime its own in another order."""


@dataclass(frozen=True)
class SegmenterAgreement:
    """How an exported model compares with ours on the same pictures and boxes.

    Attributes:
        pictures: how many were compared.
        pictures_from: what they are.
        boxes: how many were outlined.
        logits: largest difference of a logit.
        iou: largest difference of an estimate of the IoU.
        seconds: of ours per picture with its boxes (median), on the CPU.
        exported_seconds: of the exported model.
    """

    pictures: int
    pictures_from: str
    boxes: int
    logits: float
    iou: float
    seconds: float
    exported_seconds: float


@dataclass(frozen=True)
class ExportedSegmenter:
    """An exported segmenter.

    Attributes:
        path: the file of segment-anything, or the folder of onnx.
        description: the file that says what goes in and what comes out.
        format: of the file or folder.
        architecture: of SAM.
        image_size: side of the square that goes in.
        agreement: with our model.
        kind: of model.
    """

    path: Path
    description: Path
    format: str
    architecture: str
    image_size: int
    agreement: SegmenterAgreement
    kind: Literal["segmenter"] = "segmenter"


class Model(NamedTuple):
    """A segmenter, and how it was trained to be used."""

    sam: Sam
    name: ArchitectureName
    usage: Usage

    @property
    def sizes(self) -> Sizes:
        """Of its architecture."""
        return ARCHITECTURES[self.name]


class Boxed(NamedTuple):
    """A picture and the boxes ``(x, y, width, height)`` in it that are outlined."""

    image: RgbImage
    boxes: list[Box]


def export_segmenter(config: ExportConfig) -> ExportedSegmenter:
    """Export the best model of a run of SAM, and check it against ours.

    What was written is opened again and run beside the model that `toolkit predict` loads, both on
    the CPU: onnx on up to ten pictures (two, where it looks at whole ones) and up to four boxes in
    each, with and without points; segment-anything on one picture. One that differs by more than
    ``TOLERANCES`` is not left behind.

    Raises:
        InputError: the run is none of a segmenter, the format or an option none for them; the
            destination exists or cannot be written; a package is missing; the model cannot be
            exported; or the exported one differs.
    """
    description = _description_of(config)
    refuse_existing(config.out, description)
    _refuse_unfit(config)
    sam, name = load_sam(config.run)
    if config.format == "segment-anything":
        _refuse_unknown(config, name)
    else:
        require_packages("onnx")
    model = Model(sam, name, read_usage(config.run, name))
    _refuse_several(config, model)
    sam.requires_grad_(False)
    with scratch_beside(config.out) as scratch:
        pictures, origin = _pictures(config, model)
        made = scratch / config.out.name
        with _silence(), told_in_one_line(config):
            if config.format == "segment-anything":
                torch.save(_state(sam), made)
                pictures = pictures[:1]
                found = [_compare_checkpoint(model, made, each) for each in pictures]
            else:
                write_onnx(model, made)
                compare = _Comparison(model, made)
                found = [compare(each) for each in pictures]
                del compare  # its sessions may hold files open
        agreement = _together(found, pictures, origin)
        _refuse_difference(config, agreement)
        described = made / "toolkit.json" if made.is_dir() else scratch / "description"
        write_json(described, _describe(config, model, agreement), indent=2)
        publish(made, config.out, described, description)
    return ExportedSegmenter(
        config.out, description, config.format, name, model.sizes.image_size, agreement
    )


def _description_of(config: ExportConfig) -> Path:
    if config.format == "segment-anything":
        return config.out.with_name(config.out.name + ".json")
    return config.out / "toolkit.json"


def _refuse_unfit(config: ExportConfig) -> None:
    if config.format not in TOLERANCES:
        raise InputError(
            f"{config.run}: is a segmenter, which is not exported to {config.format}: choose "
            "--format onnx or segment-anything"
        )
    if config.format == "onnx" and config.out.suffix:
        raise InputError(
            f"{config.out}: a segmenter of format onnx is a folder of two files: "
            f"try {config.out.with_suffix('')}"
        )
    fields = type(config).model_fields
    for name in _DETECTORS_ALONE:
        if getattr(config, name) != fields[name].default:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: is for detectors, and {config.run} is a segmenter")


def _refuse_unknown(config: ExportConfig, name: ArchitectureName) -> None:
    if name not in sam_model_registry:
        known = ", ".join(each for each in ARCHITECTURES if each in sam_model_registry)
        raise InputError(
            f"{config.run}: is SAM {name}, which segment-anything does not know, only {known}: "
            "choose --format onnx"
        )


def _refuse_several(config: ExportConfig, model: Model) -> None:
    if model.usage.several and config.format == "onnx":
        raise InputError(
            f"{config.run}: gives three masks for a box, and decoder.onnx has one: fine-tune "
            "without --multimask, or choose --format segment-anything"
        )


def _state(sam: Sam) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in sam.state_dict().items()}


def write_onnx(model: Model, folder: Path) -> None:
    """Make a folder with ``encoder.onnx`` and ``decoder.onnx``.

    Weights beyond the 2 GB that an ONNX file can hold (``vit_h``) lie in ``encoder.onnx.data``.

    Args:
        model: on the CPU.
        folder: does not exist yet.
    """
    folder.mkdir()
    sam, sizes = model.sam, model.sizes
    side, cells = sizes.image_size, sizes.grid
    pixels = torch.zeros(1, 3, side, side)
    _write(folder / "encoder.onnx", _Encoder(sam), {"images": pixels}, ("embeddings",), {})
    # Three of everything, as no other length is: a length that the tracer took for a constant
    # would show as soon as there is one box.
    count = 3
    inputs = {
        "embeddings": torch.zeros(count, sizes.embedding_width, cells, cells),
        "boxes": torch.tensor([[0.1, 0.2, 0.6, 0.7]] * count) * side,
    }
    free = {"embeddings": {0: "one or boxes"}, "boxes": {0: "boxes"}}
    if model.usage.points:
        inputs["points"] = torch.full((count, 2, 2), side / 2)
        inputs["labels"] = torch.tensor([[1.0, -1.0]] * count)
        free |= {name: {0: "boxes", 1: "points"} for name in ("points", "labels")}
    free |= {"logits": {0: "boxes"}, "iou": {0: "boxes"}}
    _write(folder / "decoder.onnx", _Decoder(sam), inputs, ("logits", "iou"), free)


class _Encoder(nn.Module):
    """``encode`` of a square that is filled with the mean colour already."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images: Tensor) -> Tensor:
        return self.sam.embed(self.sam.preprocess(images))


class _Decoder(nn.Module):
    """``decode``, where one embedding may do for all boxes."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self,
        embeddings: Tensor,
        boxes: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        sparse, dense = self.sam.encode_prompts(None, boxes, None)
        if points is not None and labels is not None:
            sparse = torch.cat([self._points(points, labels), sparse], dim=1)
        shown = embeddings.expand(boxes.shape[0], -1, -1, -1)
        logits, iou = decode_prompts(self.sam, shown, sparse, dense)
        return logits[:, 0], iou[:, 0]

    def _points(self, points: Tensor, labels: Tensor) -> Tensor:
        """As ``PromptEncoder``, which picks points by their labels: no graph for none of a kind.

        Source: segment-anything's ``utils/onnx.py``.
        """
        encoder = self.sam.prompt_encoder
        places = encoder.pe_layer.forward_with_coords(points + 0.5, encoder.input_image_size)
        says = labels[:, :, None]
        encoded: Tensor = (
            places * (says != -1)
            + encoder.not_a_point_embed.weight * (says == -1)
            + encoder.point_embeddings[0].weight * (says == 0)
            + encoder.point_embeddings[1].weight * (says == 1)
        )
        return encoded


def _write(
    path: Path,
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: tuple[str, ...],
    free: dict[str, dict[int, str]],
) -> None:
    """Write a module as one file of ONNX, or as two where it is too large for one.

    Args:
        path: of the file.
        module: takes the inputs in their order.
        inputs: examples by name.
        outputs: their names.
        free: which lengths of inputs and outputs vary, and what those are called.
    """
    parts = path.with_suffix(".parts")
    parts.mkdir()
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(parts / path.name),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=free,
        opset_version=OPSET,
        dynamo=False,  # the newer exporter needs a package more, and has changed with every release
    )
    gather(parts / path.name, path)
    shutil.rmtree(parts)


def gather(made: Path, path: Path) -> None:
    """Move a model; where PyTorch put each weight into a file of its own, into one for all.

    Args:
        made: the model, in a folder of its own with all that belongs to it.
        path: where it goes; its weights may go to the same name with ``.data`` added.
    """
    if len(list(made.parent.iterdir())) == 1:
        made.replace(path)
        return
    import onnx

    model = onnx.load(str(made))
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )


def _pictures(config: ExportConfig, model: Model) -> tuple[list[Boxed], str]:
    """Pictures with defects for the check, and what they are."""
    quick = model.usage.context is not None and model.sizes.image_size < 1024
    most = MOST_PICTURES if quick else MOST_WHOLE_PICTURES
    found = dataset_pictures(config, most, lambda image: not image.is_good)
    if found is None:
        return [_procedural_picture(seed) for seed in range(most)], PROCEDURAL
    pictures = [
        Boxed(each.pixels, [_inside(i.box, each.pixels) for i in each.image.instances[:MOST_BOXES]])
        for each in found.pictures
    ]
    return pictures, found.origin


def _inside(box: Box, pixels: RgbImage) -> Box:
    """What of a box lies in its picture: segment-anything's predictor does not cut boxes."""
    height, width = pixels.shape[:2]
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[0] + box[2], float(width)), min(box[1] + box[3], float(height))
    return left, top, right - left, bottom - top


def _procedural_picture(seed: int) -> Boxed:
    """One with one to three defects."""
    kinds = sorted(DEFECTS)
    some = [kinds[(seed * 3 + k) % len(kinds)] for k in range(1 + seed % 3)]
    drawn = sample(seed, size=(192, 256), defects=some)
    return Boxed(drawn.image, [region_from_mask(each.mask)[0] for each in drawn.instances])


@contextmanager
def _silence() -> Iterator[None]:
    """Keep standard output for the result, and standard error for what is wrong."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class _Found(NamedTuple):
    """Differences and durations of one picture."""

    logits: float
    iou: float
    seconds: float
    exported_seconds: float


def _differences(ours: Answer, theirs: Answer) -> tuple[float, float]:
    """The largest differences of a logit and of an estimate.

    Raises:
        InputError: theirs are of other shapes, or not finite.
    """
    for own, other in zip(ours, theirs, strict=True):
        if own.shape != other.shape or not np.isfinite(other).all():
            raise InputError(
                f"the exported model gives numbers of shape {other.shape}, not finite ones of "
                f"shape {own.shape} as ours: nothing was written"
            )
    logits, iou = (
        float(np.abs(own - other).max()) for own, other in zip(ours, theirs, strict=True)
    )
    return logits, iou


class _Prompts(NamedTuple):
    """What is looked at, and asked, of one picture."""

    image: RgbImage
    views: list[View]
    owner: list[int]
    boxes: FloatArray
    """Corners in pixels of the input, shape (n, 4)."""


def _prompts(picture: Boxed, model: Model) -> _Prompts:
    height, width = picture.image.shape[:2]
    views, owner = views_of(picture.boxes, height, width, model.usage.context)
    side, stretches = model.sizes.image_size, model.sam.stretches
    corners = [
        Frame(*views[k].size, side, stretches).boxes(views[k].box(box))
        for k, box in zip(owner, picture.boxes, strict=True)
    ]
    return _Prompts(picture.image, views, owner, np.concatenate(corners))


class _Comparison:
    """Runs a folder of ONNX beside our model."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model = model
        self.sam = model.sam
        self.encoder = onnx_session(folder / "encoder.onnx")
        self.decoder = onnx_session(folder / "decoder.onnx")

    def __call__(self, picture: Boxed) -> _Found:
        """Outline the first box alone, then all of them, these with points where it takes any."""
        asked = _prompts(picture, self.model)
        own, seconds = _timed(lambda: self._ours(asked))
        other, exported_seconds = _timed(lambda: self._theirs(asked))
        found = [_differences(*pair) for pair in zip(own, other, strict=True)]
        logits, iou = (max(numbers) for numbers in zip(*found, strict=True))
        return _Found(logits, iou, seconds, exported_seconds)

    @torch.inference_mode()
    def _ours(self, asked: _Prompts) -> list[Answer]:
        embeddings = encode_views(self.sam, asked.image, asked.views)[torch.tensor(asked.owner)]
        boxes = torch.from_numpy(asked.boxes)
        points = tuple(map(torch.from_numpy, self._points(asked.boxes)))
        answers = [
            decode(self.sam, embeddings[:1], boxes[:1]),
            decode(self.sam, embeddings, boxes, points if points else None),  # type: ignore[arg-type]
        ]
        return [(logits.numpy(), iou.numpy()) for logits, iou in answers]

    def _theirs(self, asked: _Prompts) -> list[Answer]:
        inputs = [
            square(view.image(asked.image), self.model.sizes.image_size, self.sam.stretches)
            for view in asked.views
        ]
        embeddings = np.concatenate(
            [self.encoder.run(None, {"images": each})[0] for each in inputs]
        )
        first = {"embeddings": embeddings[:1], "boxes": asked.boxes[:1]}
        every = {"embeddings": embeddings, "boxes": asked.boxes}
        if self.model.usage.points:
            none = np.zeros((1, 0, 2), np.float32)
            first |= {"points": none, "labels": none[:, :, 0]}
            every |= dict(zip(("points", "labels"), self._points(asked.boxes), strict=True))
        return [
            (logits, iou)
            for logits, iou in (self.decoder.run(None, each) for each in (first, every))
        ]

    def _points(self, boxes: FloatArray) -> tuple[FloatArray, ...]:
        """For each box its middle, which is inside, a corner, which is not, and nothing."""
        if not self.model.usage.points:
            return ()
        corner, end = boxes[:, :2], boxes[:, 2:]
        points = np.stack([(corner + end) / 2, corner, np.zeros_like(corner)], axis=1)
        labels = np.tile(np.array([1, 0, -1], np.float32), (len(boxes), 1))
        return points, labels


def square(view: RgbImage, side: int, stretched: bool = False) -> FloatArray:
    """A view as ``encoder.onnx`` takes it: scaled, and filled up with the mean colour.

    Args:
        view: shape (height, width, 3), RGB, 0 to 255.
        side: of the square in pixels.
        stretched: whether the view fills it both ways.

    Returns:
        shape (1, 3, side, side), 0 to 255.
    """
    height, width = view.shape[:2]
    pixels = Frame(height, width, side, stretched).image(view).numpy()
    filled = np.empty((1, 3, side, side), np.float32)
    filled[:] = np.array(MEAN, np.float32)[:, None, None]
    filled[0, :, : pixels.shape[1], : pixels.shape[2]] = pixels
    return filled


@torch.inference_mode()
def _compare_checkpoint(model: Model, path: Path, picture: Boxed) -> _Found:
    """Open a file in plain segment-anything, and let its predictor outline the boxes."""
    asked = _prompts(picture, model)
    (own,), seconds = _timed(lambda: [_whole(model, asked)])
    predictor = SamPredictor(sam_model_registry[model.name](checkpoint=str(path)))

    def predict() -> list[Answer]:
        answers, shown = [], None
        for box, k in zip(picture.boxes, asked.owner, strict=True):
            if k != shown:
                predictor.set_image(asked.views[k].image(asked.image))
                shown = k
            x, y, w, h = asked.views[k].box(box)
            corners = np.array([x, y, x + w, y + h])
            answers.append(predictor.predict(box=corners, multimask_output=model.usage.several))
        logits = np.concatenate([each[2] for each in answers])
        return [(logits, np.concatenate([each[1] for each in answers]))]

    (other,), exported_seconds = _timed(predict)
    return _Found(*_differences(own, other), seconds, exported_seconds)


def _whole(model: Model, asked: _Prompts) -> Answer:
    """Our answers: a mask for each box, or three one after the other."""
    shown = encode_views(model.sam, asked.image, asked.views)[torch.tensor(asked.owner)]
    answer = decode_several if model.usage.several else decode
    logits, iou = answer(model.sam, shown, torch.from_numpy(asked.boxes))
    return logits.reshape(-1, *logits.shape[-2:]).numpy(), iou.reshape(-1).numpy()


def _timed(run: Callable[[], list[Answer]]) -> tuple[list[Answer], float]:
    start = time.perf_counter()
    answers = run()
    return answers, time.perf_counter() - start


def _together(
    found: Sequence[_Found], pictures: Sequence[Boxed], origin: str
) -> SegmenterAgreement:
    return SegmenterAgreement(
        pictures=len(pictures),
        pictures_from=origin,
        boxes=sum(len(each.boxes) for each in pictures),
        logits=max(each.logits for each in found),
        iou=max(each.iou for each in found),
        seconds=median(each.seconds for each in found),
        exported_seconds=median(each.exported_seconds for each in found),
    )


def _refuse_difference(config: ExportConfig, found: SegmenterAgreement) -> None:
    allowed = TOLERANCES[config.format]
    if found.logits <= allowed.logits and found.iou <= allowed.iou:
        return
    raise InputError(
        f"{config.out}: the exported model does not give the masks of {config.run}: on "
        f"{found.pictures_from} they differ by {found.logits:.3g} in a logit (allowed "
        f"{allowed.logits:g}) and {found.iou:.3g} in the estimated IoU (allowed {allowed.iou:g}): "
        "nothing was written; try another --format"
    )


def _describe(config: ExportConfig, model: Model, agreement: SegmenterAgreement) -> dict[str, Any]:
    """What someone needs who has the file or the folder alone."""
    a, name = model.sizes, model.name
    onnx = config.format == "onnx"
    return {
        "format": config.format,
        "architecture": name,
        "image_size": a.image_size,
        "run": config.run.name,
        "source": f"SAM {name}, {a.image_size} px",
        **(_describe_onnx(model) if onnx else _describe_checkpoint(config, model)),
        "check": {
            **asdict(agreement),
            "rule": (
                "every logit and every estimate of the IoU differs between both models by no more "
                "than is allowed"
            ),
            "allowed": asdict(TOLERANCES[config.format]),
        },
    }


def _describe_checkpoint(config: ExportConfig, model: Model) -> dict[str, Any]:
    several = "multimask_output=True, of which the mask with the highest score counts"
    name = model.name
    return {
        "open": f'segment_anything.sam_model_registry["{name}"](checkpoint="{config.out.name}")',
        "prompts": f"a box per defect; {several if model.usage.several else _ONE_MASK}",
        "view": _describe_view(model.usage),
    }


def _describe_onnx(model: Model) -> dict[str, Any]:
    a = model.sizes
    embeddings = [a.embedding_width, a.grid, a.grid]
    cells = 4 * a.grid
    decoder = {
        "embeddings": {"shape": ["1, or one per box", *embeddings], "type": "float32"},
        "boxes": {
            "shape": ["any", 4],
            "type": "float32",
            "values": "x0, y0, x1, y1 in pixels of the encoder's input",
            "from_view": "cut to the view, minus its left and top, times new width / view width "
            "(x) and new height / view height (y)",
        },
    }
    if model.usage.points:
        decoder["points"] = {
            "shape": ["boxes", "any, or 0", 2],
            "type": "float32",
            "values": "x, y in pixels of the encoder's input",
        }
        decoder["labels"] = {
            "shape": ["boxes", "points"],
            "type": "float32",
            "values": "1 inside the object, 0 outside, -1 nothing",
        }
    return {
        "opset": OPSET,
        "view": _describe_view(model.usage),
        "encoder": {
            "file": "encoder.onnx",
            "input": {
                "images": {
                    "shape": [1, 3, a.image_size, a.image_size],
                    "type": "float32",
                    "values": "red, green, blue; 0 to 255, normalised inside",
                    **_describe_place(model.sam.stretches),
                }
            },
            "output": {"embeddings": {"shape": [1, *embeddings], "type": "float32"}},
        },
        "decoder": {
            "file": "decoder.onnx",
            "input": decoder,
            "output": {
                "logits": {"shape": ["boxes", cells, cells], "type": "float32"},
                "iou": {
                    "shape": ["boxes"],
                    "type": "float32",
                    "values": "estimated IoU with the truth, about 0 to 1",
                },
            },
        },
        "mask": {
            "steps": ["logits to the view's height and width, bilinear"]
            if model.sam.stretches
            else [
                "logits to (image_size, image_size), bilinear",
                "cut to (new height, new width)",
                "to the view's height and width, bilinear",
            ],
            "threshold": 0.0,
            "object": "above the threshold; nothing outside the view",
        },
    }


def _describe_place(stretches: bool) -> dict[str, Any]:
    """How a view is scaled, and where it stands in the square."""
    resampling = "bilinear, averaging where it shrinks"
    if stretches:
        return {"scale": f"new height and new width are image_size; {resampling}"}
    return {
        "scale": f"image_size / max(view height, view width), {resampling}; "
        "new sides max(1, floor(side * scale + 0.5))",
        "place": "top left",
        "fill": list(MEAN),
    }


def _describe_view(usage: Usage) -> dict[str, Any]:
    if usage.context is None:
        return {"of": "the whole picture, once for all boxes"}
    return {
        "of": "a window around each box x, y, w, h, cut off at the border of the picture",
        "side": f"max({SMALLEST_ZOOM_WINDOW}, {usage.context:g} * max(w, h))",
        "left": "max(0, floor(x + w / 2 - side / 2))",
        "right": "min(width, ceil(x + w / 2 + side / 2))",
        "top": "max(0, floor(y + h / 2 - side / 2))",
        "bottom": "min(height, ceil(y + h / 2 + side / 2))",
        "zoom": usage.context,
        "smallest_side": SMALLEST_ZOOM_WINDOW,
    }
