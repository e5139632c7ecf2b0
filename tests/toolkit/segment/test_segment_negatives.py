"""Prompts on good surfaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from converters.dataset import GOOD, Dataset, Image, Instance
from converters.folder import DatasetFolder
from toolkit.segment.data import masked_prompts
from toolkit.segment.losses import SAM_LOSSES
from toolkit.segment.negatives import MARGIN, negative_prompts
from toolkit.segment.segmenter import Prompts, Segmenter, outlines_on
from toolkit.segment.task import Material, Prompting, SamTask
from toolkit.segment.weights import load_sam


def _image(number, *boxes, size=(100, 80)):
    instances = tuple(
        Instance("crack", box, np.ones((int(box[3]), int(box[2])), dtype=bool)) for box in boxes
    )
    return Image(f"{number}.png", Path(f"{number}.png"), *size, instances)


def _dataset(*images):
    return Dataset("parts", ("crack",), images)


def _gap(box, other):
    """Distance of two boxes across and down, in pixels; negative where they overlap."""
    return tuple(
        max(other[k] - box[k] - box[k + 2], box[k] - other[k] - other[k + 2]) for k in (0, 1)
    )


def test_they_have_the_sizes_of_defects_and_keep_away_from_them():
    dataset = _dataset(
        _image(0, (10.0, 10.0, 20.0, 8.0)), _image(1, (50.0, 40.0, 6.0, 30.0)), _image(2)
    )
    found = negative_prompts(dataset, 60)
    assert len(found) == 60
    assert {instance.box[2:] for _, instance in found} == {(20.0, 8.0), (6.0, 30.0)}
    for image, instance in found:
        x, y, w, h = instance.box
        assert instance.category == GOOD and instance.area == 0
        assert x >= 0 and x + w <= image.width and y >= 0 and y + h <= image.height
        for defect in image.instances:
            across, down = _gap(instance.box, defect.box)
            assert across >= MARGIN * w or down >= MARGIN * h


def test_half_lie_on_good_pictures_of_which_no_more_are_used_than_there_are_defect_pictures():
    defects = [_image(n, (40.0, 40.0, 5.0, 5.0)) for n in range(3)]
    good = [_image(n) for n in range(10, 40)]
    found = negative_prompts(_dataset(*defects, *good), 200)
    names = [image.file_name for image, _ in found if image.is_good]
    assert len(set(names)) == 3
    assert 80 <= len(names) <= 120


def test_they_depend_on_the_pictures_alone():
    dataset = _dataset(_image(0, (10.0, 10.0, 20.0, 8.0)), _image(1))
    first, again = negative_prompts(dataset, 10), negative_prompts(dataset, 10)
    assert [i.box for _, i in first] == [i.box for _, i in again]
    other = _dataset(_image(0, (10.0, 10.0, 20.0, 8.0)), _image(2))
    assert [i.box for _, i in first] != [i.box for _, i in negative_prompts(other, 10)]


def test_pictures_full_of_defects_have_no_place_for_them():
    full = _image(0, (0.0, 0.0, 100.0, 80.0))
    assert negative_prompts(_dataset(full), 5) == []


def test_without_defects_there_are_no_sizes():
    assert negative_prompts(_dataset(_image(0)), 5) == []


def test_they_teach_to_reject(make_dataset):
    """Estimates on good surfaces fall towards 0 once the decoder has seen some."""
    folder = DatasetFolder.open(make_dataset(per_kind=4))
    train, val = (folder.read(split) for split in ("train", "val"))
    prompts = [masked_prompts(each) for each in (train, val)]
    empty = [negative_prompts(train, 12), negative_prompts(val, 6)]

    def estimates_after_training(share):
        sam, name = load_sam("starter")
        task = SamTask(
            sam,
            1.5,
            Material(*prompts, *empty),
            Prompting(negative_share=share),
            learns="decoder",
            batch=8,
            repeat=8,
            criterion=SAM_LOSSES,
            seed=0,
            workers=0,
        )
        learnt = [p for p in sam.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, 1e-3)
        for batch in task.batches(0):
            optimizer.zero_grad()
            task.losses(batch)["loss"].backward()
            optimizer.step()
        segmenter = Segmenter(sam, name)
        return [
            outline.estimate
            for image, instance in empty[1]
            for outline in outlines_on(segmenter, image, Prompts(boxes=[instance.box]))
        ]

    untaught, taught = (np.mean(estimates_after_training(share)) for share in (0.0, 1.0))
    assert taught < untaught - 0.1, (untaught, taught)
