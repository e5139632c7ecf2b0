from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from converters.errors import InputError
from converters.files import write_json
from toolkit.classify.model import ARCHITECTURES, build_resnet
from toolkit.classify.weights import ADAPT, COMMAND, _recognise, load_backbone, load_run
from toolkit.config import AdaptConfig, FinetuneClassifierConfig
from toolkit.runs import RunFolder

pytestmark = pytest.mark.usefixtures("narrow")

CLASSES = ("good", "dent", "hole")


def _state(architecture="resnet18", classes=1000):
    torch.manual_seed(5)
    return build_resnet(architecture, classes).state_dict()


def _same(model, state, *, head=False):
    return all(
        torch.equal(tensor, state[name])
        for name, tensor in model.state_dict().items()
        if head or not name.startswith("fc.")
    )


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_an_official_file_loads_as_what_it_is_with_a_new_head(tmp_path, architecture):
    state = _state(architecture)
    torch.save(state, tmp_path / "w.pth")
    model, found = load_backbone(str(tmp_path / "w.pth"), None, CLASSES)
    assert found == architecture
    assert model.fc.out_features == 3
    assert _same(model, state)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_recognised_by_its_shapes(tmp_path, architecture):
    with torch.device("meta"):  # the wide ones have half a gigabyte
        state = build_resnet(architecture, 1000).state_dict()
    assert _recognise(tmp_path, state) == architecture


@pytest.mark.parametrize("build", [models.resnet101, models.resnet152])
def test_resnets_that_are_not_supported_are_not_taken_for_others(tmp_path, build):
    with torch.device("meta"):
        state = build(weights=None).state_dict()
    with pytest.raises(InputError, match=r"of no known depth or width \(\d+ blocks in layer3\)"):
        _recognise(tmp_path, state)


def test_files_from_before_the_batch_counters_load(tmp_path):
    state = {n: t for n, t in _state().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet18-old.pth", _use_new_zipfile_serialization=False)
    model, _ = load_backbone(str(tmp_path / "resnet18-old.pth"), "resnet18", CLASSES)
    assert _same(model, {**_state(), **state})


@pytest.mark.parametrize("head", [None, 7])
def test_a_safetensors_file_loads_whatever_its_head(tmp_path, head):
    state = {n: t for n, t in _state(classes=7).items() if head or not n.startswith("fc.")}
    save_file(state, tmp_path / "w.safetensors")
    model, found = load_backbone(str(tmp_path / "w.safetensors"), None, CLASSES)
    assert (found, model.fc.out_features) == ("resnet18", 3)
    assert _same(model, state)


def test_half_precision_becomes_single(tmp_path):
    state = {n: t.half() if t.is_floating_point() else t for n, t in _state().items()}
    save_file(state, tmp_path / "w.safetensors")
    model, _ = load_backbone(str(tmp_path / "w.safetensors"), None, CLASSES)
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight.half(), state["conv1.weight"])


def _run(root, labels, /, **description):
    config = FinetuneClassifierConfig(data=root, out=root / "run")
    run = RunFolder.create(config.out, COMMAND, config)
    state = _state(classes=len(labels))
    run.checkpoints.mkdir()
    save_file(state, run.checkpoints / "best.safetensors")
    run.write_model(
        {"architecture": "resnet18", "classes": list(labels), "image_size": 64, **description}
    )
    return run, state


def test_a_run_keeps_its_head_only_for_the_same_classes(tmp_path):
    run, state = _run(tmp_path, CLASSES)
    model, _ = load_backbone(str(run.root), None, CLASSES)
    assert _same(model, state, head=True)
    other, _ = load_backbone(str(run.root), None, ("good", "hole", "dent"))
    assert _same(other, state) and not _same(other, state, head=True)


def _adapted(root, state, **description):
    config = AdaptConfig(data=root, source="synth", out=root / "adapted")
    run = RunFolder.create(config.out, ADAPT, config)
    run.checkpoints.mkdir()
    save_file(state, run.checkpoints / "best.safetensors")
    run.write_model(
        {"architecture": "resnet18", "classes": list(CLASSES), "image_size": 64, **description}
    )
    return run


@pytest.mark.parametrize("labelled", [True, False])
def test_an_adapted_encoder_is_a_start_with_its_head_or_without(tmp_path, labelled):
    state = _state(classes=3)
    state = {n: t for n, t in state.items() if labelled or not n.startswith("fc.")}
    run = _adapted(tmp_path, state)
    model, found = load_backbone(str(run.root), None, CLASSES)
    assert found == "resnet18"
    assert _same(model, state, head=labelled)
    other, _ = load_backbone(str(run.root), None, ("good", "hole"))
    assert _same(other, state) and other.fc.out_features == 2


class _Head(nn.Module):
    """A head as a generator of features might have it."""

    def __init__(self, description, features, classes):
        super().__init__()
        self.hidden = nn.Linear(features, description["hidden"])
        self.last = nn.Linear(description["hidden"], classes)

    def forward(self, features):
        return self.last(self.hidden(features))


def test_a_run_with_a_head_of_its_own_is_built_with_it_and_started_from_without(
    tmp_path, monkeypatch
):
    heads = ModuleType("toolkit.classify.generate.head")
    heads.build_head = _Head
    monkeypatch.setitem(sys.modules, heads.__name__, heads)
    run, state = _run(tmp_path, CLASSES, head={"kind": "test", "hidden": 5})
    torch.manual_seed(1)
    own = {f"fc.{n}": t for n, t in _Head({"hidden": 5}, 64, 3).state_dict().items()}
    state = {n: t for n, t in state.items() if not n.startswith("fc.")} | own
    save_file(state, run.checkpoints / "best.safetensors")
    model, description = load_run(run.root)
    assert description.head == {"kind": "test", "hidden": 5}
    assert model.state_dict().keys() == state.keys() and _same(model, state, head=True)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    start, _ = load_backbone(str(run.root), None, CLASSES)
    assert isinstance(start.fc, nn.Linear) and _same(start, state)


def test_a_run_comes_back_with_its_description(tmp_path):
    run, state = _run(tmp_path, CLASSES)
    model, description = load_run(run.root)
    assert _same(model, state, head=True)
    assert (description.classes, description.image_size) == (CLASSES, 64)
    assert (description.temperature, description.head) == (1.0, None)  # of a run from before them


def test_a_run_comes_back_with_its_temperature(tmp_path):
    run, _ = _run(tmp_path, CLASSES, temperature=2.5)
    assert load_run(run.root)[1].temperature == 2.5


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"architecture": "vgg"}, r"model\.json: names no known architecture"),
        ({"image_size": None}, r"model\.json: does not describe a classifier"),
        (
            {"classes": ["good", "dent"]},
            r"best\.safetensors: looks like resnet18 but fc\.weight is",
        ),
    ],
)
def test_a_run_that_contradicts_itself_is_refused(tmp_path, description, message):
    run, _ = _run(tmp_path, CLASSES, **description)
    with pytest.raises(InputError, match=message):
        load_run(run.root)


def _deep(state):
    return state | {f"layer3.{n}.conv1.weight": torch.zeros(1) for n in range(2, 23)}


def _without_a_tensor(state):
    return {name: tensor for name, tensor in state.items() if name != "layer2.0.conv1.weight"}


def _wider(state):
    return {**state, "layer4.1.conv2.weight": torch.zeros(64, 64, 1, 1)}


def _not_finite(state):
    return {**state, "conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: nn.Linear(2, 2).state_dict(), r"is not a ResNet \(no layer3\.0\.conv1\.weight"),
        (_deep, "is a ResNet of no known depth"),
        (_without_a_tensor, r"looks like resnet18 but lacks layer2\.0\.conv1\.weight"),
        (lambda state: {**state, "se.weight": torch.zeros(1)}, "but has unknown se.weight"),
        (_wider, r"layer4\.1\.conv2\.weight is \[64, 64, 1, 1\], not \[64, 64, 3, 3\]"),
        (_not_finite, r"conv1\.weight has values that are not finite"),
        (lambda state: {"state_dict": state}, "is not a state_dict"),
        (lambda _: [1, 2], "is not a state_dict"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path, change, message):
    torch.save(change(dict(_state())), tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w\.pth: .*{message}") as caught:
        load_backbone(str(tmp_path / "w.pth"), None, CLASSES)
    assert "\n" not in str(caught.value)


def test_another_depth_than_asked_for_is_refused(tmp_path):
    torch.save(_state("resnet34"), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: is resnet34, not resnet18: leave model out"):
        load_backbone(str(tmp_path / "w.pth"), "resnet18", CLASSES)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"root:x:0:0", b"PK\x03\x04 cut off"]
)
def test_a_corrupt_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: is damaged"):
        load_backbone(str(tmp_path / name), None, CLASSES)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"layer3.0.conv1.weight": RunFolder(tmp_path)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        load_backbone(str(tmp_path / "w.pth"), None, CLASSES)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="is not a run folder: give the --out of `toolkit finetune"
    ):
        load_backbone(str(tmp_path), None, CLASSES)
    run, _ = _run(tmp_path, CLASSES)
    write_json(run.checkpoints / "model.json", [])
    with pytest.raises(InputError, match="does not describe a classifier"):
        load_backbone(str(run.root), None, CLASSES)
