# SPDX-License-Identifier: MIT
"""How well masks are found: the Dice coefficient of decided pixels, as the original evaluates."""

import numpy as np

from convstudy.train.losses import EPSILON


def decide(logits):
    """Return the class of each pixel, (N, H, W) uint8, of (N, classes, H, W) logits."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.uint8)
    return logits.argmax(axis=1).astype(np.uint8)


def dice(decided, target, classes):
    """Return each image's Dice coefficient, meant over the classes but the background.

    Parameters
    ----------
    decided, target : (N, H, W) integer arrays
        The class of each pixel.
    classes : int
        1 and 2 are the same here: a background and an object.

    Returns
    -------
    (N,) float64 array
        From 0 to 1; 1 where neither has a pixel of a class.
    """
    planes = []
    for kind in range(1, max(classes, 2)):
        found, true = decided == kind, target == kind
        common = 2 * (found & true).sum(axis=(1, 2))
        planes.append(
            (common + EPSILON) / (found.sum(axis=(1, 2)) + true.sum(axis=(1, 2)) + EPSILON)
        )
    return np.mean(planes, axis=0)


def evaluate(predict, pairs, classes, batch):
    """Return the mean Dice coefficient over all pairs.

    Parameters
    ----------
    predict : callable
        From images, as `Pairs.batch` gives them, to logits.
    pairs : Pairs
    classes, batch : int
    """
    scores = []
    for start in range(0, len(pairs), batch):
        images, masks = pairs.batch(range(start, min(start + batch, len(pairs))))
        scores.append(dice(decide(predict(images)), masks, classes))
    return float(np.concatenate(scores).mean())
