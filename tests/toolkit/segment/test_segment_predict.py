"""Outlining what points mark, and everything, and rejecting what SAM itself doubts."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from converters.errors import InputError
from converters.files import read_json, write_json
from converters.folder import DatasetFolder
from converters.geometry import mask_from_segmentation
from converters.rle import tight_boxes
from toolkit.config import EvaluateConfig, FinetuneSamConfig, PredictConfig
from toolkit.evaluate import evaluate
from toolkit.images import read_image
from toolkit.marks import read_marks
from toolkit.predict import _Models, predict
from toolkit.predictions import PredictionCard, read_card, read_results, write_predictions
from toolkit.segment import Segmenter, finetune_sam
from toolkit.segment.everything import Everything, everything_on, has_three_masks
from toolkit.segment.model import build_sam
from toolkit.segment.segmenter import Prompts, exact_prompts

HEADER = ["file_name", "prompt", "x", "y", "label", "category"]


pytestmark = pytest.mark.usefixtures("tiny_nano")


@pytest.fixture
def data(make_dataset):
    return make_dataset(per_kind=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run(data, home):
    """A model that has learnt points, for an epoch: once, as every dataset here is the same."""
    if not (home / "run").exists():
        torch.manual_seed(5)
        torch.save(build_sam("nano").state_dict(), home / "nano.pth")
        config = FinetuneSamConfig(
            data=data,
            out=home / "run",
            weights=str(home / "nano.pth"),
            prompts=("box", "point"),
            epochs=1,
            batch=4,
            device="cpu",
            workers=0,
        )
        finetune_sam(config)
    return home / "run"


def _single(data):
    """The dataset with one category."""
    for split in ("train", "val", "test"):
        content = read_json(data / f"{split}.json")
        content["categories"] = [{"id": 1, "name": "defect"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1
        write_json(data / f"{split}.json", content)
    return data


def _write(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _clicks(data, split="test"):
    """A careful click on each defect, as rows."""
    rows = []
    for image in DatasetFolder.open(data).read(split).images:
        if image.is_good:
            continue
        points = exact_prompts(image.instances, "point").points[:, 0]
        for k, (instance, (x, y)) in enumerate(zip(image.instances, points, strict=True)):
            rows.append([image.file_name, f"no. {k}", x, y, 1, instance.category])
    return rows


def _predict(source, out, **options):
    return predict(PredictConfig(source=source, out=out, device="cpu", **options))


def test_what_points_mark_is_outlined_and_scored(data, run, tmp_path, capsys):
    rows = _clicks(data)
    extra = [rows[0][0], rows[0][1], 1, 1, 0, rows[0][5]]
    points = _write(tmp_path / "points.csv", [*rows, extra])
    counts = _predict(data, tmp_path / "o", segmenter=run, points=points)
    results = read_results(tmp_path / "o/predictions/test.json")
    empty = len(rows) - len(results)
    assert counts == {"val": 0, "test": len(results)} and len(results) > 0
    assert (f"test: {empty} of {len(rows)} prompts left out" in capsys.readouterr().err) == bool(
        empty
    )
    card = read_card(tmp_path / "o/predictions")
    assert (card.boxes, card.masks, card.segmenter) == ("points", True, "SAM nano")
    assert all(np.allclose(r["bbox"], tight_boxes([r["segmentation"]])[0]) for r in results)
    assert all(r["score"] == r["predicted_iou"] and 0 <= r["score"] <= 1 for r in results)

    metrics = evaluate(EvaluateConfig(data=data, predictions=(tmp_path / "o",), resamples=0))
    assert metrics.protocol.boxes == "points" and "mask.AP50" in metrics.figures


def test_a_prompt_is_all_its_points_and_gets_its_own_category(data, run, tmp_path):
    image = next(i for i in DatasetFolder.open(data).read("test").images if not i.is_good)
    rows = [
        [image.file_name, "b", 30, 30, 1, "spot"],
        [image.file_name, "a", 20, 25.5, 1, "scratch"],
        [image.file_name, "b", 60, 10, 0, "spot"],
    ]
    points = _write(tmp_path / "points.csv", rows)
    _predict(data, tmp_path / "o", segmenter=run, points=points)
    found = read_results(tmp_path / "o/predictions/test.json")
    segmenter, pixels = Segmenter.load(run, "cpu"), read_image(image.path)
    alone = (
        Prompts(points=np.array([[[30, 30], [60.0, 10]]]), labels=np.array([[1, 0]])),
        Prompts(points=np.array([[[20, 25.5]]])),
    )
    expected = [outline for prompts in alone for outline in segmenter.outline(pixels, prompts)]
    categories = [2, 1]
    kept = [k for k in range(2) if expected[k].region[1].any()]
    assert kept and [r["category_id"] for r in found] == [categories[k] for k in kept]
    for result, k in zip(found, kept, strict=True):
        mask = mask_from_segmentation(result["segmentation"], image.height, image.width)
        assert np.array_equal(mask, expected[k].mask(image.height, image.width))
        assert result["score"] == pytest.approx(np.clip(expected[k].estimate, 0, 1))


def test_points_on_pictures_name_their_categories_or_mark_objects(data, run, tmp_path):
    rows = _clicks(data)
    named = _write(tmp_path / "named.csv", rows)
    _predict(data / "images", tmp_path / "a", segmenter=run, points=named)
    listed = read_json(tmp_path / "a/predictions/images.json")
    assert {c["name"] for c in listed["categories"]} == {"scratch", "spot"}
    bare = _write(tmp_path / "bare.csv", [row[:4] for row in rows], HEADER[:4])
    _predict(data / "images", tmp_path / "b", segmenter=run, points=bare, overlays=True)
    listed = read_json(tmp_path / "b/predictions/images.json")
    assert [c["name"] for c in listed["categories"]] == ["object"]
    a, b = (read_results(tmp_path / f"{k}/predictions/pictures.json") for k in "ab")
    assert [r["segmentation"] for r in a] == [r["segmentation"] for r in b] != []
    assert {r["category_id"] for r in b} == {1}


def test_a_dataset_of_one_category_needs_no_word_on_it(data, run, tmp_path):
    bare = _write(tmp_path / "bare.csv", [row[:4] for row in _clicks(data)], HEADER[:4])
    with pytest.raises(InputError, match=r"which of 2 categories .* add a column category"):
        _predict(data, tmp_path / "o", segmenter=run, points=bare)
    _predict(_single(data), tmp_path / "o", segmenter=run, points=bare)
    assert {r["category_id"] for r in read_results(tmp_path / "o/predictions/test.json")} == {1}


GOOD_ROW = ["test_spot_005.png", "1", "10", "10", "1", "spot"]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([["test_spot_05.png", *GOOD_ROW[1:]]], HEADER, ":2: 'test_spot_05.png' is not in .*test_"),
        ([["train_spot_005.png", *GOOD_ROW[1:]]], HEADER, r"not in .*\(splits val, test\)"),
        ([GOOD_ROW[:3]], HEADER[:3], ":1: the header lacks y"),
        ([GOOD_ROW], [*HEADER[:4], "lable", "category"], "unknown column 'lable'"),
        ([GOOD_ROW], [*HEADER[:4], "label", "label"], "has label twice"),
        ([GOOD_ROW, [*GOOD_ROW[:2], "1,5", *GOOD_ROW[3:]]], HEADER, ":3: x is '1,5', not a number"),
        ([[*GOOD_ROW[:3], "nan", *GOOD_ROW[4:]]], HEADER, ":2: y is 'nan', not a number"),
        ([GOOD_ROW, [*GOOD_ROW[:3], "64.5", *GOOD_ROW[4:]]], HEADER, ":3: the point .*64 x 64"),
        ([[*GOOD_ROW[:4], "2", "spot"]], HEADER, ":2: label is '2'"),
        ([[*GOOD_ROW[:4], "0", "spot"]], HEADER, ":2: prompt '1' on .* has no point inside"),
        ([[*GOOD_ROW[:5], "sport"]], HEADER, ":2: the dataset has no category 'sport'.*'spot'"),
        ([[*GOOD_ROW[:5], ""]], HEADER, ":2: category is empty"),
        ([GOOD_ROW, [*GOOD_ROW[:5], "scratch"]], HEADER, ":3: prompt '1' .* in line 2"),
        ([GOOD_ROW[:5]], HEADER, ":2: has 5 columns, the header 6"),
        ([], HEADER, "holds no points"),
    ],
)
def test_a_wrong_file_of_points_is_one_line(data, run, tmp_path, rows, header, message):
    points = _write(tmp_path / "points.csv", rows, header)
    with pytest.raises(InputError, match=message) as caught:
        _predict(data, tmp_path / "o", segmenter=run, points=points)
    assert str(caught.value).startswith(f"{points}:") and "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file of points"):
        read_marks(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"file_name,prompt,x,y\nb\xf6se.png,1,2,3\n")
    with pytest.raises(InputError, match="not readable CSV"):
        read_marks(tmp_path / "latin.csv")


@pytest.mark.parametrize("everything", [True, False])
def test_a_model_that_knows_no_points_is_named_before_anything_is_written(
    data, tmp_path, everything
):
    torch.save(build_sam("nano").state_dict(), tmp_path / "nano.pth")
    points = _write(tmp_path / "points.csv", _clicks(data))
    asked = {"everything": True} if everything else {"points": points}
    with pytest.raises(InputError, match=r"nano\.pth: points: .*trained with boxes alone"):
        _predict(data, tmp_path / "o", segmenter=tmp_path / "nano.pth", **asked)
    assert not (tmp_path / "o").exists()


def test_everything_is_outlined_on_pictures_and_on_one_category(data, run, tmp_path):
    options = {"segmenter": run, "everything": True, "points_per_side": 5, "min_stability": 0}
    with pytest.raises(InputError, match=r"has 2 categories.*convert with --classes single"):
        _predict(data, tmp_path / "o", **options)
    _predict(data / "images/test_spot_005.png", tmp_path / "p", **options)
    listed = read_json(tmp_path / "p/predictions/images.json")
    assert [c["name"] for c in listed["categories"]] == ["object"]
    options["splits"] = ("test",)
    _predict(_single(data), tmp_path / "o", **options)
    results = read_results(tmp_path / "o/predictions/test.json")
    assert results and {r["category_id"] for r in results} == {1}
    assert all(np.allclose(r["bbox"], tight_boxes([r["segmentation"]])[0]) for r in results)
    assert read_card(tmp_path / "o/predictions").boxes == "everything"
    metrics = evaluate(EvaluateConfig(data=data, predictions=(tmp_path / "o",), resamples=0))
    assert metrics.protocol.boxes == "everything"

    least = float(np.median([r["score"] for r in results]))
    _predict(data, tmp_path / "q", min_iou=least, **options)
    fewer = read_results(tmp_path / "q/predictions/test.json")
    assert 0 < len(fewer) < len(results) and all(r["score"] >= least for r in fewer)


def _picture(data):
    return read_image(DatasetFolder.open(data).read("test").images[-1].path)


def test_everything_in_three_masks_is_what_the_library_finds(data):
    torch.manual_seed(0)
    sam = build_sam("nano")
    image = _picture(data)
    what = Everything(6, min_iou=0.1, min_stability=0.5, several=True)
    library = SamAutomaticMaskGenerator(
        sam, 6, pred_iou_thresh=0.1, stability_score_thresh=0.5, box_nms_thresh=0.7
    )
    with torch.no_grad():  # sure enough of its masks, and of their edges, to give some
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 0.5
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 1000
            network.layers[-1].bias *= 1000
    expected = library.generate(image)
    found = everything_on(sam, image, what)
    assert expected and len(found) == len(expected)
    for (rle, estimate), theirs in zip(found, expected, strict=True):
        assert np.array_equal(mask_from_segmentation(rle, 64, 64), theirs["segmentation"])
        assert estimate == pytest.approx(np.clip(theirs["predicted_iou"], 0, 1), abs=1e-5)


def test_a_model_of_one_mask_is_asked_for_that_mask_alone(data, run, monkeypatch):
    segmenter = Segmenter.load(run, "cpu")
    asked = []
    forward = segmenter.sam.mask_decoder.forward

    def listen(*arguments, multimask_output, **options):
        asked.append(multimask_output)
        return forward(*arguments, multimask_output=multimask_output, **options)

    monkeypatch.setattr(segmenter.sam.mask_decoder, "forward", listen)
    assert not has_three_masks(run, segmenter)
    everything_on(segmenter.sam, _picture(data), Everything(3, several=False))
    assert asked == [False]
    segmenter.usage = replace(segmenter.usage, several=True)
    assert has_three_masks(run, segmenter)


def test_one_pixel_outlines_of_the_same_scratch_are_one(data, monkeypatch):
    """The library's boxes have no area there, so that it takes none for the same as another."""
    sam = build_sam("nano")

    def scratch(self, image):
        counts = [64 * 10 + 5, 30, 64 * 64 - 64 * 10 - 35]
        rle = {"size": [64, 64], "counts": counts}
        return [{"segmentation": rle, "predicted_iou": iou} for iou in (0.5, 0.7, 0.6)]

    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", scratch)
    ((rle, estimate),) = everything_on(sam, _picture(data), Everything())
    assert estimate == 0.7 and tight_boxes([rle]).tolist() == [[10, 5, 1, 30]]


def test_what_nothing_is_sure_of_leaves_no_result(data):
    torch.manual_seed(0)
    what = Everything(3, min_iou=1.0, min_stability=1.0)
    assert everything_on(build_sam("nano"), _picture(data), what) == []


def test_boxes_that_the_segmenter_doubts_are_rejected_and_counted(
    data, run, tmp_path, monkeypatch, capsys
):
    test = DatasetFolder.open(data).read("test")
    segmenter = Segmenter.load(run, "cpu")
    boxes = [
        {"image_id": image.id, "category_id": 1, "bbox": [x, 9.0, 20.0, 30.0], "score": 0.5}
        for image in test.images
        for x in (2.0, 31.0)
    ]

    class Detector:
        names = ("scratch", "spot")
        description = "two boxes"

    monkeypatch.setattr(_Models, "load", lambda config: _Models(Detector(), segmenter))
    monkeypatch.setattr("toolkit.detect.predict_dataset", lambda *_, batch: boxes)
    options = {"detector": "d", "segmenter": run, "splits": ("test",)}
    _predict(data, tmp_path / "all", **options)
    every = read_results(tmp_path / "all/predictions/test.json")
    assert len(every) == len(boxes) and all(r["score"] == 0.5 for r in every)
    assert "rejected" not in capsys.readouterr().err

    least = float(np.median([r["predicted_iou"] for r in every]))
    _predict(data, tmp_path / "sure", min_iou=least, **options)
    sure = read_results(tmp_path / "sure/predictions/test.json")
    assert sure == [r for r in every if r["predicted_iou"] >= least] and len(sure) < len(every)
    rejected = f"test: {len(every) - len(sure)} of {len(every)} boxes rejected"
    assert rejected in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["arrays", "pycocotools"])
def test_the_estimate_beside_the_score_changes_no_figure(data, run, tmp_path, backend):
    results = read_results(run / "predictions/test.json")
    assert results and all(r["predicted_iou"] == r["score"] for r in results)
    figures = []
    for name, left_out in (("with", ()), ("without", ("predicted_iou",))):
        shown = [
            {k: v for k, v in r.items() if k not in ("annotation_id", *left_out)} for r in results
        ]
        card = PredictionCard(boxes="detector", masks=True)
        write_predictions(tmp_path / name / "predictions", {"test": shown}, card)
        predictions = (tmp_path / name,)
        config = EvaluateConfig(
            data=data, predictions=predictions, threshold=0.1, resamples=0, backend=backend
        )
        figures.append(evaluate(config).figures)
    assert figures[0] == figures[1] and figures[0]["box.AP"].value > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": "p.csv"}, "points: a segmenter outlines them: give --segmenter"),
        ({"everything": True, "detector": "d", "segmenter": "s"}, "leave --detector out"),
        ({"everything": True, "points": "p", "segmenter": "s"}, "everything: needs no points"),
        ({"points_per_side": 8, "segmenter": "s"}, "points_per_side: is for everything"),
        ({"min_stability": 0, "segmenter": "s"}, "min_stability: is for everything"),
        ({"min_iou": 0.5, "detector": "d"}, "min_iou: a segmenter estimates it"),
        ({"min_iou": 0.5, "segmenter": "s"}, "min_iou: every ground-truth box has to be answered"),
    ],
)
def test_ways_of_asking_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PredictConfig(source="d", out="o", **options)
