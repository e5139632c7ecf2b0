"""The image-level head: good, or which defect, for the whole picture."""

from toolkit.classify.classifier import Classifier
from toolkit.classify.finetune import finetune_classifier

__all__ = ["Classifier", "finetune_classifier"]
