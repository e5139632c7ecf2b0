"""The figures as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolkit.evaluate.metrics import Figure, Metrics

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


_NO_COLUMN = ("AR", "precision", "recall", "image_", "pixel_", "boundary_")


def print_metrics(metrics: Metrics, console: Console | None = None) -> None:
    """Print the figures, those of each class, the thresholds, and why a figure is not there.

    Args:
        metrics: what to print.
        console: where; standard output where not given.
    """
    from rich.console import Console

    (console or Console()).print(render(metrics))


def render(metrics: Metrics) -> RenderableType:
    """The tables as one thing that rich can print."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_heading(metrics), style="bold"), _overall(metrics)]
    parts += [_by_class(group, metrics) for group in _groups(metrics.per_class)]
    parts += [
        Text(f"threshold {name}: {threshold.value:.3f} (chosen on {threshold.chosen_on})")
        if threshold.chosen_on != "given"
        else Text(f"threshold {name}: {threshold.value:.3f} (given)")
        for name, threshold in metrics.thresholds.items()
    ]
    if mistakes := _mistakes(metrics.confusion):
        parts.append(Text(f"mistaken: {mistakes}"))
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.absent.items():
        by_reason.setdefault(reason, []).append(name)
    parts += [Text(f"absent {', '.join(names)}: {why}") for why, names in by_reason.items()]
    return Group(*parts)


def format_figure(figure: Figure) -> str:
    """Value, interval and images, as in ``0.612 [0.540, 0.683]  n=84``."""
    interval = "" if figure.ci95 is None else " [{:.3f}, {:.3f}]".format(*figure.ci95)
    return f"{figure.value:.3f}{interval}  n={figure.n}"


def _mistakes(confusion: Mapping[str, Mapping[str, int]]) -> str:
    """Wrong verdicts, the most frequent first; a whole matrix is wider than a terminal."""
    counts = [
        (count, label, verdict)
        for label, given in confusion.items()
        for verdict, count in given.items()
        if count and label != verdict
    ]
    counts.sort(key=lambda entry: -entry[0])
    return ", ".join(f"{count} {label} for {verdict}" for count, label, verdict in counts)


def _heading(metrics: Metrics) -> str:
    protocol = metrics.protocol
    fold = "" if protocol.fold is None else f" fold {protocol.fold}"
    shown = "" if protocol.photographs == protocol.images else f"{protocol.photographs} surfaces, "
    others = {
        "none": "whole images",
        "maps": "score maps",
        "points": "outlines of what points marked",
        "everything": "outlines of everything",
    }
    boxes = others.get(protocol.boxes, f"boxes from the {protocol.boxes}")
    return (
        f"{protocol.dataset}{fold} {protocol.split}: {protocol.images} images "
        f"({shown}{protocol.good_images} good), {protocol.instances} instances; "
        f"{boxes}"
    )


def _overall(metrics: Metrics) -> RenderableType:
    from rich.table import Table

    interval = "95 % interval" if metrics.protocol.resamples else "no interval"
    table = Table("figure", f"value [{interval}]  images", box=None, header_style="bold")
    for name, figure in metrics.figures.items():
        baseline = name.startswith("baseline.")
        table.add_row(name, format_figure(figure), style="dim" if baseline else None)
    return table


def _groups(per_class: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    names = (name for figures in per_class.values() for name in figures)
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def _is_shown(name: str) -> bool:
    """Whether a figure of a class has a column: more than five do not fit into 80 characters."""
    group, _, figure = name.rpartition(".")
    return group == "image" or not figure.startswith(_NO_COLUMN)


def _by_class(group: str, metrics: Metrics) -> RenderableType:
    """One table per group of figures: all of them side by side are wider than a terminal."""
    from rich.markup import escape
    from rich.table import Table

    rows = {
        label: {
            name: figure
            for name, figure in figures.items()
            if name.startswith(f"{group}.") and _is_shown(name)
        }
        for label, figures in metrics.per_class.items()
    }
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table = Table(f"{group}, by class", "n", box=None, header_style="bold")
    for name in names:
        table.add_column(name.removeprefix(f"{group}."))
    for label, figures in rows.items():
        if figures:
            n = max(figure.n for figure in figures.values())
            cells = [_cell(figures[name]) if name in figures else "-" for name in names]
            table.add_row(escape(label), str(n), *cells)
    return table


def _cell(figure: Figure) -> str:
    """The interval below the value, so that five figures fit into 80 columns."""
    if figure.ci95 is None:
        return f"{figure.value:.2f}"
    low, high = figure.ci95
    return f"{figure.value:.2f}\n{low:.2f}-{high:.2f}"
