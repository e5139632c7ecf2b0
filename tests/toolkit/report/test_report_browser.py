"""The page in a browser: galleries by mouse and keyboard, small screens, and no requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config import ReportConfig
from toolkit.report.page import report


@pytest.fixture
def page_file(make_run) -> Path:
    return report(ReportConfig(runs=(make_run(), make_run("outlines", "sam"))))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_nothing_is_asked_for_and_the_page_fits(open_page, page_file, width, scheme) -> None:
    visit = open_page(page_file, width, scheme)
    page = visit.page
    visit.see_everything()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()


@pytest.mark.parametrize("width", [1280, 375])
def test_a_click_enlarges_and_escape_closes(open_page, page_file, width) -> None:
    visit = open_page(page_file, width)
    page = visit.page
    assert not visit.enlarged()
    page.locator("button.enlarge").first.click()
    assert visit.enlarged()
    small = page.evaluate("document.querySelector('button.enlarge img').naturalWidth")
    visit.wait_for(f"document.getElementById('enlarged-picture').naturalWidth > {small}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Escape")
    assert not visit.enlarged()
    page.locator("button.enlarge").nth(1).click()
    page.locator("#close").click()
    assert not visit.enlarged()
    assert visit.complaints == []
    page.close()


def test_the_keyboard_alone_is_enough(open_page, page_file) -> None:
    visit = open_page(page_file, 1280)
    page = visit.page
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "enlarge":
            break
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    assert visit.enlarged()
    title = page.inner_text("#enlarged-title")
    assert title.startswith("Picture: ")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#enlarged-title") == title.replace("Picture", "Ground truth")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#enlarged-title") == title
    page.keyboard.press("Escape")
    assert not visit.enlarged()
    assert page.evaluate("document.activeElement.className") == "enlarge"
    page.close()


def test_print_opens_what_is_folded_and_leaves_controls_out(open_page, page_file) -> None:
    visit = open_page(page_file, 1280)
    page = visit.page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert not page.locator("nav").is_visible()
    assert page.locator("#summary").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
    page.close()


def test_everything_has_a_name(open_page, page_file) -> None:
    visit = open_page(page_file, 1280)
    page = visit.page
    for landmark in ("header", "nav", "main", "footer"):
        assert page.locator(landmark).count() == 1
    assert page.locator("h1").count() == 1
    assert (
        page.evaluate("document.querySelectorAll('li img:not([alt]), li img[alt=\"\"]').length")
        == 0
    )
    charts = page.locator("figure.chart > svg")
    assert charts.count() > 3
    assert all(charts.nth(n).get_attribute("aria-label") for n in range(charts.count()))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    page.close()
