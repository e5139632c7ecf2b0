"""The sheet that figures are entered on while an evaluation goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from converters.dataset import GOOD, Dataset
from toolkit.evaluate.bootstrap import Basis, Samples, Weights, to_figure
from toolkit.evaluate.metrics import Figure, Metrics, Protocol, Threshold


class Sheet:
    """Collects figures with the counts behind them, and reasons for those that are not there.

    Attributes:
        dataset: ground truth of the split that is scored.
        weights: of its images, row 0 the split itself.
        protocol: what is scored, and how.
        samples: of every overall figure, by name.
        basis: what each of them rests on.
        good: shape (images,), which images are good.
    """

    def __init__(self, dataset: Dataset, weights: Weights, protocol: Protocol) -> None:
        """Start an empty sheet."""
        self.dataset = dataset
        self.weights = weights.astype(np.float64)  # once, and not for every figure
        self.protocol = protocol
        self.samples: dict[str, Samples] = {}
        self.basis: dict[str, Basis] = {}
        self.good = np.array([image.is_good for image in dataset.images], np.bool_)
        self._labels = dataset.image_labels()
        self._photographs = dataset.photographs()
        on_images = [image.labels for image in dataset.images]
        self._images_with = {
            name: np.array([name in labels for labels in on_images]) for name in dataset.categories
        }
        # On a resample without a category there is nothing to find, so nothing to score.
        self._there = {
            name: self.weights @ images.astype(np.float64) > 0
            for name, images in self._images_with.items()
        }
        self._instances = dataset.count_instances()
        self._figures: dict[str, Figure] = {}
        self._per_class: dict[str, dict[str, Figure]] = {
            label: {} for label in (GOOD, *dataset.categories)
        }
        self._absent: dict[str, str] = {}
        self._thresholds: dict[str, Threshold] = {}
        self._confusion: dict[str, dict[str, int]] = {}
        for name, count in self._instances.items():
            if count == 0:
                self.leave_out([f"per_class.{name}"], f"the split has no {name}")

    @property
    def instances(self) -> int:
        """Ground-truth instances of the split."""
        return sum(self._instances.values())

    @property
    def present(self) -> list[tuple[int, str]]:
        """Index and name of the categories that the split has instances of."""
        return [
            (index, name)
            for index, name in enumerate(self.dataset.categories)
            if self._instances[name]
        ]

    def add(
        self,
        name: str,
        samples: Samples,
        *,
        over: npt.NDArray[np.bool_] | None = None,
        instances: int | None = None,
        top: float = 1.0,
        bounded: bool = True,
    ) -> None:
        """Enter a figure, from its value on every row of the weights.

        Args:
            name: of the figure.
            samples: shape (W,).
            over: shape (images,), the images behind it; all of them where not given.
            instances: instances behind it.
            top: as of ``Basis``.
            bounded: as of ``Basis``.
        """
        self.samples[name] = samples
        over = np.ones(len(self.dataset.images), np.bool_) if over is None else over
        self.basis[name] = replace(self._basis(over), top=top, bounded=bounded)
        self._figures[name] = to_figure(
            samples, n=int(over.sum()), instances=instances, basis=self.basis[name]
        )

    def add_found(self, name: str, samples: Samples) -> None:
        """Enter a figure of the instances on all images."""
        self.add(name, samples, instances=self.instances)

    def add_outlined(self, name: str, samples: Samples) -> None:
        """Enter a figure of the instances, to which images without any add nothing."""
        self.add(name, samples, over=~self.good, instances=self.instances)

    def add_for(self, category: str, name: str, samples: Samples) -> None:
        """Enter a figure of the instances of a category that the split has."""
        images, there = self._images_with[category], self._there[category]
        self._per_class[category][name] = to_figure(
            np.where(there, samples, np.nan),
            n=int(images.sum()),
            instances=self._instances[category],
            basis=self._basis(images),
        )

    def add_for_label(
        self, label: str, name: str, samples: Samples, over: npt.NDArray[np.bool_]
    ) -> None:
        """Enter a figure of the images whose label it is, shape (images,)."""
        self._per_class[label][name] = to_figure(
            samples, n=int(over.sum()), basis=self._basis(over)
        )

    def _basis(self, over: npt.NDArray[np.bool_]) -> Basis:
        (rows,) = np.nonzero(over)
        labels = [self._labels[row] for row in rows]
        return Basis.of(labels, [self._photographs[row] for row in rows])

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Say why figures are not there."""
        self._absent.update(dict.fromkeys(names, reason))

    def set_threshold(self, of: str, threshold: Threshold) -> None:
        """Enter the threshold that figures were taken at."""
        self._thresholds[of] = threshold

    def set_confusion(self, labels: Sequence[str], matrix: npt.NDArray[np.float64]) -> None:
        """Enter how many images of each label (rows) were given each verdict (columns)."""
        self._confusion = {
            label: dict(zip(labels, map(int, row), strict=True))
            for label, row in zip(labels, matrix, strict=True)
        }

    def metrics(self) -> Metrics:
        """Everything that was entered."""
        per_class = {label: figures for label, figures in self._per_class.items() if figures}
        return Metrics(
            self._figures,
            per_class,
            self._absent,
            self._thresholds,
            self.protocol,
            self._confusion,
        )
