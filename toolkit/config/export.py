"""Configuration of exporting a detector or a segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from toolkit.config.base import Config, Device, ImageSize, Positive, check_stride

_SUFFIXES = {
    "onnx": ".onnx",
    "torchscript": ".torchscript",
    "engine": ".engine",
    "segment-anything": ".pth",
}


class ExportConfig(Config):
    """Export a model for other programs, and check that it still gives the same boxes or masks."""

    run: Path
    """Run of `finetune yolo`, `finetune sam` or `pretrain sam`, or "starter"."""
    out: Path
    """File to make, named .onnx, .torchscript, .engine or .pth; for openvino, and for a segmenter
    as onnx, a folder. Beside the file (inside the folder: toolkit.json), FILE.json says what goes
    in and what comes out. "starter" is the detector, or with onnx and a folder the segmenter."""
    format: Literal["onnx", "openvino", "torchscript", "engine", "segment-anything"] = "onnx"
    """ONNX, and of a detector OpenVINO, TorchScript, or an engine of TensorRT; of a segmenter a
    checkpoint of segment-anything (not of `nano`, which it does not know)."""
    image_size: ImageSize | None = None
    """Pixels of the square that a detector's pictures are fitted into, a multiple of 32; by default
    the size that the run was trained on."""
    batch: Positive = 1
    """Pictures per call of a detector; with --dynamic the most that are expected."""
    dynamic: bool = False
    """A detector takes any number of pictures, of any sides that are multiples of 32."""
    half: bool = False
    """A detector in half precision: a smaller file, and less exact."""
    data: Path | None = None
    """Dataset folder whose pictures the check uses; by default the one that the run was trained on,
    or procedural pictures where that is gone."""
    device: Device = "auto"
    """Where torchscript and engine are made and run; auto is the CPU, but a GPU for an engine and
    for torchscript in half precision. ONNX, OpenVINO and segmenters are made and checked on the
    CPU."""

    @model_validator(mode="after")
    def _fits(self) -> ExportConfig:
        if self.image_size is not None:
            check_stride(self.image_size)
        suffix = _SUFFIXES.get(self.format)
        folder = self.format == "onnx" and not self.out.suffix  # of a segmenter
        if suffix is not None and self.out.suffix != suffix and not folder:
            name = self.out.with_suffix(suffix)
            other = " (a segmenter becomes a folder, without a dot)" if suffix == ".onnx" else ""
            raise ValueError(
                f"out: a file of format {self.format} is named *{suffix}: try {name}{other}"
            )
        return self
