"""Samples of rare classes, made from the few that there are.

Every generator is fitted on train alone, and says of each sample what it was made from. Those of
``FEATURE_GENERATORS`` make what the network's last pooling gives for a picture; the others make
pictures.
"""

from __future__ import annotations

from importlib import import_module

from toolkit.classify.generate.base import Generator, Grown, classes_to_grow, grow
from toolkit.config.classifier import GeneratorName

__all__ = ["FEATURE_GENERATORS", "Generator", "Grown", "classes_to_grow", "grow", "make_generator"]

FEATURE_GENERATORS = ("smote", "dac", "ecrt")

_HOMES: dict[GeneratorName, str] = {
    "smote": "Smote",
    "autoencoder": "AutoencoderGenerator",
    "lro": "Lro",
    "dac": "Dac",
    "ecrt": "Ecrt",
}


def make_generator(name: GeneratorName, seed: int) -> Generator:
    """A generator with its defaults, not yet fitted; everything random derives from the seed."""
    module = import_module(f"toolkit.classify.generate.{name}")
    generator: Generator = getattr(module, _HOMES[name])(seed=seed)
    return generator
