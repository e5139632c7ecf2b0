"""Fewer labels than there are, to learn what each is worth."""

from __future__ import annotations

import numpy as np

from converters.dataset import GOOD, Dataset


def labelled_part(train: Dataset, budget: int, seed: int) -> Dataset:
    """The pictures whose labels may be used: all good ones, and a few of each defect class.

    Args:
        train: all pictures.
        budget: most pictures per defect class; pictures of one photograph count apart.
        seed: of the draw, in which a larger budget takes all that a smaller one does.
    """
    labels = train.image_labels()
    rng = np.random.default_rng(seed)
    left = dict.fromkeys(train.categories, budget)
    kept = set()
    for index in rng.permutation(len(labels)):
        label = labels[index]
        if label == GOOD or left[label] > 0:
            kept.add(int(index))
            if label != GOOD:
                left[label] -= 1
    return train.subset(tuple(image for i, image in enumerate(train.images) if i in kept))
