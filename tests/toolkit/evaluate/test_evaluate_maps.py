"""Score maps: figures against scikit-learn and plain definitions, files, errors, memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PilImage
from safetensors.numpy import save_file
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from converters.dataset import Dataset, Image, Instance
from converters.errors import InputError
from converters.folder import DatasetFolder
from toolkit.config import EvaluateConfig, build
from toolkit.evaluate import evaluate, score_maps
from toolkit.evaluate.curves import LEVELS, Binning, Histograms, Regions, aupro, auroc
from toolkit.evaluate.curves import average_precision as pixel_ap
from toolkit.evaluate.maps import count_pixels, find_maps, read_map
from toolkit.predictions import PredictionCard, Result, write_predictions

Maps = list[npt.NDArray[np.floating]]
MakeScene = Callable[..., tuple[Dataset, list[Result]]]

EIGHTH = np.ones((3, 3))  # which neighbours make one region


def truth(image: Image, category: str | None = None) -> npt.NDArray[np.bool_]:
    masks = [
        instance.to_mask(image.height, image.width)
        for instance in image.instances
        if category in (None, instance.category)
    ]
    return np.any([np.zeros((image.height, image.width), bool), *masks], axis=0)


def draw_maps(dataset: Dataset, seed: int, levels: int | None) -> Maps:
    """Maps that are somewhat higher on defects, with 0 to 1 in so many levels, or as they are."""
    rng = np.random.default_rng(seed)
    maps: Maps = []
    for image in dataset.images:
        noise = rng.normal(0.4 + 0.25 * truth(image), 0.15).astype(np.float32)
        if levels is not None:
            noise = (np.round(noise.clip(0, 1) * (levels - 1)) / (levels - 1)).astype(np.float32)
        maps.append(noise)
    return maps


def write_maps(folder: Path, dataset: Dataset, maps: Maps) -> Path:
    folder.mkdir(exist_ok=True)
    for image, values in zip(dataset.images, maps, strict=True):
        np.save(folder / f"{Path(image.file_name).stem}.npy", values)
    return folder


def plain_aupro(dataset: Dataset, maps: Maps, limit: float, category: str | None = None) -> float:
    """The definition, threshold by threshold, over regions one by one."""
    good = np.concatenate([m[~truth(i)] for i, m in zip(dataset.images, maps, strict=True)])
    regions = []
    for image, values in zip(dataset.images, maps, strict=True):
        labels, count = ndimage.label(truth(image, category), EIGHTH)
        regions += [values[labels == number] for number in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        covered = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((float(np.mean(good >= threshold)), float(covered)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            at_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + at_end) / 2
    return area / limit


@pytest.mark.parametrize(
    ("levels", "tolerance"),
    [(2, 1e-12), (11, 1e-12), (256, 1e-12), (40_000, 1e-12), (None, 1e-4)],
)
def test_auroc_and_ap_are_those_of_scikit_learn(
    make_scene: MakeScene, tmp_path: Path, levels: int | None, tolerance: float
) -> None:
    dataset, _ = make_scene(0)
    maps = draw_maps(dataset, 1, levels)
    values = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate([truth(image).ravel() for image in dataset.images])
    assert levels is not None or len(np.unique(values)) > LEVELS  # so that bins are shared
    figures = score_maps(dataset, write_maps(tmp_path / "m", dataset, maps), resamples=0).figures
    expected = roc_auc_score(labels, values), average_precision_score(labels, values)
    found = figures["pixel.AUROC"].value, figures["pixel.AP"].value
    assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [4, 256])
def test_aupro_is_the_definition(
    make_scene: MakeScene, tmp_path: Path, levels: int, limit: float
) -> None:
    dataset, _ = make_scene(0)  # with images of several categories, some of which touch
    maps = draw_maps(dataset, 1, levels)
    folder = write_maps(tmp_path / "m", dataset, maps)
    metrics = score_maps(dataset, folder, fpr_limit=limit, resamples=0)
    value = metrics.figures["pixel.AUPRO"].value
    assert value == pytest.approx(plain_aupro(dataset, maps, limit), abs=1e-9)
    for category in dataset.categories:
        value = metrics.per_class[category]["pixel.AUPRO"].value
        assert value == pytest.approx(plain_aupro(dataset, maps, limit, category), abs=1e-9)


def test_aupro_with_more_scores_than_bins_is_near_the_definition(
    make_scene: MakeScene, tmp_path: Path
) -> None:
    dataset, _ = make_scene(0)
    maps = draw_maps(dataset, 1, None)
    folder = write_maps(tmp_path / "m", dataset, maps)
    thousand = [np.round(values, 3) for values in maps]  # as good as it gets threshold by threshold
    value = score_maps(dataset, folder, resamples=0).figures["pixel.AUPRO"].value
    assert value == pytest.approx(plain_aupro(dataset, thousand, 0.3), abs=3e-4)


def test_a_region_counts_the_same_however_large(one_spot: MakeScene, tmp_path: Path) -> None:
    dataset, _ = one_spot()
    dot = Instance("spot", (1, 1, 1, 1), np.ones((1, 1), np.bool_), 2)
    spot, good = dataset.images
    dataset = dataset.subset((replace(spot, instances=(*spot.instances, dot)), good))
    found = np.zeros((20, 20), np.float32)
    found[5:15, 5:15] = 1  # the spot, and not the dot
    folder = write_maps(tmp_path / "m", dataset, [found, np.zeros_like(found)])
    figures = score_maps(dataset, folder, fpr_limit=1, resamples=0).figures
    assert figures["pixel.AUPRO"].value == pytest.approx((0.5 + 1) / 2)  # a line to (1, 1)
    assert figures["pixel.AUROC"].value == pytest.approx((100 + 0.5) / 101)


# Scores of good pixels and of pixels of defects on image i, drawn from a generator.
HARD = {
    "alike": lambda i, r: (r.normal(0, 1, 6000), r.normal(2, 1, 200)),
    "each image at a level of its own": lambda i, r: (r.normal(i, 1, 6000), r.normal(i + 2, 1, 99)),
    "close to 1": lambda i, r: (
        1 - np.exp(r.normal(-20, 3, 6000)),
        1 - np.exp(r.normal(-25, 3, 90)),
    ),
    "mostly 0": lambda i, r: (r.random(6000) * (r.random(6000) < 0.4), r.random(200)),
    "two clumps": lambda i, r: (
        np.where(r.random(6000) < 0.01, 5 + r.random(6000) / 1e5, r.random(6000)),
        5 + r.random(200) / 1e5,
    ),
    "defects on one image": lambda i, r: (r.normal(0, 1, 6000), r.normal(2, 1, 5000 * (i == 3))),
    "one large defect": lambda i, r: (
        r.normal(0, 1, 6000),
        r.normal(2, 1, 50_000 if i == 3 else 9),
    ),
    "many defects": lambda i, r: (r.normal(0, 1, 4000), r.normal(1, 1, 4000)),
}


@pytest.mark.parametrize("kind", HARD)
def test_bins_hardly_change_a_figure_whatever_the_scores(kind: str) -> None:
    rng = np.random.default_rng(0)
    images = [[np.sort(part) for part in HARD[kind](i, rng)] for i in range(30)]
    binning = Binning(len(images), sum(bad.size > 0 for _, bad in images))
    for good, bad in images:
        binning.add(good, bad)
    bins = binning.bins()
    assert bins.edges.size < LEVELS and bins.edges[0] == -np.inf  # shared, not one per score
    counts = np.array([[bins.count(part) for part in image] for image in images])
    fine = counts.sum(axis=0)
    coarse = np.array([[bins.coarsen(part) for part in image] for image in counts])
    assert (coarse.sum(axis=2) == [[part.size for part in image] for image in images]).all()
    histograms = Histograms(
        coarse[:, 0].astype(np.int32),
        coarse[:, 1].astype(np.int32),
        *fine,
        [Regions(np.array([0]), np.array([1.0]), coarse[:1, 1], fine[1] / fine[1].sum())],
    )
    one = np.ones((1, len(images)), np.int16)
    labels = np.repeat([0, 1], [sum(image[part].size for image in images) for part in (0, 1)])
    scores = np.concatenate([image[part] for part in (0, 1) for image in images])
    expected = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    found = auroc(histograms, one)[0], pixel_ap(histograms, one)[0]
    assert found == pytest.approx(expected, abs=1e-4)
    # All defects as one region: the area below the ROC curve up to the limit.
    for limit in (0.01, 0.3):
        exact = _partial_area(labels, scores, limit)
        assert aupro(histograms, one, limit)[0] == pytest.approx(exact, abs=1e-4)


def test_images_that_are_all_alike_add_up_to_fine_bins() -> None:
    images = [(np.arange(6000) + i / 30) / 6000 for i in range(30)]
    binning = Binning(len(images), 0)
    for good in images:
        binning.add(good, np.empty(0))
    bins = binning.bins()
    largest = sum(bins.count(good) for good in images).max() / (30 * 6000)
    assert largest < 2e-4  # an image alone has quantiles 2e-3 apart


def _partial_area(labels: np.ndarray, scores: np.ndarray, limit: float) -> float:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    bad, good = np.cumsum(labels[order])[last], np.cumsum(1 - labels[order])[last]
    x, y = np.append(0, good / good[-1]), np.append(0, bad / bad[-1])
    x_to = np.append(x[x < limit], limit)
    after = int(np.argmax(x >= limit))
    part = (limit - x[after - 1]) / (x[after] - x[after - 1])
    y_to = np.append(y[x < limit], y[after - 1] + part * (y[after] - y[after - 1]))
    return float(np.trapezoid(y_to, x_to)) / limit


@pytest.mark.parametrize(("levels", "tolerance"), [(256, 1e-12), (40_000, 3e-4), (None, 3e-4)])
def test_a_weight_is_so_many_copies_of_the_image(
    make_scene: MakeScene, tmp_path: Path, levels: int | None, tolerance: float
) -> None:
    dataset, _ = make_scene(0)
    maps = draw_maps(dataset, 1, levels)
    copies = np.random.default_rng(2).integers(0, 3, len(maps))
    weights = np.stack([np.ones_like(copies), copies]).astype(np.int16)
    histograms = count_pixels(
        dataset, find_maps(write_maps(tmp_path / "m", dataset, maps), dataset)
    )
    drawn = [row for row, count in enumerate(copies) for _ in range(count)]
    repeated = dataset.subset(
        tuple(replace(dataset.images[row], file_name=f"{k}.png") for k, row in enumerate(drawn))
    )
    folder = write_maps(tmp_path / "n", repeated, [maps[row] for row in drawn])
    copied = count_pixels(repeated, find_maps(folder, repeated))
    once = np.ones((1, len(drawn)), np.int16)
    measures = (
        auroc,
        pixel_ap,
        aupro,
        lambda h, w: aupro(h, w, category=2),
        lambda h, w: aupro(h, w, 0.05),
    )
    for measure in measures:
        assert measure(histograms, weights)[1] == pytest.approx(
            measure(copied, once)[0], abs=tolerance
        )
        assert abs(measure(histograms, weights)[0] - measure(copied, once)[0]) > 2 * tolerance


def test_a_resample_that_draws_every_image_once_gives_the_figure(
    make_scene: MakeScene, tmp_path: Path
) -> None:
    dataset, _ = make_scene(0)
    folder = write_maps(tmp_path / "m", dataset, draw_maps(dataset, 1, None))
    histograms = count_pixels(dataset, find_maps(folder, dataset))
    assert histograms.good.shape[1] < histograms.fine_good.size  # resamples have bins of their own
    same = np.ones((700, len(dataset.images)), np.int16)  # more rows than are measured at once
    for measure in (auroc, pixel_ap, aupro):
        np.testing.assert_allclose(measure(histograms, same), measure(histograms, same)[0])


def test_figures_have_intervals_and_counts(make_scene: MakeScene, tmp_path: Path) -> None:
    dataset, _ = make_scene(0)
    maps = draw_maps(dataset, 1, None)
    metrics = score_maps(dataset, write_maps(tmp_path / "m", dataset, maps), resamples=200)
    assert list(metrics.figures) == ["pixel.AUROC", "pixel.AP", "pixel.AUPRO"]
    instances = sum(dataset.count_instances().values())
    for figure in [*metrics.figures.values(), metrics.per_class["hole"]["pixel.AUPRO"]]:
        assert figure.ci95 is not None
        assert figure.ci95[0] < figure.value < figure.ci95[1]
    assert metrics.figures["pixel.AP"].n == len(dataset.images)
    assert metrics.figures["pixel.AP"].instances == instances
    assert metrics.per_class["hole"]["pixel.AUPRO"].instances == dataset.count_instances()["hole"]
    assert metrics.protocol.boxes == "maps"
    assert metrics.protocol.fpr_limit == 0.3
    assert metrics.absent["box.AP"] == "score maps alone were given, without predictions"


@pytest.mark.parametrize("name", ["a.png", "b.png", "c.npy", "d.npy", "e.npy", "f.safetensors"])
def test_every_form_of_a_map_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    values = grey / 255
    write = {
        "a": lambda: PilImage.fromarray(grey).save(path),
        "b": lambda: PilImage.fromarray(grey.astype(np.uint16) * 257).save(path),
        "c": lambda: np.save(path, values.astype(np.float32)),
        "d": lambda: np.save(path, np.asfortranarray(values[None])),
        "e": lambda: np.save(path, values.astype(np.float16)),
        "f": lambda: save_file({"anything": values[None].astype(np.float32)}, path),
    }
    write[path.stem]()
    found = read_map(path, 4, 6)
    assert found.shape == (4, 6)
    np.testing.assert_allclose(found, values, atol=1e-3 if name == "e.npy" else 1e-7)


def test_depths_of_pictures_give_the_same_score(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    PilImage.fromarray(grey.astype(np.uint8)).save(tmp_path / "a.png")
    PilImage.fromarray(grey * 257).save(tmp_path / "b.png")
    first, second = (read_map(tmp_path / f"{name}.png", 16, 16) for name in "ab")
    np.testing.assert_array_equal(first, second)  # to the bit, or equal scores would be no ties


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "wrong size": ("x.npy", lambda p: np.save(p, np.zeros((8, 9))), r"size \[8, 9\], the picture"),
    "wrong size, png": (
        "x.png",
        lambda p: PilImage.fromarray(np.zeros((8, 9), np.uint8)).save(p),
        r"has size \[8, 9\], the picture \[20, 20\] \(height, width\): write maps at the picture",
    ),
    "channels": ("x.npy", lambda p: np.save(p, np.zeros((3, 20, 20))), r"shape \[3, 20, 20\]"),
    "NaN": ("x.npy", lambda p: np.save(p, np.full((20, 20), np.nan)), "scores that are not finite"),
    "inf": ("x.npy", lambda p: np.save(p, np.full((20, 20), np.inf)), "scores that are not finite"),
    "integers": ("x.npy", lambda p: np.save(p, np.zeros((20, 20), int)), "no floats of 16, 32"),
    "colour": (
        "x.png",
        lambda p: PilImage.new("RGB", (20, 20)).save(p),
        "is not a grey picture: write scores as 8 or 16 bits",
    ),
    "no npy": ("x.npy", lambda p: p.write_bytes(b"nothing"), "is not a readable score map"),
    "empty": ("x.npy", lambda p: p.write_bytes(b""), "is not a readable score map"),
    "objects": (
        "x.npy",
        lambda p: np.save(p, np.full((20, 20), None), allow_pickle=True),
        "is not a readable score map",
    ),
    "half a npy": (
        "x.npy",
        lambda p: (np.save(p, np.zeros((20, 20))), _truncated(p)),
        "is not a readable score map",
    ),
    "no png": ("x.png", lambda p: p.write_bytes(b"nothing"), "is not a readable score map"),
    "half a png": (
        "x.png",
        lambda p: (
            PilImage.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)).save(
                p
            ),
            _truncated(p),
        ),
        "is not a readable score map",
    ),
    "no tensors": ("x.safetensors", lambda p: p.write_bytes(b"nothing"), "readable score map"),
    "two tensors": (
        "x.safetensors",
        lambda p: save_file({k: np.zeros((20, 20), np.float32) for k in "ab"}, p),
        "has 2 tensors: write the score map alone",
    ),
    "tensor of integers": (
        "x.safetensors",
        lambda p: save_file({"a": np.zeros((20, 20), np.int32)}, p),
        "no floats of 16, 32",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_map_that_cannot_be_scored_is_named(tmp_path: Path, kind: str) -> None:
    name, write, message = BAD[kind]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as error:
        read_map(tmp_path / name, 20, 20)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)


def test_a_folder_that_lacks_a_map_or_has_one_too_many_is_refused(
    one_spot: MakeScene, tmp_path: Path
) -> None:
    dataset, _ = one_spot()
    with pytest.raises(InputError, match="m: no such folder of score maps"):
        score_maps(dataset, tmp_path / "m")
    folder = write_maps(tmp_path / "m", dataset, [np.zeros((20, 20))] * 2)
    (folder / "good.npy").rename(folder / "goods.npy")
    with pytest.raises(InputError, match=r"m: has no map for good\.png: write good\.png, \.npy or"):
        score_maps(dataset, folder)
    (folder / "goods.npy").rename(folder / "good.npy")
    PilImage.new("L", (20, 20)).save(folder / "good.png")
    with pytest.raises(InputError, match=r"several maps for good\.png \(good\.png, good\.npy\)"):
        score_maps(dataset, folder)


def test_one_map_is_not_taken_for_two_pictures(one_spot: MakeScene, tmp_path: Path) -> None:
    dataset, _ = one_spot()
    folder = write_maps(tmp_path / "m", dataset, [np.zeros((20, 20))] * 2)
    spot, good = dataset.images
    twins = dataset.subset((spot, replace(good, file_name="spot.jpg")))
    with pytest.raises(InputError, match=r"spot\.npy: is the map of spot\.png and of spot\.jpg"):
        find_maps(folder, twins)


def test_maps_lie_in_folders_as_the_pictures_do_or_side_by_side(
    one_spot: MakeScene, tmp_path: Path
) -> None:
    dataset, _ = one_spot(1)
    nested = dataset.subset((replace(dataset.images[0], file_name="line.1/spot.v2.png"),))
    (tmp_path / "line.1").mkdir()
    for path in (tmp_path / "line.1" / "spot.v2.npy", tmp_path / "spot.v2.npy"):
        np.save(path, np.zeros((20, 20)))
        assert find_maps(tmp_path, nested) == [path]
        path.unlink()


@pytest.mark.parametrize("which", ["no defect", "no mask", "no good pixel"])
def test_what_cannot_be_measured_is_absent_with_its_reason(
    one_spot: MakeScene, tmp_path: Path, which: str
) -> None:
    dataset, _ = one_spot()
    spot, good = dataset.images
    everywhere = Instance("spot", (0, 0, 20, 20), np.ones((20, 20), np.bool_), 1)
    images, reason = {
        "no defect": ((good,), "the split has no defects"),
        "no mask": (
            (replace(spot, instances=(replace(spot.instances[0], mask=None),)), good),
            "1 of 1 instances of the ground truth have no mask",
        ),
        "no good pixel": (
            (replace(spot, instances=(everywhere,)),),
            "the split has no pixel without a defect",
        ),
    }[which]
    dataset = dataset.subset(images)
    folder = write_maps(tmp_path / "m", dataset, [np.eye(20)] * len(images))
    metrics = score_maps(dataset, folder, resamples=10)
    assert metrics.figures == {}
    for name in ("pixel.AUROC", "pixel.AP", "pixel.AUPRO"):
        assert metrics.absent[name] == reason


def test_memory_does_not_grow_with_the_number_of_maps(tmp_path: Path) -> None:
    side, rng = 512, np.random.default_rng(0)
    crop = np.ones((40, 60), np.bool_)
    spot = Instance("spot", (100, 200, 60, 40), crop, 1)
    images = tuple(
        Image(f"{k}.png", Path(f"{k}.png"), side, side, (spot,) if k % 2 else (), id=1 + k)
        for k in range(24)
    )
    dataset = Dataset("d", ("spot",), images)
    maps = [rng.normal(size=(side, side)).astype(np.float32) for _ in images]
    folder = write_maps(tmp_path / "m", dataset, maps)
    one_map = maps[0].nbytes
    del maps

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            score_maps(dataset.subset(images[:count]), folder, resamples=20)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(24) < 12 * one_map
    assert peak(24) - peak(8) < one_map  # sixteen maps more


@pytest.fixture
def data(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset()


def test_maps_are_scored_alone_or_beside_predictions(data: Path, tmp_path: Path) -> None:
    dataset = DatasetFolder.open(data).read("test")
    perfect = [truth(image).astype(np.float32) for image in dataset.images]
    folder = write_maps(tmp_path / "maps", dataset, perfect)
    alone = evaluate(EvaluateConfig(data=data, maps=folder, resamples=20, fpr_limit=0.1))
    written = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert written == alone.to_json()
    for name in ("pixel.AUROC", "pixel.AP", "pixel.AUPRO"):
        assert written[name]["value"] == pytest.approx(1), name
    assert written["per_class"]["scratch"]["pixel.AUPRO"]["n"] == 3
    assert written["protocol"]["fpr_limit"] == 0.1
    assert written["protocol"]["dataset"] == "dataset"

    card = PredictionCard(boxes="detector", masks=True)
    write_predictions(tmp_path / "run" / "predictions", {"test": []}, card)
    config = EvaluateConfig(data=data, predictions=(tmp_path / "run",), maps=folder, resamples=20)
    both = evaluate(config)
    assert both.figures["box.AP"].value == 0
    assert both.figures["pixel.AP"] == alone.figures["pixel.AP"]
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_something_must_be_given_to_score() -> None:
    with pytest.raises(InputError, match=r"^predictions: nothing to score: give predictions, a"):
        build(EvaluateConfig, None, {"data": "d"})
    assert build(EvaluateConfig, None, {"data": "d", "maps": "m"}).maps == Path("m")
