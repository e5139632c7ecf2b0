"""Names of figures, for whoever has to say that they are not there."""

AT_THRESHOLD = ("F1", "precision", "recall")
"""Of boxes and masks, at the score threshold."""

ALARMS = "false_alarms_per_100_good"
"""Of boxes, masks and images."""

_FOUND = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", *AT_THRESHOLD, ALARMS)

BOX = tuple(f"box.{name}" for name in _FOUND)
"""Whether defects were found, as boxes."""

MASK_FOUND = tuple(f"mask.{name}" for name in _FOUND)
"""Whether defects were found, as masks."""

MASK_OVERLAP = (
    "mask.IoU",
    "mask.Dice",
    "mask.image_IoU",
    "mask.image_Dice",
    "mask.pixel_precision",
    "mask.pixel_recall",
)
"""Pixels of masks, at the score threshold."""

MASK_BOUNDARY = ("mask.boundary_F1",)
"""Outlines of masks, at the score threshold."""

MASK_PIXELS = (*MASK_OVERLAP, *MASK_BOUNDARY)
