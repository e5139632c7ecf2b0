"""Files, formats and geometry of defect datasets: ground-truth masks to COCO and back, exact.

Knows nothing of learning and imports neither torch nor ``toolkit``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.dataset import Dataset, Image, Instance
    from converters.errors import InputError
    from converters.folder import DatasetFolder

__all__ = [
    "Dataset",
    "DatasetFolder",
    "Image",
    "InputError",
    "Instance",
]

_HOME = {
    "Dataset": "converters.dataset",
    "DatasetFolder": "converters.folder",
    "Image": "converters.dataset",
    "InputError": "converters.errors",
    "Instance": "converters.dataset",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: `toolkit --help` needs no NumPy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
