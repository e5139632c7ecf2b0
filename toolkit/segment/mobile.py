"""MobileSAM: a SAM whose image encoder is TinyViT, a hundredth of ``vit_h``'s.

It was distilled from ``vit_h``'s embeddings, so that prompts and decoder are SAM's own. The network
of the encoder is that of ultralytics; names and shapes of all parameters are those of the official
``mobile_sam.pt``.

Source: Zhang et al., "Faster Segment Anything", arXiv 2306.14289; Wu et al., "TinyViT", arXiv
2207.10666.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from segment_anything.modeling import PromptEncoder
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from toolkit import offline
from toolkit.segment.sam import (
    Attention,
    Sam,
    SegmentAnything,
    mask_decoder,
    prompt_encoder,
)

_STEM = "image_encoder.patch_embed.seq.0.c.weight"
_WIDTH = 256
_DECODER_MLP = 2048


@dataclass(frozen=True)
class MobileArchitecture:
    """Sizes of a MobileSAM.

    Attributes:
        image_size: side of the square input in pixels; the longer side of an image fills it.
        widths, depths, heads: channels, blocks and attention heads of TinyViT's four stages. The
            last stage keeps the resolution of the third, for which ultralytics takes its width of
            320 as the sign.
        windows: side of the attention windows of each stage, in cells.
    """

    image_size: int = 1024
    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    zoom: float | None = None
    dense_boxes: bool = False

    @property
    def grid(self) -> int:
        """Side of the image embedding, in cells."""
        return self.image_size // 16

    @property
    def embedding_width(self) -> int:
        """Channels of the image embedding."""
        return _WIDTH

    def build(self) -> Sam:
        """The model with random weights, from PyTorch's global generator."""
        offline.prepare()
        from ultralytics.models.sam.modules.tiny_encoder import TinyViT

        encoder = TinyViT(
            img_size=self.image_size,
            embed_dims=self.widths,
            depths=self.depths,
            num_heads=self.heads,
            window_sizes=self.windows,
            drop_path_rate=0.0,
        )
        # The same norms, but of a number of channels that ONNX takes for the constant that it is.
        encoder.neck[1], encoder.neck[3] = LayerNorm2d(_WIDTH), LayerNorm2d(_WIDTH)
        sam = MobileSam(
            image_encoder=encoder,
            prompt_encoder=prompt_encoder(PromptEncoder, _WIDTH, self.grid, self.image_size),
            mask_decoder=mask_decoder(_WIDTH, _DECODER_MLP),
        )
        sam.eval()
        return sam

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state has TinyViT's first convolution."""
        return _STEM in state


class MobileSam(SegmentAnything):
    """A SAM whose encoder is TinyViT."""

    def train(self, mode: bool = True) -> MobileSam:
        """Nothing of this model behaves in another way when it learns.

        Batch norms always use the statistics of SAM's eleven million pictures: those of a batch of
        a few views of one kind of part would replace them within an epoch. Attention always looks
        its biases up: for evaluation TinyViT looks them up once and keeps what it found, which
        would give them no gradient, and the biases of random weights to a model that is filled
        after it was built.
        """
        super().train(False)
        for module in self.modules():
            if hasattr(module, "attention_biases"):
                module.train(True)
        return self

    def attentions(self) -> Iterator[Attention]:
        """As ``Sam.attentions``: in TinyViT each head has its queries, keys and values together."""
        for name, module in self.image_encoder.named_modules():
            if hasattr(module, "attention_biases"):
                yield Attention(f"image_encoder.{name}", module, module.num_heads)

    def encoder_layers(self) -> list[tuple[str, ...]]:
        """As ``Sam.encoder_layers``: what leads to the next stage belongs to the block before."""
        layers: list[tuple[str, ...]] = [("image_encoder.patch_embed.",)]
        for number, stage in enumerate(self.image_encoder.layers):
            name = f"image_encoder.layers.{number}"
            layers += [(f"{name}.blocks.{block}.",) for block in range(len(stage.blocks))]
            layers[-1] += (f"{name}.downsample.",)
        return layers

    def idle(self, encoder_learns: bool) -> Iterator[nn.Parameter]:
        """As ``Sam.idle``: the encoder's head for ImageNet, which its official file holds."""
        encoder = self.image_encoder
        return chain(encoder.norm_head.parameters(), encoder.head.parameters())
