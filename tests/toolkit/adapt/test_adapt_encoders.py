"""Encoders of the detector and of SAM nano: adapted, and started from by their own commands."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from toolkit.adapt import adapt_classifier
from toolkit.adapt.encoders import DetectorEncoder, SamEncoder, open_encoder
from toolkit.classify.data import to_input
from toolkit.config import AdaptConfig
from toolkit.detect.checkpoints import load_starting_point
from toolkit.detect.models import backbone_layers, build_model
from toolkit.segment.model import build_sam
from toolkit.segment.weights import load_sam
from toolkit.starter import is_pretrained

CHANNELS = {"source": 3, "target": 1}


def _adapted(make_domain, tmp_path, model, size):
    counts = {"per_class": 2, "val": 2}
    return adapt_classifier(
        AdaptConfig(
            data=make_domain("target", "shifted", **counts),
            source=make_domain("source", "plain", **counts),
            out=tmp_path / "adapted",
            model=model,
            epochs=1,
            batch=4,
            image_size=size,
            views=1,
            device="cpu",
            workers=0,
        )
    )


def _best(run):
    return load_file(run.checkpoints / "best.safetensors")


def _same(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


def _pictures(size):
    grey = torch.randint(0, 256, (2, size, size, 1), generator=torch.Generator().manual_seed(0))
    return to_input(grey.expand(-1, -1, -1, 3))


def _nano(state):
    plain = build_sam("nano")
    plain.load_state_dict(state)
    return SamEncoder(plain, CHANNELS)


def _world(state):
    start = load_starting_point("none", "n", 1, trust=False)
    start.model.load_state_dict(state)
    return DetectorEncoder(start, CHANNELS)


@pytest.mark.parametrize(
    ("model", "size", "plain"), [("nano", 128, _nano), ("yolov8-worldv2", 64, _world)]
)
def test_the_plain_network_has_the_function_of_the_target(model, size, plain):
    config = AdaptConfig(data="a", source="b", out="c", model=model, image_size=size)
    encoder, head = open_encoder(config, ("good", "disc"), CHANNELS)
    with torch.no_grad():
        encoder.private.private["target"].normal_()
    encoder.train()  # by the statistics of the batch: random layers fade out without
    expected = encoder.features(_pictures(size), "target")
    assert expected.shape == (2, encoder.width) == (2, head.in_features)
    again = plain(encoder.state()).train()
    assert torch.allclose(again.features(_pictures(size), "target"), expected, atol=1e-4)
    assert not torch.allclose(encoder.features(_pictures(size), "source"), expected, atol=1e-2)


def test_finetune_sam_starts_from_an_adapted_nano(make_domain, tmp_path):
    run = _adapted(make_domain, tmp_path, "nano", 128)
    adapted = _best(run)
    torch.manual_seed(0)
    random = build_sam("nano").state_dict()
    changed = {name for name, tensor in adapted.items() if not torch.equal(tensor, random[name])}
    assert changed and all(name.startswith("image_encoder.") for name in changed)
    sam, name = load_sam(str(run.root))
    assert name == "nano" and _same(sam.state_dict(), adapted)
    assert is_pretrained(str(run.root), "pretrain sam")  # so that all of it learns


def test_finetune_yolo_starts_from_an_adapted_backbone(make_domain, tmp_path):
    run = _adapted(make_domain, tmp_path, "yolov8-worldv2", 64)
    adapted = _best(run)
    model = build_model("n", 0)
    random = model.state_dict()
    changed = {name for name in adapted if not torch.equal(adapted[name], random[name])}
    layers = {int(name.split(".")[1]) for name in changed if name.endswith("conv.weight")}
    assert layers == set(range(backbone_layers(model)))
    start = load_starting_point(str(run.root), "n", 0, trust=False)
    assert start.origin == "procedural" and start.embeddings.names == ("defect", "bars", "disc")
    assert _same(start.model.state_dict(), adapted)
