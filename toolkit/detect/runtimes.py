"""Running exported detectors: by the programs that other people would run them with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from toolkit.exporting import onnx_session

Runtime: TypeAlias = Callable[[Tensor], Tensor]
"""From pictures (n, 3, height, width), 0 to 1, to answers (n, 4 + classes, places)."""


def open_exported(form: str, path: Path, device: torch.device) -> Runtime:
    """Open an exported model without ultralytics (an engine excepted), in single precision.

    Args:
        form: its format.
        path: the file, or the folder of openvino.
        device: where torchscript and engines run; the others run on the CPU.
    """
    if form == "torchscript":
        return _open_torchscript(path, device)
    if form == "engine":
        return _open_engine(path, device)
    return _open_onnx(path) if form == "onnx" else _open_openvino(path)


def _open_onnx(path: Path) -> Runtime:
    session = onnx_session(path)
    name = session.get_inputs()[0].name

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: pixels.cpu().numpy()})[0])

    return run


def _open_openvino(folder: Path) -> Runtime:
    import openvino

    core: Any = openvino.Core()
    (graph,) = folder.glob("*.xml")
    # Some processors would compute in bfloat16, which is their doing and not the file's.
    model = core.compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(model(pixels.cpu().numpy())[model.output(0)].copy())

    return run


def _open_torchscript(path: Path, device: torch.device) -> Runtime:
    model: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    kind = next(model.parameters()).dtype

    def run(pixels: Tensor) -> Tensor:
        answers: Tensor = model(pixels.to(device, kind))
        return answers.float()

    return run


def _open_engine(path: Path, device: torch.device) -> Runtime:
    from ultralytics.nn.backends.tensorrt import TensorRTBackend

    engine = TensorRTBackend(str(path), device)

    def run(pixels: Tensor) -> Tensor:
        kind = torch.float16 if engine.fp16 else torch.float32
        answers: Tensor = engine.forward(pixels.to(device, kind).contiguous())[0]
        return answers.float().clone()

    return run
