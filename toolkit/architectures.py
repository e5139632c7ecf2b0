"""Networks that the toolkit trains, by name; imports nothing, so that commands can list them."""

from __future__ import annotations

from typing import Literal, TypeAlias

SamName: TypeAlias = Literal[
    "nano",
    "vit_t",
    "vit_b",
    "vit_l",
    "vit_h",
    "sam2_t",
    "sam2_s",
    "sam2_b",
    "sam2_l",
    "sam2.1_t",
    "sam2.1_s",
    "sam2.1_b",
    "sam2.1_l",
]
"""Segmenters: ours, MobileSAM (vit_t), SAM, SAM 2 and SAM 2.1."""

ResNetName: TypeAlias = Literal[
    "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "wide_resnet101_2"
]
"""Classifiers: torchvision's ResNets."""

WORLD = "yolov8-worldv2"
"""YOLO-World v2, which looks for classes by their embeddings."""

_FAMILIES = {
    "yolov8": ("v8/yolov8.yaml", "nsmlx"),
    "yolov9": ("v9/yolov9{}.yaml", "tsmce"),
    "yolov10": ("v10/yolov10{}.yaml", "nsmblx"),
    "yolo11": ("11/yolo11.yaml", "nsmlx"),
    "yolo12": ("12/yolo12.yaml", "nsmlx"),
    "yolo26": ("26/yolo26.yaml", "nsmlx"),
    "rtdetr-": ("rt-detr/rtdetr-{}.yaml", "lx"),
}

PLAIN = {
    family + scale: file.format(scale)
    for family, (file, scales) in _FAMILIES.items()
    for scale in scales
}
"""Plain detectors, whose classes are weights: name -> file of ultralytics' architectures."""


def scale_of(name: str) -> str:
    """Scale of a plain detector: "n" of "yolo11n"."""
    return name[-1]


def is_transformer(name: str) -> bool:
    """Whether it is RT-DETR: squares in, boxes out that nothing has to suppress."""
    return name.startswith("rtdetr-")
