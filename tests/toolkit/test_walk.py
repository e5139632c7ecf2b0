"""From pictures to figures, in miniature: every stage reads what the one before it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import DatasetFolder
from converters.errors import InputError
from toolkit import demo as demo_module
from toolkit.config import (
    DemoConfig,
    EvaluateConfig,
    FinetuneSamConfig,
    FinetuneYoloConfig,
    PredictConfig,
    SynthConfig,
)
from toolkit.demo import demo
from toolkit.detect import finetune_yolo
from toolkit.evaluate import evaluate
from toolkit.predict import predict
from toolkit.predictions import read_card, read_results
from toolkit.segment import finetune_sam


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """A demo with one epoch each: not good, but whole."""
    out = tmp_path_factory.mktemp("walk") / "demo"
    small = SynthConfig(dest=out, train_good=6, test_good=2, per_defect=5, size=64)

    def shrink(**fields: object) -> SynthConfig:
        kept = small.model_dump(include={"train_good", "test_good", "per_defect", "size"})
        return SynthConfig(**{**fields, **kept})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module.configs, "SynthConfig", shrink)
        config = DemoConfig(
            out=out, weights="none", image_size=64, yolo_epochs=1, sam_epochs=1, device="cpu"
        )
        demo(config)
    return out


def test_every_stage_left_its_results(walked) -> None:
    for name in ("dataset/test.json", "yolo/predictions/test.json", "sam/predictions/test.json"):
        assert (walked / name).is_file()
    assert read_card(walked / "yolo/predictions").masks is False
    assert read_card(walked / "sam/predictions").boxes == "ground truth"
    card = read_card(walked / "pipeline/predictions")
    assert (card.boxes, card.masks) == ("detector", True)
    assert (card.detector[:13], card.segmenter) == ("YOLO-World v2", "SAM nano")


def test_the_pipeline_outlines_every_box_of_the_detector(walked) -> None:
    boxes = read_results(walked / "yolo/predictions/test.json")
    outlined = read_results(walked / "pipeline/predictions/test.json")
    key = [(r["image_id"], r["category_id"], r["score"]) for r in boxes]
    assert [(r["image_id"], r["category_id"], r["score"]) for r in outlined] == key
    assert all("segmentation" in result for result in outlined)


def test_metrics_say_what_was_measured(walked) -> None:
    pipeline = json.loads((walked / "pipeline/metrics.json").read_text())
    outlines = json.loads((walked / "sam/metrics.json").read_text())
    assert {"value", "ci95", "n"} <= set(pipeline["box.AP50"])
    assert pipeline["protocol"]["boxes"] == "detector"
    assert "mask.instance_IoU" in outlines and "box.AP" not in outlines
    assert "boxes were given" in outlines["absent"]["box.AP"]


def test_the_sheet_is_a_picture(walked) -> None:
    sheet = cv2.imread(str(walked / "held-out.png"))
    assert sheet is not None and sheet.shape[1] > 1000
    assert sheet.std() > 10


def test_a_walk_does_not_write_over_another(walked) -> None:
    with pytest.raises(InputError, match="exists and is not empty"):
        demo(DemoConfig(out=walked))


def test_predict_on_loose_pictures(walked, tmp_path) -> None:
    images = sorted((walked / "dataset/images").iterdir())[:2]
    (tmp_path / "new/sub").mkdir(parents=True)
    for number, image in enumerate(images):
        (tmp_path / f"new/sub/{number} ä.png").write_bytes(image.read_bytes())
    (tmp_path / "new/notes.txt").write_text("not a picture")
    config = PredictConfig(
        source=tmp_path / "new",
        out=tmp_path / "found",
        detector=walked / "yolo",
        segmenter=walked / "sam",
        overlays=True,
        overlay_threshold=0,
        max_detections=3,
        confidence=0,
        device="cpu",
    )
    assert predict(config) == {"pictures": 6}
    listed = json.loads((tmp_path / "found/predictions/images.json").read_text())
    assert [image["file_name"] for image in listed["images"]] == ["sub/0 ä.png", "sub/1 ä.png"]
    assert len(list((tmp_path / "found/overlays/pictures").glob("*.png"))) == 2
    drawn = cv2.imread(str(tmp_path / "found/overlays/pictures/sub__0 ä.png"))
    assert drawn.shape[0] >= 320 and not np.array_equal(drawn[..., 0], drawn[..., 1])
    with pytest.raises(InputError, match="holds predictions already"):
        predict(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no model: give --detector RUN"),
        ({"segmenter": "sam"}, "is no dataset, so there are no boxes to outline"),
        ({"detector": "sam"}, "not of `toolkit finetune yolo`"),
        ({"detector": "nowhere"}, "is not a run folder"),
    ],
)
def test_predict_refuses_what_cannot_work(walked, tmp_path, fields, message) -> None:
    (tmp_path / "new").mkdir()
    runs = {name: walked / run for name, run in fields.items()}
    with pytest.raises(InputError, match=message):
        predict(PredictConfig(source=tmp_path / "new", out=tmp_path / "o", **runs))
    assert not (tmp_path / "o").exists()


def test_ground_truth_boxes_prompt_a_segmenter_alone(walked, tmp_path) -> None:
    config = PredictConfig(
        source=walked / "dataset", out=tmp_path / "o", segmenter=walked / "sam", splits=("test",)
    )
    predict(config)
    test = DatasetFolder.open(walked / "dataset").read("test")
    results = read_results(tmp_path / "o/predictions/test.json")
    assert len(results) == sum(test.count_instances().values())
    given = evaluate(EvaluateConfig(data=walked / "dataset", predictions=tmp_path / "o"))
    trained = json.loads((walked / "sam/metrics.json").read_text())
    assert given.figures["mask.IoU"].value == trained["mask.IoU"]["value"]


def test_both_learn_and_the_figures_show_it(make_dataset, tmp_path) -> None:
    """On spots and scratches that anybody would find, a short training gets well above chance."""
    data = make_dataset(size=96, good=6, per_kind=16)
    yolo = finetune_yolo(
        FinetuneYoloConfig(
            data=data, out=tmp_path / "yolo", image_size=96, epochs=30, batch=8, device="cpu"
        )
    )
    found = evaluate(EvaluateConfig(data=data, predictions=yolo.root, resamples=100))
    assert found.figures["box.AP50"].value > 0.5
    assert found.figures["image.AUROC"].value > 0.7
    sam = finetune_sam(
        FinetuneSamConfig(data=data, out=tmp_path / "sam", epochs=15, batch=8, device="cpu")
    )
    outlined = evaluate(EvaluateConfig(data=data, predictions=sam.root, resamples=100))
    iou = outlined.figures["mask.instance_IoU"].value
    assert iou > outlined.figures["baseline.filled_box_instance_IoU"].value
