"""A fine-tuned classifier at work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision.models import ResNet

from toolkit.classify.data import letterbox
from toolkit.classify.scores import probabilities
from toolkit.classify.task import predict_logits
from toolkit.classify.weights import Description, load_run
from toolkit.devices import resolve_device
from toolkit.images import RgbImage


class Classifier:
    """Says what is on whole pictures.

    ::

        classifier = Classifier.load(Path("runs/classifier"))
        probabilities = classifier([read_image(Path("part.png"))])
        print(dict(zip(classifier.classes, probabilities[0])))
    """

    def __init__(self, model: ResNet, description: Description) -> None:
        """Use a network, on its device, as its description says."""
        self._model = model.eval()
        self._description = description

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> Classifier:
        """Load the best checkpoint of a run of ``finetune classifier``.

        Raises:
            InputError: it is no finished run, it is damaged, or the device is not there.
        """
        target = resolve_device(device)
        model, description = load_run(run)
        return cls(model.to(target, memory_format=torch.channels_last), description)

    @property
    def architecture(self) -> str:
        """Name of the network in torchvision."""
        return self._description.architecture

    @property
    def classes(self) -> tuple[str, ...]:
        """What it tells apart: "good", then the categories."""
        return self._description.classes

    @property
    def image_size(self) -> int:
        """Side of the square that it sees, in pixels."""
        return self._description.image_size

    def __call__(self, images: Sequence[RgbImage]) -> npt.NDArray[np.float64]:
        """Probabilities of the classes on pictures of any size.

        Args:
            images: at least one, each of shape (height, width, 3), RGB.

        Returns:
            shape (images, classes); rows add up to 1.
        """
        squares = np.stack([letterbox(image, self.image_size) for image in images])
        return self.classify_squares(squares)

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits, before the temperature, of letterboxed pictures; shape (n, classes)."""
        return predict_logits(self._model, pixels)

    def classify_squares(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """The same for pictures that were letterboxed, shape (n, image_size, image_size, 3)."""
        return probabilities(self.logits(pixels), self._description.temperature)
