"""What a step of fine-tuning SAM costs: as notebooks do it, decoded in one call, and from a cache.

    python -m benchmarks.sam_speed [--boxes 4] [--rounds 3] [--out sam_speed.json]

The image encoder is frozen and the mask decoder learns, on procedural pictures of 1024 x 1024, from
random weights, by three ways:

- naive: every box by itself, at every step: its picture is encoded, its box decoded, by plain
  segment-anything (the way of most notebooks);
- uncached: every picture of a batch is encoded once, at every step, and all boxes are decoded in
  one call;
- cached: every picture is encoded once for all, before the first step, into the cache on disk, and
  all boxes are decoded in one call.

All get the same batches (the boxes on as many pictures, or all on one picture), make the same
update, and have to agree on the loss of the first one. A step is the batch, forward, backward and
the optimiser. Each way has a process of its own; they take turns, so that whatever else the machine
does falls on all. Ratios are of the summed times of all rounds, with 95 % bootstrap intervals over
rounds: of very few rounds, or on a busy machine, they are wide. The cache is built before the first
round, so that on a busy machine its price, and when it has paid off, are rough. Memory is the peak
of the process during its steps (Linux alone says so). An epoch is that of ``--epoch`` pictures,
computed from the steps.

The naive step does not depend on how many pictures the boxes are on, and is timed once. Trainers of
others (micro-sam, OpenVINO training extensions) are not compared: they are made for a GPU, and a
ViT-B on a processor says nothing about them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.text import with_interval
from converters.dataset import Image, Instance
from converters.geometry import region_from_mask
from toolkit.config.losses import PRESETS
from toolkit.evaluate.bootstrap import Basis, image_weights, ratio, to_figure
from toolkit.evaluate.metrics import Figure
from toolkit.regions import region_of
from toolkit.segment.cache import EmbeddingCache
from toolkit.segment.data import Batch, BatchBuilder, ImageStore, Prompt, by_image
from toolkit.segment.losses import Criterion
from toolkit.segment.model import build_sam, encode
from toolkit.segment.sam import Sam
from toolkit.segment.task import (
    Material,
    Prompting,
    SamTask,
    batch_losses,
    enlarge,
    loss_cells,
)
from toolkit.segment.views import views_of
from toolkit.synth import DEFECTS, sample

Way: TypeAlias = Literal["naive", "uncached", "cached"]
Layout: TypeAlias = Literal["apart", "together"]
"""Every box on a picture of its own, or all on one."""

WAYS: tuple[Way, ...] = ("naive", "uncached", "cached")
LAYOUTS: tuple[Layout, ...] = ("apart", "together")
TURNS: tuple[tuple[Way, Layout], ...] = (
    ("naive", "apart"),
    ("uncached", "apart"),
    ("cached", "apart"),
    ("uncached", "together"),
    ("cached", "together"),
)
AIM = 15.0
CRITERION = Criterion(PRESETS["sam"])
CACHE_GB = 8.0
CACHED_STEPS = 5
"""Steps from the cache in a turn: one is short."""
SIDE = 1024
RESAMPLES = 2000


@dataclass(frozen=True)
class Timed:
    """Steps of one turn: mean seconds, loss of the first one, peak memory in MiB."""

    seconds: float
    loss: float
    memory: float | None


def main() -> int:
    """Let all ways take turns, print the tables; 1 where the aim is missed."""
    options = _options()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        prompts = draw_prompts(Path(folder), options.boxes)
        lines: dict[Way, Connection] = {}
        built: dict[Way, float] = {}
        processes = []
        for way in WAYS:
            lines[way], theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, way, options.model, prompts, Path(folder) / "cache"),
                daemon=True,
            )
            process.start()
            theirs.close()  # or the end of the process would go unnoticed
            processes.append(process)
            built[way] = lines[way].recv()
        turns: dict[tuple[Way, Layout], list[Timed]] = {turn: [] for turn in TURNS}
        for number in range(options.rounds):
            for turn in TURNS[:: -1 if number % 2 else 1]:
                lines[turn[0]].send(turn[1])
                turns[turn].append(lines[turn[0]].recv())
                print(f"round {number}, {', '.join(turn)}: {turns[turn][-1]}", file=sys.stderr)
        for line, process in zip(lines.values(), processes, strict=True):
            line.send(None)
            process.join()
    _check_losses(turns)
    per_picture = built["cached"] / options.boxes
    print("\n".join(_table(turns, per_picture, options)))
    if options.out is not None:
        content = {
            " ".join(turn): [asdict(each) for each in found] for turn, found in turns.items()
        }
        content["seconds per cached picture"] = per_picture
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if _ratio(turns, "naive", ("cached", "apart")).value >= AIM else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=2, help="per step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epoch", type=int, default=100, help="pictures in an epoch")
    parser.add_argument("--model", choices=("nano", "vit_b", "vit_l", "vit_h"), default="vit_b")
    parser.add_argument("--out", type=Path, help="JSON file of all turns")
    return parser.parse_args()


def draw_prompts(folder: Path, count: int) -> list[Prompt]:
    """As many procedural pictures, with as many defects on each."""
    prompts: list[Prompt] = []
    kinds = list(itertools.islice(itertools.cycle(DEFECTS), count))
    for number in range(count):
        picture = sample(number, size=(SIDE, SIDE), defects=kinds)
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR))
        image = Image(path.name, path, SIDE, SIDE)
        for instance in picture.instances:
            box, mask = region_from_mask(instance.mask)
            prompts.append((image, Instance(instance.kind, box, mask)))
    return prompts


class Contender:
    """One way of fine-tuning."""

    def __init__(self, way: Way, model: Any, prompts: Sequence[Prompt], cache: Path) -> None:
        """Build the model, and the cache for the way that has one; ``built`` is the seconds."""
        torch.manual_seed(0)
        self._sam = build_sam(model)
        self._way = way
        self._store = ImageStore()
        self._prompts = _layouts(prompts)
        self._epoch = 0
        self._tasks: dict[Layout, SamTask] = {}
        self.built = 0.0
        if way == "cached":
            start = time.perf_counter()
            self._tasks["apart"] = build_cached(self._sam, self._prompts["apart"], cache)
            self.built = time.perf_counter() - start
            self._tasks["together"] = build_cached(self._sam, self._prompts["together"], cache)
        self._sam.requires_grad_(False)
        self._sam.mask_decoder.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(self._sam.mask_decoder.parameters(), lr=1e-4)

    def turn(self, layout: Layout) -> Timed:
        """Make a step, or a few where they are short."""
        losses = []
        _reset_peak()
        start = time.perf_counter()
        for _ in range(CACHED_STEPS if self._way == "cached" else 1):
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(self._backward(layout))
            self._optimizer.step()
        seconds = (time.perf_counter() - start) / len(losses)
        return Timed(seconds, losses[0], _peak())

    def _backward(self, layout: Layout) -> float:
        """Gradients of the mean loss of a batch; the loss."""
        if self._way == "naive":
            return self._box_by_box(self._batch(layout))
        if self._way == "cached":
            (batch,) = self._tasks[layout].batches(self._epoch)
            self._epoch += 1
            loss = self._tasks[layout].losses(batch)["loss"]
        else:
            batch = self._batch(layout)
            loss = batch_losses(self._sam, self._encode(batch), batch, CRITERION)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _batch(self, layout: Layout) -> Batch:
        """What the toolkit's own sampler gives without noise, pixels and all."""
        builder = BatchBuilder(self._sam.image_encoder.img_size, loss_cells(self._sam))
        for image, instances in by_image(self._prompts[layout]):
            boxes = [instance.box for instance in instances]
            regions = [region_of(instance) for instance in instances]
            views, owner = views_of(boxes, image.height, image.width, None)
            pixels = self._store.read(image)
            builder.add(image.file_name, pixels, views, owner, boxes, regions)
        return builder.build()

    @torch.no_grad()
    def _encode(self, batch: Batch) -> Tensor:
        """One by one: on a processor that is as fast as all at once, and takes less memory."""
        return torch.cat([encode(self._sam, [pixels]) for pixels in batch.pixels])

    def _box_by_box(self, batch: Batch) -> float:
        """What notebooks do, in segment-anything's own calls."""
        sam, boxes = self._sam, batch.boxes
        assert boxes is not None, "boxes prompt"
        total = 0.0
        for number, owner in enumerate(batch.owner.tolist()):
            one = slice(number, number + 1)
            with torch.no_grad():
                embedding = sam.image_encoder(sam.preprocess(batch.pixels[owner])[None])
                sparse, dense = sam.prompt_encoder(None, boxes[one], None)
            logits, estimates = sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            targets, inside = batch.targets[one], batch.inside[one]
            larger = enlarge(logits, targets.shape[-1])
            loss = CRITERION(larger, estimates, targets, inside)["loss"] / len(boxes)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total


def build_cached(sam: Sam, prompts: Sequence[Prompt], folder: Path) -> SamTask:
    """The toolkit's own task for a frozen encoder, with the embedding of every picture on disk.

    All that this benchmark knows of where embeddings are kept is here.
    """
    return SamTask(
        sam,
        None,
        Material(prompts, []),
        Prompting(jitter=0.0),
        learns="decoder",
        batch=len(prompts),
        criterion=CRITERION,
        cache=EmbeddingCache(sam, folder, CACHE_GB),
        seed=0,
        workers=0,
    )


def _layouts(prompts: Sequence[Prompt]) -> dict[Layout, list[Prompt]]:
    """The first defect of every picture, and all defects of the first picture."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt[0].file_name, prompt)
    name = prompts[0][0].file_name
    return {
        "apart": list(first.values()),
        "together": [prompt for prompt in prompts if prompt[0].file_name == name],
    }


def _serve(line: Connection, way: Way, model: str, prompts: Sequence[Prompt], cache: Path) -> None:
    """In a process of its own: take a turn whenever asked."""
    contender = Contender(way, model, prompts, cache)
    line.send(contender.built)
    while (layout := line.recv()) is not None:
        line.send(contender.turn(layout))


def _reset_peak() -> None:
    """Forget the process's peak of memory so far."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float | None:
    """Peak of memory since then, in MiB."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1024


def _check_losses(turns: dict[tuple[Way, Layout], list[Timed]]) -> None:
    """Before anything is learnt, all ways have to give the same loss: only then they compare."""
    losses = [turns[way, "apart"][0].loss for way in WAYS]
    if max(losses) > min(losses) * 1.01:
        raise SystemExit(f"the ways disagree on the loss of the first step: {losses}")


def _ratio(
    turns: dict[tuple[Way, Layout], list[Timed]], way: Way, other: tuple[Way, Layout]
) -> Figure:
    """How many times as long steps of a way take as those of another."""
    pair = (turns[way, "apart"], turns[other])
    times = [np.array([each.seconds for each in found]) for found in pair]
    rounds = len(times[0])
    weights = image_weights(["round"] * rounds, RESAMPLES, 0)
    basis = Basis(rounds, max(1, rounds - 1), bounded=False)
    return to_figure(ratio(times[0], times[1], weights), n=rounds, basis=basis)


def _table(
    turns: dict[tuple[Way, Layout], list[Timed]], per_picture: float, options: argparse.Namespace
) -> Iterator[str]:
    boxes, pictures = options.boxes, options.epoch
    yield (
        f"{options.model}, {boxes} boxes per step, {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads; an epoch: {pictures} pictures"
    )
    yield ""
    yield "| way | boxes on | s per step | naive takes | s per epoch | peak memory, MiB |"
    yield "| --- | --- | --- | --- | --- | --- |"
    epochs: dict[tuple[Way, Layout], float] = {}
    for layout in LAYOUTS:
        steps = pictures / boxes if layout == "apart" else pictures
        for way in WAYS:
            timed = turns["naive", "apart"] if way == "naive" else turns[way, layout]
            seconds = float(np.mean([each.seconds for each in timed]))
            epochs[way, layout] = seconds * steps
            times = "1"
            if way != "naive":
                times = with_interval(_ratio(turns, "naive", (way, layout)))
            peak = max((each.memory for each in timed if each.memory is not None), default=None)
            yield (
                f"| {way} | {_pictures(layout, boxes)} | {seconds:.2f} | {times} "
                f"| {seconds * steps:.0f} | {'-' if peak is None else format(peak, '.0f')} |"
            )
    yield ""
    build = per_picture * pictures
    yield f"Building the cache: {per_picture:.2f} s per picture, {build:.0f} s for an epoch's."
    for layout in LAYOUTS:
        for way in WAYS[:2]:
            after = build / (epochs[way, layout] - epochs["cached", layout])
            yield (
                f"{boxes} boxes on {_pictures(layout, boxes)}: the cache has paid off against "
                f"{way} after {after:.2f} epochs."
            )
    aim = _ratio(turns, "naive", ("cached", "apart"))
    yield f"Aim, a step from the cache {AIM:.0f} times as fast as the naive one: " + (
        f"{'reached' if aim.value >= AIM else 'missed'} ({with_interval(aim)})."
    )


def _pictures(layout: Layout, boxes: int) -> str:
    return f"{boxes} pictures" if layout == "apart" and boxes > 1 else "1 picture"


if __name__ == "__main__":
    sys.exit(main())
