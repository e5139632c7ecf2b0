"""Domain adaptation: a rich set of pictures teaches an encoder a poor one."""

from __future__ import annotations

from toolkit.adapt.adapt import Prepared, adapt_classifier, adapt_within, prepare

__all__ = ["Prepared", "adapt_classifier", "adapt_within", "prepare"]
