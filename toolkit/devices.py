"""Which processor a command runs on."""

from __future__ import annotations

import torch

from converters.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N`` into a device of this machine.

    ``auto`` is the first of cuda, mps and cpu that is there.

    Raises:
        InputError: the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name}: is unknown: choose auto, cpu, mps or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device {name}: PyTorch sees {count} CUDA devices: choose auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps: PyTorch does not see it: choose auto or cpu")
    return device
