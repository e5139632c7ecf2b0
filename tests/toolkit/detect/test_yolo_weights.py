"""Weights of YOLO-World v2: random, from a file in the official format, from one of our runs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.errors import InputError
from toolkit.config import FinetuneYoloConfig
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.embeddings import resolve_embeddings
from toolkit.detect.models import build_model, set_classes
from toolkit.detect.weights import COMMAND, RunModel, load_trained, save_description, save_weights
from toolkit.runs import RunFolder

WriteOfficial = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model("n", seed=5)


@pytest.fixture
def write_official(tmp_path: Path, model: Any) -> WriteOfficial:
    """Write a file as ultralytics publishes them: pickled modules in half precision."""

    def write(name: str = "yolov8n-worldv2.pt", **entries: Any) -> Path:
        from copy import deepcopy

        from ultralytics.nn.tasks import WorldModel  # after toolkit.detect

        published = deepcopy(model).half()
        published.__class__ = WorldModel
        published.names = {i: f"name {i}" for i in range(80)}
        content = {
            "epoch": -1,
            "best_fitness": None,
            "model": published,
            "ema": None,
            "updates": None,
            "optimizer": None,
            "train_args": {"imgsz": 640, "model": "yolov8n-worldv2.yaml"},
            "date": "2024-04-02T00:00:00",
            "version": "8.1.42",
            **entries,
        }
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


class _Payload:
    """What a hostile file holds: a call that unpickling makes."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_random_weights_depend_on_the_seed_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (build_model("n", seed=seed).state_dict() for seed in (1, 1, 2))

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.0.conv.weight"], other["model.0.conv.weight"])


def test_setting_classes_changes_no_tensor_but_the_number_of_scores(model: Any) -> None:
    from copy import deepcopy

    changed = deepcopy(model).eval()
    set_classes(changed, resolve_embeddings(("a/b", "c"), None, None, seed=0))

    assert changed.state_dict().keys() == model.state_dict().keys()
    assert changed(torch.zeros(1, 3, 64, 64))[0].shape == (1, 4 + 2, 84)


def test_an_official_file_loads_whole_without_trust(
    write_official: WriteOfficial, model: Any
) -> None:
    start = load_starting_point(str(write_official()), "x", 0, trust=False)

    count = len(model.state_dict())
    assert start.scale == "n"  # the file's own
    assert start.source == f"yolov8n-worldv2.pt ({count} of {count} tensors)"
    for name, tensor in start.model.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.int64)
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-3, rtol=1e-2), name
    assert start.embeddings is not None
    assert start.embeddings.names[79] == "name 79"
    assert start.embeddings.origins[0] == "from yolov8n-worldv2.pt"
    assert torch.allclose(start.embeddings.vectors.norm(dim=1), torch.ones(80), atol=1e-3)


def test_a_file_with_foreign_objects_is_not_run_without_trust(
    write_official: WriteOfficial, tmp_path: Path
) -> None:
    path = write_official(extra=_Payload(tmp_path / "hacked"))

    with pytest.raises(InputError, match=r"could run any code: .* --trust"):
        load_starting_point(str(path), "n", 0, trust=False)
    assert not (tmp_path / "hacked").exists()

    path = write_official(extra=Namespace(harmless=True))
    with pytest.raises(InputError, match="--trust"):
        load_starting_point(str(path), "n", 0, trust=False)
    assert load_starting_point(str(path), "n", 0, trust=True).scale == "n"


def test_another_architecture_is_refused(write_official: WriteOfficial) -> None:
    from ultralytics.nn.tasks import DetectionModel, WorldModel

    first = WorldModel("yolov8n-world.yaml", nc=80, verbose=False)
    with pytest.raises(InputError, match=r"of \d+ tensors fit yolov8-worldv2"):
        load_starting_point(str(write_official("v1.pt", model=first)), "n", 0, trust=False)
    plain = DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    with pytest.raises(
        InputError, match="tensors of its backbone fit: give weights of yolov8-worldv2"
    ):
        load_starting_point(str(write_official("plain.pt", model=plain)), "n", 0, trust=False)


@pytest.mark.parametrize("scale", ["n", "s"])
def test_a_plain_yolov8_gives_its_backbone(write_official: WriteOfficial, scale: str) -> None:
    from ultralytics.nn.tasks import DetectionModel  # after toolkit.detect

    plain = DetectionModel(f"yolov8{scale}.yaml", nc=3, verbose=False)
    start = load_starting_point(
        str(write_official(f"yolov8{scale}.pt", model=plain)), "n", 5, trust=False
    )
    assert (start.scale, start.origin) == (scale, "random")
    assert start.source == f"the backbone of yolov8{scale}.pt"
    theirs, ours = plain.state_dict(), start.model.state_dict()
    random = load_starting_point("none", start.scale, 5, trust=False).model.state_dict()
    for name, tensor in ours.items():
        expected = theirs if int(name.split(".")[1]) < 10 else random
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


def test_a_damaged_or_missing_file_is_one_line(
    write_official: WriteOfficial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_official("yolov8s-worldv2.pt")
    path.write_bytes(path.read_bytes()[:100_000])
    monkeypatch.chdir(tmp_path)

    # by the bare name of a published file, which ultralytics would delete and download
    with pytest.raises(InputError, match=r"yolov8s-worldv2\.pt: is damaged"):
        load_starting_point("yolov8s-worldv2.pt", "n", 0, trust=False)
    assert path.exists()
    with pytest.raises(InputError, match=r"no such file: download it from https://"):
        load_starting_point("yolov8x-worldv2.pt", "n", 0, trust=False)
    with pytest.raises(InputError, match="neither"):
        load_starting_point("weights.safetensors", "n", 0, trust=False)


def _save_run(root: Path, model: Any) -> RunFolder:
    run = RunFolder.create(root, COMMAND, FinetuneYoloConfig(data=root, out=root))
    embeddings = resolve_embeddings(("cable/cut", "spot"), None, None, seed=7)
    set_classes(model, embeddings)
    save_description(run, RunModel(model, "n", embeddings, 96, "random weights"))
    save_weights(run, model.state_dict())
    return run


def test_a_run_loads_as_it_was_saved(tmp_path: Path, model: Any) -> None:
    run = _save_run(tmp_path / "run", model)

    loaded = load_trained(run.root)
    start = load_starting_point(str(run.root), "x", 0, trust=False)

    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert (loaded.scale, loaded.image_size) == ("n", 96)
    assert loaded.model.txt_feats.shape == (1, 2, 512)
    assert start.embeddings is not None and start.embeddings.names == ("cable/cut", "spot")
    assert start.source == "run run"


@pytest.mark.parametrize("name", ["best.safetensors", "embeddings.safetensors", "model.json"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, model: Any, name: str) -> None:
    run = _save_run(tmp_path / "run", model)
    path = run.checkpoints / name
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_trained(run.root)


def test_random_weights_alone_are_made_ready_to_learn(write_official: WriteOfficial) -> None:
    # with a momentum of 0.03, AP on val stays 0 for the first hundred steps
    random, official = (
        load_starting_point(weights, "n", 0, trust=False).model
        for weights in ("none", str(write_official()))
    )

    def momenta(model: Any) -> set[float]:
        norms = (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        return {norm.momentum for norm in norms}

    assert momenta(random) == {0.1}
    assert momenta(official) == {0.03}
    assert float(random.model[-1].cv4[0].bias.detach()) == pytest.approx(-7)
    assert float(official.model[-1].cv4[0].bias.detach()) == pytest.approx(-10)
