"""What a classifier's logits say: probabilities, and how suspicious a picture is."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

Suspicion: TypeAlias = Literal["msp", "uniform", "defect"]
"""A way to tell how suspicious a picture is: see ``suspicion``."""

OF_THE_UNKNOWN: tuple[Suspicion, ...] = ("msp", "uniform")
"""Those that are about pictures of no class that was learnt."""


def probabilities(
    logits: npt.NDArray[np.floating], temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """Softmax of logits / temperature, shape (n, classes); rows add up to 1.

    In double precision: 1 - p(good) of sure good pictures would otherwise round to equal.
    """
    return np.asarray(np.exp(log_softmax(logits.astype(np.float64) / temperature, axis=1)))


def suspicion(
    logits: npt.NDArray[np.floating], temperature: float, kind: Suspicion
) -> npt.NDArray[np.float64]:
    """How suspicious pictures are; the higher, the more.

    "msp" is 1 - the largest probability, of 0 to 1 (Hendrycks and Gimpel, A Baseline for Detecting
    Misclassified and Out-of-Distribution Examples, ICLR 2017; with a temperature, Liang et al.,
    ODIN, ICLR 2018). "uniform" is minus the cross-entropy between the uniform distribution and the
    probabilities, at most -log(classes) (Hendrycks et al., Deep Anomaly Detection with Outlier
    Exposure, ICLR 2019). Both are high where the classifier is undecided. "defect" is 1 - p(good),
    of 0 to 1, high where it is sure of a defect, too.

    Args:
        logits: shape (n, classes), those of good first.
        temperature: that they are divided by, above 0.
        kind: which.

    Returns:
        shape (n,).
    """
    if kind == "uniform":
        scaled = logits.astype(np.float64) / temperature
        return np.asarray(log_softmax(scaled, axis=1).mean(axis=1))
    shares = probabilities(logits, temperature)
    # Sums of the others, as 1 - p would round to equal where p is nearly 1.
    usual = shares.argmax(axis=1) if kind == "msp" else np.zeros(len(shares), np.int64)
    np.put_along_axis(shares, usual[:, None], 0.0, axis=1)
    return np.asarray(shares.sum(axis=1))
