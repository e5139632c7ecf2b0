"""Fine-tuning with points, corrective clicks, prompts on good surfaces, and windows of any size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from converters.errors import InputError
from converters.files import read_json, write_json
from converters.folder import DatasetFolder
from converters.geometry import rle_from_mask
from toolkit.config import FinetuneSamConfig
from toolkit.images import read_image
from toolkit.segment import Segmenter, finetune_sam
from toolkit.segment.data import ImageStore, Sampler, masked_prompts
from toolkit.segment.losses import SAM_LOSSES
from toolkit.segment.model import build_sam
from toolkit.segment.negatives import negative_prompts
from toolkit.segment.segmenter import exact_prompts
from toolkit.segment.task import batch_losses
from toolkit.segment.usage import Usage, read_usage
from toolkit.segment.views import zoomed_view

pytestmark = pytest.mark.usefixtures("tiny_nano")


def _config(data, out, **options):
    values = {"epochs": 1, "batch": 4, "device": "cpu", "workers": 0, **options}
    return FinetuneSamConfig(data=data, out=out, **values)


def _log(run):
    return [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]


def _recall(views):
    return [torch.zeros(32, 8, 8) for _ in views]


def _sampler(folder, *, kinds=("box",), negatives=(), share=0.0, zoom=2.0, augment=True, batch=4):
    return Sampler(
        masked_prompts(folder.read("train")),
        ImageStore(),
        side=64,
        cells=64,
        zoom=zoom,
        batch=batch,
        kinds=kinds,
        negatives=negatives,
        negative_share=share,
        jitter=0.1,
        recall=None if augment else _recall,
        seed=0,
        workers=0,
    )


@pytest.mark.parametrize("augment", [True, False])
def test_points_of_a_batch_lie_on_what_they_ask_for(make_dataset, augment):
    folder = DatasetFolder.open(make_dataset())
    sampler = _sampler(folder, kinds=("box+point",), augment=augment)
    for epoch in range(3):
        for batch in sampler.batches(epoch):
            assert batch.boxes is not None
            points, says = batch.clicks()
            assert points.shape == (len(batch.owner), 1, 2) and (says == 1).all()
            columns, rows = (points[:, 0] * batch.targets.shape[-1] / 64).long().unbind(1)
            covered = batch.targets[torch.arange(len(points)), rows, columns]
            assert (covered > 0).all()


def test_kinds_of_prompts_take_turns_and_points_alone_see_the_whole_picture(make_dataset):
    folder = DatasetFolder.open(make_dataset())
    sampler = _sampler(folder, kinds=("box", "point", "box+point"), augment=False)
    found = set()
    for epoch in range(10):
        for batch in sampler.batches(epoch):
            kind = (batch.boxes is not None, batch.points is not None)
            found.add(kind)
            whole = all(
                (v.width, v.height) == ((image.width), image.height)
                for name, v in batch.views
                for image in folder.read("train").images
                if image.file_name == name
            )
            assert whole == (kind == (False, True))
    assert found == {(True, False), (False, True), (True, True)}


def test_negatives_join_each_step_in_their_share_and_ask_for_nothing(make_dataset):
    folder = DatasetFolder.open(make_dataset(per_kind=6))
    negatives = negative_prompts(folder.read("train"), 40)
    sampler = _sampler(folder, negatives=negatives, share=0.5, batch=6)
    counts = []
    for epoch in range(6):
        for batch in sampler.batches(epoch):
            nothing = batch.targets.flatten(1).sum(1) == 0
            counts.append((int(nothing.sum()), int((~nothing).sum())))
    assert all(empty in (full // 2, full // 2 + 1) for empty, full in counts)


def test_clicks_are_answered_with_all_that_was_asked_before(make_dataset, monkeypatch):
    folder = DatasetFolder.open(make_dataset())
    torch.manual_seed(0)
    sam = build_sam("nano")
    batch = next(_sampler(folder).batches(0))
    embeddings = torch.randn(len(batch.views), 32, 8, 8)
    asked = []
    forward = sam.prompt_encoder.forward

    def listen(points, boxes, masks):
        asked.append((points, boxes, masks))
        return forward(points, boxes, masks)

    monkeypatch.setattr(sam.prompt_encoder, "forward", listen)
    losses = batch_losses(sam, embeddings, batch, SAM_LOSSES, clicks=2)
    losses["loss"].backward()
    assert [None if p is None else p[0].shape[1] for p, _, _ in asked] == [None, 1, 2]
    assert [m is None for _, _, m in asked] == [True, False, False]
    assert all(torch.equal(b, asked[0][1]) for _, b, _ in asked)
    assert torch.equal(asked[1][0][0], asked[2][0][0][:, :1])
    assert not asked[2][2].requires_grad
    first = batch_losses(sam, embeddings, batch, SAM_LOSSES)
    assert losses["loss"].item() != pytest.approx(first["loss"].item(), rel=1e-4)


def test_of_three_masks_the_best_learns_alone(make_dataset):
    folder = DatasetFolder.open(make_dataset())
    torch.manual_seed(0)
    sam = build_sam("nano")
    batch = next(_sampler(folder, batch=1).batches(0))
    embeddings = torch.randn(len(batch.views), 32, 8, 8)
    batch_losses(sam, embeddings, batch, SAM_LOSSES, several=True)["loss"].backward()
    networks = sam.mask_decoder.output_hypernetworks_mlps
    moved = [
        n.layers[-1].weight.grad is not None and n.layers[-1].weight.grad.any() for n in networks
    ]
    assert not moved[0] and sum(map(bool, moved)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": ("point", "box")},
        {"prompts": ("box", "point", "box+point"), "clicks": 2, "negatives": 0.5},
        {"clicks": 1, "multimask": True, "negatives": 0.25, "context": 4},
        {"prompts": ("box+point",), "context": 0},
    ],
)
@pytest.mark.parametrize("train", ["all", "decoder+prompt"])
def test_every_way_of_asking_trains_validates_resumes_and_predicts(
    make_dataset, tmp_path, options, train
):
    data = make_dataset(per_kind=4)
    torch.manual_seed(5)
    torch.save(build_sam("nano").state_dict(), tmp_path / "nano.pth")
    options = {"weights": str(tmp_path / "nano.pth"), "train": train, **options}
    run = finetune_sam(_config(data, tmp_path / "run", epochs=2, **options))
    (_, last) = _log(run)
    assert np.isfinite(last["loss"]) and 0 <= last["val_iou"] <= 1
    assert ("val_rejection_auroc" in last) == ("negatives" in options)
    others = options.get("prompts", ("box",))[1:]
    assert {name for name in last if name.startswith("val_iou_")} == {
        f"val_iou_{kind}" for kind in others
    }

    other = finetune_sam(_config(data, tmp_path / "other", epochs=1, **options))
    content = (other.root / "config.yaml").read_text()
    (other.root / "config.yaml").write_text(content.replace("epochs: 1", "epochs: 2"))
    # A schedule of one epoch ends at another rate: only what a resumed run does is looked at.
    resumed = finetune_sam(_config(data, other.root, epochs=2, resume=True, **options))
    assert [record["epoch"] for record in _log(resumed)] == [1, 2]

    segmenter = Segmenter.load(run.root, "cpu")
    context = options.get("context", 2.0) or None
    points = options.get("prompts", ("box",)) != ("box",) or options.get("clicks", 0) > 0
    assert segmenter.usage == Usage(context, points, options.get("multimask", False))
    image = next(i for i in DatasetFolder.open(data).read("test").images if not i.is_good)
    kind = options.get("prompts", ("box",))[0]
    found = list(segmenter.outline(read_image(image.path), exact_prompts(image.instances, kind)))
    assert len(found) == len(image.instances)


def test_what_is_trained_is_trained_in_windows_of_the_context(make_dataset):
    folder = DatasetFolder.open(make_dataset())
    train = folder.read("train")
    for zoom in (1.0, 1.6):
        sampler = _sampler(folder, zoom=zoom, augment=False)
        seen = {(name, view) for batch in sampler.batches(0) for name, view in batch.views}
        assert seen == {
            (image.file_name, zoomed_view(instance.box, image.height, image.width, zoom))
            for image, instance in masked_prompts(train)
        }


def test_a_run_goes_on_with_the_context_and_points_of_the_run_that_it_starts_from(
    make_dataset, tmp_path
):
    data = make_dataset()
    first = finetune_sam(_config(data, tmp_path / "a", context=5, prompts=("box", "point")))
    second = finetune_sam(_config(data, tmp_path / "b", weights=str(first.root)))
    assert read_usage(second.root, "nano") == Usage(5.0, True, False)
    third = finetune_sam(_config(data, tmp_path / "c", weights=str(first.root), context=0))
    assert read_usage(third.root, "nano").context is None


def test_a_run_without_these_words_is_used_as_its_architecture(make_dataset, tmp_path):
    run = finetune_sam(_config(make_dataset(), tmp_path / "run"))
    path = run.checkpoints / "model.json"
    write_json(path, {"architecture": read_json(path)["architecture"]})
    assert read_usage(run.root, "nano") == Usage(2.0, False, False)
    write_json(path, {"architecture": "nano", "context": "near"})
    with pytest.raises(InputError, match=r"model\.json: is damaged"):
        read_usage(run.root, "nano")


def test_an_empty_mask_is_named(make_dataset, tmp_path):
    data = make_dataset()
    path = data / "train.json"
    content = read_json(path)
    size = content["images"][0]["height"], content["images"][0]["width"]
    content["annotations"][0]["segmentation"] = rle_from_mask(np.zeros(size, dtype=bool))
    write_json(path, content)
    with pytest.raises(InputError, match=r"train\.json: annotation 1 .*empty mask"):
        finetune_sam(_config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ("box", "box")}, "prompts: give each kind once"),
        ({"prompts": ("point",)}, "prompts: predictions ask by boxes"),
        ({"context": float("inf")}, "finite number"),
        ({"context": 0.5}, "context: a window of 0.5 sides cuts the box off"),
        ({"negatives": 0.5, "loss": "focal=1"}, "negatives: teach the estimate of the IoU"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _config(tmp_path, tmp_path / "run", **options)


def test_negatives_without_a_place_are_refused_before_anything_is_written(make_dataset, tmp_path):
    data = make_dataset()
    path = data / "val.json"
    content = read_json(path)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, *sizes[annotation["image_id"]]]
        annotation.pop("segmentation")
        width, height = sizes[annotation["image_id"]]
        annotation["segmentation"] = [[0, 0, width, 0, width, height, 0, height]]
        annotation["area"] = width * height
    with_defects = {annotation["image_id"] for annotation in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in with_defects]
    write_json(path, content)
    with pytest.raises(InputError, match=r"val\.json: has no place of a defect's size"):
        finetune_sam(_config(data, tmp_path / "run", negatives=0.5))
    assert not (tmp_path / "run").exists()


def test_learnt_weights_are_those_of_the_clicks_too(make_dataset, tmp_path):
    """Points reach weights that boxes alone do not."""
    data = make_dataset()
    torch.manual_seed(5)
    torch.save(build_sam("nano").state_dict(), tmp_path / "nano.pth")
    before = torch.load(tmp_path / "nano.pth")
    name = "prompt_encoder.point_embeddings.1.weight"
    for clicks in (0, 1):
        run = finetune_sam(
            _config(
                data,
                tmp_path / f"{clicks}",
                weights=str(tmp_path / "nano.pth"),
                train="decoder+prompt",
                clicks=clicks,
            )
        )
        after = load_file(run.checkpoints / "best.safetensors")
        assert torch.equal(after[name], before[name]) == (clicks == 0)


def test_a_run_that_is_older_than_an_option_goes_on(make_dataset, tmp_path):
    data = make_dataset()
    run = finetune_sam(_config(data, tmp_path / "run"))
    path = run.root / "config.yaml"
    content = yaml.safe_load(path.read_text())
    for name in ("prompts", "clicks", "negatives", "context", "loss", "multimask", "accumulate"):
        del content[name]
    path.write_text(yaml.safe_dump(content))
    resumed = finetune_sam(_config(data, run.root, epochs=2, resume=True))
    assert [record["epoch"] for record in _log(resumed)] == [1, 2]
