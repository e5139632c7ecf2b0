"""The table of an experiment as Markdown, CSV, HTML and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from converters.files import write_json, write_text
from toolkit.evaluate import Figure
from toolkit.evaluate.bootstrap import METHOD
from toolkit.experiment.table import SPLITS, Extent, Group, Row, Table

_TEMPLATES = Path(__file__).with_name("templates")
_OF_TRAINING = {
    "model": "model",
    "weights": "weights",
    "augment": "augmentation",
    "batch": "batch",
    "optimizer": "optimiser",
    "learning_rate": "learning rate",
}
_NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        cells: one per row.
        number: whether cells hold numbers, which are set to the right.
    """

    title: str
    cells: tuple[str, ...]
    number: bool = False


def write_table(table: Table, root: Path) -> None:
    """Write ``table.md``, ``table.csv``, ``table.html`` and ``results.json`` into a folder."""
    write_text(root / "table.md", to_markdown(table))
    write_text(root / "table.csv", to_csv(table))
    write_text(root / "table.html", to_html(table))
    write_json(root / "results.json", to_json(table), indent=2)


def to_markdown(table: Table) -> str:
    """A table per group, and how to read them."""
    return "\n".join(_lines(table)) + "\n"


def _lines(table: Table) -> Iterator[str]:
    for group in table.groups:
        if group.title:
            yield f"### {group.title}"
            yield ""
        shown = columns(table, group)
        yield _markdown_row([column.title for column in shown])
        yield _markdown_row(["---:" if column.number else "---" for column in shown])
        for cells in zip(*(column.cells for column in shown), strict=True):
            yield _markdown_row(cells)
        yield ""
    yield legend(table)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def legend(table: Table) -> str:
    """How to read the table, in a few sentences."""
    rows = [row for group in table.groups for row in group.rows]
    scores = ""
    if any(row.accuracy for row in rows):
        scores = (
            " Accuracy and loss are means over finished runs; the loss of train is the one that "
            "was minimised, those of val and test are the mean of -log of the probability of the "
            "true class."
        )
    lacking = [name for name in table.figures if all(row.figures[name] is None for row in rows)]
    absent = f" No finished run has {', '.join(lacking)}." if lacking and table.finished else ""
    extents = [each for row in rows for each in (row.extent, row.difference_extent) if each]
    partial = ""
    if table.finished and any(each.lacks for each in extents):
        partial = (
            " In brackets behind a figure: it rests on fewer seeds or folds than planned; a "
            f"difference, on those that both the variant and {table.baseline} have."
        )
    return (
        f"{table.finished} of {table.planned} runs are finished. Figures are of test, pooled over "
        "folds and averaged over seeds, with a 95 % interval over photographs and seeds "
        f"({METHOD}; seeds drawn anew in each resample); Δ is the difference to "
        f"{table.baseline}, on the same resamples. Seconds are those of a run, with the runs that "
        f"it starts from.{partial}{scores}{absent}"
    )


def columns(table: Table, group: Group) -> list[Column]:
    """The columns of a group; those that no row has anything in are left out."""
    rows = group.rows
    found = [
        Column("variant", tuple(row.variant for row in rows)),
        Column("settings", tuple(row.settings or _NONE for row in rows)),
        Column("runs", tuple(_runs(row) for row in rows), number=True),
    ]
    for name, title in _OF_TRAINING.items():
        found.append(Column(title, tuple(getattr(row, name) or _NONE for row in rows)))
    found.append(Column("epochs", tuple(_epochs(row) for row in rows), number=True))
    for split in SPLITS:
        for what in ("accuracy", "loss"):
            values = [getattr(row, what).get(split) for row in rows]
            cells = tuple(_NONE if value is None else f"{value:.3f}" for value in values)
            found.append(Column(f"{split} {what}", cells, number=True))
    for name in table.figures:
        cells = tuple(_figure(row.figures[name], row.extent) for row in rows)
        found.append(Column(name, cells, number=True))
        cells = tuple(_difference(row, name) for row in rows)
        found.append(Column(f"Δ {name}", cells, number=True))
    seconds = tuple(_NONE if row.seconds is None else f"{row.seconds:.0f}" for row in rows)
    found.append(Column("seconds", seconds, number=True))
    return [column for column in found if any(cell != _NONE for cell in column.cells)]


def _runs(row: Row) -> str:
    return str(row.planned) if row.finished == row.planned else f"{row.finished} of {row.planned}"


def _epochs(row: Row) -> str:
    run = "" if row.epochs is None else f"{row.epochs:.4g}"
    return "/".join(part for part in (run, row.epochs_asked) if part)


def _difference(row: Row, name: str) -> str:
    if row.difference_extent is None:
        return _NONE
    if row.figures[name] is not None and not row.difference_extent.seeds:
        return f"{_NONE} (no seed and fold in common)"
    return _figure(row.differences[name], row.difference_extent, sign="+")


def _figure(figure: Figure | None, extent: Extent, sign: str = "") -> str:
    """A figure with its interval, and what it lacks."""
    if figure is None:
        return _NONE
    return _number(figure, sign) + (f" ({extent.lacks})" if extent.lacks else "")


def _number(figure: Figure, sign: str) -> str:
    digits = 3 if abs(figure.value) <= 1 else 1
    text = f"{figure.value:{sign}.{digits}f}"
    if figure.ci95 is None:
        return text
    low, high = figure.ci95
    return f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def to_csv(table: Table) -> str:
    """One row per variant and group, numbers with all their digits; empty where there is none."""
    text = io.StringIO()
    records = [_record(table, group, row) for group in table.groups for row in group.rows]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(table: Table, group: Group, row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"data": group.data}
    record |= {f"grid.{name}": value for name, value in group.grid.items()}
    record |= {
        name: value
        for name, value in asdict(row).items()
        if name not in ("accuracy", "loss", "figures", "extent", "differences", "difference_extent")
    }
    for title, extent in (("", row.extent), ("difference.", row.difference_extent)):
        record |= {
            f"{title}{field.name}": None if extent is None else getattr(extent, field.name)
            for field in fields(Extent)
        }
    for split in SPLITS:
        record |= {
            f"{split}_accuracy": row.accuracy.get(split),
            f"{split}_loss": row.loss.get(split),
        }
    for name in table.figures:
        for title, figure in (
            (name, row.figures[name]),
            (f"difference.{name}", row.differences.get(name)),
        ):
            low, high = (None, None) if figure is None or figure.ci95 is None else figure.ci95
            record |= {
                title: None if figure is None else figure.value,
                f"{title}.n": None if figure is None else figure.n,
                f"{title}.low": low,
                f"{title}.high": high,
            }
    return record


def to_json(table: Table) -> dict[str, Any]:
    """Everything that the table holds."""
    return {**asdict(table), "interval": METHOD}


def to_html(table: Table) -> str:
    """A page that needs no other file and no network."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("table.html").render(
        title=f"Experiment: {table.command}",
        groups=[(group, columns(table, group)) for group in table.groups],
        baseline=table.baseline,
        legend=legend(table),
    )
