"""SAM 2 for single images, over ultralytics' modules.

SAM 2 is made for videos; what it does with one picture needs neither its memory nor its object
pointers. Those stay in the model, untouched, so that a checkpoint opens in Meta's own library.

Its decoder sees three levels of the image. They are folded into one tensor, each cell of the
coarsest level carrying those of the finer ones that it covers, so that embeddings of SAM 2 are
cached, repeated and handed on like those of any SAM:

===========  ==========================  ==============
level        shape                       channels folded
===========  ==========================  ==============
coarse       (256, grid, grid)           256
middle       (64, 2 * grid, 2 * grid)    4 * 64
fine         (32, 4 * grid, 4 * grid)    16 * 32
===========  ==========================  ==============

SAM 2 also estimates whether the object is there at all. For pictures Meta's ``SAM2ImagePredictor``
ignores that, as here: its mask and its estimate of the IoU are those of the decoder. Nor is the
mask of a box exchanged for one of the three of an ambiguous prompt where it is not "stable", which
that predictor does: fine-tuning teaches the one mask, and the exchange would undo it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit import offline
from toolkit.segment.sam import Attention, Points, Sam, vit_layers
from toolkit.segment.sam2 import Sam2Architecture

offline.prepare()  # ultralytics reads its switches when it is imported

from ultralytics.models.sam.modules.encoders import (  # noqa: E402
    FpnNeck,
    Hiera,
    ImageEncoder,
    MemoryEncoder,
)
from ultralytics.models.sam.modules.memory_attention import (  # noqa: E402
    MemoryAttention,
    MemoryAttentionLayer,
)
from ultralytics.models.sam.modules.sam import SAM2Model  # noqa: E402

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of ImageNet, on a scale of 0 to 255: 255 * (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)."""

_WIDTH = 256
_IN_PICTURES = ("image_encoder.", "no_mem_embed", "sam_prompt_encoder.", "sam_mask_decoder.")
_IN_EMBEDDINGS = ("no_mem_embed", "sam_mask_decoder.conv_s")
_OBJECT_SCORE = "sam_mask_decoder.pred_obj_score_head."


class Sam2(SAM2Model, Sam):  # type: ignore[misc]
    """A SAM 2 as the toolkit asks a SAM; names and shapes of its parameters are Meta's."""

    stretches = True
    in_embeddings = (*Sam.in_embeddings, *_IN_EMBEDDINGS)

    sam_prompt_encoder: Any
    sam_mask_decoder: Any
    no_mem_embed: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: ImageEncoder, image_size: int, release: str) -> None:
        """Put the parts together with the settings that all official sizes share.

        Args:
            encoder: makes three levels of an image.
            image_size: side of the square input in pixels.
            release: "2" or "2.1".
        """
        newer = release == "2.1"
        super().__init__(
            image_encoder=encoder,
            memory_attention=MemoryAttention(
                d_model=_WIDTH, pos_enc_at_input=True, num_layers=4, layer=MemoryAttentionLayer()
            ),
            memory_encoder=MemoryEncoder(out_dim=64),
            num_maskmem=7,
            image_size=image_size,
            sigmoid_scale_for_mem_enc=20.0,
            sigmoid_bias_for_mem_enc=-10.0,
            use_mask_input_as_output_without_sam=True,
            directly_add_no_mem_embed=True,
            use_high_res_features_in_sam=True,
            multimask_output_in_sam=True,
            iou_prediction_use_sigmoid=True,
            use_obj_ptrs_in_encoder=True,
            add_tpos_enc_to_obj_ptrs=newer,
            proj_tpos_enc_in_obj_ptrs=newer,
            use_signed_tpos_enc_to_obj_ptrs=newer,
            no_obj_embed_spatial=newer,
            only_obj_ptrs_in_the_past_for_eval=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            fixed_no_obj_ptr=True,
            multimask_output_for_tracking=True,
            use_multimask_token_for_obj_ptr=True,
            multimask_min_pt_num=0,
            multimask_max_pt_num=1,
            use_mlp_for_obj_ptr_proj=True,
        )
        self.image_encoder.img_size = image_size
        # The same norm, but of a number of channels that ONNX takes for the constant that it is.
        self.sam_mask_decoder.output_upscaling[1] = LayerNorm2d(_WIDTH // 4)
        self.register_buffer("pixel_mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)

    @property
    def prompt_encoder(self) -> nn.Module:
        """What Meta calls ``sam_prompt_encoder``."""
        return cast(nn.Module, self.sam_prompt_encoder)

    @property
    def mask_decoder(self) -> nn.Module:
        """What Meta calls ``sam_mask_decoder``."""
        return cast(nn.Module, self.sam_mask_decoder)

    @property
    def embedding_width(self) -> int:
        """As ``Sam.embedding_width``: the coarsest level, and what finer ones fold into."""
        return 4 * _WIDTH

    def preprocess(self, image: Tensor) -> Tensor:
        """As ``Sam.preprocess``; an image fills the input already."""
        return (image - self.pixel_mean) / self.pixel_std

    def embed(self, images: Tensor) -> Tensor:
        """As ``Sam.embed``: three levels, folded.

        The finer ones go through the decoder's first convolutions here, once per image, as in
        Meta's ``forward_image``.
        """
        fine, middle, coarse = self.image_encoder(images)["backbone_fpn"]
        levels = [
            coarse + self.no_mem_embed.reshape(1, -1, 1, 1),
            F.pixel_unshuffle(self.sam_mask_decoder.conv_s1(middle), 2),
            F.pixel_unshuffle(self.sam_mask_decoder.conv_s0(fine), 4),
        ]
        return torch.cat(levels, dim=1)

    def encode_prompts(
        self, points: Points | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As ``Sam.encode_prompts``: as in SAM, and always an empty token.

        Meta's predictor gives the corners of a box as points of a kind of their own, so that they
        too are followed by the empty token, which in SAM stands for prompts without a box alone.
        """
        sparse, dense = self.sam_prompt_encoder(points, boxes, masks)
        if boxes is not None:
            empty = self.sam_prompt_encoder.not_a_point_embed.weight
            sparse = torch.cat([sparse, empty.expand(sparse.shape[0], 1, -1)], dim=1)
        return sparse, dense

    def own_tokens(self) -> Tensor:
        """As ``Sam.own_tokens``: those five, and the one that asks whether the object is there.

        Meta has that one first. Tokens have no order for the transformer.
        """
        decoder = self.sam_mask_decoder
        asked = (decoder.iou_token, decoder.mask_tokens, decoder.obj_score_token)
        return torch.cat([token.weight for token in asked])

    def attended(self, embeddings: Tensor) -> Tensor:
        """As ``Sam.attended``: the coarsest level."""
        return embeddings[:, :_WIDTH]

    def upscale(self, cells: Tensor, embeddings: Tensor) -> Tensor:
        """As ``Sam.upscale``: the finer levels are added on the way up."""
        folded = embeddings[:, _WIDTH:]
        middle = F.pixel_shuffle(folded[:, :_WIDTH], 2)
        fine = F.pixel_shuffle(folded[:, _WIDTH:], 4)
        first, norm, activation, second, last = self.sam_mask_decoder.output_upscaling
        cells = activation(norm(first(cells) + middle))
        return cast(Tensor, last(second(cells) + fine))

    def postprocess_masks(
        self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor:
        """As ``Sam.postprocess_masks``: in one step, as an image fills the input."""
        del input_size
        return F.interpolate(masks, original_size, mode="bilinear", align_corners=False)

    def attentions(self) -> Iterator[Attention]:
        """As ``Sam.attentions``: one in each block of Hiera."""
        for number, block in enumerate(self.image_encoder.trunk.blocks):
            yield Attention(f"image_encoder.trunk.blocks.{number}.attn", block.attn, 1)

    def encoder_layers(self) -> list[tuple[str, ...]]:
        """As ``Sam.encoder_layers``: those of Hiera."""
        return vit_layers("image_encoder.trunk", len(self.image_encoder.trunk.blocks))

    def idle(self, encoder_learns: bool) -> Iterator[nn.Parameter]:
        """As ``Sam.idle``: all that is for videos alone, and whether the object is there."""
        for name, parameter in self.named_parameters():
            seen = name.startswith(_IN_PICTURES) and not name.startswith(_OBJECT_SCORE)
            kept = not encoder_learns and name.startswith(_IN_EMBEDDINGS)
            if kept or not seen:
                yield parameter


def build_sam2(a: Sam2Architecture) -> Sam:
    """A SAM 2 with random weights, from PyTorch's global generator."""
    trunk = Hiera(
        embed_dim=a.width,
        num_heads=a.heads,
        stages=a.blocks,
        global_att_blocks=a.global_blocks,
        window_pos_embed_bkg_spatial_size=(a.positions, a.positions),
        window_spec=a.windows,
    )
    neck = FpnNeck(
        d_model=_WIDTH,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    sam = Sam2(ImageEncoder(trunk, neck, scalp=1), a.image_size, a.release)
    sam.eval()
    return sam
