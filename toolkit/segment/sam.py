"""What the toolkit asks of a SAM of any kind, and the first kind: segment-anything's own.

``model.encode`` and ``model.decode`` are written once, for ``Sam``; the kinds differ in the small
steps below.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias, cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as LibrarySam
from torch import Tensor, nn

Points: TypeAlias = tuple[Tensor, Tensor]
"""x and y in pixels of the input, shape (n, k, 2), and what they say, shape (n, k): 1 inside the
object, 0 outside, -1 nothing."""


class Sam(nn.Module):
    """A network that encodes pictures once and then answers prompts.

    Attributes:
        image_encoder: its ``img_size`` is the side of the square input in pixels.
        prompt_encoder: has ``mask_input_size`` and ``get_dense_pe`` as segment-anything's.
        mask_decoder: has ``transformer``, ``iou_prediction_head`` and
            ``output_hypernetworks_mlps`` as segment-anything's.
        mask_threshold: the logit above which a pixel is of the object.
        stretches: whether a picture fills the whole input, whatever its shape; otherwise its
            longer side does, and the rest is padded. See ``frames.Frame``.
    """

    image_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any
    mask_threshold: float
    stretches: bool = False

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """Normalise, and pad to the input; shape (..., 3, height, width), 0 to 255."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings of preprocessed images: all that ``decode`` needs of them, in one tensor.

        Args:
            images: shape (n, 3, side, side).

        Returns:
            shape (n, channels, grid, grid).
        """

    @abstractmethod
    def encode_prompts(
        self, points: Points | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prompts as the decoder takes them.

        Args:
            points: see ``Points``.
            boxes: shape (n, 4), corners (x0, y0, x1, y1) in pixels of the input.
            masks: logits, shape (n, 1, cells, cells).

        Returns:
            sparse, shape (n, tokens, width), and dense, shape (n, width, grid, grid).
        """

    @abstractmethod
    def own_tokens(self) -> Tensor:
        """What the decoder asks besides the prompts, shape (tokens, width).

        The first answers for the IoU; the next four for the one mask of an unambiguous prompt and
        for the three of an ambiguous one.
        """

    @abstractmethod
    def attended(self, embeddings: Tensor) -> Tensor:
        """The part of embeddings that the decoder's transformer sees, (n, width, grid, grid)."""

    @abstractmethod
    def upscale(self, cells: Tensor, embeddings: Tensor) -> Tensor:
        """The decoder's features at four times their resolution.

        Args:
            cells: what the transformer made of ``attended(embeddings)``, of its shape.
            embeddings: as ``embed`` gave them.

        Returns:
            shape (n, width / 8, 4 * grid, 4 * grid).
        """

    @abstractmethod
    def postprocess_masks(
        self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor:
        """Logits in pixels of the image.

        Args:
            masks: the decoder's, shape (n, c, cells, cells).
            input_size: height and width of the image in the input.
            original_size: height and width of the image.

        Returns:
            shape (n, c, height, width).
        """

    def idle(self, encoder_learns: bool) -> Iterable[nn.Parameter]:
        """Parameters that can learn nothing.

        Args:
            encoder_learns: whether anything in the image encoder does; if nothing does, neither
                does what else goes into the embeddings, which are then made once.
        """
        del encoder_learns
        return ()


class SegmentAnything(LibrarySam, Sam):  # type: ignore[misc]
    """A SAM from segment-anything's own parts, with whatever image encoder."""

    def embed(self, images: Tensor) -> Tensor:
        """As ``Sam.embed``: the encoder's own."""
        return cast(Tensor, self.image_encoder(images))

    def encode_prompts(
        self, points: Points | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As ``Sam.encode_prompts``: the points' tokens, then two for the box's corners."""
        return cast(tuple[Tensor, Tensor], self.prompt_encoder(points, boxes, masks))

    def own_tokens(self) -> Tensor:
        """As ``Sam.own_tokens``: those five."""
        decoder = self.mask_decoder
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])

    def attended(self, embeddings: Tensor) -> Tensor:
        """As ``Sam.attended``: all."""
        return embeddings

    def upscale(self, cells: Tensor, embeddings: Tensor) -> Tensor:
        """As ``Sam.upscale``: from the transformer's cells alone."""
        return cast(Tensor, self.mask_decoder.output_upscaling(cells))


class Sizes(Protocol):
    """What is known of an architecture of any kind before its model is built."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""

    @property
    def grid(self) -> int:
        """Side of the image embedding, in cells; masks come out at four times as many."""

    @property
    def zoom(self) -> float | None:
        """Side of the window that is encoded for each box, in longer sides of the box.

        None encodes the whole image once for all boxes, as SAM does.
        """

    @property
    def dense_boxes(self) -> bool:
        """Whether boxes are also shown filled; see ``model.DenseBoxPromptEncoder``."""

    @property
    def embedding_width(self) -> int:
        """Channels of ``Sam.embed``."""

    def build(self) -> Sam:
        """The model with random weights, from PyTorch's global generator."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state looks like its own; names and shapes are to be checked all the same."""


def prompt_encoder(kind: type[PromptEncoder], width: int, grid: int, side: int) -> PromptEncoder:
    """A prompt encoder of segment-anything.

    Args:
        kind: its class, or one of ours.
        width: its channels.
        grid: side of the image embedding.
        side: of the input in pixels.
    """
    return kind(
        embed_dim=width,
        image_embedding_size=(grid, grid),
        input_image_size=(side, side),
        mask_in_chans=16,
    )


def mask_decoder(width: int, mlp: int) -> MaskDecoder:
    """A mask decoder of segment-anything.

    Args:
        width: its channels.
        mlp: hidden channels of its transformer's perceptrons.
    """
    return MaskDecoder(
        transformer_dim=width,
        transformer=TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=mlp),
        iou_head_hidden_dim=width,
    )
