"""`toolkit predict`: a detector's boxes prompt a segmenter; results are written as COCO results.

Without a detector, a segmenter is prompted by ground-truth boxes, by points, or by a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converters.dataset import Dataset, Image
from converters.errors import InputError
from converters.files import write_json
from converters.folder import CARD, DatasetFolder
from converters.geometry import rle_from_region
from converters.layouts.base import IMAGE_SUFFIXES
from toolkit.config import PredictConfig
from toolkit.console import note, track
from toolkit.images import read_image
from toolkit.marks import OBJECT, Marks, read_marks
from toolkit.predictions import Boxes, PredictionCard, Result, write_predictions
from toolkit.report.pictures import draw_results, write_picture

if TYPE_CHECKING:
    from toolkit.detect import Detector
    from toolkit.segment import Segmenter

PICTURES = "pictures"
"""Name of the results for pictures that are no dataset."""


def predict(config: PredictConfig) -> dict[str, int]:
    """Predict on splits of a dataset, or on pictures.

    With a detector, its boxes count, and the segmenter, if given, outlines what is in them; the
    score is the detector's. With class embeddings, a detector with an open vocabulary looks for
    their classes. Without a detector, the segmenter outlines what points mark, or everything, or
    what is in the ground-truth boxes of a dataset; the score is its estimate of the IoU.
    On pictures that are no dataset, ``predictions/images.json`` says which id is which file.

    Returns:
        number of results by split ("pictures" where the source is no dataset).

    Raises:
        InputError: no model was given, the source holds nothing to predict on, the models do not
            fit the data, or there are predictions in the output folder already.
    """
    if config.detector is None and config.segmenter is None:
        raise InputError("no model: give --detector RUN, --segmenter RUN, or both")
    folder = config.out / "predictions"
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds predictions already: choose another --out")
    marks = None if config.points is None else read_marks(config.points)
    models = _Models.load(config)
    datasets = _datasets(config, models, marks)
    if marks is not None:
        marks = _placed(config, marks, datasets)
    results = {
        name: models.predict(name, dataset, config, marks) for name, dataset in datasets.items()
    }
    write_predictions(folder, results, models.card(config))
    if PICTURES in datasets:
        _write_image_list(folder / "images.json", datasets[PICTURES])
    if config.overlays:
        for name, dataset in datasets.items():
            _draw(config, dataset, results[name], config.out / "overlays" / name)
    return {name: len(found) for name, found in results.items()}


class _Models:
    """A detector, a segmenter, or one feeding the other."""

    def __init__(self, detector: Detector | None, segmenter: Segmenter | None) -> None:
        self.detector = detector
        self.segmenter = segmenter

    @classmethod
    def load(cls, config: PredictConfig) -> _Models:
        from toolkit.devices import resolve_device

        device = resolve_device(config.device)
        detector = segmenter = None
        if config.detector is not None and config.embeddings is not None:
            from toolkit.detect.zero_shot import load_prompted

            detector = load_prompted(
                config.detector,
                config.embeddings,
                config.clip,
                device,
                trust=config.trust,
                confidence=config.confidence,
                max_detections=config.max_detections,
                tile=config.tile,
                tile_overlap=config.tile_overlap,
            )
        elif config.detector is not None:
            from toolkit.detect import Detector
            from toolkit.detect.zero_shot import check_has_vocabulary

            check_has_vocabulary(config.detector)
            detector = Detector.load(
                config.detector,
                device,
                confidence=config.confidence,
                max_detections=config.max_detections,
                tile=config.tile,
                tile_overlap=config.tile_overlap,
            )
        if config.segmenter is not None:
            from toolkit.segment import Segmenter

            segmenter = Segmenter.load(config.segmenter, config.device)
            _check_asked(config, segmenter)
        return cls(detector, segmenter)

    def predict(
        self, name: str, dataset: Dataset, config: PredictConfig, marks: Marks | None
    ) -> list[Result]:
        """Results on every picture of a dataset, in its order; ``name`` is for the notes."""
        if self.detector is None:
            assert self.segmenter is not None, "refused at the start"
            return _ask(self.segmenter, name, dataset, config, marks)
        from toolkit.detect import predict_dataset

        results = predict_dataset(self.detector, dataset, batch=config.batch)
        if self.segmenter is None:
            return results
        return _sure(name, self._outline(dataset, results), config.min_iou, "boxes")

    def card(self, config: PredictConfig) -> PredictionCard:
        """Where the results come from."""
        boxes: Boxes = "ground truth" if self.detector is None else "detector"
        if config.points is not None:
            boxes = "points"
        if config.everything:
            boxes = "everything"
        return PredictionCard(
            boxes=boxes,
            masks=self.segmenter is not None,
            detector="" if self.detector is None else self.detector.description,
            segmenter="" if self.segmenter is None else f"SAM {self.segmenter.architecture}",
        )

    def _outline(self, dataset: Dataset, results: list[Result]) -> list[Result]:
        from toolkit.segment.segmenter import Prompts, boxes_of, outlines_on

        assert self.segmenter is not None, "asked for by predict only with one"
        by_image = _by_image(results)
        outlined: list[Result] = []
        for image in track(dataset.images, "outlining", len(dataset.images)):
            found = by_image.get(image.id, [])
            if not found:
                continue
            prompts = Prompts(boxes=boxes_of([entry["bbox"] for entry in found]))
            outlines = outlines_on(self.segmenter, image, prompts)
            for entry, outline in zip(found, outlines, strict=True):
                rle = rle_from_region(outline.region, image.height, image.width)
                outlined.append({**entry, "segmentation": rle, "predicted_iou": outline.clipped})
        return outlined


def _check_asked(config: PredictConfig, segmenter: Segmenter) -> None:
    """Refuse points, and everything, of a segmenter that knows no points."""
    try:
        if config.everything:
            from toolkit.segment.everything import check_everything

            check_everything(segmenter)
        elif config.points is not None:
            segmenter.check_points()
    except InputError as error:
        raise InputError(f"{config.segmenter}: {error}") from error


def _ask(
    segmenter: Segmenter, name: str, dataset: Dataset, config: PredictConfig, marks: Marks | None
) -> list[Result]:
    """What a segmenter alone outlines."""
    if config.everything:
        from toolkit.segment.everything import Everything, has_three_masks, predict_everything

        assert config.segmenter is not None, "refused with the configuration"
        several = has_three_masks(config.segmenter, segmenter)
        what = Everything(config.points_per_side, config.min_iou, config.min_stability, several)
        return predict_everything(segmenter, dataset, what)
    if marks is not None:
        from toolkit.segment.marked import predict_marked

        results = predict_marked(segmenter, dataset, marks)
        asked = sum(len(marks.on(image.file_name)) for image in dataset.images)
        if len(results) < asked:
            note(f"{name}: {asked - len(results)} of {asked} prompts left out: empty mask")
        return _sure(name, results, config.min_iou, "outlines")
    from toolkit.segment import predict_given_boxes

    return predict_given_boxes(segmenter, dataset)


def _sure(name: str, results: list[Result], min_iou: float, what: str) -> list[Result]:
    """Those whose estimated IoU is high enough; a note counts the others."""
    kept = [result for result in results if result["predicted_iou"] >= min_iou]
    if len(kept) < len(results):
        note(
            f"{name}: {len(results) - len(kept)} of {len(results)} {what} rejected: the segmenter "
            f"estimates their IoU below {min_iou:g}"
        )
    return kept


def _placed(config: PredictConfig, marks: Marks, datasets: dict[str, Dataset]) -> Marks:
    """Marks that lie on the pictures, each with its category."""
    images = {image.file_name: image for each in datasets.values() for image in each.images}
    splits = "" if PICTURES in datasets else f" (splits {', '.join(datasets)})"
    marks.check(images, f"{config.source}{splits}")
    return marks.of_categories(next(iter(datasets.values())).categories)


def _datasets(config: PredictConfig, models: _Models, marks: Marks | None) -> dict[str, Dataset]:
    """What to predict on, by the name of its results file."""
    if (config.source / CARD).is_file():
        folder = DatasetFolder.open(config.source, config.fold)
        if models.detector is None and marks is None and not config.everything:
            folder.require_places("outlining its boxes")
        missing = [split for split in config.splits if split not in folder.splits()]
        if missing:
            raise InputError(f"{config.source}: has no split {missing[0]!r}: choose --splits")
        datasets: dict[str, Dataset] = {split: folder.read(split) for split in config.splits}
        if config.embeddings is not None and models.detector is not None:
            from toolkit.detect.prompts import check_classes

            for dataset in datasets.values():
                where = f"{config.embeddings}", f"{config.source}"
                check_classes(models.detector.names, dataset.categories, *where)
        for dataset in datasets.values() if config.everything else ():
            if len(dataset.categories) != 1:
                raise InputError(
                    f"{config.source}: has {len(dataset.categories)} categories, and nothing says "
                    "of which one a thing is that no prompt asked for: convert with "
                    "--classes single, or give pictures"
                )
        return datasets
    categories = _categories(config, models, marks)
    paths = _pictures(config.source)
    root = config.source if config.source.is_dir() else config.source.parent
    images = []
    for number, path in enumerate(track(paths, "opening", len(paths)), start=1):
        height, width = read_image(path).shape[:2]
        name = path.relative_to(root).as_posix()
        images.append(Image(name, path, width, height, source=name, id=number))
    return {PICTURES: Dataset(root.name, categories, tuple(images))}


def _categories(config: PredictConfig, models: _Models, marks: Marks | None) -> tuple[str, ...]:
    """What can be found on pictures that are no dataset."""
    if models.detector is not None:
        return tuple(models.detector.names)
    if marks is not None:
        return marks.categories()
    if config.everything:
        return (OBJECT,)
    raise InputError(
        f"{config.source}: is no dataset, so there are no boxes to outline: give --detector, "
        "--points or --everything"
    )


def _pictures(source: Path) -> list[Path]:
    """The picture itself, or all pictures below a folder, sorted by path."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: no such file or folder: give pictures or a dataset folder")
    paths = [path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise InputError(f"{source}: holds no pictures: give another folder")
    return sorted(paths, key=lambda path: path.relative_to(source).as_posix())


def _write_image_list(path: Path, dataset: Dataset) -> None:
    images = [
        {"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height}
        for i in dataset.images
    ]
    categories = [
        {"id": number, "name": name} for number, name in enumerate(dataset.categories, start=1)
    ]
    write_json(path, {"images": images, "categories": categories, "annotations": []})


def _by_image(results: Sequence[Result]) -> dict[int, list[Result]]:
    by_image: dict[int, list[Result]] = {}
    for entry in results:
        by_image.setdefault(entry["image_id"], []).append(entry)
    return by_image


def _draw(config: PredictConfig, dataset: Dataset, results: list[Result], folder: Path) -> None:
    by_image = _by_image(results)
    for image in track(dataset.images, "drawing", len(dataset.images)):
        shown = [
            entry
            for entry in by_image.get(image.id, [])
            if entry["score"] >= config.overlay_threshold or "annotation_id" in entry
        ]
        picture = draw_results(read_image(image.path), shown, dataset.categories)
        name = "__".join(Path(image.file_name).with_suffix(".png").parts)
        write_picture(folder / name, picture)
