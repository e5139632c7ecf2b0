"""Domain adaptation: a rich set of pictures teaches an encoder a poor one."""

from __future__ import annotations

from toolkit.adapt.adapt import adapt_classifier, adapt_within

__all__ = ["adapt_classifier", "adapt_within"]
