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


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively, which makes training much faster.

    A processor needs AMX or AVX-512 BF16 for it; others would emulate it, slowly.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Private names, hence the care: where PyTorch has none of them, nothing is claimed.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
