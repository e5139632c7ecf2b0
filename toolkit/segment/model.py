"""The architectures of SAM by name, and the parts of a SAM called one by one.

``Sam.forward`` runs without gradients, and its mask decoder repeats every image embedding for
every prompt, which breaks as soon as a batch holds several images (segment-anything #277, #365).
Training therefore calls the parts: ``encode`` once per image, ``decode`` once per batch of
prompts, each prompt with the embedding of its own image.

Source: Kirillov et al., "Segment Anything", arXiv 2304.02643.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import torch
from segment_anything.modeling import ImageEncoderViT, PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.architectures import SamName
from toolkit.segment.mobile import MobileArchitecture
from toolkit.segment.sam import (
    Points,
    Sam,
    SegmentAnything,
    Sizes,
    mask_decoder,
    prompt_encoder,
)
from toolkit.segment.sam2 import sam2_sizes

ArchitectureName: TypeAlias = SamName

_POSITIONS = "image_encoder.pos_embed"


@dataclass(frozen=True)
class Architecture:
    """Sizes of a SAM whose image encoder is a plain vision transformer.

    Attributes:
        image_size: side of the square input in pixels; the longer side of an image fills it.
        patch_size: side of a patch in pixels; masks come out at four cells per patch.
        width, depth, heads: channels, blocks and attention heads of the image encoder.
        global_blocks: the blocks that attend to the whole image; the others to windows.
        window: side of a window in patches.
        prompt_width: channels of image embedding, prompts and mask decoder.
        decoder_mlp: hidden channels of the decoder's perceptrons.
        dense_boxes: whether boxes are also shown filled; see ``DenseBoxPromptEncoder``.
        zoom: side of the window that is encoded for each box, in longer sides of the box; None
            encodes the whole image once for all boxes, as SAM does.
        relative_positions: whether attention also adds what it learnt about distances.
        convolutions: whether convolutions make the patches; see ``ConvolutionalStem``.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int
    prompt_width: int
    decoder_mlp: int
    dense_boxes: bool = False
    zoom: float | None = None
    relative_positions: bool = True
    convolutions: bool = False

    @property
    def grid(self) -> int:
        """Side of the image embedding, in patches."""
        return self.image_size // self.patch_size

    @property
    def embedding_width(self) -> int:
        """Channels of the image embedding."""
        return self.prompt_width

    def build(self) -> Sam:
        """The model with random weights, from PyTorch's global generator."""
        return _build(self)

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the position embedding of a state has the right shape."""
        positions = state.get(_POSITIONS)
        return positions is not None and positions.shape == (1, self.grid, self.grid, self.width)


def _official(width: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Architecture:
    return Architecture(1024, 16, width, depth, heads, global_blocks, 14, 256, 2048)


ONE, SEVERAL = slice(0, 1), slice(1, 4)
"""The decoder's masks: one for a prompt that means one thing, such as a box, and three for one that
may mean several, such as a point."""

ARCHITECTURES: dict[ArchitectureName, Sizes] = {
    # A window around the box always shows the defect at one size, so a small input is enough, and
    # absolute positions say it all: relative ones would take a third of the time.
    "nano": Architecture(
        image_size=128,
        patch_size=8,
        width=128,
        depth=4,
        heads=4,
        global_blocks=(0, 1, 2, 3),
        window=0,
        prompt_width=128,
        decoder_mlp=512,
        dense_boxes=True,
        zoom=1.5,
        relative_positions=False,
        convolutions=True,
    ),
    "vit_t": MobileArchitecture(),
    "vit_b": _official(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": _official(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": _official(1280, 32, 16, (7, 15, 23, 31)),
    **{
        cast(ArchitectureName, f"sam{release}_{size}"): sizes
        for release in ("2", "2.1")
        for size, sizes in sam2_sizes(release).items()
    },
}


class DenseBoxPromptEncoder(PromptEncoder):  # type: ignore[misc]
    """Shows a box twice: as its two corners, like SAM, and filled, as a mask prompt.

    What a pair of encoded corners means, SAM learnt from a billion masks. A small model that
    learns from a few hundred has the box drawn for it, in SAM's own vocabulary.
    """

    def forward(
        self,
        points: Points | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As ``PromptEncoder.forward``; a mask prompt is shown in the filled box.

        Logits become -1 for outside to 1 for inside, as a filled box has them. With a box, the mean
        of both is shown: 1 is in the mask, -1 outside of the box, and what is around 0 the box has
        beside the mask. Without the box, answers that started from a mask lost what the box says.
        """
        shown = [] if masks is None else [torch.tanh(masks / 2)]
        if boxes is not None:
            shown.append(self.fill(boxes))
        masks = torch.stack(shown).mean(0) if shown else None
        sparse, dense = super().forward(points, boxes, masks)
        return sparse, dense

    def fill(self, boxes: Tensor) -> Tensor:
        """Share of each mask cell that a box covers, -1 for nothing to 1 for all.

        Args:
            boxes: shape (n, 4), corners in pixels of the input frame.

        Returns:
            shape (n, 1, cells, cells).
        """
        cells, side = self.mask_input_size[0], self.input_image_size[0]
        left = torch.arange(cells, device=boxes.device)
        low, high = (boxes * (cells / side)).reshape(-1, 2, 2, 1).unbind(1)
        covered = (torch.minimum(high, left + 1) - torch.maximum(low, left)).clamp(min=0)
        across, down = covered.unbind(1)
        return (down[:, :, None] * across[:, None, :] * 2 - 1)[:, None]


class ConvolutionalStem(nn.Module):
    """Patches from three stages of residual 3x3 convolutions, each at half the resolution.

    A plain patch is a linear function of its pixels; what is unlike its surroundings in texture, a
    small transformer finds from those only after far more pictures than from convolutions.

    Source: Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881; the
    residual blocks (arXiv 1512.03385) and group norms (arXiv 1803.08494) are ours.
    """

    def __init__(self, width: int) -> None:
        """Give patches of 8x8 pixels as ``width`` channels."""
        super().__init__()
        stages = []
        channels = 3
        for out in (width // 4, width // 2, width):
            stages += [_convolution(channels, out, stride=2), _Residual(out)]
            channels = out
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """As ``segment_anything``'s ``PatchEmbed``.

        Args:
            images: shape (n, 3, height, width).

        Returns:
            shape (n, height / 8, width / 8, width of the stem).
        """
        return cast(Tensor, self.stages(images)).permute(0, 2, 3, 1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + cast(Tensor, self.second(self.first(x))))


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, out),
        nn.GELU(),
    )


def build_sam(name: ArchitectureName) -> Sam:
    """A SAM with random weights; the official names give the official parameter names and shapes.

    Random numbers come from PyTorch's global generator.
    """
    return ARCHITECTURES[name].build()


def _build(a: Architecture) -> SegmentAnything:
    kind = DenseBoxPromptEncoder if a.dense_boxes else PromptEncoder
    sam = SegmentAnything(
        image_encoder=ImageEncoderViT(
            img_size=a.image_size,
            patch_size=a.patch_size,
            embed_dim=a.width,
            depth=a.depth,
            num_heads=a.heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            out_chans=a.prompt_width,
            use_rel_pos=a.relative_positions,
            global_attn_indexes=a.global_blocks,
            window_size=a.window,
        ),
        prompt_encoder=prompt_encoder(kind, a.prompt_width, a.grid, a.image_size),
        mask_decoder=mask_decoder(a.prompt_width, a.decoder_mlp),
    )
    if a.convolutions:
        sam.image_encoder.patch_embed = ConvolutionalStem(a.width)
    sam.eval()
    return sam


def mask_size(sam: Sam) -> int:
    """Side of the square low-resolution mask that the decoder gives, in cells."""
    return cast(int, sam.prompt_encoder.mask_input_size[0])


def encode(sam: Sam, images: Sequence[Tensor]) -> Tensor:
    """Embed a batch of images.

    Args:
        sam: the model.
        images: n tensors of shape (3, height, width), RGB, 0 to 255, on any device, that fill the
            input as the model wants it; see ``frames.Frame.image``.

    Returns:
        shape (n, channels, grid, grid).
    """
    padded = torch.stack([sam.preprocess(image.to(sam.device)) for image in images])
    return sam.embed(padded)


def bounded(logits: Tensor) -> Tensor:
    """Logits of an answer, as they go into the next question: sure ones are not surer still.

    Source: ``sam2/sam2_image_predictor.py`` of SAM 2, which keeps them within 32.
    """
    return logits.clamp(-32, 32)


def decode(
    sam: Sam,
    embeddings: Tensor,
    boxes: Tensor | None = None,
    points: Points | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outline what is prompted: one decoder call for prompts of any number of images.

    All prompts are of one kind: boxes, points, or both.

    Args:
        sam: the model.
        embeddings: shape (n, channels, grid, grid), the embedding of each prompt's own image.
        boxes: shape (n, 4), corners (x0, y0, x1, y1) in pixels of the input frame.
        points: see ``sam.Points``.
        masks: logits of an earlier answer, shape (n, cells, cells).

    Returns:
        mask logits of shape (n, cells, cells), positive inside, and the decoder's own estimates
        of their IoU of shape (n,); both float32.
    """
    logits, estimates = _decode(sam, embeddings, boxes, points, masks, ONE)
    return logits[:, 0], estimates[:, 0]


def decode_several(
    sam: Sam,
    embeddings: Tensor,
    boxes: Tensor | None = None,
    points: Points | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``decode``, with SAM's three masks for a prompt that may mean several things.

    Returns:
        mask logits of shape (n, 3, cells, cells), and estimates of shape (n, 3).
    """
    return _decode(sam, embeddings, boxes, points, None, SEVERAL)


def _decode(
    sam: Sam,
    embeddings: Tensor,
    boxes: Tensor | None,
    points: Points | None,
    masks: Tensor | None,
    which: slice,
) -> tuple[Tensor, Tensor]:
    shown = None if masks is None else masks[:, None]
    sparse, dense = sam.encode_prompts(points, boxes, shown)
    return decode_prompts(sam, embeddings, sparse, dense, which)


def decode_prompts(
    sam: Sam, embeddings: Tensor, sparse: Tensor, dense: Tensor, which: slice = ONE
) -> tuple[Tensor, Tensor]:
    """As ``decode``, of prompts that are encoded already.

    The same computation as ``MaskDecoder.predict_masks``, without the repeated embeddings and the
    masks that nobody asked for.

    Args:
        sam: the model.
        embeddings: shape (n, channels, grid, grid), the embedding of each prompt's own image.
        sparse: shape (n, tokens, width).
        dense: shape (n, width, grid, grid).
        which: the mask tokens, ``ONE`` or ``SEVERAL``.

    Returns:
        mask logits of shape (n, m, cells, cells), and estimates of shape (n, m).
    """
    decoder = sam.mask_decoder
    count = sparse.shape[0]  # a tracer would take len() for a constant
    tokens = torch.cat([sam.own_tokens().expand(count, -1, -1), sparse], dim=1)
    positions = sam.prompt_encoder.get_dense_pe().expand(count, -1, -1, -1)
    seen = sam.attended(embeddings)
    tokens, cells = decoder.transformer(seen + dense, positions, tokens)
    cells = sam.upscale(cells.transpose(1, 2).reshape(seen.shape), embeddings)
    # Token 0 answers for the IoU, the others for a mask each.
    networks = decoder.output_hypernetworks_mlps
    numbers = range(len(networks))[which]
    kernels = torch.stack([networks[n](tokens[:, 1 + n]) for n in numbers], dim=1)
    logits = torch.einsum("nmc,nchw->nmhw", kernels, cells)
    return logits.float(), decoder.iou_prediction_head(tokens[:, 0])[:, which].float()
