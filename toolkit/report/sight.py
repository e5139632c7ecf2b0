"""What a classifier sees, as its run drew it: features in two dimensions, maps of verdicts."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import InputError
from converters.files import read_json
from toolkit.report.panels import Panel, file_panel
from toolkit.report.words import counted

FOLDER = "pictures"
"""Of a run, where the pictures lie; ``figures.json`` in it says what they rest on."""

_CHART_SIDES = 900, 1400
"""Longest side of the chart on the page and enlarged, in pixels."""

_STRIP_SIDES = 400, 800
"""The same of a picture with its map."""

_CHART_CHARACTERS, _STRIP_CHARACTERS = 900_000, 120_000
"""Characters that the chart, and each picture with its map, may take on the page."""


@dataclass(frozen=True)
class Seen:
    """One held-out picture and its map.

    Attributes:
        panel: the picture, and the map over it.
        file_name: of the picture.
        says: what it is, and what it was called.
        share: how much of the map lies in the defects; empty where nothing says so.
        right: whether the verdict is right.
    """

    panel: Panel
    file_name: str
    says: str
    share: str
    right: bool


@dataclass(frozen=True)
class Sight:
    """What the network of a run sees.

    Attributes:
        features: a chart of the pictures in two dimensions.
        about_features: which pictures they are.
        seen: held-out pictures, mistakes first.
        about_seen: which ones they are, and how coarse the maps are.
        pointing: whether the network looks at the defects; empty where nothing says so.
    """

    features: Panel
    about_features: str
    seen: Sequence[Seen]
    about_seen: str
    pointing: str


def read_sight(root: Path, most: int) -> Sight | None:
    """Read what a run drew.

    Args:
        root: the run folder.
        most: held-out pictures to show, at most; 0 leaves all pictures out.

    Returns:
        None where the run drew nothing, or nothing shall be shown.

    Raises:
        InputError: a file in the folder is missing or damaged.
    """
    folder = root / FOLDER
    path = folder / "figures.json"
    if most < 1 or not path.is_file():
        return None
    figures = read_json(path)
    try:
        features, cam = figures["features"], figures["cam"]
        about_features = _counted(features["drawn"], features["pictures"])
        rows = _rows(folder / "cam.csv")
        seen = [_seen(folder / "cam", row) for row in rows if row["picture"]]
        return Sight(
            file_panel(
                folder / "features.png",
                "Features",
                f"Scatter plot of the features of {about_features}; features.csv has the numbers",
                _CHART_SIDES,
                _CHART_CHARACTERS,
            ),
            about_features,
            seen[:most],
            f"{_counted(cam['maps'], cam['pictures'])} of {cam['split']}; the maps were made of "
            f"{cam['cells']} × {cam['cells']} cells ({cam['layer']})",
            pointing(cam),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is not what `toolkit finetune classifier` writes ({error!r}): remove the "
            "folder, and run it again with --resume"
        ) from error


def pointing(cam: Mapping[str, Any]) -> str:
    """Whether a network looks at the defects that it calls out, in words, from its figures."""
    inside, by_chance = cam["inside"], cam["by_chance"]
    if inside is None:
        return ""
    even = float(by_chance["value"])
    low_high = inside["ci95"]
    interval = "" if low_high is None else f" [{low_high[0]:.0%} to {low_high[1]:.0%}]"
    if low_high is None or low_high[0] <= even <= low_high[1]:
        verdict = "That does not show that the network looks at the defects."
    elif low_high[0] > even:
        verdict = "The network looks at the defects."
    else:
        verdict = "The network looks at something else than the defects."
    return (
        f"Of the maps of {counted(inside['n'], 'defective picture')} that were called defective, "
        f"{inside['value']:.0%}{interval} lies inside the true defects; maps that are even over "
        f"the pictures would have {even:.0%}. {verdict}"
    )


def _counted(some: int, of: int) -> str:
    pictures = counted(of, "picture")
    return pictures if some == of else f"{some} of {pictures}, drawn at random"


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): restore it") from error


def _seen(folder: Path, row: Mapping[str, str]) -> Seen:
    truth, verdict, probability = row["truth"], row["verdict"], float(row["probability"])
    says = f"called {verdict} with probability {probability:.2f}"
    share = ""
    if row["inside"]:
        share = (
            f"{float(row['inside']):.1%} of the map lies in the defect, which covers "
            f"{float(row['by_chance']):.1%} of the picture."
        )
    alt = f"{row['file_name']}, {truth}, and where the verdict {verdict} comes from"
    panel = file_panel(
        folder / Path(row["picture"]).name, "Grad-CAM", alt, _STRIP_SIDES, _STRIP_CHARACTERS
    )
    return Seen(panel, row["file_name"], f"{truth}, {says}.", share, truth == verdict)
