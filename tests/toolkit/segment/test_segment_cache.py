from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converters.dataset import Image, Instance
from converters.errors import InputError
from converters.files import read_json
from toolkit.config import FinetuneSamConfig
from toolkit.images import read_image
from toolkit.segment import cache as module
from toolkit.segment import finetune_sam
from toolkit.segment.cache import (
    EmbeddingCache,
    Folder,
    check_size,
    default_folder,
    encoder_sha256,
    file_size,
)
from toolkit.segment.data import PROMPTS_PER_VIEW, ImageStore, Sampler, frozen_views_of
from toolkit.segment.frames import Frame
from toolkit.segment.model import ARCHITECTURES, Architecture, build_sam, encode
from toolkit.segment.task import Material, frozen_views
from toolkit.segment.views import View, views_of

SIZE = 64
SHAPE = (32, 8, 8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, request):
    """A nano that encodes in milliseconds, with this zoom."""
    zoom = getattr(request, "param", 2.0)
    architecture = Architecture(64, 8, 32, 2, 2, (1,), 4, 32, 64, dense_boxes=True, zoom=zoom)
    monkeypatch.setitem(ARCHITECTURES, "nano", architecture)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield zoom
    torch.set_num_threads(threads)


def _sam(seed=0):
    torch.manual_seed(seed)
    return build_sam("nano").requires_grad_(False)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, and two views of each."""
    from PIL import Image as Pillow

    wanted = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        path = tmp_path / f"{number}.png"
        Pillow.fromarray(pixels).save(path)
        image = Image(path.name, path, SIZE, SIZE, (), path.name, id=number + 1)
        wanted += [
            (image, View(0, 0, SIZE, SIZE)),
            (image, View(8, 4, 32, 40, mirrored=True, transposed=True)),
        ]
    return wanted


class Counted:
    """A cache whose encoder calls are counted."""

    def __init__(self, folder, wanted, *, sam=None, gigabytes=1.0, workers=0):
        self.sam = sam or _sam()
        self.calls = 0
        hook = self.sam.image_encoder.register_forward_hook(self._count)
        self.cache = EmbeddingCache(self.sam, folder, gigabytes, workers)
        try:
            self.cache.build(wanted)
            self.encoded = self.calls
        except InputError:
            hook.remove()
            raise
        self.embeddings = self.cache.recall([(image.file_name, view) for image, view in wanted])

    def _count(self, *_):
        self.calls += 1


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_embeddings_are_those_of_the_encoder_in_half_precision(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    made = Counted(tmp_path / "cache", pictures)
    for (image, view), embedding in zip(pictures, made.embeddings, strict=True):
        pixels = Frame(*view.size, SIZE).image(view.image(read_image(image.path)))
        assert torch.equal(embedding, encode(made.sam, [pixels])[0].half())
    assert not torch.equal(made.embeddings[0], made.embeddings[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_run_has_encoded_the_next_one_reads(tmp_path, pictures, workers, capsys):
    cold = Counted(tmp_path / "cache", pictures, workers=workers)
    warm = Counted(tmp_path / "cache", pictures, workers=workers)
    assert (cold.encoded, warm.encoded) == (6, 0)
    assert cold.calls == 6, "embeddings are read, not made again"
    assert _equal(cold.embeddings, warm.embeddings)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(" views")[0] for line in said] == ["0 of 6", "6 of 6"]


def test_a_value_does_not_depend_on_what_was_there_already(tmp_path, pictures):
    whole = Counted(tmp_path / "whole", pictures)
    Counted(tmp_path / "grown", pictures[3:4])
    grown = Counted(tmp_path / "grown", pictures)
    memory = Counted(None, pictures, gigabytes=0)
    assert grown.encoded == 5
    assert _equal(whole.embeddings, grown.embeddings)
    assert _equal(whole.embeddings, memory.embeddings)
    assert _files(tmp_path / "whole") and all(
        path.read_bytes()
        == (tmp_path / "grown" / path.relative_to(tmp_path / "whole")).read_bytes()
        for path in _files(tmp_path / "whole")
    )


def test_without_gigabytes_nothing_is_written(tmp_path, pictures):
    made = Counted(tmp_path / "cache", pictures, gigabytes=0)
    assert (made.encoded, made.calls) == (6, 6)
    assert not (tmp_path / "cache").exists()
    assert not default_folder().exists()


def test_the_name_of_a_picture_does_not_matter_its_bytes_do(tmp_path, pictures):
    image, view = pictures[0]
    Counted(tmp_path / "cache", [(image, view)])
    copy = tmp_path / "copy.png"
    copy.write_bytes(image.path.read_bytes())
    other = Image("copy.png", copy, SIZE, SIZE, (), "copy.png", id=9)
    assert Counted(tmp_path / "cache", [(other, view)]).encoded == 0
    copy.write_bytes(pictures[2][0].path.read_bytes())
    assert Counted(tmp_path / "cache", [(other, view)]).encoded == 1


def _other_weights(sam):
    sam.image_encoder.blocks[1].mlp.lin2.bias[0] += 1e-3


def _other_mean(sam):
    sam.pixel_mean[1] += 1


def _other_heads(sam):
    for block in sam.image_encoder.blocks:
        block.attn.num_heads = 4


def _other_window(sam):
    sam.image_encoder.blocks[0].window_size = 2


@pytest.mark.parametrize("change", [_other_weights, _other_mean, _other_heads, _other_window])
def test_a_cache_of_another_encoder_is_not_read(tmp_path, pictures, change):
    Counted(tmp_path / "cache", pictures)
    sam = _sam()
    before = encoder_sha256(sam)
    change(sam)
    assert encoder_sha256(sam) != before
    cache = EmbeddingCache(sam, tmp_path / "cache", 1.0)
    keys = {cache._key("picture", view) for _, view in pictures}
    assert not keys & {
        EmbeddingCache(_sam(), tmp_path, 1.0)._key("picture", v) for _, v in pictures
    }
    if change in (_other_weights, _other_mean):  # the others do not fit this encoder's shapes
        fresh = Counted(tmp_path / "cache", pictures, sam=sam)
        assert fresh.encoded == 6
        assert _equal(fresh.embeddings, Counted(None, pictures, sam=sam, gigabytes=0).embeddings)


def test_what_the_decoder_has_learnt_does_not_matter(tmp_path, pictures):
    Counted(tmp_path / "cache", pictures)
    sam = _sam()
    sam.mask_decoder.mask_tokens.weight += 1
    assert Counted(tmp_path / "cache", pictures, sam=sam).encoded == 0


@pytest.mark.parametrize(
    "view",
    [View(0, 0, SIZE, SIZE - 1), View(0, 0, SIZE, SIZE, mirrored=True), View(1, 0, SIZE - 1, SIZE)],
)
def test_a_cache_of_another_view_is_not_read(tmp_path, pictures, view):
    image = pictures[0][0]
    first = Counted(tmp_path / "cache", pictures)
    second = Counted(tmp_path / "cache", [(image, view)])
    assert second.encoded == 1
    assert not torch.equal(first.embeddings[0], second.embeddings[0])


def test_a_cache_of_another_precision_or_format_is_not_read(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    Counted(tmp_path / "cache", pictures)
    with monkeypatch.context() as patch:
        patch.setattr(module, "has_bfloat16", lambda device: True)
        assert Counted(tmp_path / "cache", pictures).encoded == 6
    monkeypatch.setattr(module, "FORMAT", 2)
    assert Counted(tmp_path / "cache", pictures).encoded == 6


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def _emptied(path):
    path.write_bytes(b"")


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def _rewritten(path, tensor, key=None):
    with safe_open(path, framework="pt") as file:
        own = json.dumps(json.loads(file.metadata()["embedding"])["key"], separators=(",", ":"))
    description = module._description(key or own, tensor)
    save_file({"embedding": tensor}, path, {"embedding": description})


def _of_another_shape(path):
    _rewritten(path, torch.zeros(32, 4, 8, dtype=torch.float16))


def _of_another_type(path):
    _rewritten(path, torch.zeros(SHAPE))


def _not_finite(path):
    tensor = load_file(path)["embedding"]
    tensor[3, 2, 1] = -torch.inf
    _rewritten(path, tensor)


def _moved_here(path):
    _rewritten(path, load_file(path)["embedding"], key='{"of":"another"}')


def _without_metadata(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _emptied,
        _flipped,
        _of_another_shape,
        _of_another_type,
        _not_finite,
        _moved_here,
        _without_metadata,
    ],
)
def test_damaged_files_are_made_again_and_counted(tmp_path, pictures, damage, capsys):
    folder = tmp_path / "cache"
    cold = Counted(folder, pictures)
    whole = {path: path.read_bytes() for path in _files(folder)}
    for path in list(whole)[:2]:
        damage(path)
        assert path.read_bytes() != whole[path]
    capsys.readouterr()
    again = Counted(folder, pictures)
    assert again.encoded == 2
    assert _equal(again.embeddings, cold.embeddings)
    assert capsys.readouterr().err.count(f"{folder}: 2 damaged files are made again\n") == 1
    assert {path: path.read_bytes() for path in _files(folder)} == whole
    assert Counted(folder, pictures).encoded == 0
    assert "made again" not in capsys.readouterr().err


def test_a_file_gone_or_damaged_since_is_made_again_and_told_once(tmp_path, pictures, capsys):
    folder = tmp_path / "cache"
    made = Counted(folder, pictures)
    files = _files(folder)
    files[0].unlink()
    _flipped(files[1])
    capsys.readouterr()
    views = [(image.file_name, view) for image, view in pictures]
    assert _equal(made.cache.recall(views), made.embeddings)
    assert made.calls == made.encoded + 2
    assert _files(folder) == files
    for _ in range(2):
        made.cache.report()
    assert capsys.readouterr().err == (
        f"{folder}: 2 embeddings, removed by another run or damaged, were made again\n"
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_embeddings_made_again_in_training_are_those_made_before(
    tmp_path, pictures, monkeypatch, mixed
):
    monkeypatch.setattr(module, "has_bfloat16", lambda device: mixed)
    made = Counted(tmp_path / "cache", pictures)
    plain = Counted(None, pictures, gigabytes=0)
    for path in _files(tmp_path / "cache"):
        path.unlink()
    views = [(image.file_name, view) for image, view in pictures]
    with torch.autocast("cpu", torch.bfloat16, enabled=not mixed):
        assert _equal(made.cache.recall(views), plain.embeddings)
    monkeypatch.setattr(module, "has_bfloat16", lambda device: not mixed)
    assert not _equal(Counted(None, pictures, gigabytes=0).embeddings, plain.embeddings)


def test_embeddings_that_are_not_finite_are_refused_and_not_kept(tmp_path, pictures):
    sam = _sam()
    sam.image_encoder.neck[3].bias += 1e6
    with pytest.raises(InputError, match=r"0\.png: its embedding has values that are not finite"):
        Counted(tmp_path / "cache", pictures, sam=sam)
    assert not _files(tmp_path / "cache")


def test_the_size_given_for_a_file_is_enough(tmp_path, pictures):
    Counted(tmp_path / "cache", pictures)
    sizes = {path.stat().st_size for path in _files(tmp_path / "cache")}
    assert max(sizes) <= file_size(SHAPE) < min(sizes) + module._HEADER


def test_what_was_used_least_recently_goes_first(tmp_path, pictures):
    folder, room = tmp_path / "cache", 4.5 * file_size(SHAPE) / module.GIGABYTE
    for number, pair in enumerate((pictures[:2], pictures[2:4])):
        before = set(_files(folder)) if folder.exists() else set()
        Counted(folder, pair, gigabytes=room)
        for path in set(_files(folder)) - before:
            os.utime(path, (1000 + number, 1000 + number))
    Counted(folder, pictures[:2], gigabytes=room)  # the older ones are used again
    Counted(folder, pictures[4:], gigabytes=room)
    assert len(_files(folder)) == 4
    assert Counted(folder, pictures[:2], gigabytes=room).encoded == 0
    assert Counted(folder, pictures[2:4], gigabytes=room).encoded == 2


def test_only_files_of_the_cache_are_ever_removed(tmp_path, pictures):
    folder = tmp_path / "cache"
    Counted(folder, pictures[:2])
    (own,) = {path.parent for path in _files(folder)[:1]}
    theirs = [folder / "weights.safetensors", own / "weights.safetensors", own / "notes.txt"]
    for path in theirs:
        path.write_bytes(bytes(10_000))
        os.utime(path, (1, 1))
    Counted(folder, pictures[2:4], gigabytes=2 * file_size(SHAPE) / module.GIGABYTE)
    assert len(_files(folder)) == 2 + len(theirs)
    assert all(path.exists() for path in theirs)


def test_what_a_killed_run_left_half_written_is_removed_when_room_is_short(tmp_path, pictures):
    folder = tmp_path / "cache"
    Counted(folder, pictures[:2])
    first = _files(folder)[0]
    partials = [first.with_name(f".{first.name}.{digit * 16}.partial") for digit in "ab"]
    for path in partials:
        path.write_bytes(bytes(file_size(SHAPE)))
    old = time.time() - 2 * module._STALE
    os.utime(partials[0], (old, old))
    Counted(folder, pictures[:4], gigabytes=4 * file_size(SHAPE) / module.GIGABYTE)
    assert [path.exists() for path in partials] == [False, True]  # the other may be being written


def test_a_run_that_does_not_fit_is_told_what_it_needs_and_removes_nothing(tmp_path, pictures):
    folder, each = tmp_path / "cache", file_size(SHAPE)
    Counted(folder, pictures[:2])
    with pytest.raises(InputError, match=r"embeddings of 4 views take .* GB, more than") as caught:
        Counted(folder, pictures[2:], gigabytes=3.9 * each / module.GIGABYTE)
    assert "\n" not in str(caught.value)
    assert len(_files(folder)) == 2
    enough = float(str(caught.value).split("give --cache-gb ")[1].split(",")[0])
    assert Counted(folder, pictures[2:], gigabytes=enough).encoded == 4


def test_gigabytes_that_are_needed_are_told_in_words_that_help():
    with pytest.raises(InputError) as caught:
        check_size(8, 6000, (256, 64, 64))
    assert str(caught.value) == (
        "cache_gb: the embeddings of 6000 views take 12.6 GB, more than 8: give --cache-gb 12.6, "
        "fewer --cache-views, or --cache-gb 0 (in memory)"
    )
    check_size(12.6, 6000, (256, 64, 64))
    check_size(0, 6000, (256, 64, 64))


def test_a_disk_that_is_too_full_is_told_beforehand(tmp_path, pictures, monkeypatch):
    full = module.shutil._ntuple_diskusage(100, 95, 3 * file_size(SHAPE))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: full)
    folder = tmp_path / "cache"
    with pytest.raises(InputError, match=f"{folder}: 6 embeddings take .* GB more, the disk has"):
        Counted(folder, pictures)
    assert not _files(folder)
    assert Counted(folder, pictures[:3]).encoded == 3


def test_a_disk_that_fills_up_leaves_no_half_written_file(tmp_path, pictures, monkeypatch):
    folder, write = tmp_path / "cache", Path.write_bytes

    def full(path, content):
        if len(_files(folder)) == 2:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"cannot be written \(No space left on device\): make"),
    ):
        patch.setattr(Path, "write_bytes", full)
        Counted(folder, pictures)
    assert len(_files(folder)) == 2
    assert Counted(folder, pictures).encoded == 4


def test_a_cache_that_is_no_folder_is_refused(tmp_path, pictures):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(InputError, match=f"{tmp_path / 'cache'}: embeddings cannot be written"):
        Counted(tmp_path / "cache", pictures)
    assert (tmp_path / "cache").read_text() == "mine"


def test_runs_that_write_the_same_embedding_at_once_never_show_half_of_it(tmp_path):
    torch.manual_seed(0)
    shelf = Folder(tmp_path, 1.0, (64, 32, 32))
    embedding = torch.randn(64, 32, 32).half()
    shelf.put("key", embedding)
    problems = []

    def work():
        mine = Folder(tmp_path, 1.0, (64, 32, 32))
        try:
            for _ in range(60):
                mine.put("key", embedding)
                if mine.get("key") is None:
                    problems.append(mine.damaged)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(_files(tmp_path)) == 1


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine" / "embeddings"
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "defect-toolkit" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert default_folder() == tmp_path / ".cache" / "defect-toolkit" / "embeddings"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert default_folder() == tmp_path / "Library" / "Caches" / "defect-toolkit" / "embeddings"


def _prompts(name, count, size=200):
    boxes = [(10.0 + 15 * n, 20.0 + 9 * n, 12.0, 7.0) for n in range(count)]
    instances = [Instance("spot", box, np.ones((7, 12), bool), n) for n, box in enumerate(boxes)]
    image = Image(name, Path(name), size, size, tuple(instances), name, id=1)
    return [(image, instance) for instance in instances]


@pytest.mark.parametrize("zoom", [None, 2.0])
def test_the_first_view_is_the_plain_one_and_the_others_show_the_boxes(zoom):
    prompts = _prompts("a.png", PROMPTS_PER_VIEW + 2)
    found = list(frozen_views_of(prompts, zoom, 4))
    assert [prompt for _, prompt, _ in found] == prompts
    assert [group for group, _, _ in found] == [0] * PROMPTS_PER_VIEW + [1, 1]
    plain, owner = views_of([i.box for _, i in prompts], 200, 200, zoom)
    assert [views[0] for _, _, views in found] == [plain[k] for k in owner]
    for _, (_, instance), views in found:
        assert len(views) == 4
        assert len(set(views)) > 2
        for view in views:
            _, _, w, h = view.box(instance.box)
            assert w * h == pytest.approx(12 * 7)
    if zoom is None:  # a group shares its views, and another group has others
        assert found[0][2] == found[1][2] != found[-1][2] == found[-2][2]


def test_views_are_those_of_the_picture_whatever_else_is_in_the_dataset():
    alone = list(frozen_views_of(_prompts("b.png", 6), None, 3))
    among = list(frozen_views_of([*_prompts("a.png", 5), *_prompts("b.png", 6)], None, 3))
    assert [views for _, _, views in among[5:]] == [views for _, _, views in alone]
    assert among[0][2][1:] != among[5][2][1:]


@pytest.mark.parametrize("zoom", [None, 2.0])
def test_each_step_draws_one_view_for_each_group(zoom):
    prompts = [*_prompts("a.png", PROMPTS_PER_VIEW), *_prompts("b.png", 2)]
    known = {id(prompt[1]): views for _, prompt, views in frozen_views_of(prompts, zoom, 3)}
    asked = set()

    def recall(views):
        asked.update(views)
        return [torch.full((1, 2, 2), float(hash(view) % 1000)) for view in views]

    def batches(seed):
        options = {"side": 64, "cells": 16, "zoom": zoom, "batch": 6, "jitter": 0.0, "workers": 0}
        sampler = Sampler(
            prompts, ImageStore(), recall=recall, frozen_views=3, seed=seed, **options
        )
        return [batch for epoch in range(12) for batch in sampler.batches(epoch)]

    seen = batches(0)
    assert [b.views for b in seen] == [b.views for b in batches(0)] != [b.views for b in batches(1)]
    for batch in seen:
        assert not batch.pixels
        assert [e[0, 0, 0].item() for e in batch.embeddings] == [
            hash(v) % 1000 for v in batch.views
        ]
        for name, count in (("a.png", PROMPTS_PER_VIEW), ("b.png", 2)):
            of_picture = {k for k, (n, _) in enumerate(batch.views) if n == name}
            assert sum(k in of_picture for k in batch.owner.tolist()) == count
            assert len(of_picture) == (1 if zoom is None else count)
    assert asked == {(image.file_name, view) for image, i in prompts for view in known[id(i)]}, (
        "all of them are drawn, and no others"
    )


def test_validation_sees_the_plain_views_alone():
    train, val = _prompts("a.png", 3), _prompts("v.png", 3)
    wanted = frozen_views(Material(train, val), ["box"], 2.0, 4)
    names = [(image.file_name, view) for image, view in wanted]
    of_train = {("a.png", v) for _, _, views in frozen_views_of(train, 2.0, 4) for v in views}
    assert len(names) == len(set(names)) == len(of_train) + 3
    assert of_train < set(names)
    assert [v for i, v in wanted if i.file_name == "v.png"] == views_of(
        [i.box for _, i in val], 200, 200, 2.0
    )[0]


def _config(data, out, **options):
    weights = out.parent / "nano.pth"
    if not weights.exists():
        torch.save(_sam(5).state_dict(), weights)
    values = {"epochs": 2, "batch": 4, "device": "cpu", "workers": 0, "weights": str(weights)}
    return FinetuneSamConfig(data=data, out=out, **{**values, **options})


def _outcome(run):
    records = [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]
    predictions = [read_json(run.predictions / f"{split}.json") for split in ("val", "test")]
    for record in records:
        del record["seconds"]
    return records, predictions, load_file(run.checkpoints / "last.safetensors")


@pytest.mark.parametrize(("tiny", "views"), [(None, 3), (2.0, 1)], indirect=["tiny"])
def test_no_cache_a_cold_and_a_warm_one_give_the_same_run(make_dataset, tmp_path, views):
    data, folder = make_dataset(), tmp_path / "cache"
    outcomes = []
    for name, options in {
        "memory": {"cache_gb": 0},
        "cold": {"cache": folder},
        "warm": {"cache": folder, "workers": 2},
    }.items():
        config = _config(data, tmp_path / name, cache_views=views, **options)
        outcomes.append(_outcome(finetune_sam(config)))
    assert not default_folder().exists()
    for records, predictions, state in outcomes[1:]:
        assert (records, predictions) == outcomes[0][:2]
        assert all(torch.equal(tensor, state[name]) for name, tensor in outcomes[0][2].items())


def test_augmented_views_change_what_is_learnt(make_dataset, tmp_path):
    data = make_dataset()
    one, three = (
        _outcome(finetune_sam(_config(data, tmp_path / str(views), cache_views=views)))
        for views in (1, 3)
    )
    assert one[0] != three[0]
    assert len(_files(default_folder())) == 6 * 3 + 6


def test_a_run_goes_on_with_another_cache_but_not_with_other_views(make_dataset, tmp_path):
    data = make_dataset()
    whole = finetune_sam(_config(data, tmp_path / "whole", cache_views=2))
    part = _config(data, tmp_path / "part", cache_views=2, epochs=1)
    finetune_sam(part)
    free = {"epochs": 2, "resume": True, "cache": tmp_path / "c", "cache_gb": 1}
    with pytest.raises(InputError, match="part: was started with cache_views 2, not 3"):
        finetune_sam(part.model_copy(update={**free, "cache_views": 3}))
    resumed = finetune_sam(part.model_copy(update=free))
    assert len(_outcome(resumed)[0]) == 2
    assert whole.config()["cache_views"] == 2
    assert len(_files(tmp_path / "c")) == 6 * 2 + 6


def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(make_dataset, tmp_path):
    config = _config(make_dataset(), tmp_path / "run", cache_gb=1e-5, cache=tmp_path / "cache")
    with pytest.raises(InputError, match="cache_gb: the embeddings of 12 views take"):
        finetune_sam(config)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [{"train": "lora"}, {"train": "all"}, {"weights": "none"}])
def test_views_are_refused_where_the_encoder_learns(make_dataset, tmp_path, options):
    config = _config(make_dataset(), tmp_path / "run", cache_views=2, **options)
    with pytest.raises(InputError, match=r"cache_views: with train (lora|all) the image encoder"):
        finetune_sam(config)
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_learns_leaves_the_cache_alone(make_dataset, tmp_path):
    finetune_sam(_config(make_dataset(), tmp_path / "run", train="all", epochs=1))
    assert not default_folder().exists()
