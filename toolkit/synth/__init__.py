"""Procedural pictures of industrial surfaces with defects and their exact masks.

Needs NumPy and OpenCV alone, and no pictures of others: what it makes is free of rights.

>>> from toolkit.synth import sample
>>> picture = sample(7, size=(128, 192), surface="brushed_metal", defects=["scratch"])
>>> picture.image.shape, picture.masks["scratch"].shape
((128, 192, 3), (128, 192))
"""

from toolkit.synth.mvtec import tail_counts, write_mvtec
from toolkit.synth.picture import Instance, Sample, sample
from toolkit.synth.registry import DEFECTS, SURFACES

__all__ = ["DEFECTS", "SURFACES", "Instance", "Sample", "sample", "tail_counts", "write_mvtec"]
