from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters.errors import InputError
from toolkit import offline
from toolkit.config import ExportConfig, FinetuneSamConfig
from toolkit.segment import Segmenter, finetune_sam
from toolkit.segment.export import export_segmenter
from toolkit.segment.frames import Frame
from toolkit.segment.learning import choose, rate_factors
from toolkit.segment.lora import add_lora, load_lora, lora_parameters, merged_state
from toolkit.segment.mobile import MobileArchitecture
from toolkit.segment.model import ARCHITECTURES, build_sam, decode, encode
from toolkit.segment.weights import load_sam

SMALL = MobileArchitecture(128, (16, 32, 48, 320), (1, 1, 1, 1), (1, 2, 3, 4))
BOXES = [(10.0, 20.0, 31.0, 25.0), (40.0, 5.0, 30.0, 50.0)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "vit_t", SMALL)


def _official(sizes=None):
    """MobileSAM as ultralytics builds it; with its encoder of other sizes, and other weights."""
    offline.prepare()
    from ultralytics.models.sam.build import _build_sam
    from ultralytics.models.sam.modules.encoders import PromptEncoder
    from ultralytics.models.sam.modules.tiny_encoder import TinyViT

    torch.manual_seed(0)
    sam = _build_sam([64, 128, 160, 320], [2, 2, 6, 2], [2, 4, 5, 10], None, mobile_sam=True)
    if sizes is not None:
        sam.image_encoder = TinyViT(
            img_size=sizes.image_size,
            embed_dims=sizes.widths,
            depths=sizes.depths,
            num_heads=sizes.heads,
            window_sizes=sizes.windows,
            drop_path_rate=0.0,
        )
        sam.prompt_encoder = PromptEncoder(256, (sizes.grid,) * 2, (sizes.image_size,) * 2, 16)
    for name, tensor in sam.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and "pixel_" not in name:
            tensor.add_(torch.randn(tensor.shape) * 0.05)
    return sam.eval()  # only now are attention's biases looked up


def _file(path):
    official = _official(SMALL)
    state = {n: t for n, t in official.state_dict().items() if not n.startswith("pixel_")}
    torch.save(state, path)
    return official


def _picture():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_names_and_shapes_are_the_official_ones():
    official = _official().state_dict()
    expected = {n: t.shape for n, t in official.items() if not n.startswith("pixel_")}
    ours = {name: tensor.shape for name, tensor in build_sam("vit_t").state_dict().items()}
    assert ours == expected
    # Counted in the official repository's own model.
    assert sum(shape.numel() for shape in ours.values()) == 10_140_231


def test_a_file_predicts_as_the_network_that_wrote_it(small, tmp_path):
    official = _file(tmp_path / "mobile_sam.pt")
    sam, name = load_sam(tmp_path / "mobile_sam.pt")
    assert name == "vit_t"
    frame = Frame(60, 80, 128)
    boxes = torch.from_numpy(frame.boxes(BOXES))
    pixels = frame.image(_picture())
    with torch.no_grad():
        embeddings = encode(sam, [pixels])
        logits, estimates = decode(sam, embeddings.expand(2, -1, -1, -1), boxes)
        expected = official.image_encoder(sam.preprocess(pixels[None]))
        sparse, dense = official.prompt_encoder(points=None, boxes=boxes, masks=None)
        masks, scores = official.mask_decoder(
            image_embeddings=expected,
            image_pe=official.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, masks[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(estimates, scores[:, 0], atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.01, "masks that are flat prove little"


def test_learning_keeps_the_statistics_and_moves_the_biases_of_attention(small):
    torch.manual_seed(0)
    sam = build_sam("vit_t")
    choose(sam, "all")
    sam.train()
    before = {name: tensor.clone() for name, tensor in sam.named_buffers()}
    encode(sam, [torch.randint(0, 256, (3, 128, 128))] * 2).square().mean().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in sam.named_buffers())
    biases = [p for name, p in sam.named_parameters() if name.endswith("attention_biases")]
    assert len(biases) == 3
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in biases)


def test_the_head_for_imagenet_does_not_learn(small):
    sam = build_sam("vit_t")
    choose(sam, "all")
    still = {n for n, p in sam.named_parameters() if not p.requires_grad}
    heads = ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")
    assert still == {f"image_encoder.{name}" for name in heads}


@pytest.mark.parametrize("train", ["decoder", "lora", "all"])
def test_it_learns_and_what_was_saved_predicts_the_same(small, make_dataset, tmp_path, train):
    _file(tmp_path / "mobile_sam.pt")
    run = finetune_sam(
        FinetuneSamConfig(
            data=make_dataset(good=1, per_kind=2),
            out=tmp_path / "run",
            weights=str(tmp_path / "mobile_sam.pt"),
            train=train,
            learning_rate=1e-3,
            average=0.5,
            epochs=1,
            batch=2,
            device="cpu",
            workers=0,
        )
    )
    start = torch.load(tmp_path / "mobile_sam.pt")
    best = load_file(run.checkpoints / "best.safetensors")
    moved = {name.split(".")[0] for name, tensor in best.items() if not tensor.equal(start[name])}
    assert (
        moved
        == {
            "decoder": {"mask_decoder"},
            "lora": {"image_encoder", "mask_decoder"},
            "all": {"image_encoder", "prompt_encoder", "mask_decoder"},
        }[train]
    )
    if train == "lora":
        sam, _ = load_sam(tmp_path / "mobile_sam.pt")
        load_lora(sam, run.checkpoints / "lora.safetensors")
        assert all(torch.equal(t, best[name]) for name, t in merged_state(sam).items())
    segmenter = Segmenter.load(run.root, "cpu")
    masks, estimates = segmenter(_picture(), BOXES)
    assert masks.shape == (2, 60, 80) and np.isfinite(estimates).all()
    assert len(json.loads((run.predictions / "test.json").read_text())) > 0


def test_adapters_start_at_nothing_and_merge_into_the_layout_of_each_head(small):
    torch.manual_seed(0)
    plain = build_sam("vit_t")
    adapted = build_sam("vit_t")
    adapted.load_state_dict(plain.state_dict())
    add_lora(adapted, rank=2)
    pixels = [torch.randint(0, 256, (3, 128, 128))]
    with torch.no_grad():
        before = encode(plain, pixels)
        assert torch.equal(encode(adapted, pixels), before)
        for parameter in lora_parameters(adapted).values():
            parameter.normal_(0, 0.3)
        learnt = encode(adapted, pixels)
        assert (learnt - before).abs().max() > 0.01
        # Keys take no part: those of every head, and they alone, are as they were.
        weights = merged_state(adapted)
        name = "image_encoder.layers.1.blocks.0.attn.qkv.weight"
        moved = (weights[name] - plain.state_dict()[name]).abs().amax(1).unflatten(0, (2, 3, -1))
        assert (moved[:, 1] == 0).all() and (moved[:, [0, 2]] > 0).all()
        plain.load_state_dict(weights)
        torch.testing.assert_close(encode(plain, pixels), learnt, atol=1e-4, rtol=1e-4)


def test_rates_fall_from_the_last_block_to_the_pixels(small):
    factors = rate_factors(build_sam("vit_t"), 0.5)
    named = {
        "layers.3.blocks.0.attn.qkv.weight": 1,
        "layers.2.blocks.0.mlp.fc1.weight": 0.5,
        "layers.2.downsample.conv1.c.weight": 0.5,
        "layers.0.blocks.0.conv1.c.weight": 0.125,
        "patch_embed.seq.0.c.weight": 0.0625,
    }
    assert {name: factors[f"image_encoder.{name}"] for name in named} == named
    assert not any(".neck." in name or "decoder" in name for name in factors)


def test_onnx_gives_the_same_masks(small, make_dataset, tmp_path):
    data = make_dataset(good=1, per_kind=1)
    run = finetune_sam(
        FinetuneSamConfig(
            data=data, out=tmp_path / "run", model="vit_t", epochs=1, device="cpu", workers=0
        )
    )
    made = export_segmenter(ExportConfig(run=run.root, out=tmp_path / "sam"))
    assert made.agreement.boxes > 0 and made.agreement.logits < 0.01
    said = json.loads((tmp_path / "sam" / "toolkit.json").read_text())
    assert said["architecture"] == "vit_t" and said["image_size"] == 128
    with pytest.raises(InputError, match="which segment-anything does not know"):
        export_segmenter(
            ExportConfig(run=run.root, out=tmp_path / "a.pth", format="segment-anything")
        )
