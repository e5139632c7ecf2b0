"""The conversion of real data, where it is at hand: exact, whole, and loaded by others."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision
import yaml
from PIL import Image as PilImage
from pycocotools.coco import COCO

from converters.check import check
from converters.convert import ConvertOptions, convert
from converters.dataset import SPLITS

DATA = Path(__file__).parents[3] / "shared" / "data"
SOURCES = {"transistor": DATA / "mvtec_ad" / "transistor", "magnetic_tile": DATA / "magnetic_tile"}

pytestmark = pytest.mark.skipif(
    not all(path.is_dir() for path in SOURCES.values()),
    reason="the real pictures are not beside the repository (../shared/data)",
)


@pytest.fixture(scope="module", params=SOURCES)
def converted(request, tmp_path_factory) -> tuple[str, Path, Path]:
    dest = tmp_path_factory.mktemp("real") / request.param
    convert(SOURCES[request.param], dest, ConvertOptions(yolo=True))
    return request.param, SOURCES[request.param], dest


def source_mask(name: str, root: Path, source: str) -> np.ndarray:
    """The mask as an independent reader sees it."""
    image = root / source
    if name == "transistor":
        path = root / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
        return np.asarray(PilImage.open(path)) > 0
    return np.asarray(PilImage.open(image.with_suffix(".png")).convert("L")) > 127


def components(mask: np.ndarray) -> list[np.ndarray]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == label for label in range(1, count)]


def has_hole(component: np.ndarray) -> bool:
    background = np.pad(~component, 1, constant_values=True).astype(np.uint8)
    return cv2.connectedComponents(background, connectivity=4)[0] > 2


def test_every_annotation_is_its_source_component(converted) -> None:
    name, root, dest = converted
    expected: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for split in SPLITS:
        coco = COCO(dest / f"{split}.json")
        for image in coco.loadImgs(coco.getImgIds()):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            if not annotations:
                continue
            truth = components(source_mask(name, root, image["source"]))
            folder = Path(image["source"]).parts[1 if name == "transistor" else 0]
            expected[folder.removeprefix("MT_")] += len(truth)
            digests = {hashlib.sha256(part.tobytes()).digest(): part for part in truth}
            for annotation in annotations:
                mask = coco.annToMask(annotation).astype(bool)
                part = digests.pop(hashlib.sha256(mask.tobytes()).digest())  # IoU 1.0, or KeyError
                ys, xs = np.nonzero(part)
                tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotation["bbox"] == tight
                assert isinstance(annotation["segmentation"], dict) == has_hole(part)
                assert annotation["iscrowd"] == 0
                found[coco.loadCats(annotation["category_id"])[0]["name"]] += 1
            assert not digests
    assert found == expected
    assert sum(found.values()) == {"transistor": 44, "magnetic_tile": 343}[name]


def test_no_picture_is_lost(converted) -> None:
    name, root, dest = converted
    card = yaml.safe_load((dest / "dataset.yaml").read_text())
    listed = [
        image["source"]
        for split in SPLITS
        for image in json.loads((dest / f"{split}.json").read_text())["images"]
    ]
    pattern = "*/Imgs/*.jpg" if name == "magnetic_tile" else "t*/*/*.png"
    sources = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    assert sorted(listed + list(card["excluded"])) == sources
    assert len(card["excluded"]) == {"transistor": 0, "magnetic_tile": 4}[name]


def test_one_tile_under_several_exposures_is_on_one_side(converted) -> None:
    name, _, dest = converted
    groups = yaml.safe_load((dest / "dataset.yaml").read_text())["same_photograph"]
    side = {
        image["file_name"]: split
        for split in SPLITS
        for image in json.loads((dest / f"{split}.json").read_text())["images"]
    }
    # Most tiles were photographed more than once; of the transistors, none but two empty boards.
    assert sum(map(len, groups)) == {"transistor": 2, "magnetic_tile": 379}[name]
    assert all(len({side[file_name] for file_name in group}) == 1 for group in groups)


def test_what_was_converted_passes_its_own_check(converted) -> None:
    _, _, dest = converted
    findings = check(dest)
    assert [finding for finding in findings if finding.severity == "error"] == []


def test_others_load_it_with_the_same_number_of_instances(converted) -> None:
    import_module("toolkit.detect")  # first: ultralytics with its downloads and settings off
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    _, _, dest = converted
    data = check_det_dataset(str(dest / "data.yaml"))
    for split in SPLITS:
        count = len(json.loads((dest / f"{split}.json").read_text())["annotations"])
        boxes = supervision.DetectionDataset.from_coco(
            str(dest / "images"), str(dest / f"{split}.json"), force_masks=False
        )
        assert sum(len(detections) for _, _, detections in boxes) == count
        dataset = YOLODataset(img_path=data[split], data=data, task="detect")
        assert sum(len(label["bboxes"]) for label in dataset.labels) == count
