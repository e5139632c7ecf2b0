"""Where on a picture a verdict comes from (Grad-CAM), and whether that is the defect.

Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391): the channels of a late layer, weighted by
how much each raises the logit of the verdict's class on average, added up, negative parts left out.
A map is coarse, as many cells as that layer has, and says where evidence is, not that it is right.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from converters.dataset import GOOD, Dataset, Image
from converters.files import write_text
from toolkit.classify.classifier import Classifier
from toolkit.classify.data import Labels, Pictures, letterbox, to_input
from toolkit.classify.look.sheet import draw_strip, file_name, write_sheet
from toolkit.evaluate.bootstrap import Basis, image_weights, ratio, to_figure
from toolkit.evaluate.metrics import Figure
from toolkit.images import read_image
from toolkit.report.pictures import write_picture

MOST = 400
"""Held-out pictures whose maps are made, at most; of more, the seed draws these."""

SHOWN = 24
"""Pictures that are drawn, at most."""

LEAST_CELLS = 7
"""Least cells across a map: what the last layer has of the usual 224 pixels. Of smaller pictures it
has fewer, 2 of 64 pixels, whose maps can hardly tell left from right; an earlier layer, as fine, is
taken then."""

RESAMPLES = 1000
"""Of the bootstrap."""

_STRIDES = {"layer4": 32, "layer3": 16, "layer2": 8, "layer1": 4}
"""Pixels of the network's input to a cell, from the last layer to the first."""

_PER_CALL = 32
"""Pictures per pass."""

Maps = npt.NDArray[np.float32]
"""Shape (n, side, side): each adds up to 1, or to 0 where nothing speaks for the class."""


@dataclass(frozen=True)
class Verdict:
    """What a held-out picture was called, and where that comes from.

    Attributes:
        image: the picture.
        photograph: number that it shares with the pictures of the same photograph.
        truth, verdict: its class, and what it was called.
        probability: of the verdict.
        map: over the letterboxed picture, shape (side, side).
        inside: share of the map's mass that lies in true defects, 0 to 1; None where there is none,
            or no mask of one.
        by_chance: the same of a map that is even over the picture.
    """

    image: Image
    photograph: int
    truth: str
    verdict: str
    probability: float
    map: npt.NDArray[np.float32]
    inside: float | None
    by_chance: float | None


def draw_cam(
    folder: Path,
    classifier: Classifier,
    split: str,
    dataset: Dataset,
    pictures: Pictures,
    *,
    seed: int,
) -> dict[str, Any]:
    """Write ``cam.csv``, and ``cam/`` and ``cam.png`` with the most instructive pictures.

    Args:
        folder: where to.
        classifier: the trained one.
        split: name of the split that was held out.
        dataset: its pictures.
        pictures: the same ones, letterboxed.
        seed: of the bootstrap, and of the choice among more than ``MOST`` pictures.

    Returns:
        the split, how many pictures it has, how many have maps and are shown, the layer and its
        cells, and the share of the maps that lies in defects: see ``pointing``.

    Raises:
        InputError: a picture cannot be read.
    """
    rows = np.arange(len(dataset.images))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
    verdicts = judge(classifier, dataset, pictures, rows)
    shown = _of_each_photograph(instructive(verdicts))[:SHOWN]
    names = [file_name(n, v.truth, v.verdict, v.probability) for n, v in enumerate(shown, start=1)]
    strips = [draw_strip(read_image(v.image.path), v.image, v.map) for v in shown]
    for name, strip in zip(names, strips, strict=True):
        write_picture(folder / "cam" / name, strip)
    layer, cells = explained_layer(classifier.image_size)
    inside, by_chance = pointing(verdicts, seed)
    figures = {
        "split": split,
        "pictures": len(dataset.images),
        "maps": len(verdicts),
        "shown": len(shown),
        "layer": layer,
        "cells": cells,
        "inside": None if inside is None else inside.to_json(),
        "by_chance": None if by_chance is None else by_chance.to_json(),
    }
    write_sheet(folder / "cam.png", strips, [_title(v) for v in shown], caption(figures))
    drawn_as = {v.image.file_name: name for v, name in zip(shown, names, strict=True)}
    write_text(folder / "cam.csv", _table(verdicts, drawn_as))
    return figures


def judge(
    classifier: Classifier, dataset: Dataset, pictures: Pictures, rows: Labels
) -> list[Verdict]:
    """The verdicts on some pictures of a split, with their maps.

    Args:
        classifier: the trained one.
        dataset: the split.
        pictures: the same ones, letterboxed.
        rows: indices of the pictures.
    """
    pixels = pictures.pixels[rows]
    probabilities = classifier.classify_squares(pixels)
    given = probabilities.argmax(axis=1)
    maps = grad_cam(classifier, pixels, given)
    photographs = dataset.photographs()
    verdicts = []
    for place, row in enumerate(rows.tolist()):
        image = dataset.images[row]
        shares = _shares(image, maps[place])
        verdicts.append(
            Verdict(
                image,
                photographs[row],
                classifier.classes[pictures.labels[row]],
                classifier.classes[given[place]],
                float(probabilities[place, given[place]]),
                maps[place],
                *(shares or (None, None)),
            )
        )
    return verdicts


def explained_layer(side: int) -> tuple[str, int]:
    """The layer that maps are made of, the last one with ``LEAST_CELLS``; and its cells across."""
    cells = {name: math.ceil(side / stride) for name, stride in _STRIDES.items()}
    return next((n, count) for n, count in cells.items() if count >= LEAST_CELLS)


def grad_cam(classifier: Classifier, pixels: npt.NDArray[np.uint8], classes: Labels) -> Maps:
    """Maps of what speaks for a class.

    Args:
        classifier: the trained one.
        pixels: letterboxed pictures, shape (n, side, side, 3).
        classes: index of the class that each map is for, shape (n,).
    """
    from captum.attr import LayerAttribution, LayerGradCam

    network, side = classifier.network, pixels.shape[1]
    layer = cast(nn.Module, getattr(network, explained_layer(side)[0]))
    explainer = LayerGradCam(network, layer)
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(pixels), _PER_CALL):
        chosen = slice(start, start + _PER_CALL)
        inputs = to_input(torch.from_numpy(pixels[chosen]).to(device))
        targets = torch.from_numpy(classes[chosen]).to(device)
        coarse = explainer.attribute(inputs, target=targets, relu_attributions=True)
        fine = LayerAttribution.interpolate(coarse.detach(), (side, side), "bilinear")
        parts.append(fine[:, 0].float().cpu().numpy())
    maps = np.concatenate(parts)
    mass = maps.sum(axis=(1, 2), keepdims=True)
    return np.asarray(maps / np.where(mass > 0, mass, 1), np.float32)


def _shares(image: Image, heat: npt.NDArray[np.float32]) -> tuple[float, float] | None:
    """Shares of a map, and of the picture, that lie in true defects; None where there are none."""
    crops = [instance.mask for instance in image.instances]
    if not crops or any(crop is None for crop in crops):
        return None
    side = len(heat)
    mask = np.any([i.to_mask(image.height, image.width) for i in image.instances], axis=0)
    defect = _letterboxed(mask, side)
    return float((heat * defect).sum()), float(mask.mean())


def _letterboxed(mask: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.float32]:
    """Share of each pixel of the network's square that a mask covers."""
    white = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    return np.asarray(letterbox(white, side, (0, 0, 0))[..., 0] / 255, np.float32)


def instructive(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Mistakes first, the surest before; then what is right, the least sure before."""

    def order(verdict: Verdict) -> tuple[bool, float]:
        right = verdict.truth == verdict.verdict
        return right, verdict.probability if right else -verdict.probability

    return sorted(verdicts, key=order)


def _of_each_photograph(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The first of each photograph: six exposures of one part show no more than one."""
    first: dict[int, Verdict] = {}
    for verdict in verdicts:
        first.setdefault(verdict.photograph, verdict)
    return list(first.values())


def pointing(verdicts: Sequence[Verdict], seed: int) -> tuple[Figure | None, Figure | None]:
    """Whether the network looks at the defects that it calls out.

    Taken over pictures with defects that were not called good: what speaks for "good" need not be
    anywhere.

    Args:
        verdicts: with their maps.
        seed: of the bootstrap.

    Returns:
        mean share of the maps' mass that lies inside true defects, with its interval, and what maps
        would have that are even over the pictures; None where there are no such pictures.
    """
    counted = [v for v in verdicts if v.inside is not None and v.verdict != GOOD]
    if not counted:
        return None, None
    labels, photographs = [v.truth for v in counted], [v.photograph for v in counted]
    weights = image_weights(labels, RESAMPLES, seed, photographs)
    ones = np.ones(len(counted))
    inside, by_chance = (
        to_figure(
            ratio(np.array(values, float), ones, weights),
            n=len(counted),
            basis=Basis.of(labels, photographs),
        )
        for values in ([v.inside for v in counted], [v.by_chance for v in counted])
    )
    return inside, by_chance


def caption(figures: dict[str, Any]) -> str:
    """What a sheet of maps shows, in two or three lines."""
    of = "" if figures["maps"] == figures["pictures"] else f" ({figures['maps']} drawn at random)"
    text = (
        f"{figures['shown']} of {figures['pictures']} pictures of {figures['split']}{of}, of each "
        "photograph one, mistakes first, then the least sure verdicts. Each with its true defects "
        "outlined, and with what speaks for the verdict (Grad-CAM, "
        f"{figures['layer']}, {figures['cells']}\N{MULTIPLICATION SIGN}{figures['cells']} cells)."
    )
    inside, by_chance = figures["inside"], figures["by_chance"]
    if inside is None:
        return text
    low_high = inside["ci95"]
    interval = "" if low_high is None else f" [{low_high[0]:.0%} to {low_high[1]:.0%}]"
    return (
        f"{text} Over {inside['n']} defective pictures that were called defective, "
        f"{inside['value']:.0%}{interval} of the maps lies inside the defects; an even map would "
        f"have {by_chance['value']:.0%}."
    )


def _title(verdict: Verdict) -> tuple[str, bool]:
    """What it was called, and whether it is that."""
    called = f"{verdict.verdict} {verdict.probability:.2f}"
    right = verdict.truth == verdict.verdict
    return (called if right else f"{verdict.truth}, called {called}"), right


def _table(verdicts: Sequence[Verdict], drawn_as: dict[str, str]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["file_name", "truth", "verdict", "probability", "inside", "by_chance", "picture"]
    )
    for v in instructive(verdicts):
        shares = ["" if share is None else f"{share:.4f}" for share in (v.inside, v.by_chance)]
        name = v.image.file_name
        table.writerow(
            [name, v.truth, v.verdict, f"{v.probability:.4f}", *shares, drawn_as.get(name, "")]
        )
    return text.getvalue()
