# SPDX-License-Identifier: MIT
"""The head of a network of NHWC arrays: few classes of each pixel, gradients, and the mask.

Logits are (N, H, W, classes), float32, as filters (classes, C) and the bias (classes,).

Where the head alone takes what batch norm and ReLU make, that need never be written: `launch_head`
with `norm` makes it on the way. Back, `launch_head_norm_dgrad_parts` takes the place of
`launch_head_dgrad_parts` and of `norm_nhwc.launch_norm_dgrad_parts`, and `launch_head_norm_dgrad`
that of `norm_nhwc.launch_norm_dgrad`.
"""

import functools
import math

from convstudy.nn.pixels import THREADS, count_pixels, launch_each, share

KERNELS = (
    "head_fprop_1_lanes",
    "head_dgrad_1_parts",
    "head_dgrad_2_norm",
    "batchnorm_dgrad_5_head",
    "mask_fprop_1_argmax",
)
# More than these are for a convolution of 1 x 1.
MOST_CLASSES = 32
# Up to so many classes a thread has registers for vectors of channels, and for several pixels.
_FEW = 4


@functools.cache
def launch_head(shape, dtype, classes, norm=False, pitch=None):
    """Return the launch that takes (x, factors, w, bias, logits).

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    classes : int
    norm : bool
        Whether x is batch norm's input: ``relu(a x + b)`` is then made on the way, with `factors`
        as `norm_nhwc` has them. Else `factors` is None.
    pitch : int, optional
        x's, by default C.
    """
    pixels, c = count_pixels("head", shape), shape[3]
    pitch = pitch or c
    sharing = _share(c, dtype, classes, pitch)
    blocks = math.ceil(pixels / (sharing.rows * _each(classes)))
    defines = (("CLASSES", classes), *((("NORM", 1),) if norm else ()))
    return sharing.launch_blocks("head_fprop_1_lanes", blocks, (pixels, c, pitch), defines)


@functools.cache
def launch_head_dgrad_parts(shape, dtype, classes, rows, *, pitch_z=None, pitch_dz=None):
    """Return the launch that takes (dlogits, z, w, dz, parts).

    It writes dz, which may be z, and ``parts`` (parts, classes C + classes): the gradients of w and
    of the bias, summed over every `rows` pixels. `relu_nhwc.launch_sums` adds them up.
    """
    pixels, c = count_pixels("head", shape), shape[3]
    pitches = [pitch or c for pitch in (pitch_z, pitch_dz)]
    sharing = _share(c, dtype, classes, *pitches)
    defines = (("CLASSES", classes),)
    scalars = (pixels, c, *pitches, rows)
    return sharing.launch("head_dgrad_1_parts", math.ceil(pixels / rows), scalars, defines)


@functools.cache
def launch_head_norm_dgrad_parts(shape, dtype, classes, rows, pitch=None):
    """Return the launch that takes (dlogits, x, factors, statistics, w, head_parts, norm_parts).

    It reads batch norm's input x, and writes what `launch_head_dgrad_parts` and
    `norm_nhwc.launch_norm_dgrad_parts` would, of parts of `rows` pixels.
    """
    pixels, c = count_pixels("head", shape), shape[3]
    pitch = pitch or c
    sharing = _share(c, dtype, classes, pitch)
    scalars, defines = (pixels, c, pitch, rows), (("CLASSES", classes),)
    return sharing.launch("head_dgrad_2_norm", math.ceil(pixels / rows), scalars, defines)


@functools.cache
def launch_head_norm_dgrad(shape, dtype, classes, *, pitch_x=None, pitch_dx=None):
    """Return the launch that takes (dlogits, x, factors, coefficients, w, dx); dx may be x."""
    pixels, c = count_pixels("head", shape), shape[3]
    pitches = [pitch or c for pitch in (pitch_x, pitch_dx)]
    sharing = _share(c, dtype, classes, *pitches)
    parts = math.ceil(pixels / (sharing.rows * _each(classes)))
    scalars, defines = (pixels, c, *pitches), (("CLASSES", classes),)
    return sharing.launch("batchnorm_dgrad_5_head", parts, scalars, defines)


@functools.cache
def launch_mask(shape, classes):
    """Return the launch that takes (logits, mask), for a mask of bytes (N, H, W).

    The class of each pixel, the first of the largest; of one class, whether its logit is above 0.
    """
    pixels = count_pixels("mask", (*shape[:3], 1))
    if not 1 <= classes <= 256:
        raise ValueError(f"mask: {classes} classes do not fit into a byte; use 1 to 256")
    defines = (("CLASSES", classes),)
    return launch_each("mask", "mask_fprop_1_argmax", pixels, (pixels,), defines)


def check_classes(who, classes):
    """Raise ValueError unless the kernels of few classes take so many."""
    if not 1 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"{who}: {classes} classes; it takes 1 to {MOST_CLASSES}, and a convolution of 1 x 1 "
            "takes any number"
        )


def _share(channels, dtype, classes, *pitches):
    check_classes("head", classes)
    # Vectors of many classes take registers, and many classes take shared memory.
    threads = THREADS if classes <= 2 or _FEW < classes <= 8 else THREADS // 2
    return share("head", channels, dtype, *pitches, threads=threads, vectors=classes <= _FEW)


def _each(classes):
    return 4 if classes <= _FEW else 1
