"""What of a SAM learns, and which part how fast."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from toolkit.segment.lora import lora_parameters
from toolkit.segment.sam import Sam

Learns: TypeAlias = Literal["decoder", "decoder+prompt", "lora", "all"]
"""The mask decoder; that and the prompt encoder; that and the adapters of the image encoder, which
the model has to have; or everything."""

_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
_BEFORE_BLOCKS = ("image_encoder.patch_embed.", "image_encoder.pos_embed")


def encoder_learns(learns: Learns) -> bool:
    """Whether anything in the image encoder does."""
    return learns in ("lora", "all")


def choose(sam: Sam, learns: Learns) -> None:
    """Let what shall learn have gradients, and nothing else."""
    sam.requires_grad_(learns == "all")
    sam.mask_decoder.requires_grad_(True)
    if learns == "decoder+prompt":
        sam.prompt_encoder.requires_grad_(True)
    if learns == "lora":
        for parameter in lora_parameters(sam).values():
            parameter.requires_grad_(True)


def rate_factors(sam: Sam, decay: float) -> dict[str, float]:
    """What the learning rate of each parameter of the image encoder is multiplied by.

    Early layers see edges and textures, which are much the same everywhere, and change least: the
    i-th of n blocks, from 1, learns at decay ** (n - i) of the rate, patches and their positions at
    decay ** n. All that comes after the blocks learns at the full rate.

    Source: Clark et al., "ELECTRA", arXiv 2003.10555; for vision transformers Bao et al., "BEiT",
    arXiv 2106.08254, where the last block is at ``decay`` already.

    Args:
        sam: the model, with or without adapters, which are part of their blocks.
        decay: more than 0, at most 1.

    Returns:
        factors by parameter name; a parameter that is not named has 1.
    """
    blocks = len(sam.image_encoder.blocks)
    factors = {}
    for name, _ in sam.named_parameters():
        block = _BLOCK.match(name)
        if block:
            factors[name] = decay ** (blocks - 1 - int(block[1]))
        elif name.startswith(_BEFORE_BLOCKS):
            factors[name] = decay**blocks
    return factors
