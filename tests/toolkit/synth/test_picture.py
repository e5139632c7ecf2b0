"""Single pictures: determinism, sizes, what they carry, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from toolkit.synth import DEFECTS, SURFACES, Sample, sample
from toolkit.synth.canvas import Surface, Window
from toolkit.synth.patch import Patch
from toolkit.synth.picture import damage, stream
from toolkit.synth.registry import DEFECTS as REGISTRY


def same(one: Sample, other: Sample) -> bool:
    return (
        one.surface == other.surface
        and np.array_equal(one.image, other.image)
        and one.masks.keys() == other.masks.keys()
        and all(np.array_equal(one.masks[kind], other.masks[kind]) for kind in one.masks)
    )


def test_the_same_seed_gives_the_same_picture_whatever_ran_before() -> None:
    first = sample(11, size=(64, 64), defects=["crack", "stain"])
    sample(12, size=(96, 64), surface="weave", defects=["hole"])
    np.random.seed(1)
    assert same(first, sample(11, size=(64, 64), defects=["crack", "stain"]))
    assert not same(first, sample(12, size=(64, 64), defects=["crack", "stain"]))


def test_a_generator_is_read_and_moves_on() -> None:
    rng = np.random.default_rng(11)
    first, second = (sample(rng, size=(64, 64)) for _ in range(2))
    assert same(first, sample(11, size=(64, 64)))
    assert not np.array_equal(first.image, second.image)


@pytest.mark.parametrize("size", [(32, 32), (48, 201), (333, 77), (600, 400)])
@pytest.mark.parametrize("surface", SURFACES)
def test_any_size(surface: str, size: tuple[int, int]) -> None:
    kinds = list(DEFECTS) if max(size) < 300 else ["thread", "missing_piece"]
    picture = sample(1, size=size, surface=surface, defects=kinds)
    assert picture.image.shape == (*size, 3) and picture.image.dtype == np.uint8
    assert list(picture.masks) == kinds
    assert all(mask.shape == size and mask.any() for mask in picture.masks.values())


def test_defects_grow_with_the_picture() -> None:
    def mean_area(side: int) -> float:
        pictures = [
            sample(seed, size=(side, side), surface="painted", defects=["hole"])
            for seed in range(15)
        ]
        return float(np.mean([picture.masks["hole"].mean() for picture in pictures]))

    assert mean_area(256) == pytest.approx(mean_area(96), rel=0.6)


def test_a_good_picture_has_no_masks() -> None:
    picture = sample(0, size=(64, 64))
    assert picture.masks == {} and picture.instances == ()
    assert picture.surface in SURFACES


def test_instances_of_a_kind_share_one_mask() -> None:
    picture = sample(2, size=(128, 128), surface="wood", defects=["hole", "stain", "hole"])
    assert [instance.kind for instance in picture.instances] == ["hole", "stain", "hole"]
    holes = [instance.mask for instance in picture.instances if instance.kind == "hole"]
    np.testing.assert_array_equal(picture.masks["hole"], holes[0] | holes[1])


def test_pictures_look_exposed() -> None:
    for seed, surface in enumerate(SURFACES):
        image = sample(seed, size=(96, 96), surface=surface).image
        assert (image == 255).mean() < 0.2 and (image == 0).mean() < 0.2
        assert 15 < image.mean() < 240


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"surface": "cheese"}, "unknown surface 'cheese': choose from brushed_metal"),
        ({"defects": ["hole", "rust"]}, "unknown defect 'rust': choose from hole"),
        ({"size": (31, 64)}, "size 31x64"),
    ],
)
def test_refuses_what_it_does_not_know(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(0, **arguments)  # type: ignore[arg-type]


def test_an_invisible_draw_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = SURFACES["painted"](np.random.default_rng(0), np.random.default_rng(0), (64, 64))
    draws: list[int] = []

    def shy(rng: np.random.Generator, surface: Surface) -> Patch:
        draws.append(1)
        coverage = np.ones((8, 8), np.float32)
        window = Window(4, 4, 8, 8)
        change = 0.3 if len(draws) == 3 else 0.001
        return Patch(window, coverage, surface.image[window.area] + np.float32(change))

    monkeypatch.setattr("toolkit.synth.picture.DEFECTS", {**REGISTRY, "shy": shy})
    damaged, mask = damage(np.random.default_rng(0), scene, "shy")
    assert len(draws) == 3
    assert (damaged.image - scene.image)[mask].mean() == pytest.approx(0.3, abs=0.01)


def test_streams_depend_on_their_key_alone() -> None:
    assert stream(1, "a").random() == stream(1, "a").random()
    keys: list[tuple[int | str, ...]] = [(1, "a"), (1, "b"), (11, "a"), ("1", "a"), (1, 1)]
    values = {stream(*key).random() for key in keys}
    assert len(values) == 5


def test_the_import_is_light() -> None:
    code = "import sys, toolkit.synth; print('torch' in sys.modules, 'scipy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
