"""Figures of matplotlib without its global state (pyplot): no window, nothing left open."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from converters.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#0072B2",
    "#F0E442",
)
"""Black for good, then colours that colour-blind people tell apart (Okabe & Ito, Color Universal
Design, 2008), the pale yellow last."""

DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Figure:
    """A white figure; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write it as PNG in one step; equal figures give equal files."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_bytes(path, content.getvalue())
