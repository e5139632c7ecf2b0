"""Experiments whose runs are made up, so that nothing has to be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from converters.dataset import GOOD
from converters.files import write_json, write_text
from converters.folder import DatasetFolder
from toolkit.config import ExperimentPlan, build
from toolkit.experiment.folder import RESULT, ExperimentFolder
from toolkit.experiment.plan import PlannedRun, digest, plan_runs
from toolkit.experiment.scores import score_run
from toolkit.predictions import ImageProbabilities, PredictionCard, write_probabilities
from toolkit.runs import RunFolder

MakePlan = Callable[..., ExperimentPlan]
Finish = Callable[..., None]


@pytest.fixture
def make_plan(make_dataset, tmp_path: Path) -> MakePlan:
    """The plan of an experiment on a tiny dataset, from fields of its file."""
    data = make_dataset()

    def make(**fields: object) -> ExperimentPlan:
        file = tmp_path / "experiment.yaml"
        given = {"data": str(data), "out": str(tmp_path / "out"), "variants": {"plain": None}}
        file.write_text(yaml.safe_dump({**given, **fields}, sort_keys=False), encoding="utf-8")
        return build(ExperimentPlan, file, {})

    return make


@pytest.fixture
def finish() -> Finish:
    """Make a run up as if it had been trained, with random probabilities."""

    def make(
        plan: ExperimentPlan, run: PlannedRun, *, sure: float = 1.0, seconds: float = 10.0
    ) -> None:
        folder = ExperimentFolder(plan.out)
        data = plan.data[run.data]
        made = RunFolder.create(folder.run(run.place), run.command, run.config)
        made.log({"epoch": 1, "loss": 1.5, "val_score": 0.1, "train_accuracy": 0.4})
        made.log({"epoch": 2, "loss": 0.5, "val_score": 0.6, "train_accuracy": 0.8})
        made.log({"epoch": 3, "loss": 0.4, "val_score": 0.5, "train_accuracy": 0.9})
        rng = np.random.default_rng([run.seed, *run.variant.encode()])
        opened = DatasetFolder.open(data, run.fold)
        probabilities = {}
        for split in ("val", "test"):
            dataset = opened.read(split)
            classes = (GOOD, *dataset.categories)
            logits = rng.normal(size=(len(dataset.images), len(classes)))
            for row, label in enumerate(dataset.image_labels()):
                logits[row, classes.index(label)] += sure
            values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            names = tuple(image.file_name for image in dataset.images)
            probabilities[split] = ImageProbabilities(classes, names, values)
        card = PredictionCard(boxes="none", masks=False, classifier="made up")
        write_probabilities(made.predictions, probabilities, card)
        record = {
            "seconds": seconds,
            "digest": digest(run, plan_runs(plan)),
            "identity": run.identity(),
            "scores": score_run(made.root, data, run.fold, 20),
        }
        write_json(made.root / RESULT, record)

    return make


def with_folds(data: Path) -> None:
    """Turn val and test of a dataset folder into two folds."""
    for fold, test in enumerate(("val", "test")):
        val = "test" if test == "val" else "val"
        for split, source in (("train", "train"), ("val", val), ("test", test)):
            text = (data / f"{source}.json").read_text("utf-8")
            write_text(data / "folds" / str(fold) / f"{split}.json", text)
    for split in ("train", "val", "test"):
        (data / f"{split}.json").unlink()
