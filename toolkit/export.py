"""`toolkit export`: the best model of a run for other programs, by the kind of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from converters.errors import InputError
from toolkit.config import ExportConfig
from toolkit.runs import is_run_of
from toolkit.starter import STARTER

if TYPE_CHECKING:
    from toolkit.detect.export import Exported
    from toolkit.segment.export import ExportedSegmenter

_SEGMENTERS = ("finetune sam", "pretrain sam")
_CLASSIFIERS = ("finetune classifier", "pretrain classifier")


def export(config: ExportConfig) -> Exported | ExportedSegmenter:
    """Export the best model of a run, and check that it still gives the same.

    Raises:
        InputError: the run is none, or none of a detector or segmenter; and what
            ``export_detector`` and ``export_segmenter`` raise.
    """
    if _kind(config) == "segmenter":
        from toolkit.segment.export import export_segmenter

        return export_segmenter(config)
    from toolkit.detect.export import export_detector

    return export_detector(config)


def _kind(config: ExportConfig) -> Literal["detector", "segmenter"]:
    run = config.run
    if str(run) == STARTER:  # there are two; only a segmenter makes a folder of ONNX
        folder = config.format == "onnx" and not config.out.suffix
        return "segmenter" if folder or config.format == "segment-anything" else "detector"
    if not (run / "config.yaml").is_file():
        raise InputError(
            f"{run}: is not a run folder: give the --out of `toolkit finetune yolo` or "
            "`toolkit finetune sam`, or starter"
        )
    for command in _CLASSIFIERS:
        if is_run_of(run, command):
            raise InputError(
                f"{run}: is a run of `toolkit {command}`: only detectors and segmenters are "
                "exported so far, runs of `toolkit finetune yolo` and `toolkit finetune sam`"
            )
    return "segmenter" if any(is_run_of(run, each) for each in _SEGMENTERS) else "detector"
