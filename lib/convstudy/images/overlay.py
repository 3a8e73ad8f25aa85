# SPDX-License-Identifier: MIT
"""A mask drawn over its picture."""

import numpy as np

# Okabe and Ito's, which the colour-blind tell apart: sky blue first, which few objects have.
COLOURS = np.array(
    [(86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167)],
    np.float32,
)
_STRENGTH = 0.5


def overlay(image, mask):
    """Return a picture with each class but the background tinted, and its edge drawn.

    Parameters
    ----------
    image : (3, H, W) float array in [0, 1]
    mask : (H, W) integer array
        0 is the background.

    Returns
    -------
    (H, W, 3) uint8 array
    """
    if image.shape != (3, *mask.shape):
        raise ValueError(
            f"overlay: the image is of shape {image.shape} and the mask of {mask.shape}; pass "
            "(3, H, W) and (H, W)"
        )
    levels = np.moveaxis(image, 0, 2) * np.float32(255)
    colours = COLOURS[(mask.astype(int) - 1) % len(COLOURS)]
    strength = np.where(_edge(mask), 1, np.where(mask > 0, np.float32(_STRENGTH), 0))[..., None]
    return np.rint(np.clip(levels + strength * (colours - levels), 0, 255)).astype(np.uint8)


def _edge(mask):
    """Return which pixels of a class lie beside a pixel of another."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (mask > 0) & np.any([inner != each for each in beside], axis=0)
