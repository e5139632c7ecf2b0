"""Detectors: fine-tuning and prediction, through ultralytics and without a network.

::

    run = finetune_yolo(FinetuneYoloConfig(data="dataset", out="runs/yolo"))
    detector = Detector.load(run.root, torch.device("cpu"))
    (detections,) = detector([read_image(path)])
"""

from toolkit import offline

offline.prepare()  # ultralytics reads its switches when it is imported

from toolkit.detect.detector import Detector, predict_dataset  # noqa: E402
from toolkit.detect.finetune import finetune_yolo  # noqa: E402

__all__ = ["Detector", "finetune_yolo", "predict_dataset"]
