"""The features of pictures as points in two dimensions (t-SNE)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from converters.dataset import Dataset
from converters.files import write_text
from toolkit.classify.classifier import Classifier
from toolkit.classify.data import Labels, Pictures
from toolkit.classify.look.charts import COLOURS, new_figure, write_figure

MOST = 2000
"""Pictures that are drawn, at most: t-SNE of more takes minutes, and hides what it shows."""

LEAST_OF_EACH = 20
"""Pictures of a class in a split that are drawn before others are left out."""

PERPLEXITY = 30.0
"""Neighbours that a point is held close to, about, where there are enough pictures."""

NO_CLASS = "none"
"""What ``features.csv`` calls the class of a picture that is of no class."""

MARKERS = {"train": "o", "val": "^", "test": "s"}
OTHER_MARKERS = ("P", "X", "D", "v")
"""Of points by their split, and of those of other domains."""

GREY = "#8c8c8c"
"""Of points that are of no class."""

Features = npt.NDArray[np.float32]
"""Shape (pictures, channels): the network's last layer but one, averaged over the picture."""


@dataclass(frozen=True)
class Entry:
    """Pictures of one split of one domain.

    Attributes:
        domain: name of the dataset, or of what else they are.
        split: "train", "val", "test"; that of another domain is "".
        names: of the files; those that are in no file are numbered.
        pictures: the same ones.
    """

    domain: str
    split: str
    names: Sequence[str]
    pictures: Pictures


@dataclass(frozen=True)
class Point:
    """A picture on the chart; a row of ``features.csv``."""

    file_name: str
    split: str
    domain: str
    label: str
    verdict: str
    x: float
    y: float


def draw_features(
    folder: Path,
    classifier: Classifier,
    datasets: Mapping[str, Dataset],
    pictures: Mapping[str, Pictures],
    others: Mapping[str, Pictures],
    *,
    seed: int,
) -> dict[str, Any]:
    """Write ``features.csv`` and ``features.png``.

    Args:
        folder: where to.
        classifier: the trained one.
        datasets: the splits.
        pictures: those of the splits.
        others: of other domains, by name.
        seed: of the layout, and of what is drawn of more than ``MOST`` pictures.

    Returns:
        how many pictures there are, and how many are drawn.
    """
    entries = [
        Entry(dataset.name, split, [image.file_name for image in dataset.images], pictures[split])
        for split, dataset in datasets.items()
    ]
    entries += [
        Entry(name, "", [f"{name} {n}" for n in range(1, 1 + len(made.labels))], made)
        for name, made in others.items()
        if len(made.labels)
    ]
    total = sum(len(entry.names) for entry in entries)
    entries = some(entries, seed)
    points = place(classifier, entries, seed)
    write_text(folder / "features.csv", _table(points))
    _scatter(folder / "features.png", points, classifier.classes, total)
    return {"pictures": total, "drawn": len(points)}


def some(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """At most ``MOST`` pictures, drawn by the seed; of each class and split a few at least."""
    rng = np.random.default_rng(seed)
    ranks = [_ranks(entry.pictures.labels, rng) for entry in entries]
    whole = np.concatenate(ranks)
    # Those that are never left out first, then all others in the order of the draw.
    order = np.lexsort((rng.permutation(len(whole)), whole >= LEAST_OF_EACH))
    kept = np.zeros(len(whole), bool)
    kept[order[:MOST]] = True
    parts = np.split(kept, np.cumsum([len(rank) for rank in ranks])[:-1])
    return [_chosen(e, np.flatnonzero(k)) for e, k in zip(entries, parts, strict=True) if k.any()]


def _ranks(labels: Labels, rng: np.random.Generator) -> Labels:
    """Random number of each picture within its class, from 0."""
    ranks = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        (own,) = np.nonzero(labels == label)
        ranks[own] = rng.permutation(len(own))
    return ranks


def _chosen(entry: Entry, kept: Labels) -> Entry:
    names = [entry.names[index] for index in kept]
    pictures = Pictures(entry.pictures.pixels[kept], entry.pictures.labels[kept])
    return Entry(entry.domain, entry.split, names, pictures)


def place(classifier: Classifier, entries: Sequence[Entry], seed: int) -> list[Point]:
    """Points of pictures; those that the network sees alike are near one another."""
    found = [encode(classifier, entry.pictures.pixels) for entry in entries]
    layout = embed(np.concatenate([features for features, _ in found]), seed)
    verdicts = np.concatenate([logits.argmax(axis=1) for _, logits in found])
    rows = [
        (name, entry.split, entry.domain, label)
        for entry in entries
        for name, label in zip(entry.names, entry.pictures.labels.tolist(), strict=True)
    ]
    classes = classifier.classes
    return [
        Point(
            name,
            split,
            domain,
            classes[label] if label >= 0 else NO_CLASS,
            classes[verdict],
            *xy,
        )
        for (name, split, domain, label), verdict, xy in zip(
            rows, verdicts.tolist(), layout.tolist(), strict=True
        )
    ]


def encode(
    classifier: Classifier, pixels: npt.NDArray[np.uint8]
) -> tuple[Features, npt.NDArray[np.float32]]:
    """Features and logits of letterboxed pictures, shape (n, side, side, 3)."""
    found: list[Features] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(output.detach().flatten(1).float().cpu().numpy())

    handle = classifier.network.avgpool.register_forward_hook(keep)
    try:
        logits = classifier.logits(pixels)
    finally:
        handle.remove()
    return np.concatenate(found), logits


def embed(features: Features, seed: int) -> npt.NDArray[np.float64]:
    """Lay features out in two dimensions: t-SNE (van der Maaten & Hinton, JMLR 9, 2008) from PCA.

    Args:
        features: shape (n, channels), at least two.
        seed: of the solver.

    Returns:
        shape (n, 2). Neighbours are neighbours; other distances, and densities, say nothing.
    """
    from sklearn.manifold import TSNE

    count = len(features)
    if not np.ptp(features, axis=0).any():  # a dead network: nothing to lay out, and PCA fails
        return np.zeros((count, 2))
    layout = TSNE(
        n_components=2,
        perplexity=min(PERPLEXITY, (count - 1) / 3),
        init="pca",
        random_state=seed,
    )
    return np.asarray(layout.fit_transform(features), dtype=np.float64)


def _table(points: Sequence[Point]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file_name", "split", "domain", "class", "verdict", "x", "y"])
    for point in points:
        where = f"{point.x:.3f}", f"{point.y:.3f}"
        table.writerow(
            [point.file_name, point.split, point.domain, point.label, point.verdict, *where]
        )
    return text.getvalue()


def _scatter(path: Path, points: Sequence[Point], classes: Sequence[str], total: int) -> None:
    """Colours are classes, markers are splits and other domains; wrong verdicts are ringed."""
    figure = new_figure(9, 6.6)
    axes = figure.add_axes((0.02, 0.03, 0.70, 0.84))
    colours = {NO_CLASS: GREY} | {
        name: COLOURS[number % len(COLOURS)] for number, name in enumerate(classes)
    }
    markers = _markers(points)
    for (split, domain), marker in markers.items():
        own = [p for p in points if (p.split, p.domain) == (split, domain)]
        axes.scatter(
            [point.x for point in own],
            [point.y for point in own],
            c=[colours[point.label] for point in own],
            marker=marker,
            s=16 if split == "train" else 34,
            alpha=0.55 if split == "train" else 0.95,
            linewidths=0.4,
            edgecolors="white",
            zorder=2 if split == "train" else 3,
        )
    wrong = [p for p in points if p.split in ("val", "test") and p.verdict != p.label]
    axes.scatter(
        [point.x for point in wrong],
        [point.y for point in wrong],
        s=110,
        facecolors="none",
        edgecolors="black",
        linewidths=1.1,
        zorder=4,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.04)
    count = f"{total}" if total == len(points) else f"{len(points)} of {total}, drawn at random,"
    figure.text(0.02, 0.955, "Pictures as the network sees them", fontsize=13, weight="bold")
    figure.text(
        0.02,
        0.89,
        f"The features of pictures ({count}) in two dimensions, by t-SNE. Neighbours look alike "
        "to the network;\nhow far apart distant groups are, and how dense they are, means nothing.",
        fontsize=9.5,
    )
    seen = {point.label for point in points}
    shown = [name for name in (*classes, NO_CLASS) if name in seen]
    legend = [_key(axes, "o", colours[name], name) for name in shown]
    figure.legend(
        handles=legend, title="class", loc="upper left", bbox_to_anchor=(0.73, 0.87), **_LEGEND
    )
    kinds = [_key(axes, marker, "#404040", _kind(*of)) for of, marker in markers.items()]
    if wrong:
        ring = axes.plot([], [], "o", mfc="none", mec="black", ms=9, label="called another class")
        kinds += ring
    figure.legend(
        handles=kinds, title="picture", loc="lower left", bbox_to_anchor=(0.73, 0.03), **_LEGEND
    )
    write_figure(path, figure)


_LEGEND: dict[str, Any] = {"frameon": False, "alignment": "left", "fontsize": 9.5}


def _markers(points: Sequence[Point]) -> dict[tuple[str, str], str]:
    """A marker for each split, and for each other domain, in the order of the points."""
    kinds = dict.fromkeys((point.split, point.domain) for point in points)
    others = [domain for split, domain in kinds if not split]
    return {
        (split, domain): MARKERS[split]
        if split
        else OTHER_MARKERS[others.index(domain) % len(OTHER_MARKERS)]
        for split, domain in kinds
    }


def _kind(split: str, domain: str) -> str:
    return split or domain


def _key(axes: Any, marker: str, colour: str, label: str) -> Any:
    return axes.plot([], [], marker, color=colour, ms=6, ls="none", label=label)[0]
