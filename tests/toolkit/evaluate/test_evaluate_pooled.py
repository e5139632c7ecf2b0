"""Several folds as one, and two runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from converters.dataset import Dataset
from converters.errors import InputError
from converters.files import write_json
from converters.formats.coco import write_coco
from toolkit.config import CompareConfig, EvaluateConfig
from toolkit.evaluate import Rules, compare, evaluate, score
from toolkit.evaluate.compare import compare_sheets
from toolkit.evaluate.scoring import Part, score_parts
from toolkit.predictions import Result

Scene = tuple[Dataset, list[Result]]
MakeScene = Callable[..., Scene]


def shifted(scene: Scene, by: int) -> Scene:
    """The same with other ids and names."""
    dataset, results = scene
    images = tuple(
        replace(image, id=image.id + by, file_name=f"{by}-{image.file_name}")
        for image in dataset.images
    )
    moved: list[Result] = [{**result, "image_id": result["image_id"] + by} for result in results]
    return dataset.subset(images), moved


def test_pooled_figures_are_those_of_all_images_with_the_thresholds_of_each_part(
    make_scene: MakeScene,
) -> None:
    first, second = make_scene(1), shifted(make_scene(2), 1000)
    parts = [Part(*first, make_scene(7)), Part(*second, make_scene(8))]
    pooled = score_parts(parts, Rules(resamples=0)).metrics()
    assert pooled.protocol.images == 40 and pooled.protocol.parts == 2
    thresholds = [pooled.thresholds[f"box {number}"].value for number in (1, 2)]
    assert thresholds[0] != thresholds[1]

    joined = first[0].subset((*first[0].images, *second[0].images))
    alone = score(joined, [*first[1], *second[1]], resamples=0)
    assert pooled.figures["box.AP"].value == alone.figures["box.AP"].value
    kept = [
        result
        for (_, results), threshold in zip((first, second), thresholds, strict=True)
        for result in results
        if result["score"] >= threshold
    ]
    cut = score(joined, kept, threshold=0.0, resamples=0)
    assert pooled.figures["box.F1"].value == pytest.approx(cut.figures["box.F1"].value)
    with pytest.raises(InputError, match="in an earlier run's split, too"):
        score_parts([Part(*first), Part(*first)], Rules(resamples=0))


def test_one_part_without_a_threshold_leaves_none_to_any(make_scene: MakeScene) -> None:
    parts = [Part(*make_scene(1), make_scene(7)), Part(*shifted(make_scene(2), 1000))]
    pooled = score_parts(parts, Rules(resamples=0)).metrics()
    assert pooled.thresholds == {}
    assert "there are no predictions on val" in pooled.absent["box.F1"]


def folds(tmp_path: Path, make_scene: MakeScene) -> list[Path]:
    """A dataset folder with two folds, and a run on each."""
    dataset, _ = make_scene(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    card = {"name": "scene", "categories": list(dataset.categories)}
    (tmp_path / "data" / "dataset.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    runs = []
    for number, seed in enumerate((1, 2)):
        test, val = shifted(make_scene(seed), 1000 * number), shifted(make_scene(seed + 5), 5000)
        folder = tmp_path / "data" / "folds" / str(number)
        run = tmp_path / f"run{number}"
        for split, (truth, results) in (("test", test), ("val", val), ("train", val)):
            folder.mkdir(parents=True, exist_ok=True)
            write_coco(folder / f"{split}.json", truth)
            write_json(run / "predictions" / f"{split}.json", results)
        (run / "config.yaml").write_text(f"fold: {number}\n", encoding="utf-8")
        runs.append(run)
    return runs


def test_runs_are_scored_on_the_folds_that_they_name(tmp_path: Path, make_scene: MakeScene) -> None:
    runs = folds(tmp_path, make_scene)
    data, out = tmp_path / "data", tmp_path / "metrics.json"
    single = [evaluate(EvaluateConfig(data=data, predictions=run, resamples=0)) for run in runs]
    assert [metrics.protocol.fold for metrics in single] == [0, 1]
    both = ",".join(map(str, runs))
    pooled = evaluate(EvaluateConfig(data=data, predictions=both, out=out, resamples=0))
    assert pooled.protocol.fold == (0, 1) and out.is_file()
    assert pooled.protocol.images == sum(metrics.protocol.images for metrics in single)
    with pytest.raises(InputError, match="name the metrics file with --out"):
        evaluate(EvaluateConfig(data=data, predictions=both, resamples=0))


def test_a_run_does_not_differ_from_itself(make_scene: MakeScene) -> None:
    sheet = score_parts([Part(*make_scene(1), make_scene(7))], Rules(resamples=100))
    same = compare_sheets(("a", "a"), sheet, sheet)
    assert set(same.differences) >= {"box.AP", "box.F1", "image.AUROC"}
    for each in same.differences.values():
        assert (each.difference.value, each.difference.ci95, each.p) == (0, (0, 0), 1)


def test_a_worse_run_is_told_from_a_better_one(make_scene: MakeScene) -> None:
    dataset, results = make_scene(1, defective=60)
    rng = np.random.default_rng(0)
    half: list[Result] = [result for result in results if rng.random() < 0.5]
    better, worse = (
        score_parts([Part(dataset, each)], Rules(threshold=0.3)) for each in (results, half)
    )
    comparison = compare_sheets(("all", "half"), better, worse)
    recall = comparison.differences["box.recall"]
    assert recall.difference.value == recall.second.value - recall.first.value < 0
    assert recall.difference.ci95 is not None and recall.difference.ci95[1] < 0
    assert recall.p is not None and recall.p < 0.01
    # Paired: the difference is better known than either figure.
    assert recall.first.ci95 is not None and recall.second.ci95 is not None
    alone = sum(each.ci95[1] - each.ci95[0] for each in (recall.first, recall.second))
    assert recall.difference.ci95[1] - recall.difference.ci95[0] < alone
    table = comparison.to_markdown().splitlines()
    assert table[0] == "| figure | all | half | difference | p |"
    assert any(line.startswith("| box.recall | 0.") for line in table)


def test_chance_differences_are_seldom_called_real(make_scene: MakeScene) -> None:
    """Of runs that differ by chance alone, about one in twenty has a p-value below 0.05."""
    dataset, results = make_scene(1, defective=40)
    called = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first, second = ([result for result in results if rng.random() < 0.7] for _ in range(2))
        sheets = [
            score_parts([Part(dataset, each)], Rules(threshold=0.0, resamples=100))
            for each in (first, second)
        ]
        p = compare_sheets(("a", "b"), *sheets).differences["box.recall"].p
        called += p is not None and p < 0.05
    assert called <= 7  # of 40; more than 7 would happen once in a thousand times


def test_the_command_compares_runs_of_folds(tmp_path: Path, make_scene: MakeScene) -> None:
    runs = folds(tmp_path, make_scene)
    config = CompareConfig(
        data=tmp_path / "data",
        first=runs[0],
        second=runs[0],
        resamples=50,
        out=tmp_path / "comparison.json",
    )
    assert compare(config).differences["box.AP"].p == 1
    assert (tmp_path / "comparison.json").is_file()
    with pytest.raises(InputError, match="is not the same in both runs' splits"):
        compare(config.model_copy(update={"second": (runs[1],)}))
