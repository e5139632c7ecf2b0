"""Training arguments: defaults that fit the weights, and none that changes them behind our back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.config import FinetuneYoloConfig, build
from toolkit.detect import models, recipe
from toolkit.detect.recipe import training_arguments
from toolkit.detect.weights import Origin

CPU = torch.device("cpu")


def _arguments(origin: Origin, **options: Any) -> dict[str, Any]:
    return _arguments_of(FinetuneYoloConfig(data=Path("data"), out=Path("run"), **options), origin)


def _arguments_of(config: FinetuneYoloConfig, origin: Origin) -> dict[str, Any]:
    return training_arguments(
        config, origin=origin, classes=3, images=100, image_size=64, device=CPU, frozen=[]
    )


def test_fine_tuning_follows_the_recipe_for_box_only_data() -> None:
    arguments = _arguments("photographs")

    assert (arguments["optimizer"], arguments["lr0"]) == ("SGD", 1e-3)
    assert (arguments["epochs"], arguments["close_mosaic"]) == (40, 30)
    assert arguments["weight_decay"] == 5e-4


def test_random_weights_learn_with_adamw_and_mosaic() -> None:
    arguments = _arguments("random")

    assert (arguments["optimizer"], arguments["lr0"]) == ("AdamW", 2e-3)
    assert arguments["close_mosaic"] == 10


def test_what_the_user_gives_wins() -> None:
    arguments = _arguments("random", optimizer="SGD", learning_rate=0.5, close_mosaic=0)

    assert (arguments["optimizer"], arguments["lr0"]) == ("SGD", 0.5)
    assert arguments["close_mosaic"] == 0


def test_a_batch_is_one_step() -> None:
    # ultralytics adds up gradients to 64 pictures and scales weight decay, unless nbs is the batch
    assert _arguments("random", batch=8)["nbs"] == 8


@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (4, 2), (40, 28), (1000, 100)])
def test_warmup_is_a_tenth_of_the_steps_and_at_most_a_hundred(epochs: int, steps: int) -> None:
    arguments = _arguments("random", epochs=epochs)

    per_epoch = 7  # 100 pictures in batches of 16
    assert arguments["warmup_epochs"] * per_epoch == pytest.approx(steps)


def test_starters_learn_like_random_weights_at_half_the_rate() -> None:
    arguments = _arguments("procedural")

    assert (arguments["optimizer"], arguments["lr0"]) == ("AdamW", 1e-3)
    assert arguments["close_mosaic"] == 10


@pytest.mark.parametrize(
    ("device", "native", "amp"),
    [("cuda", True, "bf16"), ("cuda", False, False), ("cpu", True, False), ("cpu", False, False)],
)
def test_ultralytics_mixes_precision_on_gpus_that_are_made_for_it(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, amp: str | bool
) -> None:
    monkeypatch.setattr(recipe, "has_bfloat16", lambda device: native)
    config = FinetuneYoloConfig(data=Path("data"), out=Path("run"))

    arguments = training_arguments(
        config,
        origin="random",
        classes=3,
        images=100,
        image_size=64,
        device=torch.device(device),
        frozen=[],
    )
    assert arguments["amp"] == amp


@pytest.mark.parametrize("native", [True, False])
def test_on_a_cpu_the_model_itself_mixes_precision_while_it_learns(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(models, "has_bfloat16", lambda device: native)
    model = models.build_model("n")
    seen: list[torch.dtype] = []
    model.model[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    pictures = torch.rand(2, 3, 64, 64)

    found = model.train()(pictures)
    model.eval()(pictures)

    assert seen == [torch.bfloat16 if native else torch.float32, torch.float32]
    assert all(tensor.dtype == torch.float32 for tensor in (found["boxes"], found["scores"]))


PRESETS = {
    "yolo": ("SGD", 1e-3),
    "yolo_freeze_backbone": ("SGD", 1e-3),
    "yolo_prompt": ("AdamW", 2e-3),
    "yolo_reparam": ("AdamW", 1e-3),
    "yolo_plain": ("AdamW", 0.01 / 7),
    "yolo_starter_cpu": ("AdamW", 1e-3),
    "yolo_none_cpu": ("AdamW", 2e-3),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_learn_at_the_rate_that_they_speak_of(name: str) -> None:
    preset = Path(__file__).parents[3] / "configs" / f"{name}.yaml"
    config = build(FinetuneYoloConfig, preset, {"data": "data", "out": "run"})
    origins: dict[str, Origin] = {"none": "random", "starter": "procedural"}
    origin = origins.get(config.weights, "photographs")

    found = _arguments_of(config, origin)

    optimizer, rate = PRESETS[name]
    assert found["optimizer"] == optimizer
    assert found["lr0"] == pytest.approx(rate)


def test_every_preset_is_tried() -> None:
    files = (Path(__file__).parents[3] / "configs").glob("yolo*.yaml")
    assert {file.stem for file in files} == set(PRESETS)
