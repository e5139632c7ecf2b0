"""What a trained classifier sees, as pictures for people.

::

    RUN/pictures/
      features.png, features.csv   every picture as a point: see ``features``
      cam/, cam.png, cam.csv       where verdicts come from: see ``cam``
      figures.json                 how many pictures, and whether the network looks at the defects
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from converters.dataset import Dataset
from converters.files import staged_folder, write_json
from toolkit.classify.classifier import Classifier
from toolkit.classify.data import Pictures
from toolkit.classify.look.cam import draw_cam
from toolkit.classify.look.features import draw_features
from toolkit.runs import RunFolder

FOLDER = "pictures"

MADE = Path("generated", "grown.safetensors")
"""Where a run keeps what it made of rare classes: pictures (``pixels``) or features, and their
``labels``."""

__all__ = ["FOLDER", "draw", "made_pictures"]


def draw(
    run: RunFolder,
    classifier: Classifier,
    datasets: Mapping[str, Dataset],
    pictures: Mapping[str, Pictures],
    others: Mapping[str, Pictures] | None = None,
    *,
    seed: int,
) -> None:
    """Draw the features of all splits, and where verdicts on held-out pictures come from.

    Held out are the pictures of test, or of val where there is no test. What an earlier call drew
    is replaced; equal runs give equal files.

    Args:
        run: whose folder ``pictures/`` is written.
        classifier: the trained one.
        datasets: the splits, val among them.
        pictures: those of the splits, letterboxed, in their order.
        others: pictures of other domains (made ones, a source that was adapted from) by name; a
            label of -1 says that a picture is of none of the classes.
        seed: of the layout in two dimensions, of bootstraps, and of what is drawn of too many.

    Raises:
        InputError: a held-out picture cannot be read, or the folder cannot be written.
    """
    held_out = "test" if "test" in datasets else "val"
    figures: dict[str, Any] = {}
    shutil.rmtree(run.root / FOLDER, ignore_errors=True)
    with staged_folder(run.root / FOLDER) as folder:
        figures["features"] = draw_features(
            folder, classifier, datasets, pictures, others or {}, seed=seed
        )
        figures["cam"] = draw_cam(
            folder, classifier, held_out, datasets[held_out], pictures[held_out], seed=seed
        )
        write_json(folder / "figures.json", figures, indent=2)


def made_pictures(run: RunFolder) -> dict[str, Pictures]:
    """Pictures that the run made of rare classes, as one more domain; none where it made none."""
    path = run.root / MADE
    if not path.is_file():
        return {}
    content = load_file(path)
    if "pixels" not in content:  # features, which no network sees
        return {}
    return {"made of rare classes": Pictures(content["pixels"], content["labels"])}
