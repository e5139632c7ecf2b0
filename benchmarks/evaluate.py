"""Evaluation side by side: ours, pycocotools, faster-coco-eval, hotcoco, torchmetrics, supervision.

    python -m benchmarks.evaluate [--images 500] [--detections 51000] [--categories 20]

Procedural ellipses, once as boxes alone and once as boxes and masks. Every contender reads the same
two JSON files and computes COCO's figures (of boxes, or of boxes and then of masks), in a process
of its own, best of some rounds; ours then does the same with the intervals of 1,000 resamples.
"process" is that process from start to end; of ours, `toolkit evaluate` as a user types it.
Contenders that are not installed are left out, with a line that says so:
``pip install faster-coco-eval hotcoco torchmetrics``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SIDE = 512
KINDS = ("box", "mask")
"""Boxes alone, and boxes and masks."""

OURS = {"toolkit": 0, "toolkit, 1,000 resamples": 1000}
"""How many resamples ours takes."""


def main() -> None:
    """Make the files, time every contender, print the table."""
    options = _options()
    if options.run:
        _run_one(options.run, Path(options.folder), options.kind)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, options.images, options.detections, options.categories)
        pairs = [
            (name, kind)
            for name, (package, _) in CONTENDERS.items()
            if find_spec(package) is not None or _missing(name, package)
            for kind in KINDS
            if (name, kind) != ("supervision", "mask")  # holds every mask at full size: 13 GB
        ]
        rounds = [{pair: _time(*pair, root) for pair in pairs} for _ in range(options.repeats)]
        _print({pair: _best([round_[pair] for round_ in rounds]) for pair in pairs})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=51_000)
    parser.add_argument("--categories", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="box", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _missing(name: str, package: str) -> bool:
    print(f"{name}: left out, {package} is not installed", file=sys.stderr)
    return False


def make(root: Path, images: int, detections: int, categories: int) -> None:
    """Write ground truth and results: every defect found several times, and false alarms."""
    rng = np.random.default_rng(0)
    entries = [
        {"id": n, "file_name": f"{n:05}.png", "height": SIDE, "width": SIDE}
        for n in range(1, images + 1)
    ]
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for entry in entries:
        for _ in range(rng.integers(5, 20)):
            size = np.exp(rng.uniform(np.log(6), np.log(200), 2))
            corner = rng.uniform(0, SIDE - size)
            category = int(rng.integers(1, categories + 1))
            shape = _ellipse(rng, corner, size)
            truth.append(
                {"id": len(truth) + 1, "image_id": entry["id"], "category_id": category}
                | {"iscrowd": 0, "area": int(coco_mask.area(shape["segmentation"]))}
                | shape
            )
            for _ in range(rng.integers(2, 6)):
                noise = rng.uniform(0.02, 0.25)
                near = np.clip(corner + rng.normal(0, noise, 2) * size, 0, SIDE - 3)
                about = np.clip(size * (1 + rng.normal(0, noise, 2)), 2, SIDE - near)
                score = float(np.clip(rng.beta(2, 2) - noise, 0.001, 1))
                right = category if rng.random() < 0.9 else int(rng.integers(1, categories + 1))
                found.append(_result(entry, right, score, _ellipse(rng, near, about)))
    while len(found) < detections:
        size = np.exp(rng.uniform(np.log(6), np.log(100), 2))
        shape = _ellipse(rng, rng.uniform(0, SIDE - size), size)
        entry = entries[rng.integers(images)]
        category = int(rng.integers(1, categories + 1))
        found.append(_result(entry, category, float(rng.beta(1, 4)), shape))
    names = [{"id": n, "name": f"kind {n}"} for n in range(1, categories + 1)]
    content = {"images": entries, "annotations": truth, "categories": names}
    for kind in KINDS[::-1]:
        folder = root / kind
        (folder / "images").mkdir(parents=True)
        (folder / "dataset.yaml").write_text("name: ellipses\n", encoding="utf-8")
        (folder / "test.json").write_text(json.dumps(content), encoding="utf-8")
        (folder / "found.json").write_text(json.dumps(found[:detections]), encoding="utf-8")
        for annotation in (*truth, *found):
            annotation.pop("segmentation", None)


def _ellipse(rng: np.random.Generator, corner: np.ndarray, size: np.ndarray) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    centre, radii = (corner + size / 2).astype(int), np.maximum(1, (size / 2).astype(int) - 1)
    cv2.ellipse(mask, centre.tolist(), radii.tolist(), rng.uniform(0, 180), 0, 360, 1, -1)
    if not mask.any():
        mask[int(corner[1]), int(corner[0])] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    box = coco_mask.toBbox(rle).tolist()
    return {"bbox": box, "segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}}


def _result(entry: dict[str, Any], category: int, score: float, shape: Any) -> dict[str, Any]:
    return {"image_id": entry["id"], "category_id": category, "score": score, **shape}


def _time(name: str, kind: str, root: Path) -> dict[str, float]:
    """Seconds of the work, of the whole process, and AP."""
    here = [sys.executable, "-m", "benchmarks.evaluate", "--run", name]
    found, process = _timed([*here, "--kind", kind, "--folder", str(root)])
    if name in OURS:
        words = [sys.executable, "-m", "toolkit", "evaluate", "--data", str(root / kind)]
        words += ["--predictions", str(root / kind / "found.json"), "--quiet"]
        words += ["--resamples", str(OURS[name]), "--out", str(root / "metrics.json")]
        _, process = _timed(words)
    return {**json.loads(found.splitlines()[-1]), "process": process}


def _timed(words: list[str]) -> tuple[str, float]:
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


def _best(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: min(round_[key] for round_ in rounds) for key in rounds[0]}


def _run_one(name: str, root: Path, kind: str) -> None:
    _, work = CONTENDERS[name]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate = work(root / kind, kind)
        start = time.perf_counter()
        ap = evaluate()
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "ap": ap}))


Work = Callable[[Path, str], Callable[[], float]]
"""Imports what it needs for a folder and a kind, and returns the work: load, evaluate, give AP."""


def _ours(resamples: int) -> Work:
    def setup(root: Path, kind: str) -> Callable[[], float]:
        from toolkit.config import EvaluateConfig
        from toolkit.evaluate import evaluate

        config = EvaluateConfig(
            data=root,
            predictions=(root / "found.json",),
            resamples=resamples,
            out=root / "metrics.json",
        )
        return lambda: evaluate(config).figures[f"{kind}.AP"].value

    return setup


def _pycocotools(root: Path, kind: str) -> Callable[[], float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _coco(COCO, COCOeval, root, kind)


def _faster(root: Path, kind: str) -> Callable[[], float]:
    from faster_coco_eval import COCO, COCOeval_faster

    return _coco(COCO, COCOeval_faster, root, kind)


def _hotcoco(root: Path, kind: str) -> Callable[[], float]:
    from hotcoco import COCO, COCOeval

    return _coco(COCO, COCOeval, root, kind)


def _coco(coco: Any, evaluator: Any, root: Path, kind: str) -> Callable[[], float]:
    def work() -> float:
        truth = coco(str(root / "test.json"))
        found = truth.loadRes(str(root / "found.json"))
        for name in ("bbox", "segm")[: 1 + KINDS.index(kind)]:
            evaluation = evaluator(truth, found, name)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    return work


def _torchmetrics(root: Path, kind: str) -> Callable[[], float]:
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    names = ("bbox", "segm")[: 1 + KINDS.index(kind)]

    def tensors(entries: list[dict[str, Any]]) -> dict[str, Any]:
        found = {
            "labels": torch.tensor([entry["category_id"] for entry in entries]),
            "scores": torch.tensor([entry.get("score", 1.0) for entry in entries]),
            "boxes": torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4),
        }
        if kind == "mask":
            masks = [coco_mask.decode(entry["segmentation"]) for entry in entries]
            found["masks"] = torch.from_numpy(np.stack(masks)).bool()
        return found

    def work() -> float:
        metric = MeanAveragePrecision(box_format="xywh", iou_type=names)
        for truth, found in _by_image(root):
            metric.update([tensors(found)], [tensors(truth)])
        figures = metric.compute()
        return float(figures["map" if kind == "box" else "segm_map"])

    return work


def _supervision(root: Path, kind: str) -> Callable[[], float]:
    import supervision as sv
    from supervision.metrics import MeanAveragePrecision, MetricTarget

    def detections(entries: list[dict[str, Any]]) -> Any:
        boxes = np.array([entry["bbox"] for entry in entries], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if kind == "mask":
            masks = np.stack([coco_mask.decode(e["segmentation"]) for e in entries]).astype(bool)
        return sv.Detections(
            xyxy=boxes,
            mask=masks,
            class_id=np.array([entry["category_id"] for entry in entries]),
            confidence=np.array([entry.get("score", 1.0) for entry in entries]),
        )

    def work() -> float:
        targets = (MetricTarget.BOXES, MetricTarget.MASKS)[: 1 + KINDS.index(kind)]
        metrics = [MeanAveragePrecision(metric_target=target) for target in targets]
        for truth, found in _by_image(root):
            pair = detections(found), detections(truth)
            for metric in metrics:
                metric.update(*pair)
        return float([metric.compute().map50_95 for metric in metrics][-1])

    return work


def _by_image(root: Path) -> list[tuple[list[Any], list[Any]]]:
    content = json.loads((root / "test.json").read_text(encoding="utf-8"))
    pairs: dict[int, tuple[list[Any], list[Any]]] = {
        entry["id"]: ([], []) for entry in content["images"]
    }
    for entry in content["annotations"]:
        pairs[entry["image_id"]][0].append(entry)
    for entry in json.loads((root / "found.json").read_text(encoding="utf-8")):
        pairs[entry["image_id"]][1].append(entry)
    return [pair for pair in pairs.values() if all(pair)]


CONTENDERS: dict[str, tuple[str, Work]] = {
    "pycocotools": ("pycocotools", _pycocotools),
    "faster-coco-eval": ("faster_coco_eval", _faster),
    "hotcoco": ("hotcoco", _hotcoco),
    "torchmetrics": ("torchmetrics", _torchmetrics),
    "supervision": ("supervision", _supervision),
    **{name: ("toolkit", _ours(resamples)) for name, resamples in OURS.items()},
}


def _print(rows: dict[tuple[str, str], dict[str, float]]) -> None:
    print("| | kind | AP | load + evaluate, s | times as fast | process, s | times as fast |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, kind), row in rows.items():
        base = rows["pycocotools", kind]
        ratios = [f"{base[key] / row[key]:.1f}" for key in ("seconds", "process")]
        print(
            f"| {name} | {kind} | {row['ap']:.6f} | {row['seconds']:.2f} | {ratios[0]} "
            f"| {row['process']:.2f} | {ratios[1]} |"
        )


if __name__ == "__main__":
    main()
