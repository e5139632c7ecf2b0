"""Names in plain words: an engineer who never saw a figure shall know what it says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A figure in words.

    Attributes:
        label: a few words, the field's name in brackets.
        meaning: one sentence.
    """

    label: str
    meaning: str


_FIGURES: dict[str, tuple[str, str]] = {
    "box.AP50": (
        "Finding defects (box AP50)",
        "1 is every defect found and no false alarm, whatever score is asked for. A found box "
        "counts where it overlaps the true box by half (IoU 0.5).",
    ),
    "box.AP": (
        "Finding defects exactly (box AP)",
        "As AP50, averaged over ever stricter overlaps, IoU 0.5 to 0.95.",
    ),
    "box.AP75": ("Finding defects, close boxes (box AP75)", "As AP50, at IoU 0.75."),
    "box.F1": (
        "Finding defects at the chosen threshold (box F1)",
        "Balance of the share of defects that are found and the share of detections that are "
        "right: 1 is all of both.",
    ),
    "box.precision": (
        "Detections that are right (box precision)",
        "Of all detections from the threshold on, the share that finds a defect.",
    ),
    "box.recall": (
        "Defects that are found (box recall)",
        "Of all defects, the share that a detection from the threshold on finds.",
    ),
    "box.false_alarms_per_100_good": (
        "False alarms on 100 good pictures (boxes)",
        "Detections from the threshold on, where there is nothing to find.",
    ),
    "box.AP_small": ("Finding small defects (box AP)", "As box AP, areas up to 32 × 32 pixels."),
    "box.AP_medium": ("Finding medium defects (box AP)", "As box AP, up to 96 × 96 pixels."),
    "box.AP_large": ("Finding large defects (box AP)", "As box AP, over 96 × 96 pixels."),
    "box.AR1": ("Share found, one detection per class and picture (box AR1)", ""),
    "box.AR10": ("Share found, ten detections (box AR10)", ""),
    "box.AR100": ("Share found, a hundred detections (box AR100)", ""),
    "box.AR_small": ("Share of small defects found (box AR)", ""),
    "box.AR_medium": ("Share of medium defects found (box AR)", ""),
    "box.AR_large": ("Share of large defects found (box AR)", ""),
    "mask.instance_IoU": (
        "Outlines, defect by defect (mean instance IoU)",
        "Overlap of an outline with the true one, as the mean over all defects: 1 is the same "
        "pixels. The right boxes were given, so finding the defects is not in it.",
    ),
    "mask.IoU": (
        "Outlines, all pixels together (mask IoU)",
        "Pixels that are outlined and defective, of those that are either: 1 is the same pixels. "
        "Large defects count most.",
    ),
    "mask.Dice": (
        "Outlines, all pixels together (Dice)",
        "As mask IoU on another scale: twice the common pixels of the pixels of both.",
    ),
    "mask.AP50": (
        "Finding and outlining defects (mask AP50)",
        "As box AP50, with the overlap of the masks instead of the boxes.",
    ),
    "mask.AP": ("Finding and outlining exactly (mask AP)", "As box AP, with masks."),
    "mask.AP75": ("Finding and outlining closely (mask AP75)", "As box AP75, with masks."),
    "mask.F1": (
        "Finding and outlining at the chosen threshold (mask F1)",
        "As box F1, with the overlap of the masks instead of the boxes.",
    ),
    "mask.precision": ("Outlines that are right (mask precision)", "As box precision, with masks."),
    "mask.recall": ("Defects that are outlined (mask recall)", "As box recall, with masks."),
    "mask.false_alarms_per_100_good": (
        "False alarms on 100 good pictures (masks)",
        "Outlines from the threshold on, where there is nothing to find.",
    ),
    "mask.image_IoU": ("Outlines, picture by picture (mean IoU)", ""),
    "mask.image_Dice": ("Outlines, picture by picture (mean Dice)", ""),
    "mask.pixel_precision": ("Outlined pixels that are defective (precision)", ""),
    "mask.pixel_recall": ("Defective pixels that are outlined (recall)", ""),
    "mask.boundary_F1": ("Outlines, the line alone (boundary F1)", ""),
    "pixel.AUROC": (
        "Telling defective pixels from good ones (pixel AUROC)",
        "Chance that a defective pixel has a higher score than a good one. Guessing gives 0.5.",
    ),
    "pixel.AP": ("Defective pixels first (pixel AP)", ""),
    "pixel.AUPRO": (
        "Covering defects of all sizes (pixel AUPRO)",
        "Share of each defect that is covered, small and large ones alike, at few false pixels.",
    ),
    "image.AUROC": (
        "Telling bad parts from good (image AUROC)",
        "Chance that a picture with a defect looks more suspicious than a good one. "
        "Guessing gives 0.5.",
    ),
    "image.AP": (
        "Bad parts first (image AP)",
        "Pictures ranked by suspicion: 1 is every picture with a defect before every good one.",
    ),
    "image.accuracy": (
        "Verdicts that are right (accuracy)",
        "Share of pictures called by their right name: good, or the right defect.",
    ),
    "image.balanced_accuracy": (
        "Verdicts that are right, classes equal (balanced accuracy)",
        "Share of right verdicts in each class, as the mean over the classes.",
    ),
    "image.macro_F1": (
        "Verdicts, all classes equal (macro-F1)",
        "F1 of the verdicts in each class, as the mean: rare classes count as much as frequent "
        "ones.",
    ),
    "image.false_alarms_per_100_good": ("Good pictures called defective, of 100", ""),
    "image.ECE": (
        "How far scores are from probabilities (calibration error)",
        "0 is best: of verdicts with score 0.8, 80 in 100 are right.",
    ),
    "image.recall": ("Verdict: found", "Of the pictures of the class, the share called so."),
    "image.precision": ("Verdict: right", "Of the pictures called so, the share that is."),
    "image.F1": ("Verdict: F1", "Balance of the two."),
    "baseline.filled_box_instance_IoU": (
        "Baseline: the given box filled (mean instance IoU)",
        "What the box alone gives, without any outline.",
    ),
    "baseline.filled_box_IoU": (
        "Baseline: boxes filled (mask IoU)",
        "What the boxes alone give, without any outline.",
    ),
    "baseline.always_good_accuracy": (
        'Baseline: always "good" (accuracy)',
        "What calling every picture good gives.",
    ),
}

BASELINES = {
    "mask.instance_IoU": ("baseline.filled_box_instance_IoU", "the given box filled"),
    "mask.IoU": ("baseline.filled_box_IoU", "the boxes filled"),
    "image.accuracy": ("baseline.always_good_accuracy", 'calling every picture "good"'),
}
"""What costs nothing, by the figure that has to beat it: its name, and what it does."""

HEADLINES = {
    "box.AP50": ("detector",),
    "box.F1": ("detector",),
    "image.macro_F1": ("classifier",),
    "image.accuracy": ("classifier",),
    "image.AUROC": ("detector", "classifier", "maps"),
    "mask.AP50": ("detector",),
    "mask.instance_IoU": ("outlines",),
    "mask.IoU": ("detector", "outlines"),
    "pixel.AUROC": ("maps",),
    "pixel.AUPRO": ("maps",),
}
"""The few figures that matter, and the kinds of runs that they matter for."""

KINDS = {
    "detector": "finds defects",
    "detector with masks": "finds and outlines defects",
    "outlines": "outlines defects in boxes that were given",
    "points": "outlines what points mark",
    "everything": "outlines everything",
    "classifier": "judges whole pictures",
    "maps": "scores every pixel",
}

LOSSES = {
    "loss": "all losses together",
    "box_loss": "box position",
    "cls_loss": "class",
    "dfl_loss": "box edges",
    "focal": "pixels",
    "dice": "overlap",
    "bce": "pixels (cross entropy)",
    "boundary": "distance from edges",
    "iou": "own estimate of IoU",
    "val_loss": "on val",
}
"""Training losses in words."""

SCORES = {
    "val_iou": "mean IoU",
    "val_ap": "AP",
    "val_ap50": "AP50",
    "val_score": "score",
    "val_balanced_accuracy": "balanced accuracy",
}
"""Scores on val in words."""

KEPT_BY = ("val_iou", "val_score", "val_ap")
"""Scores on val that choose the epoch that is kept."""


def words_for(name: str) -> Words:
    """A figure in words; one that is not known keeps its name."""
    known = name.replace("mask.", "box.") if name not in _FIGURES else name
    label, meaning = _FIGURES.get(known, (name, ""))
    if known != name:
        label = label.replace("box ", "mask ")
    return Words(label, meaning)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of figures, those of one group side by side, known ones first."""
    known = [*_FIGURES]
    groups = ["box", "mask", "image", "pixel", "baseline"]

    def key(name: str) -> tuple[int, int, str]:
        group = name.split(".")[0]
        place = words_for(name).label != name
        number = known.index(name) if name in known else len(known) - place
        return groups.index(group) if group in groups else len(groups), number, name

    return sorted(names, key=key)


def counted(number: int, what: str) -> str:
    """As in "1 image", "2 images"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def joined(parts: list[str]) -> str:
    """As in "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
