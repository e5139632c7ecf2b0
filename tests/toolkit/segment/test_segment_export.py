"""Exported segmenters: the same masks as ours, or nothing at all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image as PillowImage
from pydantic import ValidationError
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.build_sam import _build_sam

from converters.errors import InputError
from toolkit import cli
from toolkit import export as exporting
from toolkit.config import ExportConfig
from toolkit.exporting import onnx_session, require_packages
from toolkit.images import read_image
from toolkit.runs import RunFolder
from toolkit.segment import Segmenter, export
from toolkit.segment.export import ExportedSegmenter, SegmenterAgreement, export_segmenter
from toolkit.segment.model import ARCHITECTURES, Architecture, build_sam
from toolkit.segment.usage import Usage
from toolkit.segment.weights import load_sam

MakeDataset = Callable[..., Path]

SMALL = Architecture(1024, 16, 32, 2, 2, (1,), 14, 256, 2048)
"""As vit_b, but for width, depth and heads of the encoder."""
TINY = replace(SMALL, image_size=256)
BOXES = [(10.0, 20.0, 31.0, 25.0), (100.0, 5.0, 30.0, 80.0), (60.5, 40.0, 4.0, 3.5)]

_made: dict[str, ExportedSegmenter] = {}


@pytest.fixture
def small_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vit_b that takes a second: ours, and as plain segment-anything builds and fills it."""
    monkeypatch.setitem(ARCHITECTURES, "vit_b", SMALL)
    monkeypatch.setitem(sam_model_registry, "vit_b", partial(_build_sam, 32, 2, 2, [1]))


def _run(root: Path, name: Any = "nano", usage: Any = None, **settings: Any) -> Path:
    """A run as `finetune sam` leaves it, of starter weights (nano) or random ones."""
    torch.manual_seed(0)
    sam = load_sam("starter")[0] if name == "nano" else build_sam(name)
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump({"command": "finetune sam", **settings}))
    save_file(sam.state_dict(), root / "checkpoints" / "best.safetensors")
    RunFolder(root).write_model({"architecture": name, **(usage or {})})
    return root


@pytest.fixture
def nano(tmp_path_factory: pytest.TempPathFactory) -> ExportedSegmenter:
    """ONNX of the starter, made once for all tests here."""
    if "nano" not in _made:
        out = tmp_path_factory.mktemp("nano") / "new" / "sam"
        _made["nano"] = export_segmenter(ExportConfig(run="starter", out=out))
    return _made["nano"]


@pytest.fixture
def vit(
    make_dataset: MakeDataset,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> ExportedSegmenter:
    """ONNX of a run of a tiny vit_b, which lies beside it, made once for all tests here."""
    monkeypatch.setitem(ARCHITECTURES, "vit_b", TINY)
    if "vit" not in _made:
        folder = tmp_path_factory.mktemp("vit")
        shutil.copytree(make_dataset(good=1, per_kind=1), folder / "dataset")
        run = _run(folder / "run", "vit_b", data="../dataset")
        _made["vit"] = export_segmenter(ExportConfig(run=run, out=folder / "sam"))
    return _made["vit"]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def _view(picture: np.ndarray, box: Any, zooms: bool) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is looked at, as the module documents it."""
    height, width = picture.shape[:2]
    if not zooms:
        return 0, 0, width, height
    x, y, w, h = box
    side = max(24, 1.5 * max(w, h))
    left, right = max(0, np.floor(x + w / 2 - side / 2)), min(width, np.ceil(x + w / 2 + side / 2))
    top, bottom = max(0, np.floor(y + h / 2 - side / 2)), min(height, np.ceil(y + h / 2 + side / 2))
    return int(left), int(top), int(right), int(bottom)


def _outlined(
    folder: Path, picture: np.ndarray, boxes: Any, size: int, zooms: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Masks and estimates by the steps that the module documents, without PyTorch."""
    encoder, decoder = (onnx_session(folder / f"{n}.onnx") for n in ("encoder", "decoder"))
    masks, estimates = np.zeros((len(boxes), *picture.shape[:2]), bool), []
    for number, box in enumerate(boxes):
        left, top, right, bottom = _view(picture, box, zooms)
        height, width = bottom - top, right - left
        scale = size / max(height, width)
        new_height, new_width = (max(1, int(s * scale + 0.5)) for s in (height, width))
        view = PillowImage.fromarray(picture[top:bottom, left:right])
        images = np.empty((1, 3, size, size), np.float32)
        images[0] = np.array([123.675, 116.28, 103.53])[:, None, None]
        scaled = view.resize((new_width, new_height), PillowImage.Resampling.BILINEAR)
        images[0, :, :new_height, :new_width] = np.array(scaled).transpose(2, 0, 1)
        (embeddings,) = encoder.run(None, {"images": images})
        x, y, w, h = box
        across, down = new_width / width, new_height / height
        x0, x1 = (min(max(edge - left, 0), width) * across for edge in (x, x + w))
        y0, y1 = (min(max(edge - top, 0), height) * down for edge in (y, y + h))
        inputs = {"embeddings": embeddings, "boxes": np.array([[x0, y0, x1, y1]], np.float32)}
        if not zooms:
            inputs["points"] = np.zeros((1, 0, 2), np.float32)
            inputs["labels"] = np.zeros((1, 0), np.float32)
        logits, iou = decoder.run(["logits", "iou"], inputs)
        whole = cv2.resize(logits[0], (size, size), interpolation=cv2.INTER_LINEAR)
        seen = np.ascontiguousarray(whole[:new_height, :new_width])
        seen = cv2.resize(seen, (width, height), interpolation=cv2.INTER_LINEAR)
        masks[number, top:bottom, left:right] = seen > 0
        estimates.append(iou[0])
    return masks, np.array(estimates)


def test_what_is_documented_gives_the_masks_of_our_segmenter(nano: ExportedSegmenter) -> None:
    boxes = [*BOXES, (120.0, 80.0, 10.0, 10.0), (-3.0, 60.0, 20.0, 5.0)]
    masks, estimates = _outlined(nano.path, _picture(), boxes, 128, zooms=True)
    ours, own = Segmenter.load(Path("starter"), "cpu")(_picture(), boxes)
    assert np.allclose(estimates, own, atol=1e-4)
    for mask, expected, (_, _, w, h) in zip(masks, ours, boxes, strict=True):
        assert 0 < expected.sum() < 4 * w * h + 30
        assert (mask != expected).sum() <= 2  # cv2 and PyTorch round differently


def test_a_whole_picture_goes_in_as_documented_too(vit: ExportedSegmenter) -> None:
    masks, estimates = _outlined(vit.path, _picture(), BOXES[:2], 256, zooms=False)
    ours, own = Segmenter.load(vit.path.parent / "run", "cpu")(_picture(), BOXES[:2])
    assert np.allclose(estimates, own, atol=1e-4)
    assert 0 < ours[0].sum() < ours[0].size
    assert np.mean(masks != ours) < 1e-3


@pytest.mark.parametrize("shape", [(64, 64), (37, 90), (201, 80), (1, 50), (3, 1000)])
def test_the_square_is_what_our_segmenter_makes_of_a_view(shape: tuple[int, int]) -> None:
    sam, _ = load_sam("starter")
    view = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = sam.preprocess(torch.from_numpy(export.square(view, 128)))
    frame = export.Frame(*shape, 128)
    assert torch.equal(found[0], sam.preprocess(frame.image(view)))


@pytest.mark.parametrize(("boxes", "embeddings"), [(1, 1), (2, 2), (7, 1), (7, 7)])
def test_any_number_of_boxes_with_one_embedding_or_one_each(
    nano: ExportedSegmenter, boxes: int, embeddings: int
) -> None:
    sam, _ = load_sam("starter")
    torch.manual_seed(1)
    shown = torch.randn(embeddings, 128, 16, 16)
    low = torch.rand(boxes, 2) * 60
    corners = torch.cat([low, low + 5 + torch.rand(boxes, 2) * 60], dim=1)
    inputs = {"embeddings": shown.numpy(), "boxes": corners.numpy()}
    logits, iou = onnx_session(nano.path / "decoder.onnx").run(None, inputs)
    with torch.no_grad():
        own, estimates = export.decode(sam, shown.expand(boxes, -1, -1, -1), corners)
    assert logits.shape == (boxes, 64, 64)
    assert np.allclose(logits, own, atol=1e-3)
    assert np.allclose(iou, estimates, atol=1e-4)


@pytest.mark.parametrize("labels", [[1.0], [0.0, 1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
def test_points_beside_a_box_mean_what_they_mean_to_sam_predictor(
    vit: ExportedSegmenter, labels: list[float]
) -> None:
    sam, _ = load_sam(vit.path.parent / "run")
    predictor = SamPredictor(sam)
    predictor.features = torch.randn(1, 256, 16, 16, generator=torch.manual_seed(2))
    predictor.is_image_set = True
    predictor.original_size = predictor.input_size = (256, 256)
    box = np.array([25.0, 50, 100, 75], np.float32)
    points = np.array([[40.0, 60], [5, 8], [99, 51]], np.float32)[: len(labels)]
    says = np.array(labels, np.float32)
    _, scores, expected = predictor.predict(points, says, box, multimask_output=False)
    inputs = {
        "embeddings": predictor.features.numpy(),
        "boxes": box[None],
        "points": points[None],
        "labels": says[None],
    }
    logits, iou = onnx_session(vit.path / "decoder.onnx").run(None, inputs)
    assert np.allclose(logits, expected, atol=1e-3)
    assert np.allclose(iou, scores, atol=1e-4)
    without = {**inputs, "points": points[None, :0], "labels": says[None, :0]}
    bare, _ = onnx_session(vit.path / "decoder.onnx").run(None, without)
    assert np.abs(bare - logits).max() > 1e-2  # so that points are not just ignored


def test_the_description_says_what_was_made_and_checked(
    nano: ExportedSegmenter, vit: ExportedSegmenter
) -> None:
    for result, points in ((nano, False), (vit, True)):
        assert _names(result.path) == {"encoder.onnx", "decoder.onnx", "toolkit.json"}
        assert _names(result.path.parent) >= {result.path.name}
        assert not [n for n in _names(result.path.parent) if n.endswith(".partial")]
        said = json.loads(result.description.read_text())
        assert result.description == result.path / "toolkit.json"
        for part in ("encoder", "decoder"):
            model = onnx.load(str(result.path / said[part]["file"]))
            onnx.checker.check_model(model)
            assert [each.version for each in model.opset_import if not each.domain] == [17]
            assert {each.name for each in model.graph.input} == set(said[part]["input"])
            assert {each.name for each in model.graph.output} == set(said[part]["output"])
        side = result.image_size
        assert said["encoder"]["input"]["images"]["shape"] == [1, 3, side, side]
        assert ("points" in said["decoder"]["input"]) is points
        assert said["view"].get("zoom") == ARCHITECTURES[said["architecture"]].zoom
        found, allowed = said["check"], said["check"]["allowed"]
        assert 0 <= found["logits"] < 1e-3 < allowed["logits"] == 0.01
        assert 0 <= found["iou"] < 1e-4 < allowed["iou"] == 0.001
        assert str(result.path.parents[1]) not in json.dumps(said)
    assert nano.agreement.pictures_from == "procedural pictures"
    assert (nano.agreement.pictures, nano.agreement.boxes) == (10, 19)
    assert vit.agreement.pictures_from == "the test split of dataset"
    assert (vit.agreement.pictures, vit.agreement.boxes) == (2, 2)  # the good one has no box


@pytest.mark.usefixtures("small_vit_b")
def test_a_checkpoint_opens_in_plain_segment_anything(tmp_path: Path) -> None:
    run, out = _run(tmp_path / "run", "vit_b"), tmp_path / "new" / "model.pth"
    result = exporting.export(ExportConfig(run=run, out=out, format="segment-anything"))
    assert isinstance(result, ExportedSegmenter)
    assert _names(out.parent) == {"model.pth", "model.pth.json"}
    state = torch.load(out, weights_only=True)
    trained = load_sam(run)[0].state_dict()
    assert list(state) == list(trained) == list(sam_model_registry["vit_b"]().state_dict())
    assert all(torch.equal(state[name], trained[name]) for name in state)
    said = json.loads(result.description.read_text())
    assert said["open"] == 'segment_anything.sam_model_registry["vit_b"](checkpoint="model.pth")'
    assert said["check"]["allowed"] == {"logits": 1e-4, "iou": 1e-4}
    assert result.agreement.pictures == 1 and result.agreement.logits <= 1e-4

    predictor = SamPredictor(sam_model_registry["vit_b"](checkpoint=str(out)))
    predictor.set_image(_picture())
    x, y, w, h = BOXES[0]
    box = np.array([x, y, x + w, y + h])
    masks, scores, _ = predictor.predict(box=box, multimask_output=False)
    ours, estimates = Segmenter.load(run, "cpu")(_picture(), BOXES[:1])
    assert 0 < masks.sum() < masks.size
    assert np.array_equal(masks, ours)
    assert scores[0] == pytest.approx(estimates[0], abs=1e-4)


@pytest.mark.usefixtures("small_vit_b")
def test_windows_and_three_masks_are_compared_and_described_as_trained(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "vit_b", {"context": 3, "points": True, "several": True})
    out = tmp_path / "model.pth"
    result = export_segmenter(ExportConfig(run=run, out=out, format="segment-anything"))
    said = json.loads(result.description.read_text())
    assert said["view"]["side"] == "max(24, 3 * max(w, h))"
    assert "multimask_output=True" in said["prompts"]
    assert result.agreement.logits <= 1e-4

    predictor = SamPredictor(sam_model_registry["vit_b"](checkpoint=str(out)))
    predictor.set_image(_picture()[:79, :72])  # three longer sides of the box, cut off
    box = np.array([10, 20, 41, 45])
    masks, scores, _ = predictor.predict(box=box, multimask_output=True)
    ours, estimates = Segmenter.load(run, "cpu")(_picture(), BOXES[:1])
    assert np.array_equal(masks[scores.argmax()], ours[0, :79, :72])
    assert scores.max() == pytest.approx(estimates[0], abs=1e-4)

    with pytest.raises(InputError, match=r"gives three masks for a box.*without --multimask"):
        export_segmenter(ExportConfig(run=run, out=tmp_path / "sam"))


def test_a_nano_that_knows_points_takes_them_in_windows_of_its_context(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "nano", {"context": 2.5, "points": True})
    result = export_segmenter(ExportConfig(run=run, out=tmp_path / "sam"))
    said = json.loads(result.description.read_text())
    assert said["view"]["zoom"] == 2.5 and "points" in said["decoder"]["input"]
    names = {each.name for each in onnx_session(result.path / "decoder.onnx").get_inputs()}
    assert names == {"embeddings", "boxes", "points", "labels"}


def test_a_run_of_nano_by_the_command(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(good=1, per_kind=1)
    run = _run(tmp_path / "run", data="../dataset")
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(tmp_path / "sam")])
    said = capsys.readouterr()
    assert left.value.code == 0 and said.err == ""
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'sam'}: onnx, SAM nano, 128 px; ")
    assert lines[1].startswith("checked on pictures: 2 (the test split of dataset), boxes: 2; ")
    assert _names(tmp_path / "sam") == {"encoder.onnx", "decoder.onnx", "toolkit.json"}


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes no time: the folder holds nothing, and agrees."""

    def write(model: export.Model, folder: Path) -> None:
        folder.mkdir()

    class Agrees:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, picture: export.Boxed) -> export._Found:
            return export._Found(0.0, 0.0, 1.0, 1.0)

    monkeypatch.setattr(export, "write_onnx", write)
    monkeypatch.setattr(export, "_Comparison", Agrees)


@pytest.mark.usefixtures("instant")
def test_what_the_check_looks_at(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(good=3, per_kind=3)
    run = _run(tmp_path / "run", data="../dataset")
    agreement = export_segmenter(ExportConfig(run=run, out=tmp_path / "a")).agreement
    assert (agreement.pictures, agreement.pictures_from) == (6, "the test split of dataset")
    moved = shutil.copytree(run, tmp_path / "far" / "away" / "run")
    agreement = export_segmenter(ExportConfig(run=moved, out=tmp_path / "b")).agreement
    assert (agreement.pictures, agreement.pictures_from) == (10, "procedural pictures")
    agreement = export_segmenter(ExportConfig(run=moved, out=tmp_path / "c", data=data)).agreement
    assert agreement.pictures_from == "the test split of dataset"
    good = make_dataset(good=3, per_kind=0, name="good")
    with pytest.raises(InputError, match="good: holds no pictures to check with"):
        export_segmenter(ExportConfig(run=run, out=tmp_path / "d", data=good))
    assert not (tmp_path / "d").exists()


@pytest.mark.usefixtures("instant")
def test_the_result_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "starter", "--out", str(tmp_path / "sam"), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == str(tmp_path / "sam")
    assert (said["kind"], said["architecture"]) == ("segmenter", "nano")


def test_a_pretrained_run_is_exported_without_its_second_head(
    tmp_path: Path, instant: None
) -> None:
    run = _run(tmp_path / "run")
    (run / "config.yaml").write_text("command: pretrain sam\n")
    state = {**load_sam("starter")[0].state_dict(), "outlines.maps.0.bias": torch.zeros(1)}
    save_file(state, run / "checkpoints" / "best.safetensors")
    result = exporting.export(ExportConfig(run=run, out=tmp_path / "sam"))
    assert isinstance(result, ExportedSegmenter) and result.architecture == "nano"


def _wrong_decoder(module: Any, *arguments: Any, **options: Any) -> None:
    with torch.no_grad():
        sam = module.sam
        before = sam.mask_decoder.iou_prediction_head.layers[-1].bias.clone()
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 0.01
        _export(module, *arguments, **options)
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.copy_(before)


_export = torch.onnx.export


def test_a_wrong_export_is_refused_and_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.onnx, "export", _wrong_decoder)
    monkeypatch.setattr(export, "MOST_PICTURES", 2)
    out = tmp_path / "new" / "sam"
    with pytest.raises(SystemExit) as left:
        cli.main(["export", "starter", "--out", str(out)])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        f"error: {out}: the exported model does not give the masks of starter"
    )
    assert "0.01 in the estimated IoU (allowed 0.001): nothing was written" in said.err
    assert said.err.count("\n") == 1
    assert _names(tmp_path) == set()


def test_a_decoder_for_one_number_of_boxes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fixed(*arguments: Any, **options: Any) -> None:
        _export(*arguments, **{**options, "dynamic_axes": {}})

    monkeypatch.setattr(torch.onnx, "export", fixed)
    monkeypatch.setattr(export, "MOST_PICTURES", 2)
    with pytest.raises(InputError, match="starter: could not be exported to onnx"):
        export_segmenter(ExportConfig(run="starter", out=tmp_path / "sam"))
    assert _names(tmp_path) == set()


@pytest.mark.usefixtures("small_vit_b")
def test_a_wrong_checkpoint_is_refused_and_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path / "run", "vit_b")
    state = export._state

    def wrong(sam: Any) -> dict[str, torch.Tensor]:
        tensors = {name: tensor.clone() for name, tensor in state(sam).items()}
        tensors["mask_decoder.iou_prediction_head.layers.2.bias"] += 0.01
        return tensors

    def short(sam: Any) -> dict[str, torch.Tensor]:
        return dict(list(state(sam).items())[1:])

    config = ExportConfig(run=run, out=tmp_path / "model.pth", format="segment-anything")
    monkeypatch.setattr(export, "_state", wrong)
    with pytest.raises(InputError, match=r"does not give the masks of .* 0\.01 in the estimated"):
        export_segmenter(config)
    monkeypatch.setattr(export, "_state", short)
    with pytest.raises(InputError, match=r"to segment-anything \(Error\(s\) in loading"):
        export_segmenter(config)
    assert _names(tmp_path) == {"run"}


class _Killed(BaseException):
    pass


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        ("write_onnx", RuntimeError("no such\noperator"), InputError),
        ("_Comparison", _Killed(), _Killed),
        ("publish", _Killed(), _Killed),
    ],
)
def test_nothing_is_left_of_an_export_that_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    told: type[BaseException],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(told) as caught:
        export_segmenter(ExportConfig(run="starter", out=tmp_path / "a" / "sam"))
    if told is InputError:
        said = "starter: could not be exported to onnx (no such): nothing was written; try another"
        assert str(caught.value).startswith(said)
    assert _names(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "openvino"}, "is a segmenter, which is not exported to openvino: choose"),
        ({"format": "torchscript", "out": "m.torchscript"}, "is not exported to torchscript"),
        ({"format": "engine", "out": "m.engine"}, "is not exported to engine: choose"),
        ({"format": "segment-anything", "out": "m.pth"}, "is SAM nano, which segment-anything"),
        ({"out": "m.onnx"}, r"onnx is a folder of two files: try .*m$"),
        ({"image_size": 64}, "--image-size: is for detectors, and .*run is a segmenter"),
        ({"half": True}, "--half: is for detectors"),
        ({"dynamic": True}, "--dynamic: is for detectors"),
        ({"batch": 2}, "--batch: is for detectors"),
        ({"out": "there"}, "there: exists: choose another --out"),
    ],
)
def test_what_does_not_fit_a_segmenter_is_one_clear_line(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    run = _run(tmp_path / "run")
    (tmp_path / "there").mkdir()
    before = _names(tmp_path)
    out = tmp_path / options.get("out", "sam")
    with pytest.raises(InputError, match=message) as error:
        exporting.export(ExportConfig.model_validate({"run": run, **options, "out": out}))
    assert "\n" not in str(error.value)
    assert _names(tmp_path) == before


def test_the_description_of_a_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m.pth.json").write_text("mine")
    config = ExportConfig(run="starter", out=tmp_path / "m.pth", format="segment-anything")
    with pytest.raises(InputError, match=r"m\.pth\.json: exists"):
        exporting.export(config)
    assert (tmp_path / "m.pth.json").read_text() == "mine"


@pytest.mark.parametrize("command", ["finetune classifier", "pretrain classifier"])
def test_classifiers_and_folders_that_are_no_runs_are_refused(tmp_path: Path, command: str) -> None:
    config = ExportConfig(run=tmp_path, out=tmp_path / "m")
    with pytest.raises(InputError, match="is not a run folder: give the --out of"):
        exporting.export(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"command": command}))
    with pytest.raises(InputError, match=f"`toolkit {command}`: only detectors and segmenters"):
        exporting.export(config)
    assert _names(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize(
    ("out", "form", "kind"),
    [
        ("m", "onnx", "segmenter"),
        ("m.onnx", "onnx", "detector"),
        ("m", "openvino", "detector"),
        ("m.torchscript", "torchscript", "detector"),
        ("m.pth", "segment-anything", "segmenter"),
    ],
)
def test_which_starter_is_meant(out: str, form: str, kind: str) -> None:
    config = ExportConfig.model_validate({"run": "starter", "out": out, "format": form})
    assert exporting._kind(config) == kind


def test_a_wrong_name_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match=r"segment-anything is named \*\.pth: try m\.pth"):
        ExportConfig(run="run", out="m.onnx", format="segment-anything")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="format onnx: needs onnxruntime: pip install"):
        export_segmenter(ExportConfig(run="starter", out=tmp_path / "sam"))
    assert _names(tmp_path) == set()


def test_weights_that_fill_more_than_one_file_are_gathered(
    nano: ExportedSegmenter, tmp_path: Path
) -> None:
    require_packages("onnx")
    parts = tmp_path / "parts"
    parts.mkdir()
    onnx.save_model(
        onnx.load(str(nano.path / "encoder.onnx")),
        str(parts / "encoder.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=False,
    )
    assert len(_names(parts)) > 10
    export.gather(parts / "encoder.onnx", tmp_path / "encoder.onnx")
    shutil.rmtree(parts)
    assert _names(tmp_path) == {"encoder.onnx", "encoder.onnx.data"}
    inputs = {"images": np.random.default_rng(0).random((1, 3, 128, 128), np.float32) * 255}
    (expected,) = onnx_session(nano.path / "encoder.onnx").run(None, inputs)
    (found,) = onnx_session(tmp_path / "encoder.onnx").run(None, inputs)
    assert np.array_equal(found, expected)


def test_numbers_of_other_shapes_and_no_numbers_are_refused() -> None:
    ours = (np.zeros((2, 4, 4), np.float32), np.zeros(2, np.float32))
    theirs = (ours[0] + np.float32(0.25), ours[1] - np.float32(0.5))
    assert export._differences(ours, theirs) == (0.25, 0.5)
    for wrong in (
        (np.zeros((2, 5, 5), np.float32), ours[1]),
        (ours[0], np.full(2, np.nan, np.float32)),
    ):
        with pytest.raises(InputError, match="the exported model gives numbers of shape"):
            export._differences(ours, wrong)


@pytest.mark.parametrize(("logits", "iou"), [(0.02, 0.0), (0.0, 0.002), (float("nan"), 0.0)])
def test_too_large_a_difference_is_refused(logits: float, iou: float) -> None:
    found = SegmenterAgreement(1, "made", 1, logits, iou, 1.0, 1.0)
    with pytest.raises(InputError, match="does not give the masks of run: on made"):
        export._refuse_difference(ExportConfig(run="run", out="sam"), found)


def test_the_pictures_of_a_dataset_are_read_as_they_are(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data = make_dataset(good=1, per_kind=1)
    run = _run(tmp_path / "run", data="../dataset")
    config = ExportConfig(run=run, out=tmp_path / "sam")
    pictures, _ = export._pictures(
        config, export.Model(build_sam("nano"), "nano", Usage.of("nano"))
    )
    expected = [read_image(path) for path in sorted((data / "images").glob("test_s*.png"))]
    assert len(pictures) == len(expected) == 2
    assert all(np.array_equal(p.image, e) for p, e in zip(pictures, expected, strict=True))
