r"""Score maps side by side: our AUPRO and anomalib's, in value, time and memory.

    python -m benchmarks.maps [--images 60] [--side 512] [--repeats 3]

Procedural maps: smooth noise, higher on defects, in half precision as they come out of a network
(so that scores tie), one ``.npy`` per picture. Every contender reads the same files and masks in a
process of its own. anomalib keeps every pixel and sorts them all; ours counts them in bins. It is
best installed beside this environment, not in it, without what only its models need::

    pip install --no-deps --target DIR anomalib lightning kornia kornia_rs \
        omegaconf jsonargparse tifffile pandas
    PYTHONPATH=DIR python -m benchmarks.maps
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from converters.dataset import Dataset, Image, Instance
from converters.formats.coco import read_coco, write_coco
from converters.geometry import connected_regions

LIMITS = (0.3, 0.05)


def main() -> None:
    """Make the files, time both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(_run(CONTENDERS[options.run], options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.images, options.side)
        names = [name for name in CONTENDERS if _is_there(name)]
        rounds = [{name: _start(name, folder) for name in names} for _ in range(options.repeats)]
    _print({name: min((r[name] for r in rounds), key=lambda row: row["seconds"]) for name in names})


def _is_there(name: str) -> bool:
    if name == "toolkit" or find_spec(name) is not None:
        return True
    print(f"{name}: left out, it is not installed", file=sys.stderr)
    return False


def make(root: Path, images: int, side: int) -> None:
    """Write ground truth and maps; every third picture is good."""
    rng = np.random.default_rng(0)
    (root / "maps").mkdir()
    entries = []
    for number in range(images):
        mask = np.zeros((side, side), np.uint8)
        for _ in range(0 if number % 3 == 0 else int(rng.integers(1, 6))):
            centre = rng.integers(0, side, 2).tolist()
            axes = rng.integers(2, side // 8, 2).tolist()
            cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        noise = cv2.GaussianBlur(rng.normal(0, 1, (side, side)), (0, 0), 4) * 7
        score = noise + cv2.GaussianBlur(mask.astype(float), (0, 0), 6) * rng.uniform(0.5, 3)
        np.save(root / "maps" / f"{number:04}.npy", score.astype(np.float16))
        instances = tuple(
            Instance("defect", box, crop, id=100 * number + index)
            for index, (box, crop) in enumerate(connected_regions(mask.astype(bool)), start=1)
        )
        name = f"{number:04}.png"
        entries.append(Image(name, Path(name), side, side, instances, id=number + 1))
    write_coco(root / "test.json", Dataset("test", ("defect",), tuple(entries)))


def _ours(root: Path) -> list[float]:
    from toolkit.evaluate.scoring import score_maps

    dataset = read_coco(root / "test.json", root)
    return [
        score_maps(dataset, root / "maps", fpr_limit=limit, resamples=0)
        .figures["pixel.AUPRO"]
        .value
        for limit in LIMITS
    ]


def _anomalib(root: Path) -> list[float]:
    import torch
    from anomalib.metrics.aupro import _AUPRO as Aupro

    metrics = [Aupro(fpr_limit=limit) for limit in LIMITS]
    for image in read_coco(root / "test.json", root).images:
        mask = np.zeros((image.height, image.width), bool)
        for instance in image.instances:
            mask |= instance.to_mask(image.height, image.width)
        scores = np.load(root / "maps" / f"{Path(image.file_name).stem}.npy").astype(np.float32)
        for metric in metrics:
            metric.update(torch.from_numpy(scores)[None], torch.from_numpy(mask)[None].int())
    return [float(metric.compute()) for metric in metrics]


CONTENDERS: dict[str, Callable[[Path], list[float]]] = {"anomalib": _anomalib, "toolkit": _ours}


def _run(work: Callable[[Path], list[float]], folder: Path) -> dict[str, object]:
    # What a contender imports is not its work: once for nothing, on two small pictures.
    with tempfile.TemporaryDirectory() as warm:
        make(Path(warm), 2, 64)
        work(Path(warm))
    before = _peak()
    start = time.perf_counter()
    values = work(folder)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "values": values, "memory": _peak() - before}


def _peak() -> float:
    """Most memory that this process ever held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _start(name: str, folder: str) -> dict[str, object]:
    words = [sys.executable, "-m", "benchmarks.maps", "--run", name, "--folder", folder]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _print(rows: dict[str, dict[str, object]]) -> None:
    heads = " | ".join(f"AUPRO to {limit}" for limit in LIMITS)
    print(f"| | {heads} | s | memory beyond imports, MiB |")
    print("| --- " * (3 + len(LIMITS)) + "|")
    for name, row in rows.items():
        values = " | ".join(f"{value:.6f}" for value in row["values"])  # type: ignore[attr-defined]
        print(f"| {name} | {values} | {row['seconds']:.2f} | {row['memory']:.0f} |")


if __name__ == "__main__":
    main()
