"""Copy-paste measured: how fast it is, and whether its seams can be seen.

    python -m benchmarks.balance DATASET [--fold 0] [--target 300] [--seeds 3]

Speed: pictures per second of `toolkit balance`, from looking at train to the contact sheet, against
reading the same hosts and writing the same results and nothing else, both on all cores, best of
three.
Seams: accuracy of a small network at telling pasted from real defects it has not seen (0.5 where
nothing gives a paste away), for each way of blending, over some seeds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import cv2

from converters.folder import DatasetFolder
from toolkit.balance import balance
from toolkit.balance.blend import Blend
from toolkit.balance.compose import read_pixels
from toolkit.config import BalanceConfig

REPEATS = 3


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--target", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("| blending | pictures / s | of reading and writing | seam accuracy, by seed |")
        print("| --- | --- | --- | --- |")
        for blend in get_args(Blend):
            print(_row(options, blend, Path(folder) / blend), flush=True)


def _row(options: argparse.Namespace, blend: Blend, root: Path) -> str:
    def run(name: str, seed: int = 0, *, seams: bool = False) -> float:
        config = BalanceConfig(
            dataset=options.dataset,
            dest=root / name,
            fold=options.fold,
            target=options.target,
            method="paste",
            blend=blend,
            per_donor=100,
            per_host=100,
            seed=seed,
            seam_test=seams,
        )
        return balance(config).seams[blend].value if seams else balance(config).pictures

    run("warm")
    ours = max(_rate(lambda n=n: int(run(f"timed{n}"))) for n in range(REPEATS))
    plain = max(_rate(lambda: _copy(root / "warm", options.fold)) for _ in range(REPEATS))
    seams = ", ".join(f"{run(f'seams{n}', n, seams=True):.2f}" for n in range(options.seeds))
    return f"| {blend} | {ours:.1f} | {ours / plain:.2f} | {seams} |"


def _rate(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def _copy(made: Path, fold: int | None) -> int:
    """Read the host of every new picture, read what became of it, and write that again."""
    train = DatasetFolder.open(made, fold).read("train")
    hosts = {image.id: image.path for image in train.images}
    pairs = [(hosts[i.copy_of], i.path) for i in train.images if i.file_name.startswith("pasted")]
    results = {path: read_pixels(path) for _, path in pairs}

    def one(pair: tuple[Path, Path]) -> None:
        read_pixels(pair[0])
        pair[1].with_suffix(".copy").write_bytes(
            cv2.imencode(".png", results[pair[1]])[1].tobytes()
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, pairs))
    return len(pairs)


if __name__ == "__main__":
    main()
