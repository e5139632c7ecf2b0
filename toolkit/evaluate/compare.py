"""Two runs on the same pictures, and whether their difference is more than chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converters.errors import InputError
from toolkit.evaluate.bootstrap import Basis, Samples, difference
from toolkit.evaluate.metrics import Figure, Protocol
from toolkit.evaluate.sheet import Sheet


@dataclass(frozen=True)
class Difference:
    """One figure of two runs.

    Attributes:
        first, second: of each run, as if it were alone.
        difference: second minus first, with the interval of the difference.
        p: chance of a difference at least as large if there were none (two-sided); None without
            resamples.
    """

    first: Figure
    second: Figure
    difference: Figure
    p: float | None

    def to_json(self) -> dict[str, Any]:
        """The form in the file."""
        figures = {
            name: getattr(self, name).to_json() for name in ("first", "second", "difference")
        }
        return {**figures, "p": self.p}


@dataclass(frozen=True)
class Comparison:
    """Two runs, figure by figure.

    Attributes:
        names: of the runs.
        differences: by name of the figure; what either lacks is left out.
        protocol: what was scored, and how.
    """

    names: tuple[str, str]
    differences: dict[str, Difference]
    protocol: Protocol

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "runs": list(self.names),
            "figures": {name: each.to_json() for name, each in self.differences.items()},
            "protocol": asdict(self.protocol),
        }

    def to_markdown(self) -> str:
        """A table to paste."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        first, second = self.names
        yield f"| figure | {first} | {second} | difference | p |"
        yield "| --- | --- | --- | --- | --- |"
        for name, each in self.differences.items():
            cells = [_text(each.first), _text(each.second), _text(each.difference, sign="+")]
            p = "-" if each.p is None else f"{each.p:.3f}"
            yield f"| {name} | {' | '.join(cells)} | {p} |"


def compare_sheets(names: tuple[str, str], first: Sheet, second: Sheet) -> Comparison:
    """Pair two evaluations on the same images, resample by resample.

    Both are computed on the same resamples of the images, so that what makes a picture hard for
    both runs cancels out. The p-value is that of the bootstrap test of a mean difference of zero:
    the share of resamples whose difference lies at least as far from the measured one as that
    lies from zero (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16).

    Raises:
        InputError: they are not on the same images.
    """
    check_same_images(first, second)
    figures = first.metrics().figures, second.metrics().figures
    differences = {
        name: _difference(
            (figures[0][name], figures[1][name]),
            (samples, second.samples[name]),
            first.basis[name],
        )
        for name, samples in first.samples.items()
        if name in second.samples and not name.startswith("baseline.")
    }
    return Comparison(names, differences, first.protocol)


def check_same_images(first: Sheet, second: Sheet) -> None:
    """Refuse to compare evaluations on different images.

    Raises:
        InputError: they are.
    """
    images = [[image.file_name for image in sheet.dataset.images] for sheet in (first, second)]
    if images[0] != images[1]:
        lone = sorted(set(images[0]) ^ set(images[1]))
        raise InputError(
            f"{lone[0] if lone else 'the order of the images'}: is not the same in both runs' "
            "splits: compare runs on the same dataset, split and folds"
        )


def _difference(
    figures: tuple[Figure, Figure], samples: tuple[Samples, Samples], basis: Basis
) -> Difference:
    change = samples[1] - samples[0]
    between = difference(*samples, like=figures[0], basis=basis)
    resampled = change[1:][np.isfinite(change[1:])]
    p = None
    if resampled.size:
        as_far = np.abs(resampled - change[0]) >= abs(change[0]) - 1e-12
        p = float((1 + np.count_nonzero(as_far)) / (1 + resampled.size))
    return Difference(figures[0], figures[1], between, p)


def _text(figure: Figure, sign: str = "") -> str:
    interval = ""
    if figure.ci95 is not None:
        low, high = figure.ci95
        interval = f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{figure.value:{sign}.3f}{interval}"
