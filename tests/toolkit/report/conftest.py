"""A run on a small dataset: all is found but for one miss, one false alarm, one bad outline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.dataset import Dataset
from converters.folder import DatasetFolder
from converters.geometry import rle_from_region
from toolkit.config import (
    EvaluateConfig,
    FinetuneClassifierConfig,
    FinetuneSamConfig,
    FinetuneYoloConfig,
)
from toolkit.evaluate import evaluate
from toolkit.predictions import (
    ImageProbabilities,
    PredictionCard,
    Result,
    write_predictions,
    write_probabilities,
)
from toolkit.report import panels
from toolkit.runs import RunFolder

MakeRun = Callable[..., Path]

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def perfect(dataset: Dataset, *, given: bool = False) -> list[Result]:
    """A detection for every instance, sure of it; with ``given``, the answers to their boxes."""
    results: list[Result] = []
    for image in dataset.images:
        for instance in image.instances:
            assert instance.crop is not None
            result: Result = {
                "image_id": image.id,
                "category_id": dataset.category_id(instance.category),
                "bbox": list(instance.box),
                "score": 0.8,
                "segmentation": rle_from_region(
                    (instance.box, instance.crop), image.height, image.width
                ),
            }
            results.append({**result, "annotation_id": instance.id} if given else result)
    return results


def shrink(result: Result, dataset: Dataset) -> Result:
    """The same box, with a mask that holds its first row alone."""
    image = next(image for image in dataset.images if image.id == result["image_id"])
    x, y, w, _ = (int(value) for value in result["bbox"])
    region = ((x, y, w, 1), np.ones((1, w), bool))
    return {**result, "segmentation": rle_from_region(region, image.height, image.width)}


def spoil(dataset: Dataset, results: list[Result]) -> list[Result]:
    """Leave out the first, spoil the outline of the second, add a false alarm on a good picture."""
    good = next(image for image in dataset.images if image.is_good)
    alarm: Result = {**results[1], "image_id": good.id, "bbox": [5, 6, 20, 10], "score": 0.9}
    return [shrink(results[1], dataset), *results[2:], shrink(alarm, dataset)]


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enlarged pictures half as large as usual: they take most of the time."""
    monkeypatch.setattr(panels, "LARGE", 400)


def _same(_: Dataset, results: list[Result]) -> list[Result]:
    return results


@pytest.fixture
def data(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset()


@pytest.fixture
def make_run(data: Path, tmp_path: Path) -> MakeRun:
    """Write a run folder of a kind ("detector", "outlines", "classifier") and return its path."""

    def make(
        kind: str = "detector",
        name: str = "run",
        *,
        edit: Callable[[Dataset, list[Result]], list[Result]] | None = None,
        log: list[dict[str, Any]] | None = None,
        scored: bool = True,
    ) -> Path:
        root = tmp_path / "runs" / name
        folder = DatasetFolder.open(data)
        splits = {split: folder.read(split) for split in ("val", "test")}
        if kind == "classifier":
            RunFolder.create(
                root, "finetune classifier", FinetuneClassifierConfig(data=data, out=root)
            )
            found = {split: wrong_twice(dataset) for split, dataset in splits.items()}
            card = PredictionCard(boxes="none", masks=False, classifier="resnet18 128")
            write_probabilities(root / "predictions", found, card)
        else:
            given = kind == "outlines"
            config = (FinetuneSamConfig if given else FinetuneYoloConfig)(data=data, out=root)
            RunFolder.create(root, f"finetune {'sam' if given else 'yolo'}", config)
            results = {split: perfect(of, given=given) for split, of in splits.items()}
            change = edit or (_same if given else spoil)
            results["test"] = change(splits["test"], results["test"])
            card = PredictionCard(boxes="ground truth" if given else "detector", masks=True)
            write_predictions(root / "predictions", results, card)
        records = (
            log
            if log is not None
            else [
                {"epoch": 1, "box_loss": 2.0, "val_ap": 0.1, "val_ap50": 0.3},
                {"epoch": 2, "box_loss": 1.5, "val_ap": 0.4, "val_ap50": 0.5},
                {"epoch": 3, "box_loss": 1.2, "val_ap": 0.2, "val_ap50": 0.6},
            ]
        )
        lines = [json.dumps(record) + "\n" for record in records]
        (root / "log.jsonl").write_text("".join(lines), encoding="utf-8")
        if scored:
            evaluate(EvaluateConfig(data=data, predictions=(root,), resamples=100))
        return root

    return make


def wrong_twice(dataset: Dataset) -> ImageProbabilities:
    """Right verdicts, but the first defect is called good, and the first good picture defective."""
    classes = ("good", *dataset.categories)
    truth = [classes.index(label) for label in dataset.image_labels()]
    values = np.full((len(truth), len(classes)), 0.1)
    values[np.arange(len(truth)), truth] = 0.8
    bad, good = next(i for i, t in enumerate(truth) if t), truth.index(0)
    values[bad], values[good] = (0.7, 0.2, 0.1), (0.25, 0.15, 0.6)
    return ImageProbabilities(classes, tuple(i.file_name for i in dataset.images), values)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    # Chromium is spoken to through a pipe, so that no socket is needed.
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=FLAGS
        )
        yield chromium
        chromium.close()


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

    def see_everything(self) -> None:
        """Open what is folded and scroll down, so that lazy pictures come, and all of them do."""
        page = self.page
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        height = page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 700):
            page.evaluate(f"window.scrollTo(0, {top})")
            page.wait_for_timeout(30)  # as long as it takes to be drawn
        broken = "[...document.images].filter((one) => one.closest('li') && !one.naturalWidth)"
        self.wait_for(f"{broken}.length === 0")


@pytest.fixture
def open_page(browser: Any) -> Callable[..., Visit]:
    """Open a page file at a width; one more argument chooses "light" or "dark"."""
    return partial(Visit, browser)
