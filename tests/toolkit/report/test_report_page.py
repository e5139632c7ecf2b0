"""What is on the page, and that it is the same every time."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from converters.dataset import Image
from toolkit.config import EvaluateConfig, ReportConfig
from toolkit.evaluate import Figure, evaluate
from toolkit.report import galleries, panels
from toolkit.report.page import report
from toolkit.report.sections import compare_to_baseline


def page_of(*runs: Path, **fields) -> str:
    return report(ReportConfig(runs=runs, **fields)).read_text(encoding="utf-8")


def words(page: str) -> str:
    """The text of a page, as it is read."""
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def gallery(page: str, title: str) -> list[str]:
    """The entries of a gallery."""
    part = page.split(f">{title}: ")[1].split('<div class="gallery"')[0]
    return re.findall(r'<li class="example">.*?</li>', part, flags=re.DOTALL)


def test_headlines_have_intervals_and_what_is_behind_them(make_run, data) -> None:
    run = make_run(scored=False)
    metrics = evaluate(EvaluateConfig(data=data, predictions=(run,), resamples=100))
    text = words(page_of(run))
    for name, label in (("box.AP50", "Finding defects"), ("image.AUROC", "Telling bad parts")):
        low, high = metrics.figures[name].ci95 or (0, 0)
        figure = f"{metrics.figures[name].value:.2f} [{low:.2f} to {high:.2f}]"
        assert re.search(f"{label}[^[]*{re.escape(figure)}", text), name
    assert "8 pictures, 6 defects" in text
    assert "95 % interval" in text
    assert "drawing the pictures anew 100 times" in text


def test_galleries_show_the_one_miss_the_one_alarm_and_the_bad_outline(make_run, data) -> None:
    page = page_of(make_run())
    missed, alarms, outlines = (
        gallery(page, title) for title in ("Missed defects", "False alarms", "Worst outlines")
    )
    images = {
        i["id"]: i["file_name"] for i in json.loads((data / "test.json").read_text())["images"]
    }
    marked = json.loads((data / "test.json").read_text())["annotations"]
    assert len(missed) == len(alarms) == 1
    assert images[marked[0]["image_id"]] in missed[0]
    assert "Nothing was found here." in missed[0]
    assert "test_good_000.png" in alarms[0]
    assert "score 0.90" in alarms[0]
    assert images[marked[1]["image_id"]] in outlines[0]
    assert "All of them, the least overlap" in page
    for entry in (*missed, *alarms, *outlines):
        assert entry.count("data:image/webp;base64,") == 6  # three small ones, three enlarged
        assert len(re.findall(r'alt="[^"]+', entry)) == 3
        assert entry.count('loading="lazy"') == 3


def test_outlines_are_compared_with_the_box_filled(make_run) -> None:
    run = make_run("outlines")
    figure = json.loads((run / "metrics.json").read_text())["mask.instance_IoU"]
    text = words(page_of(run))
    assert "{:.2f} [{:.2f} to {:.2f}]".format(figure["value"], *figure["ci95"]) in text
    assert "baseline: the given box filled" in text
    assert "Better than the given box filled" in text or "Clearly better than the given" in text
    assert "6 of 6 defects are outlined with an IoU of at least 0.5." in text
    assert "boxes were given, so finding them was not measured" in text


def test_a_classifier_has_verdicts_and_their_mistakes(make_run) -> None:
    page = page_of(make_run("classifier"))
    text = words(page)
    assert "Verdicts, all classes equal (macro-F1)" in text
    assert 'baseline: calling every picture "good"' in text
    assert len(gallery(page, "Defects called good")) == 1
    assert "called spot with probability 0.60" in gallery(page, "Good parts called defective")[0]
    assert "No defect was called by another's name." in text
    assert "Telling bad parts from good (ROC)" in text


def test_the_threshold_is_marked_and_said_where_it_was_chosen(make_run) -> None:
    page = page_of(make_run())
    assert "The vertical line is the threshold, 0.4, chosen on val." in words(page)
    assert ">threshold 0.4</text>" in page
    assert ">at the chosen threshold</text>" in page


def test_the_epoch_that_was_kept_is_marked(make_run) -> None:
    page = page_of(make_run())
    assert "the weights of epoch 2 were kept, which had the best AP on val" in words(page)
    assert page.count(">epoch 2 kept</text>") == 2


def test_a_run_without_a_log_says_so(make_run) -> None:
    assert "the run folder has no log of a training" in words(page_of(make_run(log=[])))


def test_the_balance_of_the_data_is_shown(make_run) -> None:
    text = words(page_of(make_run()))
    assert "good 2 – 2 – 2 – scratch 3 3 3 3 3 3 spot 3 3 3 3 3 3" in text
    assert "Every class has 3 pictures to learn from." in text


def test_the_command_to_run_it_again_is_there(make_run, data) -> None:
    run = make_run()
    text = words(page_of(run)).replace(" \\", "")
    assert f"toolkit finetune yolo --data {data} --out {run}-again" in text
    assert f"toolkit evaluate --data {data} --predictions {run}" in text
    protocol = json.loads((run / "metrics.json").read_text())["protocol"]
    assert f"{protocol['interval']}; 100 resamples, seed 0" in text
    assert "command: finetune yolo" in text  # config.yaml


def test_absent_figures_come_with_their_reasons(make_run) -> None:
    run = make_run(scored=False)
    (run / "predictions" / "val.json").unlink()
    text = words(page_of(run))
    assert "Absent: no threshold was chosen: there are no predictions on val" in text
    assert "No score threshold was chosen, so every detection counts here" in text


def test_names_are_text_and_no_markup(make_run, data) -> None:
    run = make_run(scored=False)
    for split in ("train", "val", "test"):
        path = data / f"{split}.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "<b>bent</b> & 'x'"
        for image in content["images"]:
            old = data / "images" / image["file_name"]
            image["file_name"] = image["file_name"].replace("_", "<script>", 1)
            old.rename(old.with_name(image["file_name"]))
        path.write_text(json.dumps(content))
    page = page_of(run)
    assert "<b>" not in page
    assert "&lt;b&gt;bent&lt;/b&gt; &amp; &#39;x&#39;" in page
    assert page.count("<script>") == 1
    assert "test&lt;script&gt;" in page


def test_several_runs_stand_side_by_side(make_run) -> None:
    perfect = make_run(name="perfect", edit=lambda _, results: results)
    spoilt, outlines = make_run(name="spoilt"), make_run("outlines", name="sam")
    page = page_of(perfect, spoilt, outlines)
    text = words(page)
    assert "Report: perfect, spoilt and sam" in text
    assert "Runs compared: precision over recall" in text
    assert "A: perfect" in text
    assert "B: spoilt" in text
    assert "Every defect was found." in text
    assert "C sam Absent: boxes were given, so finding them was not measured." in text
    assert "Not comparable" not in text


def test_runs_on_different_pictures_are_not_compared(make_run, make_dataset, data) -> None:
    first, second = make_run(name="first"), make_run(name="second", scored=False)
    other = make_dataset(name="other", per_kind=4)
    (second / "config.yaml").write_text(f"command: finetune yolo\ndata: {other}\n")
    test = json.loads((other / "test.json").read_text())
    found = [
        {"image_id": test["images"][0]["id"], "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}
    ]
    for split in ("val", "test"):
        (second / "predictions" / f"{split}.json").write_text("[]")
    (second / "predictions" / "test.json").write_text(json.dumps(found))
    text = words(page_of(first, second))
    assert "Not comparable:" in text
    assert "Runs compared" not in text


def test_figures_of_other_predictions_are_noticed(make_run, data) -> None:
    run = make_run()
    evaluate(EvaluateConfig(data=data, predictions=(run,), resamples=0))
    path = run / "predictions" / "test.json"
    path.write_text(json.dumps(json.loads(path.read_text())[2:]))
    text = words(page_of(run))
    assert "The figures are not of the predictions that lie here: box F1 is" in text
    assert "No intervals were computed" in text


def test_equal_input_gives_equal_bytes(make_run, tmp_path) -> None:
    runs = make_run(scored=False), make_run("outlines", "sam", scored=False)
    first = page_of(*runs, out=tmp_path / "first.html")  # evaluates
    assert first == page_of(*runs, out=tmp_path / "second.html")  # reads what was evaluated


def test_only_pictures_of_the_galleries_are_opened(make_run, make_dataset, monkeypatch) -> None:
    run = make_run(edit=lambda dataset, results: [], scored=False)
    large = make_dataset(name="large", per_kind=40, size=32)
    opened = []
    read = panels.read_image
    monkeypatch.setattr(panels, "read_image", lambda path: opened.append(path) or read(path))
    (run / "predictions" / "val.json").write_text("[]")
    page = page_of(run, data=large, examples=3)
    assert 0 < len(opened) <= 3
    assert len(gallery(page, "Missed defects")) == 3
    assert "Missed defects: 80" in words(page)
    page_of(run, data=large, examples=0)
    assert len(opened) <= 3


def test_pictures_stay_within_what_a_page_may_take(make_run, monkeypatch) -> None:
    run = make_run(edit=lambda dataset, results: [])  # six misses

    def pictures() -> list[str]:
        return re.findall(r'"(data:image/webp[^"]*)"', page_of(run))

    all_of_them = pictures()
    assert len(all_of_them) == 6 * 6
    most = 6 * galleries.LEAST_EACH // 2
    monkeypatch.setattr(galleries, "MOST_CHARACTERS", most)
    assert len(pictures()) == 3 * 6
    assert "The worst 3, the largest first." in words(page_of(run))
    monkeypatch.setattr(galleries, "LEAST_EACH", most // 6)
    smaller = pictures()
    assert len(smaller) == 6 * 6
    assert sum(map(len, smaller)) <= most < sum(map(len, all_of_them))


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((10, 20, 8, 4), (0, 0, 64, 64)),
        ((500, 300, 10, 10), (473, 273, 64, 64)),
        ((990, 590, 10, 10), (936, 536, 64, 64)),
        ((500, 300, 40, 10), (440, 225, 160, 160)),
        ((100, 100, 200, 200), (0, 0, 1000, 600)),
        (None, (0, 0, 1000, 600)),
    ],
)
def test_small_things_are_shown_with_some_context(box, window) -> None:
    assert panels.window_around(Image("a", Path("a"), 1000, 600), box) == window


def test_a_thin_line_is_seen_in_a_small_picture() -> None:
    mask = np.zeros((2000, 2000), bool)
    mask[1000, 200:1800] = True
    grey = np.full((2000, 2000, 3), 128, np.uint8)
    shape = panels.Shape((200, 1000, 1600, 1), mask)
    drawn = panels.draw_detail(grey, (0, 0, 2000, 2000), [shape], panels.TRUTH, None, panels.THUMB)
    assert np.ptp(drawn[118:123, 120].astype(int), axis=1).max() > 100


@pytest.mark.parametrize(
    ("figure", "baseline", "says"),
    [
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), "No better than luck."),
        ((0.9, 0.7, 1.0), (0.5, 0.4, 0.6), "Clearly better than luck: the intervals do not touch."),
        ((0.6, 0.5, 0.7), (0.5, 0.4, 0.6), "Better than luck, but the intervals overlap."),
    ],
)
def test_a_baseline_is_beaten_only_where_the_intervals_say_so(figure, baseline, says) -> None:
    first, second = (Figure(value, (low, high), 9) for value, low, high in (figure, baseline))
    assert compare_to_baseline(first, second, "luck") == says
