"""What a classifier sees is on its page where its run drew it, and nothing where it did not."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.errors import InputError
from toolkit.config import ReportConfig
from toolkit.report.page import report
from toolkit.report.sight import pointing


def words(page: str) -> str:
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def page_of(*runs: Path, **fields) -> str:
    return report(ReportConfig(runs=runs, **fields)).read_text(encoding="utf-8")


def _share(value: float, low: float, high: float) -> dict[str, object]:
    return {"value": value, "ci95": [low, high], "n": 5}


def drawn(run: Path, count: int = 2) -> Path:
    """Write what a run draws, with pictures of noise."""
    folder = run / "pictures"
    (folder / "cam").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (60, 130, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "features.png"), noise)
    rows = ["file_name,truth,verdict,probability,inside,by_chance,picture"]
    for number in range(count):
        cv2.imwrite(str(folder / f"cam/{number}.png"), noise)
        rows.append(f"part <{number}>.png,spot,good,0.8,0.25,0.031,{number}.png")
    rows.append("not_shown.png,good,good,0.9,,,")
    (folder / "cam.csv").write_text("\n".join(rows) + "\n")
    figures = {
        "features": {"pictures": 3000, "drawn": 2000},
        "cam": {
            "split": "test",
            "pictures": 8,
            "maps": 8,
            "layer": "layer3",
            "cells": 8,
            "inside": _share(0.4, 0.3, 0.5),
            "by_chance": _share(0.06, 0.05, 0.07),
        },
    }
    (folder / "figures.json").write_text(json.dumps(figures))
    return run


def test_the_page_shows_what_the_network_sees(make_run) -> None:
    page = page_of(drawn(make_run("classifier")))
    text = words(page)
    assert "2000 of 3000 pictures, drawn at random" in text
    assert "Wrong: spot, called good with probability 0.80." in text
    assert "25.0% of the map lies in the defect, which covers 3.1% of the picture." in text
    assert "40% [30% to 50%] lies inside the true defects" in text
    assert "8 × 8 cells (layer3)" in text
    assert "part <0>.png" in text and "not_shown.png" not in text
    assert '<a href="#sight">' in page
    section = page.split('<section id="sight"')[1].split("</section>")[0]
    assert section.count("data:image/webp;base64,") == 6  # three small ones, three enlarged


def test_a_run_that_drew_nothing_has_no_such_section(make_run) -> None:
    assert "sight" not in page_of(make_run("classifier")).split("</style>")[1]


def test_of_two_runs_the_one_that_drew_has_it(make_run) -> None:
    first, second = make_run("classifier", "one"), drawn(make_run("classifier", "two"))
    section = page_of(first, second).split('<section id="sight"')[1].split("</section>")[0]
    assert words(section).count("Its features of pictures") == 1
    assert "two" in words(section)


@pytest.mark.parametrize(("most", "shown"), [(1, 1), (0, 0)])
def test_as_many_are_shown_as_are_asked_for(make_run, most, shown) -> None:
    page = page_of(drawn(make_run("classifier"), 3), examples=most)
    assert len(re.findall(r"part &lt;\d&gt;\.png</p>", page)) == shown
    assert ('id="sight"' in page) == bool(shown)


def test_many_maps_are_folded(make_run) -> None:
    page = page_of(drawn(make_run("classifier"), 14), examples=20)
    assert "Show 2 more" in words(page)


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        (_share(0.4, 0.3, 0.5), "The network looks at the defects."),
        (_share(0.07, 0.05, 0.1), "does not show that the network looks at the defects"),
        (_share(0.02, 0.01, 0.03), "looks at something else than the defects"),
        ({"value": 0.4, "ci95": None, "n": 1}, "does not show"),
    ],
)
def test_whether_it_looks_at_the_defects_is_said_as_surely_as_it_is_known(inside, says) -> None:
    assert says in pointing({"inside": inside, "by_chance": _share(0.06, 0.05, 0.07)})
    assert pointing({"inside": None, "by_chance": None}) == ""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "cam/0.png").unlink(), r"0\.png: cannot be read"),
        (lambda folder: (folder / "cam.csv").unlink(), r"cam\.csv: cannot be read"),
        (lambda folder: (folder / "cam.csv").write_text("a\n1\n"), r"figures\.json: is not what"),
        (lambda folder: (folder / "figures.json").write_text("{}"), r"figures\.json: is not what"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(make_run, spoil, message) -> None:
    run = drawn(make_run("classifier"))
    spoil(run / "pictures")
    with pytest.raises(InputError, match=message) as caught:
        page_of(run)
    assert "\n" not in str(caught.value)
