"""The commands that make and check datasets: thin layers over ``converters`` and ``synth``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from converters.check import check
from converters.convert import Conversion, ConvertOptions, convert
from converters.crops import CropOptions, Crops, crop
from converters.dataset import GOOD
from converters.errors import InputError
from converters.findings import Finding
from converters.read import ReadOptions
from converters.split import SplitOptions
from toolkit.config import CheckConfig, ConvertConfig, CropConfig, SynthConfig
from toolkit.console import progress, track


def convert_dataset(config: ConvertConfig) -> Conversion:
    """Convert a folder of pictures and masks to a dataset folder.

    Raises:
        InputError: the source cannot be used as it is, or the destination cannot be written.
    """
    options = ConvertOptions(
        layout=config.layout,
        read=ReadOptions(
            classes=config.classes,
            instances=config.instances,
            merge_distance=config.merge_distance,
            near_duplicates=config.near_duplicates,
            workers=config.workers,
        ),
        split=SplitOptions(
            protocol=config.split,
            fractions=config.fractions,
            folds=config.folds,
            shots=config.shots,
            known=config.known,
            seed=config.seed,
        ),
        name=config.name,
        yolo=config.yolo,
        skip_invalid=config.skip_invalid,
    )
    return convert(config.source, config.dest, options, _track("reading"))


def check_dataset(config: CheckConfig) -> list[Finding]:
    """Findings about a dataset folder or a source, errors first.

    Raises:
        InputError: the folder is neither.
    """
    return check(
        config.dataset, near_duplicates=config.near_duplicates, track=_track("looking at pictures")
    )


def crop_dataset(config: CropConfig) -> Crops:
    """Make every instance of a dataset folder a picture of its own.

    Raises:
        InputError: there is nothing to cut out, a picture cannot be read, or the destination cannot
            be written.
    """
    options = CropOptions(
        context=config.context,
        min_side=config.min_side,
        good=config.good,
        seed=config.seed,
        workers=config.workers,
    )
    return crop(config.dataset, config.dest, options, _track("cutting out"))


def synthesise(config: SynthConfig) -> dict[str, int]:
    """Write procedural pictures in the MVTec layout.

    Returns:
        number of pictures by what they show, "good" first.

    Raises:
        InputError: a surface or kind of defect is unknown, or the destination is not free.
    """
    from toolkit.synth import DEFECTS, tail_counts, write_mvtec

    kinds = config.defects or tuple(DEFECTS)
    try:
        with progress("drawing") as advance:
            write_mvtec(
                config.dest,
                category=config.category,
                surface=config.surface,
                defects=kinds,
                train_good=config.train_good,
                test_good=config.test_good,
                per_defect=config.per_defect,
                long_tail=config.long_tail,
                size=(config.size, config.size),
                seed=config.seed,
                progress=advance,
            )
    except ValueError as error:
        raise InputError(str(error)) from error
    counts = tail_counts(config.per_defect, len(kinds), config.long_tail)
    return {GOOD: config.train_good + config.test_good, **dict(zip(kinds, counts, strict=True))}


def _track(description: str) -> Any:
    def wrap(items: Iterable[Any], total: int) -> Iterable[Any]:
        return track(items, description, total)

    return wrap
