# SPDX-License-Identifier: MIT
"""What training makes small: cross-entropy, and with it Dice, as milesial/Pytorch-UNet adds."""

import numpy as np

# Keeps 0 / 0 away where neither the mask nor the result has a pixel.
EPSILON = 1e-6


def cross_entropy(logits, labels):
    """Return the loss of classified images, meant over the batch, and its gradient.

    Parameters
    ----------
    logits : (N, classes) array
    labels : (N,) integer array

    Returns
    -------
    loss : float
    dlogits : (N, classes) array
        Of the logits' dtype.
    """
    probability, entropy = _softmax(logits, labels)
    one_hot = labels[:, None] == np.arange(logits.shape[1])
    dlogits = ((probability - one_hot) / len(labels)).astype(logits.dtype)
    return float(entropy.mean(dtype=np.float64)), dlogits


def cross_entropy_dice(logits, target, total=None):
    """Return the loss, its gradient, and what it is made of.

    Of several classes it is the cross-entropy, meant over all pixels, and one minus the Dice
    coefficient of the softmax and the mask written as one plane a class. One Dice coefficient is
    taken of all images and classes together: ``(2 sum(p t) + eps) / (sum(p) + sum(t) + eps)``.
    Of one class it is the binary cross-entropy, and the same coefficient of the sigmoid.

    Parameters
    ----------
    logits : (N, classes, H, W) array
    target : (N, H, W) integer array
        The class of each pixel; of one class, 0 or 1.
    total : callable, optional
        Where others have more images of the batch: ``total(sums)`` adds a float64 array up over
        all of them, in place, and returns it. The loss is then that of the whole batch.

    Returns
    -------
    loss : float
    dlogits : (N, classes, H, W) array
        Of the logits' dtype.
    parts : dict of str to float
        "cross_entropy" and "dice": the coefficient, from 0 to 1, that is best at 1.

    Notes
    -----
    Sums over all pixels are taken in float64.
    """
    if logits.shape[1] == 1:
        probability, entropy = _sigmoid(logits, target[:, None])
        one_hot = target[:, None].astype(logits.dtype)
    else:
        probability, entropy = _softmax(logits, target)
        one_hot = (target[:, None] == np.arange(logits.shape[1])[:, None, None]).astype(
            logits.dtype
        )
    sums = np.array(
        [
            (probability * one_hot).sum(dtype=np.float64),
            probability.sum(dtype=np.float64) + one_hot.sum(dtype=np.float64),
            entropy.sum(dtype=np.float64),
            target.size,
        ]
    )
    common, both, entropies, pixels = (sums if total is None else total(sums)).tolist()
    common, both = 2 * common + EPSILON, both + EPSILON
    dice = common / both
    # Of 1 - Dice by each probability: a pixel of the class wants more of it, any other less.
    dp = dice / both - one_hot * (2 / both)
    if logits.shape[1] == 1:
        dlogits = dp * probability * (1 - probability)
    else:
        dlogits = probability * (dp - (probability * dp).sum(axis=1, keepdims=True))
    dlogits += (probability - one_hot) * (1 / pixels)
    cross_entropy = entropies / pixels
    loss = cross_entropy + 1 - dice
    return loss, dlogits, {"cross_entropy": cross_entropy, "dice": dice}


def _softmax(logits, target):
    """Return the classes' probabilities, and minus the logarithm of the true class's."""
    # The largest logit is taken off first: exp() of what is left cannot overflow.
    below = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(below)
    total = powers.sum(axis=1, keepdims=True)
    true = np.take_along_axis(below, target[:, None].astype(np.intp), axis=1)
    return powers / total, np.log(total) - true


def _sigmoid(logits, target):
    """Return the probability of a pixel's being of the class, and the entropy likewise."""
    small = np.exp(-np.abs(logits))  # at most 1, whatever the sign
    probability = np.where(logits >= 0, 1, small) / (1 + small)
    return probability, np.maximum(logits, 0) - logits * target + np.log1p(small)
