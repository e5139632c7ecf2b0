"""The charts of a page: which lines they show, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from toolkit.evaluate.matching import Kind, Matches, match
from toolkit.evaluate.metrics import Threshold
from toolkit.report.chart import (
    STYLES,
    Axis,
    Chart,
    Mark,
    axis_over,
    line_chart,
    log_axis,
    round_up,
)
from toolkit.report.curves import (
    Detections,
    Line,
    Training,
    at_least,
    by_threshold,
    precision_recall,
    receiver_operating,
)
from toolkit.report.mistakes import Judged, answered, outline_iou
from toolkit.report.source import Run
from toolkit.report.words import LOSSES, SCORES

_OF = {"box": "boxes", "mask": "masks"}
_SCORE = "score from which detections count"
_AXES = (
    "Recall is the share of the defects that are found, precision the share of the detections that "
    "are right."
)


def find_matches(run: Run) -> dict[Kind, list[Matches]]:
    """Which detections are right, by what overlaps; empty for runs that are no detectors."""
    if run.kind != "detector":
        return {}
    iou = run.metrics.protocol.iou or 0.5
    return {
        kind: match(run.dataset, run.results, kind, iou=iou)
        for kind in get_args(Kind)
        if f"{kind}.AP50" in run.metrics.figures
    }


def run_charts(run: Run, matches: dict[Kind, list[Matches]]) -> list[Chart]:
    """The curves of a run on the split that was scored."""
    if run.kind == "classifier":
        return _suspicion(run)
    if run.kind == "outlines":
        return _outlines(run)
    return [
        chart
        for kind, found in matches.items()
        for chart in (_precision_recall(run, kind, found), _by_threshold(run, kind, found))
    ]


def compared(
    runs: Sequence[Run], letters: Sequence[str], matches: Sequence[Sequence[Matches] | None]
) -> Chart:
    """Precision over recall of several runs, all classes together."""
    there = [number for number, found in enumerate(matches) if found is not None]
    lines = [
        precision_recall(
            f"{letters[number]}: {runs[number].name}", matches[number] or (), bold=True
        )
        for number in there
    ]
    return line_chart(
        "Runs compared: precision over recall",
        lines,
        Axis("recall"),
        Axis("precision"),
        says="Precision over recall, one line for every run, all classes together.",
        note=f"{_AXES} The higher and the further to the right, the better.",
        styles=[1 + number for number in there],  # the colours of the runs begin at 1
    )


def disagreement(run: Run, matches: dict[Kind, list[Matches]]) -> str:
    """What shows that the figures are not of these predictions; empty where nothing does."""
    for kind, found in matches.items():
        figure, threshold = run.metrics.figures.get(f"{kind}.F1"), run.metrics.thresholds.get(kind)
        if figure is None or threshold is None or threshold.by_class:
            continue
        detections = Detections.of(found)
        reached = int((detections.score >= threshold.value).sum())
        f1 = float(detections.f1[reached - 1]) if reached else 0.0
        if abs(f1 - figure.value) > 1e-3:
            return (
                f"The figures are not of the predictions that lie here: {kind} F1 is "
                f"{figure.value:.3f} in the metrics file, and {f1:.3f} on the predictions. "
                "Run `toolkit evaluate` again."
            )
    return ""


def _precision_recall(run: Run, kind: Kind, matches: Sequence[Matches]) -> Chart:
    figures, iou = run.metrics.figures, run.metrics.protocol.iou
    of_class = []
    for name, found in zip(run.dataset.categories, matches, strict=True):
        figure = run.metrics.per_class.get(name, {}).get(f"{kind}.AP50")
        if figure is not None:
            of_class.append((figure.value, name, found))
    left_out = max(0, len(of_class) - (STYLES - 1))
    shown = sorted(of_class, key=lambda entry: entry[0])[: STYLES - 1]
    overall = f"all classes together (mean AP50 {figures[f'{kind}.AP50'].value:.2f})"
    lines = [precision_recall(overall, matches, bold=True)]
    lines += [
        precision_recall(f"{name} (AP50 {value:.2f})", [found])
        for value, name, found in of_class
        if (value, name, found) in shown
    ]
    marks = []
    recall, precision = figures.get(f"{kind}.recall"), figures.get(f"{kind}.precision")
    at = ""
    if recall is not None and precision is not None:
        marks = [Mark(recall.value, precision.value, "at the chosen threshold")]
        at = (
            f"At the chosen threshold {recall.value:.0%} of the defects are found, and "
            f"{precision.value:.0%} of the detections are right. "
        )
    note = f"{_AXES} {at}A detection is right where it overlaps a defect of its class by IoU {iou}."
    if left_out:
        note += f" {left_out} classes with higher AP50 are not drawn."
    return line_chart(
        f"Precision over recall ({_OF[kind]})",
        lines,
        Axis("recall"),
        Axis("precision"),
        says=f"Precision over recall. {at}",
        note=note,
        marks=marks,
    )


def _by_threshold(run: Run, kind: Kind, matches: Sequence[Matches]) -> Chart:
    lines = by_threshold(matches)
    threshold = run.metrics.thresholds.get(kind)
    scores = lines[0].x[lines[0].x > 0]
    highest = float(scores.max(initial=0.1))
    across = Axis(_SCORE, 0, round_up(highest))
    marks, note = [], f"No threshold is marked: {run.metrics.absent.get(f'{kind}.F1', 'none')}."
    if threshold is not None:
        highest = max(highest, threshold.value)
        across = Axis(_SCORE, 0, round_up(highest))
        if threshold.value < 0.1 * highest:  # on an even scale, all that matters would be one line
            least = min(threshold.value, float(scores.min(initial=threshold.value)))
            across = log_axis(f"{_SCORE}, in steps of ten", least, highest)
        marks = [Mark(threshold.value, None, f"threshold {threshold.value:.3g}")]
        note = f"The vertical line is the threshold, {where_chosen(threshold)}."
        if threshold.by_class:
            note += " Some classes have thresholds of their own, listed below."
    return line_chart(
        f"The choice of the threshold ({_OF[kind]})",
        lines,
        across,
        Axis("F1, precision, recall"),
        says=f"F1, precision and recall over the score threshold. {note}",
        note=f"{note} A lower one finds more defects and raises more false alarms.",
        marks=marks,
    )


def where_chosen(threshold: Threshold) -> str:
    """As in "0.34, chosen on val"."""
    how = "given" if threshold.chosen_on == "given" else f"chosen on {threshold.chosen_on}"
    return f"{threshold.value:.3g}, {how}"


def _outlines(run: Run) -> list[Chart]:
    if "mask.instance_IoU" not in run.metrics.figures:
        return []
    rated = [(pair[1].category, outline_iou(*pair)) for pair in answered(run.dataset, run.results)]
    values = [value for _, value in rated]
    lines = [at_least("all classes together", values, bold=True)]
    for name in run.dataset.categories[: STYLES - 1]:
        of_class = [value for category, value in rated if category == name]
        if of_class:
            lines.append(at_least(f"{name} ({len(of_class)})", of_class))
    good = sum(value >= 0.5 for value in values)
    return [
        line_chart(
            "How many outlines are how good",
            lines,
            Axis("IoU with the true outline"),
            Axis("share of the defects outlined at least so well"),
            says=f"{good} of {len(values)} defects are outlined with an IoU of at least 0.5.",
            note=f"{good} of {len(values)} defects are outlined with an IoU of at least 0.5.",
        )
    ]


def _suspicion(run: Run) -> list[Chart]:
    figure = run.metrics.figures.get("image.AUROC")
    if run.probabilities is None or figure is None:
        return []
    judged = Judged.of(run.dataset, run.probabilities)
    label = f"all pictures (area {figure.value:.2f})"
    says = "Share of bad pictures that are suspected, over the share of good ones that are."
    return [
        line_chart(
            "Telling bad parts from good (ROC)",
            [receiver_operating(label, judged.truth > 0, 1 - judged.values[:, 0])],
            Axis("share of good pictures that are suspected"),
            Axis("share of bad pictures that are suspected"),
            says=says,
            note="The closer to the upper left corner, the better; the diagonal is guessing.",
        )
    ]


def training_charts(course: Training) -> list[Chart]:
    """Losses, and scores on val, over the epochs."""
    charts = []
    epochs = [line.x for line in (*course.losses.values(), *course.scores.values()) if line.x.size]
    first, last = min(x[0] for x in epochs), max(x[-1] for x in epochs)
    across = Axis("epoch", float(first), float(max(last, first + 1)), whole=True)
    marks = [] if course.kept is None else [Mark(course.kept, None, f"epoch {course.kept} kept")]
    for title, lines, words in (
        ("Score on val, by epoch: higher is better", course.scores, SCORES),
        ("Training losses, by epoch: lower is better", course.losses, LOSSES),
    ):
        named = [
            Line(f"{words[n]} ({n})" if n in words else n, line.x, line.y, n == course.kept_by)
            for n, line in lines.items()
            if line.y.size
        ]
        if named:
            up = axis_over("", named, from_zero=bool(lines is course.losses))
            charts.append(
                line_chart(
                    title, named, across, up, says=f"{title}.", marks=marks, dots=course.epochs < 40
                )
            )
    return charts
