from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from converters.errors import InputError
from toolkit.segment.frames import Frame
from toolkit.segment.model import ARCHITECTURES, build_sam, decode, decode_several, encode
from toolkit.segment.segmenter import Prompts, Segmenter
from toolkit.segment.usage import Usage


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return build_sam("nano")


def _library_decode(sam, embedding, box=None, points=None, mask=None, several=False):
    """One prompt on one image, by the library's own decoder."""
    sparse, dense = sam.prompt_encoder(
        points=None if points is None else (points[0][None], points[1][None]),
        boxes=None if box is None else box[None],
        masks=None if mask is None else mask[None, None],
    )
    return sam.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
    )


def _two_images(sam):
    torch.manual_seed(1)
    side = sam.image_encoder.img_size
    images = [torch.randint(0, 256, (3, side, side // 2 * k), dtype=torch.uint8) for k in (1, 2)]
    boxes = torch.tensor([[10, 20, 60, 90], [5, 5, 100, 30], [40.5, 60.2, 41.0, 110]])
    return images, torch.tensor([0, 1, 1]), boxes


POINTS = torch.tensor([[[30.0, 50], [12, 22]], [[9, 9], [90, 20]], [[40.7, 100], [0, 0]]])
SAYS = torch.tensor([[1, 0], [1, 1], [1, -1]])


def _asked(sam, kind):
    """Prompts of a kind for the three: what ``decode`` takes, and the library for each."""
    _, _, boxes = _two_images(sam)
    torch.manual_seed(2)
    masks = 8 * torch.randn(3, 4 * sam.image_encoder.img_size // 8, 4 * 128 // 8)
    chosen = {
        "box": (boxes, None, None),
        "point": (None, (POINTS, SAYS), None),
        "box+point": (boxes, (POINTS, SAYS), None),
        "box+point+mask": (boxes, (POINTS, SAYS), masks),
        "point+mask": (None, (POINTS, SAYS), masks),
    }[kind]
    one_by_one = [
        (
            None if chosen[0] is None else chosen[0][k],
            None if chosen[1] is None else (POINTS[k], SAYS[k]),
            None if chosen[2] is None else chosen[2][k],
        )
        for k in range(3)
    ]
    return chosen, one_by_one


ALL_KINDS = pytest.mark.parametrize(
    "kind", ["box", "point", "box+point", "box+point+mask", "point+mask"]
)


@ALL_KINDS
def test_one_call_for_several_images_equals_the_library_prompt_by_prompt(nano, kind):
    images, owner, _ = _two_images(nano)
    asked, one_by_one = _asked(nano, kind)
    with torch.no_grad():
        embeddings = encode(nano, images)
        logits, ious = decode(nano, embeddings[owner], *asked)
        assert logits.shape == (3, 64, 64) and ious.shape == (3,)
        for k, prompt in enumerate(one_by_one):
            expected, expected_iou = _library_decode(nano, embeddings[owner[k]], *prompt)
            torch.testing.assert_close(logits[k], expected[0, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ious[k], expected_iou[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["box", "point", "box+point"])
def test_three_masks_of_one_call_equal_the_librarys(nano, kind):
    images, owner, _ = _two_images(nano)
    (boxes, points, _), one_by_one = _asked(nano, kind)
    with torch.no_grad():
        embeddings = encode(nano, images)
        logits, ious = decode_several(nano, embeddings[owner], boxes, points)
        for k, prompt in enumerate(one_by_one):
            expected, expected_iou = _library_decode(
                nano, embeddings[owner[k]], *prompt, several=True
            )
            torch.testing.assert_close(logits[k], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ious[k], expected_iou[0], atol=1e-5, rtol=1e-5)


@ALL_KINDS
def test_gradients_of_one_call_equal_those_of_the_library(nano, kind):
    images, owner, _ = _two_images(nano)
    asked, one_by_one = _asked(nano, kind)
    embeddings = encode(nano, images).detach()
    encoder = nano.prompt_encoder
    learnt = {
        "box": [encoder.point_embeddings[2].weight],
        "point": [encoder.point_embeddings[0].weight, encoder.not_a_point_embed.weight],
        "mask": [encoder.mask_downscaling[0].weight],
    }
    weights = [nano.mask_decoder.mask_tokens.weight]
    weights += [w for part in kind.split("+") for w in learnt[part]]

    logits, ious = decode(nano, embeddings[owner], *asked)
    found = torch.autograd.grad(logits.square().mean() + ious.sum(), weights)

    parts = [_library_decode(nano, embeddings[owner[k]], *one_by_one[k]) for k in range(3)]
    logits, ious = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    expected = torch.autograd.grad(logits.square().mean() + ious.sum(), weights)
    for a, b in zip(found, expected, strict=True):
        assert a.abs().max() > 0
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


def test_nano_is_shown_an_earlier_mask_in_the_filled_box(nano, monkeypatch):
    shown = []
    monkeypatch.setattr(nano.prompt_encoder, "_embed_masks", lambda m: shown.append(m) or m)
    box = torch.tensor([[32.0, 32.0, 96.0, 96.0]])
    logits = torch.full((1, 1, 64, 64), -30.0)
    logits[:, :, 20:40, 20:40] = 30.0
    nano.prompt_encoder(None, box, logits)
    assert [shown[0][0, 0, k, k].item() for k in (5, 17, 30)] == [-1, 0, 1]
    nano.prompt_encoder((torch.zeros(1, 1, 2), torch.ones(1, 1)), None, logits)
    assert [shown[1][0, 0, k, k].item() for k in (5, 17, 30)] == [-1, -1, 1]
    nano.prompt_encoder((torch.zeros(1, 1, 2), torch.ones(1, 1)), None, None)
    assert len(shown) == 2


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


WHOLE = Usage(context=None, points=True)


def _predictor(sam):
    predictor = SamPredictor(sam)
    predictor.set_image(_image())
    return predictor


def test_points_give_the_masks_of_sam_predictor_and_can_be_gone_on_from(nano):
    segmenter = Segmenter(nano, "nano", WHOLE)
    points, says = np.array([[[30.5, 40.5], [100, 20]]]), np.array([[1, 0]])
    (first,) = segmenter.outline(_image(), Prompts(points=points[:, :1]))
    predictor = _predictor(nano)
    masks, scores, logits = predictor.predict(points[0, :1], says[0, :1], multimask_output=False)
    assert np.array_equal(first.mask(90, 130), masks[0]) and 0 < masks.sum() < masks.size
    assert first.estimate == pytest.approx(scores[0], abs=1e-4)

    again = Prompts(points=points, labels=says, logits=first.logits[None])
    (second,) = segmenter.outline(_image(), again)
    masks, _, _ = predictor.predict(
        points[0], says[0], mask_input=np.clip(logits, -32, 32), multimask_output=False
    )
    assert np.array_equal(second.mask(90, 130), masks[0])
    assert not np.array_equal(second.logits, first.logits)


def test_of_three_masks_the_surest_counts(nano):
    segmenter = Segmenter(nano, "nano", Usage(context=None, points=True, several=True))
    (found,) = segmenter.outline(_image(), Prompts(points=np.array([[[30.5, 40.5]]])))
    masks, scores, _ = _predictor(nano).predict(np.array([[30.5, 40.5]]), np.array([1]))
    assert len(scores) == 3
    assert np.array_equal(found.mask(90, 130), masks[scores.argmax()])
    assert found.estimate == pytest.approx(scores.max(), abs=1e-4)


def test_a_window_shows_points_beside_a_box_where_they_are(nano):
    """A box and a point in a window are the same as both in a picture of the window alone."""
    box, point = (50.0, 30.0, 20.0, 14.0), np.array([[[57.0, 33.0]]])
    window = (slice(17, 57), slice(40, 80))
    segmenter = Segmenter(nano, "nano", Usage(context=2.0, points=True))
    (found,) = segmenter.outline(_image(), Prompts([box], point))
    assert found.region[0] == (40, 17, 40, 40)
    alone = Segmenter(nano, "nano", WHOLE)
    (expected,) = alone.outline(_image()[window], Prompts([(10.0, 13, 20, 14)], point - [40, 17]))
    assert np.array_equal(found.mask(90, 130)[window], expected.mask(40, 40))


def test_points_alone_are_shown_with_the_whole_picture(nano):
    zooms, whole = (
        Segmenter(nano, "nano", Usage(context=context, points=True)) for context in (2.0, None)
    )
    prompts = Prompts(points=np.array([[[57.0, 33.0]]]))
    (found,), (expected,) = (each.outline(_image(), prompts) for each in (zooms, whole))
    assert np.array_equal(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (Prompts([(10.0, 20, 5, 5), (130.0, 20, 5, 5)]), "box 2 (130, 20, 5, 5): lies outside"),
        (Prompts([(10.0, -6, 5, 5)]), "outside the image of 130 x 90"),
        (Prompts([(10.0, 20, 0, 5)]), "or is empty"),
        (Prompts(points=np.array([[[3.0, 91]]])), "point 1 of prompt 1 (3, 91): lies outside"),
        (Prompts([(1.0, 1, 5, 5)] * 2, np.zeros((1, 1, 2))), "points of shape (1, 1, 2)"),
        (Prompts(points=np.zeros((1, 1, 2)), labels=np.zeros((1, 2))), "labels of shape (1, 2)"),
        (Prompts(points=np.zeros((1, 1, 2)), labels=np.array([[7]])), "labels: say 1 (inside)"),
        (Prompts(points=np.full((1, 1, 2), np.nan)), "(nan, nan): lies outside"),
        (Prompts([(1.0, 1, 5, 5)], logits=np.zeros((2, 64, 64), np.float32)), "logits of 2"),
    ],
)
def test_prompts_that_cannot_be_looked_at_are_refused_in_one_line(nano, prompts, message):
    with pytest.raises(InputError) as caught:
        list(Segmenter(nano, "nano", WHOLE).outline(_image(), prompts))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_points_are_refused_by_a_model_that_has_never_seen_any(nano):
    with pytest.raises(InputError, match="trained with boxes alone"):
        list(Segmenter(nano, "nano").outline(_image(), Prompts(points=np.zeros((1, 1, 2)))))


def test_too_little_memory_is_one_line(nano, monkeypatch):
    def full(*_):
        raise MemoryError("Unable to allocate 37.3 GiB")

    monkeypatch.setattr("toolkit.segment.segmenter.encode_views", full)
    with pytest.raises(InputError, match="out of memory: give smaller pictures"):
        Segmenter(nano, "nano")(_image(), [(1.0, 1, 5, 5)])


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
