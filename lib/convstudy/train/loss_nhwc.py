# SPDX-License-Identifier: MIT
"""The loss of `losses` as CUDA kernels: of logits (N, H, W, classes), float32.

Targets are (N, H, W), bytes or int32: each pixel's class, or of one class 0 or 1. Any other value
makes the loss NaN. What is passed on is float32: ``parts`` (parts, 3), and ``loss``, `LOSS` and
three numbers for the gradient.
"""

import functools
import math

import numpy as np

from convstudy.nn.head_nhwc import check_classes
from convstudy.nn.pixels import THREADS, count_pixels, itemsize, launch_each
from convstudy.train.losses import EPSILON

KERNELS = (
    "loss_fprop_1_parts",
    "loss_fprop_2_combine",
    "loss_dgrad_1_pixels",
    "loss_dgrad_2_classes",
)
# What the first numbers of `loss` are, and how many there are in all.
LOSS = ("loss", "cross_entropy", "dice")
LOSS_SIZE = 6


@functools.cache
def launch_loss_parts(pixels, classes, rows, target="uint8"):
    """Return the launch that takes (logits, targets, parts).

    Parameters
    ----------
    pixels : int
        Of all images.
    classes : int
    rows : int
        Pixels of a part.
    target : {"uint8", "int32"}
    """
    _check(pixels, classes)
    parts = math.ceil(pixels / rows)
    defines = _defines(classes, target)
    kernel = "loss_fprop_1_parts"
    return launch_each("loss", kernel, parts * THREADS, (pixels, rows), defines)


@functools.cache
def launch_loss(pixels, parts):
    """Return the launch that takes (parts, loss): of all images, whoever has made their parts."""
    scalars = (parts, pixels, float(EPSILON))
    return launch_each("loss", "loss_fprop_2_combine", 1, scalars)


@functools.cache
def launch_loss_dgrad(pixels, classes, target="uint8"):
    """Return the launch that takes (logits, targets, loss, dlogits); dlogits may be logits."""
    _check(pixels, classes)
    defines = _defines(classes, target)
    return launch_each("loss", "loss_dgrad_1_pixels", pixels, (pixels,), defines)


@functools.cache
def launch_entropy(images, classes, dtype, every=None):
    """Return the launch that takes (logits, targets, dlogits, parts) of classified images.

    ``parts`` (images, 3) are for `launch_loss`, of so many "pixels" and parts: the loss is then
    their cross-entropy alone. dlogits may be logits.

    Parameters
    ----------
    images, classes : int
        Logits are (images, classes), targets (images,) int32.
    dtype : {"float32", "bfloat16"}
        Of logits and dlogits.
    every : int, optional
        How many images there are with those of other ranks; by default these alone.
    """
    if min(images, classes) < 1:
        raise ValueError(
            f"loss: {images} images of {classes} classes; there is at least one of each"
        )
    itemsize("loss", dtype)
    defines = (("BF16", 1),) if dtype == "bfloat16" else ()
    kernel = "loss_dgrad_2_classes"
    return launch_each("loss", kernel, 32 * images, (images, classes, every or images), defines)


def _check(pixels, classes):
    count_pixels("loss", (1, 1, pixels, 1))
    check_classes("loss", classes)


def _defines(classes, target):
    if target not in ("uint8", "int32"):
        raise ValueError(f"loss: targets are {target!r}; use 'uint8' or 'int32'")
    return ("CLASSES", classes), ("TARGET_BYTES", np.dtype(target).itemsize)
