from __future__ import annotations

import pytest
import torch

from toolkit.segment.model import ARCHITECTURES, Architecture


@pytest.fixture
def tiny_nano(monkeypatch):
    """A nano that trains in seconds; threads only slow down so small a model."""
    sizes = Architecture(64, 8, 32, 2, 2, (1,), 4, 32, 64, dense_boxes=True, zoom=2.0)
    monkeypatch.setitem(ARCHITECTURES, "nano", sizes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
