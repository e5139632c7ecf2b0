"""What our trainer costs per step over ultralytics' own, with the same model and the same data.

    python -m benchmarks.yolo_overhead DATASET [--rounds 6] [--steps 24] [--device cpu]

DATASET is a dataset folder. For ultralytics it is written out as label files; CLIP, which its
YOLO-World trainer asks for embeddings, is answered with the vectors that ours is given. Both train
the same network (in the same precision) with the same arguments: size, batch, augmentation,
optimiser, workers. They take turns, one epoch each round, so that whatever else the machine does
falls on both. A step is the time from one batch to the next, waiting for pictures included. The
figure is the ratio of the median steps, ours over theirs; its interval is a 95 % bootstrap interval
over rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

import toolkit.detect  # noqa: F401 - switches ultralytics' calls off before it is imported
from toolkit.architectures import WORLD
from toolkit.config import FinetuneYoloConfig
from toolkit.detect.data import prompt_name
from toolkit.detect.embeddings import ClassEmbeddings, resolve_embeddings
from toolkit.detect.models import build_model, build_plain, set_classes
from toolkit.detect.recipe import training_arguments
from toolkit.detect.trainer import OfflinePlainTrainer, OfflineWorldTrainer
from toolkit.devices import resolve_device
from toolkit.offline import quiet

import torch  # isort: skip
from ultralytics.models.yolo.detect import DetectionTrainer  # isort: skip
from ultralytics.models.yolo.world import WorldTrainer  # isort: skip

from converters.dataset import Dataset
from converters.folder import DatasetFolder
from converters.formats.yolo import write_yolo

MODELS = (WORLD, "yolov8n")
_RESAMPLES = 2000


def main() -> None:
    options = _options()
    folder = DatasetFolder.open(options.dataset, options.fold)
    count = options.steps * options.batch
    splits = {name: folder.read(name) for name in ("train", "val")}
    train = splits["train"]
    images = (train.images * (count // len(train.images) + 1))[:count]
    splits = {
        "train": train.subset(images),
        "val": splits["val"].subset(splits["val"].images[: options.batch]),
    }
    print(
        f"{options.steps} steps of {options.batch} at {options.image_size} px per round, "
        f"{options.rounds} rounds, on {resolve_device(options.device)}"
    )
    print("| model | ours, ms per step | ultralytics, ms per step | ratio |")
    print("| --- | --- | --- | --- |")
    for arch in options.models:
        ours: list[list[float]] = []
        theirs: list[list[float]] = []
        for number in range(options.rounds + 1):
            for own, steps in ((True, ours), (False, theirs))[:: 1 if number % 2 else -1]:
                found = _one_epoch(arch, own, splits, options)
                if number:  # the first round warms up
                    steps.append(found)
        print(_row(arch, ours, theirs), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--fold", type=int, default=None)
    parser.add_argument("--models", type=lambda text: tuple(text.split(",")), default=MODELS)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=24, help="per round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    return parser.parse_args()


def _one_epoch(
    arch: str, own: bool, splits: dict[str, Dataset], options: argparse.Namespace
) -> list[float]:
    """Seconds of every step but the first, by our trainer or by ultralytics' own."""
    classes = splits["train"].categories
    config = FinetuneYoloConfig(
        data=options.dataset,
        out=Path("unused"),
        arch=arch,
        epochs=1,
        batch=options.batch,
        image_size=options.image_size,
        close_mosaic=0,
        workers=options.workers,
    )
    embeddings = resolve_embeddings(classes, None, None, 0)
    if arch == WORLD:
        model = build_model("n")
        set_classes(model, embeddings)
    else:
        model = build_plain(arch, classes)
    arguments = training_arguments(
        config,
        origin="random",
        classes=len(classes),
        images=len(splits["train"].images),
        image_size=options.image_size,
        device=resolve_device(options.device),
        frozen=[],
    )
    with tempfile.TemporaryDirectory() as scratch, quiet():
        arguments["save_dir"] = str(Path(scratch) / "run")
        make = _ours if own else _theirs
        trainer = make(arch, arguments, model, embeddings, splits, Path(scratch))
        marks: list[float] = []
        prepare = trainer.preprocess_batch

        def marking(batch: dict[str, Any]) -> Any:
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            return prepare(batch)

        trainer.preprocess_batch = marking
        trainer.train()
    steps = marks[: options.steps]  # ultralytics validates once more at the end
    return np.diff(steps).tolist()


def _ours(
    arch: str,
    arguments: dict[str, Any],
    model: Any,
    embeddings: ClassEmbeddings,
    splits: dict[str, Dataset],
    scratch: Path,
) -> Any:
    shared: dict[str, Any] = {
        "overrides": arguments,
        "model": model,
        "splits": splits,
        "factors": [1.0] * len(splits["train"].images),
        "state": scratch / "last.safetensors",
        "on_epoch": lambda epoch: None,
        "on_best": lambda weights: None,
    }
    if arch == WORLD:
        return OfflineWorldTrainer(embeddings=embeddings, mode="full", **shared)
    return OfflinePlainTrainer(**shared)


class _AnsweredWorldTrainer(WorldTrainer):  # type: ignore[misc]
    """ultralytics' own, with the embeddings that it would ask CLIP for."""

    vectors: torch.Tensor

    def generate_text_embeddings(
        self, texts: list[str], batch: int, cache_dir: Path
    ) -> dict[str, torch.Tensor]:
        return {prompt_name(index): vector for index, vector in enumerate(self.vectors)}


def _theirs(
    arch: str,
    arguments: dict[str, Any],
    model: Any,
    embeddings: ClassEmbeddings,
    splits: dict[str, Dataset],
    scratch: Path,
) -> Any:
    root = scratch / "yolo"
    _write_labels(splits, root)
    kind = _AnsweredWorldTrainer if arch == WORLD else DetectionTrainer
    threads = torch.get_num_threads()
    trainer = kind(
        overrides={**arguments, "data": str(root / "data.yaml"), "model": "yolov8n.yaml"}
    )
    torch.set_num_threads(threads)  # as ours
    trainer.model = model
    if arch == WORLD:
        trainer.vectors = embeddings.vectors
    return trainer


def _write_labels(splits: dict[str, Dataset], root: Path) -> None:
    """Pictures and label files as ultralytics reads them; repeated pictures are files apart."""
    (root / "images").mkdir(parents=True)
    apart = {}
    for split, dataset in splits.items():
        images = []
        for number, image in enumerate(dataset.images):
            name = f"{split}_{number}{image.path.suffix}"
            (root / "images" / name).symlink_to(image.path.resolve())
            images.append(replace(image, file_name=name, id=number + 1))
        apart[split] = dataset.subset(tuple(images))
    write_yolo(apart, root)
    description = yaml.safe_load((root / "data.yaml").read_text(encoding="utf-8"))
    names = {index: prompt_name(index) for index in description["names"]}
    content = yaml.safe_dump({**description, "path": str(root), "names": names})
    (root / "data.yaml").write_text(content, encoding="utf-8")


def _row(arch: str, ours: list[list[float]], theirs: list[list[float]]) -> str:
    rng = np.random.default_rng(0)
    first, second = np.array(ours), np.array(theirs)
    draws = rng.integers(0, len(first), (_RESAMPLES, len(first)))
    ratios = [float(_median(first[rows]) / _median(second[rows])) for rows in draws]
    low, high = np.quantile(ratios, [0.025, 0.975])
    ratio = _median(first) / _median(second)
    return (
        f"| {arch} | {1e3 * _median(first):.0f} | {1e3 * _median(second):.0f} "
        f"| {ratio:.3f} [{low:.3f}, {high:.3f}] |"
    )


def _median(steps: npt.NDArray[np.float64]) -> float:
    return float(np.median(steps))


if __name__ == "__main__":
    sys.exit(main())
