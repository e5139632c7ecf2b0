"""How a segmenter is used: as it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import InputError
from converters.files import read_json
from toolkit.segment.model import ARCHITECTURES, ArchitectureName


@dataclass(frozen=True)
class Usage:
    """What a model has learnt to look at, and to be asked by.

    Attributes:
        context: side of the window around each box that is encoded, in longer sides of the box;
            None encodes the whole image once for all boxes.
        points: whether it knows what points mean.
        several: whether it gives three masks for a prompt, the best of which counts.
    """

    context: float | None = None
    points: bool = True
    several: bool = False

    @classmethod
    def of(cls, architecture: ArchitectureName) -> Usage:
        """That of an official file, or of our starter, which has seen boxes alone."""
        ours = ARCHITECTURES[architecture]
        return cls(ours.zoom, points=not ours.dense_boxes)

    def describe(self) -> dict[str, Any]:
        """As ``checkpoints/model.json`` of a run holds it; a context of 0 is the whole image."""
        return {
            "context": 0 if self.context is None else self.context,
            "points": self.points,
            "several": self.several,
        }


def read_usage(weights: str | Path, architecture: ArchitectureName) -> Usage:
    """How the weights that ``weights.load_sam`` has loaded are used.

    Args:
        weights: a run folder, a file, or "starter".
        architecture: of them.

    Raises:
        InputError: the run's description is damaged.
    """
    default = Usage.of(architecture)
    path = Path(weights) / "checkpoints" / "model.json"
    if not path.is_file():
        return default
    content = read_json(path)
    try:
        context = float(content.get("context", default.context or 0))
        points = bool(content.get("points", default.points))
        return Usage(context or None, points, bool(content.get("several", False)))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged: fine-tune again") from error
