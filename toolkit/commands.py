"""The commands: which function does the work, from which configuration, and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.config import Config


@dataclass(frozen=True)
class Command:
    """Where a command's parts lie, by name, so that listing commands imports none of them.

    Attributes:
        summary: one line of help.
        config: class in ``toolkit.config``.
        function: "module:function" that takes the configuration.
        show: function in ``toolkit.show`` that prints the result.
        positional: fields given by position.
        variadic: whether the last of them takes all words that are left.
    """

    summary: str
    config: str
    function: str
    show: str
    positional: tuple[str, ...] = ()
    variadic: bool = False

    def run(self, config: Config) -> Any:
        """Do the work; imports what it needs now."""
        module, name = self.function.split(":")
        work: Callable[[Config], Any] = getattr(import_module(module), name)
        return work(config)

    def print(self, config: Config, result: Any, *, as_json: bool = False) -> int:
        """Print the result and return the exit code."""
        show: Callable[..., int] = getattr(import_module("toolkit.show"), self.show)
        return show(config, result, as_json=as_json)

    def words(self, field: str) -> int:
        """How many words a field that is given by position takes; -1 for all that are left."""
        return -1 if self.variadic and field == self.positional[-1] else 1

    def line(self, name: str, config: Config) -> str:
        """The command line that gives this configuration."""
        words = ["toolkit", name]
        for field in self.positional:
            value = getattr(config, field)
            words += [as_text(value)] if self.words(field) == 1 else map(str, value)
        for field, info in type(config).model_fields.items():
            value = getattr(config, field)
            if field in self.positional or value == info.default:
                continue
            flag = field.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            words += [f"--{flag}", as_text(value)]
        return shlex.join(words).replace(f"'{name}'", name)


def as_text(value: object) -> str:
    """A value as it is written after a flag: tuples as A,B and mappings as NAME=A,NAME=B."""
    if isinstance(value, dict):
        return ",".join(f"{name}={str(part).removesuffix('.0')}" for name, part in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


COMMANDS: dict[str, Command] = {
    "convert": Command(
        "Pictures and masks to a dataset folder (COCO), split without leaks.",
        "ConvertConfig",
        "toolkit.data:convert_dataset",
        "conversion",
        ("source", "dest"),
    ),
    "check": Command(
        "List what is wrong with a dataset or a source folder.",
        "CheckConfig",
        "toolkit.data:check_dataset",
        "findings",
        ("dataset",),
    ),
    "crop": Command(
        "Make every instance a picture of its own, for a classifier of defects.",
        "CropConfig",
        "toolkit.data:crop_dataset",
        "cropped",
        ("dataset", "dest"),
    ),
    "balance": Command(
        "Give every class of the train split enough instances.",
        "BalanceConfig",
        "toolkit.balance:balance",
        "balanced",
        ("dataset", "dest"),
    ),
    "synth": Command(
        "Make procedural pictures of surfaces with defects.",
        "SynthConfig",
        "toolkit.data:synthesise",
        "synthesised",
        ("dest",),
    ),
    "finetune yolo": Command(
        "Fine-tune YOLO-World, or a plain detector, to find defects.",
        "FinetuneYoloConfig",
        "toolkit.detect:finetune_yolo",
        "run",
    ),
    "finetune sam": Command(
        "Fine-tune SAM to outline defects.",
        "FinetuneSamConfig",
        "toolkit.segment:finetune_sam",
        "run",
    ),
    "finetune classifier": Command(
        "Fine-tune a ResNet to say good, or which defect.",
        "FinetuneClassifierConfig",
        "toolkit.classify:finetune_classifier",
        "run",
    ),
    "pretrain yolo": Command(
        "Pretrain a detector on procedural defects.",
        "PretrainYoloConfig",
        "toolkit.detect.pretrain:pretrain_yolo",
        "pretrained",
    ),
    "pretrain sam": Command(
        "Pretrain SAM nano on procedural defects.",
        "PretrainSamConfig",
        "toolkit.segment.pretrain:pretrain_sam",
        "pretrained",
    ),
    "pretrain classifier": Command(
        "Pretrain a ResNet on procedural defects.",
        "PretrainClassifierConfig",
        "toolkit.classify.pretrain:pretrain_classifier",
        "pretrained",
    ),
    "adapt": Command(
        "Teach an encoder a poor data set by a rich one (domain adaptation).",
        "AdaptConfig",
        "toolkit.adapt:adapt_classifier",
        "adapted",
    ),
    "prompts make": Command(
        "Turn phrases into class embeddings, where the weights of CLIP are.",
        "PromptsMakeConfig",
        "toolkit.detect.prompts:make_prompts",
        "prompts",
        ("phrases",),
    ),
    "predict": Command(
        "Find and outline defects on pictures.",
        "PredictConfig",
        "toolkit.predict:predict",
        "predicted",
        ("source",),
    ),
    "evaluate": Command(
        "Score predictions on held-out pictures, with intervals.",
        "EvaluateConfig",
        "toolkit.evaluate:evaluate",
        "metrics",
    ),
    "compare": Command(
        "Compare two runs on the same pictures: differences, intervals, p-values.",
        "CompareConfig",
        "toolkit.evaluate:compare",
        "comparison",
        ("first", "second"),
    ),
    "experiment": Command(
        "Run a baseline and its variants over folds and seeds, and make a table of them.",
        "ExperimentConfig",
        "toolkit.experiment:experiment",
        "experimented",
        ("experiment",),
    ),
    "report": Command(
        "One HTML page about a run, or several side by side.",
        "ReportConfig",
        "toolkit.report.page:report",
        "reported",
        ("runs",),
        variadic=True,
    ),
    "export": Command(
        "Export a detector or a segmenter to ONNX and other formats, and check it.",
        "ExportConfig",
        "toolkit.export:export",
        "exported",
        ("run",),
    ),
    "weights list": Command(
        "List weights that are known by name, and which of them are here.",
        "WeightsListConfig",
        "toolkit.weights_folder:list_weights",
        "weights_listed",
    ),
    "weights get": Command(
        "Download official weights; the only command that downloads.",
        "WeightsGetConfig",
        "toolkit.weights_folder:get_weights",
        "weights_got",
        ("name",),
    ),
    "weights verify": Command(
        "Compare weights with their SHA-256.",
        "WeightsVerifyConfig",
        "toolkit.weights_folder:verify_weights",
        "weights_verified",
        ("name_or_path",),
    ),
    "demo": Command(
        "Walk the whole path once, from pictures to figures.",
        "DemoConfig",
        "toolkit.demo:demo",
        "demo",
    ),
}
