from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file

from converters.errors import InputError
from toolkit import offline
from toolkit.config import ExportConfig, FinetuneSamConfig
from toolkit.exporting import onnx_session
from toolkit.runs import RunFolder
from toolkit.segment import Segmenter, finetune_sam
from toolkit.segment.export import export_segmenter
from toolkit.segment.frames import Frame
from toolkit.segment.learning import choose, rate_factors
from toolkit.segment.lora import add_lora, load_lora, lora_parameters, merged_state
from toolkit.segment.model import ARCHITECTURES, build_sam, decode, encode
from toolkit.segment.sam2 import Sam2Architecture
from toolkit.segment.weights import load_sam

SIDE = 128
BOXES = [(10.0, 20.0, 31.0, 25.0), (40.0, 5.0, 30.0, 50.0)]


def _sizes(release):
    return Sam2Architecture(16, (1, 2, 1, 1), 1, (2,), release=release, image_size=SIDE)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """SAM 2 tiny, in both releases, that takes moments."""
    monkeypatch.setitem(ARCHITECTURES, "sam2_t", _sizes("2"))
    monkeypatch.setitem(ARCHITECTURES, "sam2.1_t", _sizes("2.1"))


def _shake(model):
    """Weights that leave nothing at its start value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def _predictor():
    """SAM 2 and its predictor as ultralytics has them, of the same sizes."""
    offline.prepare()
    from ultralytics.models.sam import SAM2Predictor
    from ultralytics.models.sam.build import _build_sam2

    model = _build_sam2(
        encoder_embed_dim=16,
        encoder_stages=[1, 2, 1, 1],
        encoder_num_heads=1,
        encoder_global_att_blocks=[2],
        encoder_window_spec=[8, 4, 14, 7],
        encoder_backbone_channel_list=[128, 64, 32, 16],
    )
    model.set_imgsz((SIDE, SIDE))
    # The exchange of masks that are not "stable", which we leave out.
    model.sam_mask_decoder.dynamic_multimask_via_stability = False
    predictor = SAM2Predictor.__new__(SAM2Predictor)
    predictor.model = _shake(model)
    predictor._bb_feat_sizes = [(SIDE // 4,) * 2, (SIDE // 8,) * 2, (SIDE // 16,) * 2]
    return predictor


def _file(path, name="sam2.1_t"):
    """A file as Meta publishes them."""
    state = _shake(build_sam(name)).state_dict()
    torch.save({"model": state}, path)
    return state


def _picture():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def _pixels():
    return [Frame(60, 80, SIDE, stretched=True).image(_picture())]


def _corners():
    return torch.from_numpy(Frame(60, 80, SIDE, stretched=True).boxes(BOXES))


@pytest.mark.parametrize("with_points", [False, True])
def test_a_file_predicts_as_the_predictor_of_the_network_that_wrote_it(tmp_path, with_points):
    predictor = _predictor()
    torch.save({"model": predictor.model.state_dict()}, tmp_path / "sam2_hiera_tiny.pt")
    sam, name = load_sam(tmp_path / "sam2_hiera_tiny.pt")
    assert name == "sam2_t"
    points = torch.tensor([[[20.0, 30.0], [90.0, 10.0]]] * 2), torch.tensor([[1, 0]] * 2)
    boxes = _corners()
    with torch.no_grad():
        embeddings = encode(sam, _pixels())
        found = decode(
            sam, embeddings.expand(2, -1, -1, -1), boxes, points if with_points else None
        )
        features = predictor.get_im_features(sam.preprocess(_pixels()[0][None]))
        for k in range(2):
            corners, says = boxes[k].view(1, 2, 2), torch.tensor([[2, 3]], dtype=torch.int32)
            if with_points:
                corners = torch.cat([corners, points[0][k : k + 1]], dim=1)
                says = torch.cat([says, points[1][k : k + 1].int()], dim=1)
            masks, scores = predictor._inference_features(features, corners, says)
            torch.testing.assert_close(found[0][k], masks[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[1][k], scores[0], atol=1e-4, rtol=1e-4)
            assert masks.std() > 0.01, "masks that are flat prove little"


def test_all_three_levels_of_an_image_come_back_out_of_the_one_tensor():
    sam = _shake(build_sam("sam2.1_t"))
    with torch.no_grad():
        embeddings = encode(sam, _pixels())
        assert embeddings.shape == (1, ARCHITECTURES["sam2.1_t"].embedding_width, 8, 8)
        assert embeddings.abs().max() < torch.finfo(torch.float16).max
        fine, middle, coarse = sam.forward_image(sam.preprocess(_pixels()[0][None]))["backbone_fpn"]
        assert torch.equal(sam.attended(embeddings), coarse + sam.no_mem_embed.view(1, -1, 1, 1))
        up, norm, activation, again, last = sam.mask_decoder.output_upscaling
        expected = last(again(activation(norm(up(coarse) + middle))) + fine)
        assert torch.equal(sam.upscale(coarse, embeddings), expected)


@pytest.mark.parametrize("name", ["sam2_t", "sam2.1_t"])
def test_a_file_opens_as_the_release_and_the_size_that_it_is(tmp_path, name):
    state = _file(tmp_path / "file.pt", name)
    sam, found = load_sam(tmp_path / "file.pt")
    assert found == name
    assert all(torch.equal(tensor, state[key]) for key, tensor in sam.state_dict().items())
    only_2_1 = {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
    assert only_2_1 & set(state) == (only_2_1 if name == "sam2.1_t" else set())


def test_a_file_that_lacks_something_is_one_clear_line(tmp_path):
    state = _file(tmp_path / "file.pt")
    del state["memory_attention.norm.bias"]
    torch.save({"model": state}, tmp_path / "file.pt")
    with pytest.raises(InputError, match=r"looks like sam2\.1_t but lacks memory_attention"):
        load_sam(tmp_path / "file.pt")
    state["image_encoder.trunk.pos_embed"] = torch.zeros(1, 17, 7, 7)
    torch.save({"model": state}, tmp_path / "file.pt")
    with pytest.raises(InputError, match=r"no known architecture \(image_encoder\.trunk\.pos"):
        load_sam(tmp_path / "file.pt")


def test_an_image_fills_the_input_both_ways():
    frame = Frame(60, 80, SIDE, stretched=True)
    assert frame.resized == (SIDE, SIDE) == tuple(frame.image(_picture()).shape[1:])
    across, down = SIDE / 80, SIDE / 60
    corners = frame.boxes([(8, 6, 40, 30)])[0].tolist()
    assert corners == pytest.approx([8 * across, 6 * down, 48 * across, 36 * down])
    assert (frame.inside(32) == 1).all()
    target = frame.target(((0, 0, 40, 60), np.ones((60, 40), bool)), 32)
    np.testing.assert_allclose(target[:, :16], 1, atol=1e-5)
    assert (target[:, 16:] == 0).all()


def test_a_mask_comes_back_in_pixels_of_the_image():
    sam = build_sam("sam2.1_t")
    left = torch.full((1, 1, 32, 32), -1.0)
    left[..., :16] = 1
    mask = sam.postprocess_masks(left, (SIDE, SIDE), (60, 80))[0, 0] > 0
    assert mask.shape == (60, 80) and mask[:, :40].all() and not mask[:, 40:].any()


def _moved(best, start):
    names = {name for name, tensor in best.items() if not tensor.equal(start[name])}
    return names, {name.split(".")[0] for name in names}


@pytest.mark.parametrize("train", ["decoder", "lora", "all"])
def test_it_learns_and_what_was_saved_predicts_the_same(make_dataset, tmp_path, train):
    start = _file(tmp_path / "sam2.1_hiera_tiny.pt")
    run = finetune_sam(
        FinetuneSamConfig(
            data=make_dataset(good=1, per_kind=2),
            out=tmp_path / "run",
            weights=str(tmp_path / "sam2.1_hiera_tiny.pt"),
            train=train,
            learning_rate=1e-3,
            layer_decay=1 if train == "decoder" else 0.8,
            epochs=1,
            batch=2,
            device="cpu",
            workers=0,
        )
    )
    best = load_file(run.checkpoints / "best.safetensors")
    assert {n: t.shape for n, t in best.items()} == {n: t.shape for n, t in start.items()}
    names, parts = _moved(best, start)
    assert (
        parts
        == {
            "decoder": {"sam_mask_decoder"},
            "lora": {"image_encoder", "sam_mask_decoder"},
            "all": {"image_encoder", "no_mem_embed", "sam_prompt_encoder", "sam_mask_decoder"},
        }[train]
    )
    # What is made once of an image and kept must not learn where the encoder does not.
    finer = {name for name in names if ".conv_s" in name}
    assert bool(finer) == (train != "decoder")
    assert not any("obj_score_head" in name for name in names)
    if train == "lora":
        sam, _ = load_sam(tmp_path / "sam2.1_hiera_tiny.pt")
        load_lora(sam, run.checkpoints / "lora.safetensors")
        assert all(torch.equal(t, best[name]) for name, t in merged_state(sam).items())
    segmenter = Segmenter.load(run.root, "cpu")
    assert segmenter.architecture == "sam2.1_t"
    masks, estimates = segmenter(_picture(), BOXES)
    assert masks.shape == (2, 60, 80) and ((estimates >= 0) & (estimates <= 1)).all()
    assert len(json.loads((run.predictions / "test.json").read_text())) > 0


def test_adapters_start_at_nothing_and_merge(tmp_path):
    torch.manual_seed(0)
    plain, adapted = build_sam("sam2.1_t"), build_sam("sam2.1_t")
    adapted.load_state_dict(plain.state_dict())
    add_lora(adapted, rank=2)
    with torch.no_grad():
        before = encode(plain, _pixels())
        assert torch.equal(encode(adapted, _pixels()), before)
        for parameter in lora_parameters(adapted).values():
            parameter.normal_(0, 0.3)
        learnt = encode(adapted, _pixels())
        assert (learnt - before).abs().max() > 0.01
        plain.load_state_dict(merged_state(adapted))
        torch.testing.assert_close(encode(plain, _pixels()), learnt, atol=1e-4, rtol=1e-4)


def test_rates_fall_from_the_last_block_to_the_pixels():
    factors = rate_factors(build_sam("sam2.1_t"), 0.5)
    named = {
        "blocks.4.attn.qkv.weight": 1,
        "blocks.3.attn.qkv.weight": 0.5,
        "blocks.0.mlp.layers.0.weight": 0.0625,
        "pos_embed": 0.03125,
        "pos_embed_window": 0.03125,
    }
    assert {name: factors[f"image_encoder.trunk.{name}"] for name in named} == named
    assert all(name.startswith("image_encoder.trunk.") for name in factors)


def test_what_is_for_videos_never_learns():
    sam = build_sam("sam2.1_t")
    choose(sam, "all")
    learns = {name.split(".")[0] for name, p in sam.named_parameters() if p.requires_grad}
    assert learns == {"image_encoder", "no_mem_embed", "sam_prompt_encoder", "sam_mask_decoder"}


def test_onnx_gives_the_masks_that_its_description_says(tmp_path):
    root = tmp_path / "run"
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text("command: finetune sam\n")
    save_file(_shake(build_sam("sam2.1_t")).state_dict(), root / "checkpoints" / "best.safetensors")
    RunFolder(root).write_model({"architecture": "sam2.1_t"})
    made = export_segmenter(ExportConfig(run=root, out=tmp_path / "sam"))
    assert made.agreement.boxes > 0 and made.agreement.logits < 1e-3
    said = json.loads((tmp_path / "sam" / "toolkit.json").read_text())
    assert "fill" not in said["encoder"]["input"]["images"] and len(said["mask"]["steps"]) == 1

    encoder, decoder = (onnx_session(made.path / f"{n}.onnx") for n in ("encoder", "decoder"))
    scaled = PillowImage.fromarray(_picture()).resize((SIDE, SIDE), PillowImage.BILINEAR)
    images = np.array(scaled, np.float32).transpose(2, 0, 1)[None]
    corners = [
        [x * SIDE / 80, y * SIDE / 60, (x + w) * SIDE / 80, (y + h) * SIDE / 60]
        for x, y, w, h in BOXES
    ]
    inputs = {
        "embeddings": encoder.run(None, {"images": images})[0],
        "boxes": np.array(corners, np.float32),
        "points": np.zeros((2, 0, 2), np.float32),
        "labels": np.zeros((2, 0), np.float32),
    }
    logits, iou = decoder.run(["logits", "iou"], inputs)
    masks = np.stack([cv2.resize(each, (80, 60)) > 0 for each in logits])
    ours, own = Segmenter.load(root, "cpu")(_picture(), BOXES)
    assert 0 < ours.mean() < 1, "masks that are all or nothing prove little"
    assert np.mean(masks != ours) < 1e-3 and np.allclose(iou, own, atol=1e-4)

    with pytest.raises(InputError, match=r"is SAM sam2\.1_t, which segment-anything does not know"):
        export_segmenter(ExportConfig(run=root, out=tmp_path / "a.pth", format="segment-anything"))
