"""Put the model of a pretraining into the package, with its card.

    python -m toolkit.starter NAME RUN…     # yolo_world_n, sam_nano or resnet18

The runs are the stages of one pretraining in their order, each of which went on from the one
before; the model is that of the last, finished or not. What the card says of real pictures (below
its last heading) is measured by the benchmarks and written by hand: it is kept where there is one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from converters.files import write_text
from toolkit.runs import RunFolder
from toolkit.starter import FOLDER

MEASURED = "## On real pictures"


@dataclass(frozen=True)
class _Model:
    """What a starter is.

    Attributes:
        title: heading of its card.
        command: that pretrains it.
        module: with ``pack``, which writes the best model of a run in half precision.
        score: figure by which the best weights are chosen.
    """

    title: str
    command: str
    module: str
    score: str


_MODELS = {
    "yolo_world_n": _Model(
        "YOLO-World v2 n, a detector", "pretrain yolo", "toolkit.detect.pretrain", "val_ap50"
    ),
    "sam_nano": _Model(
        "SAM nano, a segmenter", "pretrain sam", "toolkit.segment.pretrain", "val_iou"
    ),
    "resnet18": _Model(
        "ResNet-18, for whole pictures",
        "pretrain classifier",
        "toolkit.classify.pretrain",
        "val_score",
    ),
}
_OF_THE_MACHINE = ("command", "out", "device", "workers", "resume")
_OF_A_STAGE = ("weights", "seed", "steps", "batch", "learning_rate", "ramp", "average")


def main(arguments: list[str]) -> None:
    """Pack the model of a pretraining and write its card."""
    if len(arguments) < 2 or arguments[0] not in _MODELS:
        raise SystemExit(f"usage: python -m toolkit.starter {'|'.join(_MODELS)} RUN…")
    name, model = arguments[0], _MODELS[arguments[0]]
    runs = [RunFolder.open(Path(root), model.command) for root in arguments[1:]]
    pack: Callable[[RunFolder], Path] = import_module(model.module).pack
    shutil.copyfile(pack(runs[-1]), FOLDER / f"{name}.safetensors")
    card = FOLDER / f"{name}.md"
    old = card.read_text(encoding="utf-8") if card.is_file() else ""
    measured = old.partition(MEASURED)[2].strip() or "Not measured yet."
    write_text(card, f"{describe(name, runs)}\n{MEASURED}\n\n{measured}\n")


def describe(name: str, runs: Sequence[RunFolder]) -> str:
    """What a pretraining was, as the head of its card."""
    model = _MODELS[name]
    stages = [_Stage.of(run, model.score) for run in runs]
    last = stages[-1]
    validated = ", ".join(
        f"{key} {value:.3f}" for key, value in last.best.items() if key.startswith("val_")
    )
    settings = {
        key: value
        for key, value in last.config.items()
        if key not in (*_OF_THE_MACHINE, *_OF_A_STAGE)
    }
    hours = sum(stage.hours for stage in stages)
    size = (FOLDER / f"{name}.safetensors").stat().st_size / 1e6
    table = "\n".join(stage.row(number) for number, stage in enumerate(stages, start=1))
    return f"""# {model.title}

Starter weights of the defect toolkit: `--weights starter`.

- **Data**: procedural pictures of `toolkit synth`'s source domain alone, drawn while it learnt:
  {sum(stage.pictures for stage in stages):,} different ones. No photograph, no weights of others.
- **Command**: `toolkit {model.command} --out RUN` in the stages below, each going on from the one
  before, with the settings under them; {hours:.1f} hours on one core of a busy CPU.
- **On procedural pictures it never saw** (the last stage's): {validated}.
- **File**: safetensors, half precision, {size:.1f} MB.
- **Licence**: that of the toolkit, AGPL-3.0-or-later.

| stage | seed | steps planned | made | kept | batch | peak rate | ramp | average |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{table}

```yaml
{yaml.safe_dump(settings, sort_keys=False).strip()}
```
"""


@dataclass(frozen=True)
class _Stage:
    """One run of a pretraining.

    Attributes:
        config: its settings.
        steps: that were made.
        best: record of the piece whose weights were kept.
        hours: that it took.
    """

    config: dict[str, Any]
    steps: int
    best: dict[str, Any]
    hours: float

    @classmethod
    def of(cls, run: RunFolder, score: str) -> _Stage:
        lines = (run.root / "log.jsonl").read_text(encoding="utf-8").splitlines()
        log: list[dict[str, Any]] = [json.loads(line) for line in lines]
        best = max(log, key=lambda record: float(record[score]))
        hours = sum(record["seconds"] for record in log) / 3600
        return cls(run.config(), int(log[-1]["step"]), best, hours)

    @property
    def pictures(self) -> int:
        return self.steps * int(self.config["batch"])

    def row(self, number: int) -> str:
        config = self.config
        cells = [number, config["seed"], config["steps"], self.steps, self.best["step"]]
        cells += [config[key] for key in ("batch", "learning_rate", "ramp", "average")]
        return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main(sys.argv[1:])
