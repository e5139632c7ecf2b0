"""What is refused before a detector is fine-tuned, each in one line (``InputError``)."""

from __future__ import annotations

from converters.dataset import Dataset
from converters.errors import InputError
from toolkit.config import FinetuneYoloConfig
from toolkit.console import track
from toolkit.detect.data import STRIDE
from toolkit.detect.embeddings import ClassEmbeddings
from toolkit.detect.modes import is_reparameterised
from toolkit.detect.weights import StartingPoint
from toolkit.images import read_image


def check_form(
    config: FinetuneYoloConfig, start: StartingPoint, embeddings: ClassEmbeddings
) -> None:
    """Refuse what a model whose classes are convolutions cannot do."""
    if not is_reparameterised(start.model):
        return
    known = start.embeddings.names if start.embeddings is not None else ()
    if known != embeddings.names:
        raise InputError(
            f"{config.weights}: its classes became weights ({', '.join(known)}) and cannot become "
            f"{', '.join(embeddings.names)}: start from a run of another mode"
        )
    if config.mode != "reparam":
        raise InputError(
            f"mode: {config.mode} needs class embeddings, and those of {config.weights} became "
            "weights: give --mode reparam"
        )


def check_splits(splits: dict[str, Dataset], config: FinetuneYoloConfig) -> None:
    """Refuse data that cannot be trained on, or whose best epoch could not be chosen."""
    for split, purpose in {"train": "to learn from", "val": "to choose the best epoch on"}.items():
        if split not in splits:
            raise InputError(f"{config.data}: has no {split} split: convert with one")
        if not any(image.instances for image in splits[split].images):
            raise InputError(
                f"{config.data}: {split} has no defects {purpose}: "
                "convert again with other split fractions or more defect pictures"
            )


def check_last_batch(
    config: FinetuneYoloConfig, shown: int, image_size: int, processes: int
) -> None:
    """Refuse batches of which too little reaches the coarsest layer."""
    least = {-(-(shown % config.batch) // processes), config.batch // processes}
    if image_size < 2 * STRIDE and 1 in least:
        raise InputError(
            f"image_size {image_size} with a batch of one picture leaves batch "
            "normalisation a single value: use an image_size of 64 or more, or another batch"
        )


def check_pictures(splits: dict[str, Dataset]) -> None:
    """Refuse pictures that cannot be read or are not as large as annotated, before training."""
    images = [image for dataset in splits.values() for image in dataset.images]
    for image in track(images, "Checking pictures", len(images)):
        height, width = read_image(image.path).shape[:2]
        if (width, height) != (image.width, image.height):
            raise InputError(
                f"{image.path}: is {width} x {height} pixels, annotated as "
                f"{image.width} x {image.height}: convert the data again"
            )
