"""`toolkit report`: one self-contained HTML page about a run, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from converters.files import write_text
from toolkit.config import ReportConfig
from toolkit.evaluate import Figure
from toolkit.report import sections
from toolkit.report.chart import Chart
from toolkit.report.curves import Training, training
from toolkit.report.galleries import (
    Gallery,
    Shown,
    find_galleries,
    fitting,
    with_pictures,
)
from toolkit.report.graphs import (
    compared,
    disagreement,
    find_matches,
    run_charts,
    training_charts,
    where_chosen,
)
from toolkit.report.panels import MOST_DRAWN
from toolkit.report.repeat import Repeat, repeat
from toolkit.report.sight import Sight, read_sight
from toolkit.report.source import Run, read_runs
from toolkit.report.words import KINDS, SCORES, counted, joined

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it.

    Attributes:
        run: what it is made from.
        letter: that stands for it, "A" for the first.
        does: what it does, in words.
        scored: on what, in words.
        warning: what is wrong with the figures; empty where nothing is.
        charts: curves on the split that was scored.
        tables: figures by class.
        galleries: mistakes, each with its pictures.
        sight: what its network sees; None where the run drew nothing.
        course: how the training went; None where there is no log.
        training_charts: its curves.
        repeat: how to run it again.
        absent: reasons, and the figures that are not there because of each.
        thresholds: what they decide, and what they are.
    """

    run: Run
    letter: str
    does: str
    scored: str
    warning: str
    charts: Sequence[Chart]
    tables: Sequence[sections.ClassTable]
    galleries: Sequence[tuple[Gallery, Sequence[Shown]]]
    sight: Sight | None
    course: Training | None
    training_charts: Sequence[Chart]
    repeat: Repeat
    absent: Sequence[tuple[str, list[str]]]
    thresholds: Sequence[tuple[str, str]]


def report(config: ReportConfig) -> Path:
    """Write a page about one run or several side by side.

    Where a run was not scored yet, it is scored first, and its metrics file is written.

    Returns:
        the page. It needs no other file and no network.

    Raises:
        InputError: a run, its dataset or a picture that is to be shown cannot be read, or the page
            cannot be written.
    """
    page = render(read_runs(config), examples=config.examples)
    path = config.out or config.runs[0] / "report.html"
    write_text(path, page)
    return path


def render(runs: Sequence[Run], *, examples: int) -> str:
    """The page as text; equal runs give equal pages.

    Args:
        runs: at least one.
        examples: most entries of a gallery.
    """
    matches = [find_matches(run) for run in runs]
    galleries, most_each = fitting([find_galleries(run, examples) for run in runs])
    views = []
    for number, run in enumerate(runs):
        drawn = with_pictures(galleries[number], most_each)
        shown = list(zip(galleries[number], drawn, strict=True))
        sight = read_sight(run.root, examples)
        views.append(_view(run, _letter(number), matches[number], shown, sight))
    same = sections.on_same_pictures(runs)
    together = [found.get("box") for found in matches]
    several = same and sum(found is not None for found in together) > 1
    return (
        _environment()
        .get_template("page.html")
        .render(
            views=views,
            title=f"Report: {joined([run.name for run in runs])}",
            same_pictures=same,
            comparison=compared(runs, [view.letter for view in views], together)
            if several
            else None,
            headlines=sections.headlines(runs),
            all_figures=sections.all_figures(runs),
            balances=sections.balances(runs),
            resamples=max(run.metrics.protocol.resamples for run in runs),
            most_drawn=MOST_DRAWN,
            version=_version(),
        )
    )


def _view(
    run: Run,
    letter: str,
    matches: dict[Any, Any],
    galleries: Sequence[tuple[Gallery, Sequence[Shown]]],
    sight: Sight | None,
) -> RunView:
    course = training(run.log)
    boxes = run.metrics.protocol.boxes
    with_masks = run.kind == "detector" and "mask.AP50" in run.metrics.figures
    does = "detector with masks" if with_masks else run.kind
    return RunView(
        run=run,
        letter=letter,
        does=KINDS[boxes if boxes in ("points", "everything") else does],
        scored=_scored(run),
        warning=disagreement(run, matches),
        charts=run_charts(run, matches),
        tables=sections.class_tables(run),
        galleries=galleries,
        sight=sight,
        course=course,
        training_charts=[] if course is None else training_charts(course),
        repeat=repeat(run),
        absent=sections.absent_figures(run),
        thresholds=_thresholds(run),
    )


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _scored(run: Run) -> str:
    protocol = run.metrics.protocol
    fold = "" if run.folder.fold is None else f", fold {run.folder.fold}"
    photographs = ""
    if protocol.photographs != protocol.images:
        photographs = f" of {counted(protocol.photographs, 'photograph')}"
    return (
        f"{protocol.dataset}{fold}, split {protocol.split}: "
        f"{counted(protocol.images, 'picture')}{photographs}, {protocol.good_images} of them good, "
        f"with {counted(protocol.instances, 'defect')}"
    )


def _thresholds(run: Run) -> list[tuple[str, str]]:
    decides = {"box": "boxes", "mask": "masks", "image": "verdicts on pictures"}
    rows = []
    for name, threshold in run.metrics.thresholds.items():
        text = where_chosen(threshold)
        own = [f"{label} {value:.3g}" for label, value in threshold.by_class.items()]
        rows.append((decides.get(name, name), text + (f"; {', '.join(own)}" if own else "")))
    return rows


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": _interval,
        "number": lambda value: f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}",
        "percent": lambda share: f"{100 * share:.1f}%",
        "counted": counted,
        "score_words": lambda name: SCORES.get(name, name),
        "behind": _behind,
    }
    environment.tests["share"] = _is_share
    return environment


def _interval(figure: Figure) -> str:
    """As in "0.43 to 0.61"; empty where there is no interval."""
    if figure.ci95 is None:
        return ""
    digits = 2 if max(figure.ci95) <= 1 else 1
    return f"{figure.ci95[0]:.{digits}f} to {figure.ci95[1]:.{digits}f}"


def _behind(figure: Figure) -> str:
    """What a figure rests on: as in "84 pictures, 120 defects"."""
    pictures = counted(figure.n, "picture")
    if figure.instances is None:
        return pictures
    return f"{pictures}, {counted(figure.instances, 'defect')}"


def _is_share(figure: Figure) -> bool:
    """Whether a figure can be drawn between 0 and 1."""
    ends = figure.ci95 or (figure.value, figure.value)
    return min(figure.value, *ends) >= 0 and max(figure.value, *ends) <= 1


def _version() -> str:
    try:
        return version("defect-toolkit")
    except PackageNotFoundError:
        return "from a source tree"
