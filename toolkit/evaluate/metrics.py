"""What an evaluation says: figures, their intervals, and why a figure is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Figure:
    """One number and what it rests on.

    Attributes:
        value: the figure on the images as they are, 0 to 1; of ``*_per_100_good`` a count.
        ci95: bounds of its 95 % interval; None where no resamples were asked for, or where fewer
            than two images are behind it.
        n: images behind it: all that were scored, or, in ``per_class``, those with the class.
        instances: ground-truth instances behind it; None for figures of whole images.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int
    instances: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in ``metrics.json``."""
        content: dict[str, Any] = {
            "value": self.value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "n": self.n,
        }
        return content if self.instances is None else {**content, "instances": self.instances}


@dataclass(frozen=True)
class Threshold:
    """A score from which detections count.

    Attributes:
        value: 0 to 1; a detection counts where its score is at least this.
        chosen_on: the split that it was chosen on, or "given".
        by_class: thresholds of classes that have one of their own.
    """

    value: float
    chosen_on: str
    by_class: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The form in ``metrics.json``."""
        content = {"value": self.value, "chosen_on": self.chosen_on}
        return {**content, "by_class": dict(self.by_class)} if self.by_class else content

    def of(self, categories: Sequence[str]) -> npt.NDArray[np.float64]:
        """The threshold of each category, shape (categories,)."""
        return np.array([self.by_class.get(name, self.value) for name in categories], np.float64)


@dataclass(frozen=True)
class Missing:
    """Something that cannot be had, and why.

    Attributes:
        reason: one sentence, with the remedy where there is one.
    """

    reason: str


@dataclass(frozen=True)
class Protocol:
    """What was scored, and how.

    Attributes:
        split: the split that was scored.
        images, photographs, good_images, instances: counts of the ground truth; several images
            may show one photograph, which is the unit of the bootstrap.
        labels: images per image-level label (``Dataset.image_labels``), "good" first; the
            bootstrap keeps these counts.
        boxes: as of ``PredictionCard``, or "maps" where score maps alone were given.
        iou: IoU from which a detection counts as found in F1; None where there are none.
        resamples, seed: of the bootstrap.
        interval: one line on its method.
        dataset: name of the dataset.
        fold: its fold, or several whose splits were pooled; None where it has none.
        goal: what thresholds were chosen for; empty where none was chosen.
        parts: splits that were pooled.
        boundary_tolerance: pixels by which an outline may be off in boundary F1; None where no
            outlines were scored.
        fpr_limit: false-positive rate that AUPRO goes up to; None where no maps were scored.
    """

    split: str
    images: int
    photographs: int
    good_images: int
    instances: int
    labels: dict[str, int]
    boxes: str
    iou: float | None
    resamples: int
    seed: int
    interval: str
    dataset: str
    fold: int | tuple[int, ...] | None = None
    goal: str = ""
    parts: int = 1
    boundary_tolerance: float | None = None
    fpr_limit: float | None = None


@dataclass(frozen=True)
class Metrics:
    """All figures of one evaluation.

    Attributes:
        figures: by dotted name ("box.AP"); a ``baseline.`` is what doing nothing clever scores.
        per_class: the same by class; "good" has image-level figures only.
        absent: why a figure is not there, by its name ("mask.AP", "per_class.dent").
        thresholds: by what they decide: "box", "mask", "image"; of pooled splits "box 1", "box 2".
        protocol: what was scored, and how.
        confusion: images by true label and verdict; empty where there are no verdicts.
    """

    figures: dict[str, Figure]
    per_class: dict[str, dict[str, Figure]]
    absent: dict[str, str]
    thresholds: dict[str, Threshold]
    protocol: Protocol
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``: the figures' names are keys of the top level."""
        return {
            **{name: figure.to_json() for name, figure in self.figures.items()},
            "per_class": {
                label: {name: figure.to_json() for name, figure in figures.items()}
                for label, figures in self.per_class.items()
            },
            "absent": dict(self.absent),
            "confusion": {label: dict(given) for label, given in self.confusion.items()},
            "thresholds": {name: value.to_json() for name, value in self.thresholds.items()},
            "protocol": asdict(self.protocol),
        }
