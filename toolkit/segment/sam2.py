"""Sizes of SAM 2 and 2.1; the model itself is in ``sam2_model``, which imports ultralytics.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from toolkit.segment.sam import Sam

_POSITIONS = "image_encoder.trunk.pos_embed"
_BLOCKS = "image_encoder.trunk.blocks."
_ONLY_2_1 = "no_obj_embed_spatial"


@dataclass(frozen=True)
class Sam2Architecture:
    """Sizes of a SAM 2.

    Attributes:
        width: channels of the first stage of the image encoder (Hiera); each next one has twice as
            many.
        blocks: of each of the four stages.
        heads: of attention in the first stage; each next one has twice as many.
        global_blocks: the blocks that attend to the whole image; the others to windows.
        positions: side of the grid of learnt positions.
        windows: side of the attention windows of each stage, in cells.
        release: "2.1", whose memory of videos has a few parameters more, or "2"; in single images
            both are the same.
        image_size: side of the square input in pixels, which an image fills whatever its shape.
    """

    width: int
    blocks: tuple[int, int, int, int]
    heads: int
    global_blocks: tuple[int, ...]
    positions: int = 7
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    release: str = "2.1"
    image_size: int = 1024
    zoom: float | None = None
    dense_boxes: bool = False

    @property
    def grid(self) -> int:
        """Side of the coarsest level of the image embedding, in cells."""
        return self.image_size // 16

    @property
    def embedding_width(self) -> int:
        """Channels of the image embedding: three levels folded into one, see ``sam2_model``."""
        return 1024

    def build(self) -> Sam:
        """The model with random weights, from PyTorch's global generator."""
        from toolkit.segment.sam2_model import build_sam2

        return build_sam2(self)

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state has the width, the number of blocks and the release."""
        positions = state.get(_POSITIONS)
        if positions is None or positions.shape != (1, self.width, self.positions, self.positions):
            return False
        numbers = {int(n.split(".")[3]) for n in state if n.startswith(_BLOCKS)}
        return len(numbers) == sum(self.blocks) and (_ONLY_2_1 in state) == (self.release == "2.1")


def sam2_sizes(release: str) -> dict[str, Sam2Architecture]:
    """The official sizes: tiny, small, base plus and large.

    Args:
        release: "2" or "2.1".
    """
    return {
        "t": Sam2Architecture(96, (1, 2, 7, 2), 1, (5, 7, 9), release=release),
        "s": Sam2Architecture(96, (1, 2, 11, 2), 1, (7, 10, 13), release=release),
        "b": Sam2Architecture(112, (2, 3, 16, 3), 2, (12, 16, 20), 14, release=release),
        "l": Sam2Architecture(
            144, (2, 6, 36, 4), 2, (23, 33, 43), windows=(8, 4, 16, 8), release=release
        ),
    }
