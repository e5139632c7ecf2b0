"""SAM, MobileSAM and SAM 2: fine-tuning on box prompts, and prediction."""

from toolkit.segment.finetune import finetune_sam
from toolkit.segment.segmenter import Segmenter, predict_given_boxes

__all__ = ["Segmenter", "finetune_sam", "predict_given_boxes"]
