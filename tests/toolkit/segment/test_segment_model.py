from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from toolkit.segment.frames import Frame
from toolkit.segment.model import ARCHITECTURES, build_sam, decode, encode
from toolkit.segment.segmenter import Segmenter


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return build_sam("nano")


def _library_decode(sam, embedding, box):
    """One box on one image, by the library's own decoder."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=box[None], masks=None)
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return logits[:, 0], iou[:, 0]


def _two_images(sam):
    torch.manual_seed(1)
    side = sam.image_encoder.img_size
    images = [torch.randint(0, 256, (3, side, side // 2 * k), dtype=torch.uint8) for k in (1, 2)]
    boxes = torch.tensor([[10, 20, 60, 90], [5, 5, 100, 30], [40.5, 60.2, 41.0, 110]])
    return images, torch.tensor([0, 1, 1]), boxes


def test_one_call_for_several_images_equals_the_library_prompt_by_prompt(nano):
    images, owner, boxes = _two_images(nano)
    with torch.no_grad():
        embeddings = encode(nano, images)
        logits, ious = decode(nano, embeddings[owner], boxes)
        for k in range(3):
            expected, expected_iou = _library_decode(nano, embeddings[owner[k]], boxes[k])
            torch.testing.assert_close(logits[k], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ious[k], expected_iou[0], atol=1e-5, rtol=1e-5)


def test_gradients_of_one_call_equal_those_of_the_library(nano):
    images, owner, boxes = _two_images(nano)
    embeddings = encode(nano, images).detach()
    learnt = [nano.mask_decoder.mask_tokens.weight, nano.prompt_encoder.point_embeddings[2].weight]

    logits, ious = decode(nano, embeddings[owner], boxes)
    found = torch.autograd.grad(logits.square().mean() + ious.sum(), learnt)

    parts = [_library_decode(nano, embeddings[owner[k]], boxes[k]) for k in range(3)]
    logits, ious = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    expected = torch.autograd.grad(logits.square().mean() + ious.sum(), learnt)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_encoder_learns_through_the_decoder(nano):
    images, owner, boxes = _two_images(nano)
    logits, _ = decode(nano, encode(nano, images)[owner], boxes)
    (gradient,) = torch.autograd.grad(
        logits.mean(), [nano.image_encoder.patch_embed.stages[0][0].weight]
    )
    assert gradient.abs().max() > 0


def test_nano_is_shown_the_filled_box(nano):
    filled = nano.prompt_encoder.fill(torch.tensor([[4.0, 8.0, 7.0, 12.0]]))[0, 0]
    cell = nano.image_encoder.img_size / filled.shape[-1]
    assert ((filled + 1) / 2).sum().item() * cell**2 == pytest.approx(3 * 4, rel=1e-4)
    row, column = int(10 / cell), int(5 / cell)
    assert filled[row, column] == 1
    assert filled[0, 0] == filled[column, row] == -1


def test_nano_is_small_and_fits_its_description(nano):
    assert sum(p.numel() for p in nano.parameters()) < 3e6
    a = ARCHITECTURES["nano"]
    assert nano.image_encoder.pos_embed.shape == (1, a.grid, a.grid, a.width)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_names_have_the_official_parameters(name):
    with torch.device("meta"):
        ours = {key: t.shape for key, t in build_sam(name).state_dict().items()}
        theirs = {key: t.shape for key, t in sam_model_registry[name]().state_dict().items()}
    assert ours == theirs


def _image():
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def _library_predict(sam, image, box):
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    x, y, w, h = box
    masks, scores, _ = predictor.predict(box=np.array([x, y, x + w, y + h]), multimask_output=False)
    assert 0 < masks.sum() < masks.size, "a mask that is all or nothing proves little"
    return masks[0], scores[0]


def test_segmenter_equals_sam_predictor(nano, monkeypatch):
    whole = replace(ARCHITECTURES["nano"], zoom=None)
    monkeypatch.setitem(ARCHITECTURES, "nano", whole)
    boxes = [(10.0, 20, 31, 25), (100.0, 5, 30, 80)]
    masks, estimates = Segmenter(nano, "nano")(_image(), boxes)
    for mask, estimate, box in zip(masks, estimates, boxes, strict=True):
        expected, score = _library_predict(nano, _image(), box)
        assert np.array_equal(mask, expected)
        assert estimate == pytest.approx(score, abs=1e-4)


def test_segmenter_that_zooms_equals_sam_predictor_on_each_window(nano):
    boxes = [(50.0, 30.0, 20.0, 14.0), (100.0, 5.0, 20.0, 30.0)]
    windows = [(slice(22, 52), slice(45, 75)), (slice(0, 43), slice(87, 130))]
    masks, estimates = Segmenter(nano, "nano")(_image(), boxes)
    for mask, estimate, box, window in zip(masks, estimates, boxes, windows, strict=True):
        x, y, w, h = box
        inner = (x - window[1].start, y - window[0].start, w, h)
        expected, score = _library_predict(nano, _image()[window], inner)
        assert np.array_equal(mask[window], expected)
        assert mask.sum() == expected.sum()
        assert estimate == pytest.approx(score, abs=1e-4)


def test_many_boxes_give_what_each_gives_alone(nano):
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 60, (70, 2)), rng.uniform(5, 30, (70, 2))], axis=1)
    segmenter = Segmenter(nano, "nano")
    masks, estimates = segmenter(_image(), boxes)
    for k in (0, 15, 16, 63, 64, 69):
        alone, estimate = segmenter(_image(), boxes[k : k + 1])
        assert np.mean(alone[0] != masks[k]) < 1e-3
        assert estimate[0] == pytest.approx(estimates[k], abs=1e-4)


def test_segmenter_without_boxes_gives_no_masks(nano):
    masks, estimates = Segmenter(nano, "nano")(np.zeros((30, 40, 3), np.uint8), np.zeros((0, 4)))
    assert masks.shape == (0, 30, 40)
    assert estimates.shape == (0,)


def test_frame_resizes_as_the_library_does():
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.random.default_rng(0).integers(0, 256, (37, 90, 3), dtype=np.uint8)
    expected = ResizeLongestSide(64).apply_image(image)
    found = Frame(37, 90, 64).image(image).permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)
