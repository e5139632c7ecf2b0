"""The page of runs on real pictures, where they are at hand, in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from toolkit.classify.finetune import finetune_classifier
from toolkit.config import FinetuneClassifierConfig, FinetuneSamConfig, ReportConfig
from toolkit.report.page import report
from toolkit.segment.finetune import finetune_sam

SOURCE = Path(__file__).parents[4] / "shared" / "data" / "magnetic_tile"

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="there are no real pictures here")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    data = root / "magnetic_tile"
    convert(SOURCE, data, ConvertOptions())
    common = {"data": data, "device": "cpu", "workers": 0, "epochs": 1}
    runs = (
        finetune_sam(FinetuneSamConfig(out=root / "sam", weights="starter", **common)),
        finetune_classifier(
            FinetuneClassifierConfig(out=root / "classifier", image_size=64, **common)
        ),
    )
    return report(ReportConfig(runs=tuple(run.root for run in runs)))


@pytest.mark.parametrize("width", [1280, 375])
def test_runs_on_real_pictures_open(open_page, page_file, width) -> None:
    visit = open_page(page_file, width)
    page = visit.page
    visit.see_everything()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("button.enlarge").count() >= 3 * 3  # picture, ground truth, prediction

    page.evaluate("window.scrollTo(0, 0)")
    page.locator("button.enlarge").first.click()
    assert visit.enlarged()
    visit.wait_for("document.getElementById('enlarged-picture').naturalWidth > 100")
    page.keyboard.press("Escape")
    assert not visit.enlarged()

    words = page.inner_text("main")
    for name in ("magnetic_tile", "Blowhole", "Crack", "Fray"):
        assert name in words, name
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()
