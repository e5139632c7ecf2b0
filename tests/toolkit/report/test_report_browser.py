"""The page in a browser: galleries by mouse and keyboard, small screens, and no requests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.config import ReportConfig
from toolkit.report.page import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Chromium is spoken to through a pipe, so that no socket is needed.
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=FLAGS
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page_file(make_run) -> Path:
    return report(ReportConfig(runs=(make_run(), make_run("outlines", "sam"))))


class Visit:
    """A page that was opened, and what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        size = {"width": width, "height": 800}
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def wait_for(self, condition: str) -> None:
        """Ask until it holds; playwright's own way evaluates text, which the page forbids."""
        for _ in range(100):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(condition)

    def enlarged(self) -> bool:
        return bool(self.page.evaluate("document.getElementById('enlarged').open"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_nothing_is_asked_for_and_the_page_fits(browser, page_file, width, scheme) -> None:
    visit = Visit(browser, page_file, width, scheme)
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 700):  # lazy pictures come into view
        page.evaluate(f"window.scrollTo(0, {top})")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter((one) => one.closest('li') && !one.naturalWidth).length"
    visit.wait_for(f"{broken} === 0")
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()


@pytest.mark.parametrize("width", [1280, 375])
def test_a_click_enlarges_and_escape_closes(browser, page_file, width) -> None:
    visit = Visit(browser, page_file, width)
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


def test_the_keyboard_alone_is_enough(browser, page_file) -> None:
    visit = Visit(browser, page_file, 1280)
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


def test_print_opens_what_is_folded_and_leaves_controls_out(browser, page_file) -> None:
    visit = Visit(browser, page_file, 1280)
    page = visit.page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert not page.locator("nav").is_visible()
    assert page.locator("#summary").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
    page.close()


def test_everything_has_a_name(browser, page_file) -> None:
    visit = Visit(browser, page_file, 1280)
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
