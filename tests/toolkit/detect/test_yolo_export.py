"""Exported detectors: the same boxes as ours, or no file at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from converters.errors import InputError
from toolkit import cli, exporting
from toolkit.config import ExportConfig, FinetuneYoloConfig
from toolkit.detect import Detector, export, finetune_yolo
from toolkit.detect.export import Agreement, Exported, export_detector
from toolkit.detect.modes import reparameterise
from toolkit.detect.weights import load_trained, save_description, save_weights
from toolkit.images import read_image
from toolkit.runs import RunFolder

MakeDataset = Callable[..., Path]


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load:FutureWarning")

_runs: dict[str, Path] = {}
_made: dict[str, Exported] = {}


@pytest.fixture
def run(make_dataset: MakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of 64 px, trained once for all tests here."""
    if "full" not in _runs:
        folder = tmp_path_factory.mktemp("full")
        data = shutil.copytree(make_dataset(good=1, per_kind=2), folder / "dataset")
        small = {"epochs": 1, "image_size": 64, "batch": 5, "device": "cpu", "workers": 0}
        config = {"data": data, "out": folder / "run", "weights": "starter", **small}
        _runs["full"] = finetune_yolo(FinetuneYoloConfig.model_validate(config)).root
    return _runs["full"]


@pytest.fixture
def exported(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Exported, dict[str, Any]]]:
    """Exports of that run, each made once for all tests here, and what lies beside them."""

    def get(form: str, **options: Any) -> tuple[Exported, dict[str, Any]]:
        key = f"{form} {options}"
        if key not in _made:
            out = tmp_path_factory.mktemp("exported") / "made" / f"model.{form}"
            config = {"run": run, "out": out, "format": form, **options}
            _made[key] = export_detector(ExportConfig.model_validate(config))
        return _made[key], json.loads(_made[key].description.read_text())

    return get


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes no time: the file holds nothing, and our own model answers for it."""
    models = []

    def write(config: ExportConfig, model: Any, size: int, device: Any, folder: Path) -> Path:
        models.append(model)
        (folder / "written").write_bytes(b"model")
        return folder / "written"

    def answer(form: str, path: Path, device: torch.device) -> Any:
        return export._runtime_of(models[-1], device)

    monkeypatch.setattr(export, "_export", write)
    monkeypatch.setattr(export, "open_exported", answer)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _fitted(picture: np.ndarray, size: int) -> np.ndarray:
    """What goes in, as the module documents it."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    new_height, new_width = round(height * scale), round(width * scale)
    if (new_height, new_width) != (height, width):
        picture = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    left = round((size - new_width) / 2 - 0.1)
    top = round((size - new_height) / 2 - 0.1)
    square = np.full((size, size, 3), 114, np.uint8)
    square[top : top + new_height, left : left + new_width] = picture
    return square


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    return shared / (
        (box[2:] - box[:2]).prod() + np.prod(others[:, 2:] - others[:, :2], 1) - shared
    )


def _post_processed(answers: np.ndarray) -> list[tuple[int, float, list[float]]]:
    """What comes out, as the module documents it: (class, score, box), best first."""
    middle, sides = answers[:2].T, answers[2:4].T
    boxes = np.hstack([middle - sides / 2, middle + sides / 2])
    kept = []
    for index, scores in enumerate(answers[4:]):
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0.001]
        while order:
            best, rest = order[0], order[1:]
            kept.append((index, float(scores[best]), boxes[best].clip(0, 64).tolist()))
            order = [i for i in rest if _overlaps(boxes[best], boxes[[i]])[0] <= 0.7]
    return sorted(kept, key=lambda each: -each[1])[:100]


def test_what_is_documented_gives_the_boxes_of_our_detector(
    run: Path, exported: Callable[..., Any]
) -> None:
    result, _ = exported("onnx")
    import onnxruntime  # after the export, which keeps it from reporting

    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    detector = Detector.load(run, torch.device("cpu"))
    boxes = 0
    for path in sorted((run.parent / "dataset" / "images").glob("test_*.png")):
        picture = read_image(path)
        pixels = _fitted(picture, 64).transpose(2, 0, 1)[None].astype(np.float32) / 255
        found = _post_processed(session.run(None, {"images": pixels})[0][0])
        (ours,) = detector([picture])
        own = zip(ours.class_id.tolist(), ours.confidence.tolist(), ours.xyxy.tolist(), strict=True)
        for one, other in zip(found, sorted(own, key=lambda each: -each[1]), strict=True):
            assert one[0] == other[0]
            assert one[1] == pytest.approx(other[1], abs=1e-4)
            assert one[2] == pytest.approx(other[2], abs=0.05)
        boxes += len(found)
    assert boxes >= 5


@pytest.mark.parametrize("shape", [(64, 64), (37, 90), (201, 80), (1, 50)])
def test_pictures_go_in_as_documented(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    config = ExportConfig(run="run", out="model.onnx")
    ((pixels, count),) = export._inputs([picture], 96, config)
    assert count == 1
    expected = _fitted(picture, 96).transpose(2, 0, 1)[None] / 255
    assert np.allclose(pixels.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("onnx", {}),
        ("onnx", {"half": True, "batch": 3, "image_size": 96}),
        ("torchscript", {"dynamic": True}),
    ],
)
def test_the_description_says_what_was_made_and_checked(
    exported: Callable[..., Any], form: str, options: dict[str, Any]
) -> None:
    result, said = exported(form, **options)
    assert _files(result.path.parent) == {f"model.{form}", f"model.{form}.json"}
    size = options.get("image_size", 64)
    side = "multiples of 32" if options.get("dynamic") else size
    number = "any" if options.get("dynamic") else options.get("batch", 1)
    assert said["classes"] == ["scratch", "spot"] == list(result.classes)
    assert said["format"] == form
    assert said["image_size"] == size
    assert said["source"] == "YOLO-World v2 n, 64 px, from starter"
    assert said["input"]["shape"] == [number, 3, side, side]
    assert said["input"]["type"] == "float32"
    assert said["output"]["shape"] == [number, 6, "places"]
    assert said["output"]["rows"][4:] == ["scratch", "spot"]
    found, allowed = said["check"], said["check"]["allowed"]
    assert found["pictures"] == 5
    assert found["pictures_from"] == "the test split of dataset"
    # Of 64 px all places count, of 96 px the best; three pictures of a dynamic model are cut.
    assert found["places"] == (500 if size == 96 else 294 if options.get("dynamic") else 420)
    assert found["boxes"] > 0 or size == 96
    assert 0 <= found["pixels"] <= allowed["pixels"] == (1.0 if options.get("half") else 0.5)
    assert 0 <= found["score"] <= allowed["score"] == (0.01 if options.get("half") else 0.001)
    if not options.get("half"):
        assert found["pixels"] < 0.01 and found["score"] < 1e-4
    assert str(result.path.parents[2]) not in json.dumps(said)


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_the_file_itself_carries_its_classes(exported: Callable[..., Any], form: str) -> None:
    if form == "onnx":
        import onnx

        model = onnx.load(str(exported(form)[0].path))
        names = {entry.key: entry.value for entry in model.metadata_props}["names"]
        assert names == "{0: 'scratch', 1: 'spot'}"
        assert [each.name for each in model.graph.input] == ["images"]  # and no text
    else:
        extra = {"config.txt": ""}
        path = exported(form, dynamic=True)[0].path
        model = torch.jit.load(str(path), _extra_files=extra)
        assert json.loads(extra["config.txt"])["names"] == {"0": "scratch", "1": "spot"}
        assert model(torch.zeros(3, 3, 32, 64)).shape == (3, 6, 42)


def test_a_model_of_one_shape_baked_in_is_no_dynamic_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = export._export

    def fixed(config: ExportConfig, *arguments: Any) -> Path:
        return make(config.model_copy(update={"dynamic": False}), *arguments)

    monkeypatch.setattr(export, "_export", fixed)
    config = ExportConfig(run=run, out=tmp_path / "model.onnx", dynamic=True)
    with pytest.raises(InputError, match="could not be exported to onnx"):
        export_detector(config)
    assert _files(tmp_path) <= {"dataset"}


def test_classes_that_are_weights_already(run: Path, tmp_path: Path) -> None:
    fixed = RunFolder(shutil.copytree(run, tmp_path / "fixed"))
    trained = load_trained(run)
    reparameterise(trained.model)
    with torch.no_grad():  # as if it had learnt on
        trained.model.model[-1].cv4[0].conv.weight *= 1.5
    save_weights(fixed, trained.model.state_dict())
    save_description(fixed, trained)
    out = tmp_path / "model.torchscript"
    config = ExportConfig(
        run=fixed.root, out=out, format="torchscript", data=run.parent / "dataset"
    )
    result = export_detector(config)
    assert result.classes == ("scratch", "spot")
    assert result.agreement.places == 420
    assert result.agreement.pixels < 0.01
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours = trained.model.eval()(picture)[0]
    assert torch.allclose(torch.jit.load(str(out))(picture), ours, atol=1e-3)


@pytest.mark.usefixtures("instant")
def test_a_starter_is_checked_on_procedural_pictures(tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    result = export_detector(ExportConfig(run="starter", out=out, image_size=64))
    said = json.loads(result.description.read_text())
    assert result.agreement.pictures_from == "procedural pictures"
    assert result.agreement.pictures == 10
    assert "defect" not in result.classes and "scratch" in result.classes
    assert said["found_as"] == {"name": "defect", "score": "the highest of the classes"}


@pytest.mark.usefixtures("instant")
def test_procedural_pictures_where_the_data_is_gone(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "elsewhere" / "run")
    result = export_detector(ExportConfig(run=copy, out=tmp_path / "a.onnx"))
    assert result.agreement.pictures_from == "procedural pictures"
    with pytest.raises(InputError, match="is not a dataset folder"):
        export_detector(ExportConfig(run=copy, out=tmp_path / "b.onnx", data=tmp_path / "gone"))
    less = shutil.copytree(run.parent / "dataset", tmp_path / "less")
    (less / "test.json").unlink()
    result = export_detector(ExportConfig(run=copy, out=tmp_path / "c.onnx", data=less))
    assert result.agreement.pictures_from == "the val split of less"


def test_a_wrong_export_is_refused_and_not_left_behind(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    convert = export.reparameterise

    def wrong(model: Any) -> None:
        convert(model)
        with torch.no_grad():
            model.model[-1].cv2[0][-1].bias[:8] += 2.0  # boxes

    monkeypatch.setattr(export, "reparameterise", wrong)
    out = tmp_path / "new" / "model.onnx"
    before = _files(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(out)])
    assert left.value.code == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {out}: the exported model does not give the boxes of {run}")
    assert said.err.count("\n") == 1
    assert _files(tmp_path) == before


class _Killed(BaseException):
    pass


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        ("_export", RuntimeError("no such\noperator"), InputError),
        ("open_exported", _Killed(), _Killed),
        ("publish", _Killed(), _Killed),
    ],
)
def test_nothing_is_left_of_an_export_that_fails(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    told: type[BaseException],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(export, step, fail)
    before = _files(tmp_path)
    with pytest.raises(told) as caught:
        export_detector(ExportConfig(run=run, out=tmp_path / "a" / "model.onnx"))
    if told is InputError:
        said = f"{run}: could not be exported to onnx (no such): nothing was written; "
        assert str(caught.value).startswith(said)
    assert _files(tmp_path) == before


@pytest.mark.usefixtures("instant")
def test_what_a_killed_process_left_goes_with_the_next_export(run: Path, tmp_path: Path) -> None:
    left = tmp_path / ".model.onnx.partial"
    left.mkdir()
    (left / "half").write_text("written")
    before = _files(tmp_path)
    export_detector(ExportConfig(run=run, out=tmp_path / "model.onnx"))
    assert _files(tmp_path) - before == {"model.onnx", "model.onnx.json"}
    assert before - _files(tmp_path) == {left.name}


@pytest.mark.parametrize(
    ("form", "missing", "remedy"),
    [
        ("onnx", "onnxruntime", 'pip install "defect-toolkit[export]"'),
        ("onnx", "onnx", 'pip install "defect-toolkit[export]"'),
        ("openvino", "openvino", 'pip install "openvino>=2024.0"'),
    ],
)
def test_a_missing_package_is_named_and_not_installed(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    missing: str,
    remedy: str,
) -> None:
    def refuse(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"asked for a process: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setitem(sys.modules, missing, None)
    out = tmp_path / ("model" if form == "openvino" else "model.onnx")
    before = _files(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(out), "--format", form])
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: format {form}: needs {missing}: {remedy}\n"
    assert _files(tmp_path) == before


def test_no_runtime_reports_home_or_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name == "CI" or name.startswith(("ORT_", "XDG_"))]:
        monkeypatch.delenv(name)
    switches = []

    def look(name: str) -> bool:
        switches.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
        return True

    monkeypatch.setattr(exporting, "_can_import", look)
    exporting.require_packages("onnx")
    assert switches == ["1", "1"]  # before anything is imported
    environment = {**os.environ, "HOME": str(tmp_path)}
    script = "import onnxruntime; onnxruntime.SessionOptions()"
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("existing", ["model.onnx", "model.onnx.json"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(InputError, match=f"{existing}: exists: choose another --out"):
        export_detector(ExportConfig(run="starter", out=tmp_path / "model.onnx"))
    assert (tmp_path / existing).read_text() == "mine"
    assert _files(tmp_path) == {existing}


def test_only_detectors_are_exported(tmp_path: Path) -> None:
    config = ExportConfig(run=tmp_path, out=tmp_path / "model.onnx")
    with pytest.raises(InputError, match="is not a run folder"):
        export_detector(config)
    for command in ("finetune sam", "finetune classifier"):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"command": command}))
        with pytest.raises(InputError, match=f"is a run of `toolkit {command}`, not of "):
            export_detector(config)
    assert _files(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize(
    ("out", "form", "told"),
    [
        ("model", "onnx", "a detector of format onnx is one file: try .*model.onnx"),
        ("model.pth", "segment-anything", "is a detector, which segment-anything does not know"),
    ],
)
def test_formats_of_segmenters_are_refused(run: Path, out: str, form: str, told: str) -> None:
    config = ExportConfig.model_validate({"run": run, "out": run / out, "format": form})
    before = _files(run)
    with pytest.raises(InputError, match=told):
        export_detector(config)
    assert _files(run) == before


def test_a_gpu_is_asked_for_where_one_is_needed(run: Path, tmp_path: Path) -> None:
    options = {"format": "torchscript", "half": True, "device": "cpu"}
    config = ExportConfig(run=run, out=tmp_path / "m.torchscript", **options)
    with pytest.raises(InputError, match="torchscript in half precision: needs a GPU"):
        export_detector(config)


def test_a_wrong_name_or_size_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match=r"onnx is named \*\.onnx: try model\.onnx"):
        ExportConfig(run="run", out="model.pt")
    with pytest.raises(ValidationError, match="100 is not a multiple of 32: try 96"):
        ExportConfig(run="run", out="model.onnx", image_size=100)
    assert ExportConfig(run="run", out="model", format="openvino").out == Path("model")


@pytest.mark.usefixtures("instant")
def test_the_result_for_people_and_for_machines(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(tmp_path / "a.onnx"), "--json"])
    said = capsys.readouterr()
    assert left.value.code == 0 and said.err == ""
    assert json.loads(said.out)["path"] == str(tmp_path / "a.onnx")
    with pytest.raises(SystemExit):
        cli.main(["export", str(run), "--out", str(tmp_path / "b.onnx")])
    said = capsys.readouterr()
    assert "checked on 5 pictures (the test split of dataset): at 420 places " in said.out
    assert said.err == ""


def _answers(scores: list[float]) -> torch.Tensor:
    """One picture of many places, one class; the rest scores nothing."""
    answers = torch.zeros(1, 5, 300)
    answers[:, :4] = 10
    answers[0, 4, : len(scores)] = torch.tensor(scores)
    return answers


@pytest.mark.parametrize(
    ("place", "row", "change", "pixels", "score"),
    [
        (0, 4, 0.002, 0.0, 0.002),
        (120, 4, 0.002, 0.0, 0.002),  # beyond the best 100, yet above 0.01
        (120, 2, 0.75, 0.75, 0.0),
        (200, 0, 7.0, 0.0, 0.0),  # neither of the best nor above 0.01
        (200, 4, 0.5, 0.0, 0.5),  # found by the exported model alone
    ],
)
def test_what_is_compared(place: int, row: int, change: float, pixels: float, score: float) -> None:
    ours = _answers([0.9 - 0.005 * i for i in range(150)])
    theirs = ours.clone()
    theirs[0, row, place] += change
    batch = export._Batch(torch.zeros(1, 3, 64, 64), 1)
    found = export._compare(lambda _: ours, lambda _: theirs, [batch], 64, "made")
    assert found.pixels == pytest.approx(pixels, abs=1e-6)
    assert found.score == pytest.approx(score, abs=1e-6)
    config = ExportConfig(run="run", out="model.onnx")
    if pixels or score:
        with pytest.raises(InputError, match="does not give the boxes of run: on made"):
            export._refuse_difference(config, found, export.tolerance(config, 64))
    else:
        export._refuse_difference(config, found, export.tolerance(config, 64))


@pytest.mark.parametrize("wrong", [torch.full((1, 5, 300), torch.nan), torch.zeros(1, 6, 300)])
def test_other_shapes_and_no_numbers_are_refused(wrong: torch.Tensor) -> None:
    batch = export._Batch(torch.zeros(1, 3, 64, 64), 1)
    with pytest.raises(InputError, match="the exported model gives numbers of shape"):
        export._compare(lambda _: _answers([0.5]), lambda _: wrong, [batch], 64, "made")


def test_a_difference_that_is_no_number_is_refused() -> None:
    found = Agreement(1, "made", 1, 1, 1, float("nan"), 0.0, 0.0, 0.0)
    config = ExportConfig(run="run", out="model.onnx")
    with pytest.raises(InputError, match="does not give the boxes"):
        export._refuse_difference(config, found, export.tolerance(config, 64))
