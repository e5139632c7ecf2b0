"""Put the model of a pretraining run into the package, with its card.

    python -m toolkit.starter RUN NAME     # yolo_world_n, sam_nano or resnet18

What the card says of real pictures (below its last heading) is measured by the benchmarks and
written by hand: it is kept where there is one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from converters.errors import InputError
from converters.files import write_text
from toolkit.runs import RunFolder
from toolkit.starter import FOLDER

MEASURED = "## On real pictures"
_MODELS = {
    "yolo_world_n": ("YOLO-World v2 n, a detector", "pretrain yolo", "val_ap50"),
    "sam_nano": ("SAM nano, a segmenter", "pretrain sam", "val_iou"),
    "resnet18": ("ResNet-18, for whole pictures", "pretrain classifier", "val_score"),
}
"""Title, command, and the figure by which the kept weights were chosen."""
_OF_THE_MACHINE = ("command", "out", "device", "workers", "resume")


def main(arguments: list[str]) -> None:
    """Copy the packed model of a finished run and write its card."""
    if len(arguments) != 2 or arguments[1] not in _MODELS:
        raise SystemExit(f"usage: python -m toolkit.starter RUN {'|'.join(_MODELS)}")
    name = arguments[1]
    run = RunFolder.open(Path(arguments[0]), _MODELS[name][1])
    packed = run.checkpoints / "starter.safetensors"
    if not packed.is_file():
        raise InputError(f"{run.root}: is not finished: go on with --resume")
    shutil.copyfile(packed, FOLDER / f"{name}.safetensors")
    card = FOLDER / f"{name}.md"
    old = card.read_text(encoding="utf-8") if card.is_file() else ""
    measured = old.partition(MEASURED)[2].strip() or "Not measured yet."
    text = f"{describe(name, run)}\n{MEASURED}\n\n{measured}\n"
    write_text(card, text)


def describe(name: str, run: RunFolder) -> str:
    """What a run was, as the head of its card."""
    title, command, score = _MODELS[name]
    config = {key: value for key, value in run.config().items() if key not in _OF_THE_MACHINE}
    lines = (run.root / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log: list[dict[str, Any]] = [json.loads(line) for line in lines]
    hours = sum(record["seconds"] for record in log) / 3600
    best = max(log, key=lambda record: float(record[score]))
    figures = {key: value for key, value in best.items() if key.startswith("val_")}
    pictures = log[-1]["step"] * config["batch"]
    size = (FOLDER / f"{name}.safetensors").stat().st_size / 1e6
    validated = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
    return f"""# {title}

Starter weights of the defect toolkit: `--weights starter`.

- **Data**: procedural pictures of `toolkit synth`'s source domain alone, drawn while it learnt:
  {pictures:,} different ones, seed {config["seed"]}. No photograph, no weights of others.
- **Command**: `toolkit {command} --out RUN` with the settings below; {log[-1]["step"]:,} steps,
  {hours:.1f} hours on one CPU core; kept after step {best["step"]:,}. Starting from:
  {config["weights"]}.
- **On procedural pictures it never saw**: {validated}.
- **File**: safetensors, half precision, {size:.1f} MB.
- **Licence**: that of the toolkit, AGPL-3.0-or-later.

```yaml
{yaml.safe_dump(config, sort_keys=False).strip()}
```
"""


if __name__ == "__main__":
    main(sys.argv[1:])
