"""How figures stand in the tables of benchmarks."""

from __future__ import annotations

from toolkit.evaluate.metrics import Figure


def with_interval(figure: Figure | None, sign: str = "") -> str:
    """A figure and its 95 % interval; "-" where there is none. ``sign`` "+" is for differences."""
    if figure is None or figure.value is None:
        return "-"
    low, high = figure.ci95 or (float("nan"), float("nan"))
    return f"{figure.value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
