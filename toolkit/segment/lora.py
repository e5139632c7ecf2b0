"""Low-rank adapters on the image encoder's attention: what it learns in thousandths of its size.

The queries and the values of a block come from its tokens by a matrix W each; what is learnt is
W + alpha / rank * B A, with A of shape (rank, width) and B of shape (width, rank). B starts at
zero, so that the first prediction is that of the base model. Afterwards B A is added to W, and what
is left is a SAM like any other.

Source: Hu et al., "LoRA", arXiv 2106.09685; on queries and values of SAM, with rank 4: Zhang and
Liu, "Customized Segment Anything Model for Medical Image Segmentation" (SAMed), arXiv 2304.13785.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from converters.errors import InputError
from toolkit.segment.sam import Sam
from toolkit.training import packed

FILE = "lora.safetensors"
"""Name of the file in ``checkpoints/``."""

_DECODER = "mask_decoder."


class AdaptedQkv(nn.Module):
    """The linear layer that gives queries, keys and values at once, with adapters.

    Attributes:
        rank, alpha: of the adapters.
        weight, bias: the layer's own, under their own names, so that states stay exchangeable.
        q_a, v_a: A of queries and values, shape (rank, width).
        q_b, v_b: B of queries and values, shape (width, rank).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, qkv: nn.Linear, rank: int, alpha: float) -> None:
        """Adapt ``qkv``; A is random as in LoRA's code, from PyTorch's global generator."""
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.weight, self.bias = qkv.weight, qkv.bias
        width = qkv.in_features
        self.q_a, self.v_a = (nn.Parameter(qkv.weight.new_empty(rank, width)) for _ in "qv")
        self.q_b, self.v_b = (nn.Parameter(qkv.weight.new_zeros(width, rank)) for _ in "qv")
        for a in (self.q_a, self.v_a):
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values.

        Args:
            x: tokens, shape (..., width).

        Returns:
            shape (..., 3 * width).
        """
        queries = F.linear(F.linear(x, self.q_a), self.q_b)
        values = F.linear(F.linear(x, self.v_a), self.v_b)
        learnt = torch.cat([queries, torch.zeros_like(queries), values], dim=-1)
        return F.linear(x, self.weight, self.bias) + self.scale * learnt

    def merged(self) -> Tensor:
        """The one matrix that does the same, shape (3 * width, width)."""
        queries, values = self.q_b @ self.q_a, self.v_b @ self.v_a
        learnt = torch.cat([queries, torch.zeros_like(queries), values])
        return self.weight + self.scale * learnt


def add_lora(sam: Sam, rank: int = 4, alpha: float | None = None) -> None:
    """Put adapters on every attention block of the image encoder, in place.

    Until they have learnt, the model gives exactly what it gave before.

    Args:
        sam: a model without adapters.
        rank: of the adapters, 1 to the width of the encoder.
        alpha: strength of what they learn, over the rank; by default the rank.

    Raises:
        InputError: the rank is more than the width.
        ValueError: the model has adapters.
    """
    _refuse_adapters(sam)
    width = sam.image_encoder.blocks[0].attn.qkv.in_features
    if not 1 <= rank <= width:
        raise InputError(f"lora_rank: {rank} is not between 1 and the encoder's width, {width}")
    for block in sam.image_encoder.blocks:
        block.attn.qkv = AdaptedQkv(block.attn.qkv, rank, float(rank if alpha is None else alpha))


def lora_parameters(sam: Sam) -> dict[str, nn.Parameter]:
    """A and B of all adapters, by their names in the model; empty where it has none."""
    return {
        f"{name}.{key}": getattr(qkv, key)
        for name, qkv in _adapted(sam)
        for key in ("q_a", "q_b", "v_a", "v_b")
    }


@torch.no_grad()
def merged_state(sam: Sam) -> dict[str, Tensor]:
    """The state of the model that does the same without adapters.

    Names and shapes are segment-anything's own; a model without adapters gives its own state.
    """
    adapters = lora_parameters(sam).keys()
    state = {name: t for name, t in sam.state_dict().items() if name not in adapters}
    return {**state, **{f"{name}.weight": qkv.merged() for name, qkv in _adapted(sam)}}


@dataclass(frozen=True)
class Base:
    """The weights that adapters belong to.

    Attributes:
        name: of their file or run folder, or "starter".
        sha256: of their ``state_sha256``.
        decoder: their tensors of the mask decoder, which learns with the adapters.
    """

    name: str
    sha256: str
    decoder: Mapping[str, Tensor]

    @classmethod
    def of(cls, sam: Sam, name: str) -> Base:
        """Remember a model as it is now, without adapters, before it learns."""
        state = sam.state_dict()
        decoder = {n: t.cpu().clone() for n, t in state.items() if n.startswith(_DECODER)}
        return cls(name, state_sha256(state), decoder)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, whatever the order and the device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_lora(sam: Sam, base: Base) -> bytes:
    """What a model has learnt, as the content of a safetensors file.

    Tensors are the adapters, and what of the mask decoder is no longer that of the base, under
    their names in the model; the metadata's ``lora`` is JSON with ``rank``, ``alpha``, ``base`` and
    ``base_sha256``.

    Raises:
        ValueError: the model has no adapters.
    """
    first = next(_adapted(sam), None)
    if first is None:
        raise ValueError("the model has no adapters")
    decoder = {
        name: tensor
        for name, tensor in sam.state_dict().items()
        if name in base.decoder and not torch.equal(tensor.cpu(), base.decoder[name])
    }
    description = {
        "rank": first[1].rank,
        "alpha": first[1].alpha,
        "base": base.name,
        "base_sha256": base.sha256,
    }
    return packed({**lora_parameters(sam), **decoder}, {"lora": json.dumps(description)})


def load_lora(sam: Sam, path: Path) -> None:
    """Put adapters from a file, and the mask decoder that learnt with them, on their base model.

    Args:
        sam: the base model, without adapters; changed in place.
        path: a ``lora.safetensors`` of ``finetune sam --train lora``.

    Raises:
        InputError: the file is damaged, not of this kind, or its adapters belong to other weights;
            the model is then as it was.
        ValueError: the model has adapters.
    """
    _refuse_adapters(sam)
    description, tensors = _read(path)
    state = sam.state_dict()
    if state_sha256(state) != description["base_sha256"]:
        raise InputError(
            f"{path}: belongs to the weights {description['base']} "
            f"(SHA-256 of their state {description['base_sha256'][:12]}…), not to these: "
            "load those first"
        )
    adapters = _shapes(sam, description["rank"])
    decoder = {name: t.shape for name, t in state.items() if name.startswith(_DECODER)}
    expected = {**decoder, **adapters}
    problems = [f"lacks {name}" for name in adapters if name not in tensors]
    problems += [f"has unknown {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {list(tensor.shape)}, not {list(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name]
    ]
    problems += [
        f"{name} has values that are not finite"
        for name, tensor in tensors.items()
        if not tensor.isfinite().all()
    ]
    if problems:
        rank = description["rank"]
        raise InputError(f"{path}: is of rank {rank} but {problems[0]}: get a whole file")
    add_lora(sam, description["rank"], description["alpha"])
    sam.load_state_dict(tensors, strict=False)


def _shapes(sam: Sam, rank: int) -> dict[str, torch.Size]:
    """Names and shapes that adapters of a rank would have on a model without any."""
    shapes = {}
    for number, block in enumerate(sam.image_encoder.blocks):
        qkv, width = f"image_encoder.blocks.{number}.attn.qkv", block.attn.qkv.in_features
        for name in ("q", "v"):
            shapes[f"{qkv}.{name}_a"] = torch.Size((rank, width))
            shapes[f"{qkv}.{name}_b"] = torch.Size((width, rank))
    return shapes


def _refuse_adapters(sam: Sam) -> None:
    if lora_parameters(sam):
        raise ValueError("the model has adapters already: build it again from merged_state")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a file of adapters."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file: give the {FILE} of a run of `toolkit finetune sam`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is damaged or no safetensors file: get it again") from error
    try:
        found = json.loads(metadata["lora"])
        description = {
            "rank": int(found["rank"]),
            "alpha": float(found["alpha"]),
            "base": str(found["base"]),
            "base_sha256": str(found["base_sha256"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: holds no adapters: give the {FILE} of `toolkit finetune sam --train lora`"
        ) from error
    return description, tensors


def _adapted(sam: Sam) -> Iterator[tuple[str, AdaptedQkv]]:
    """The layers with adapters, by name."""
    for name, module in sam.named_modules():
        if isinstance(module, AdaptedQkv):
            yield name, module
