# SPDX-License-Identifier: MIT
"""Batch norm of NHWC arrays, in training and at inference, with what is done in the same pass.

Forward: statistics of parts (`launch_statistics_parts`, or a convolution as it writes its result),
what all of them say together (`launch_statistics`), and ``y = relu(a x + b)`` (`launch_norm`).
Backward: sums of parts (`launch_norm_dgrad_parts`), what follows from them
(`launch_norm_dgrad_sums`), and the gradient of x (`launch_norm_dgrad`), which are told what forward
did besides: nothing that it wrote is read, but x and the statistics. Where images `are_small`, one
launch does all of forward (`launch_norm_whole`), and one all of backward
(`launch_norm_dgrad_whole`).

Of arrays that launches pass to each other, all float32: ``parts`` (parts, 2, C), forward the mean
of each part and the sum of squared distances from it, backward two sums; ``statistics`` (2, C), the
mean and 1 / sqrt(var + eps); ``factors`` (2, C), the a and the b. All start on 16 bytes.
"""

import functools
import math
from dataclasses import replace

from convstudy.nn.pixels import count_pixels, power_of_two, share, share_parts

KERNELS = (
    "batchnorm_statistics_1_parts",
    "batchnorm_statistics_2_combine",
    "batchnorm_fprop_2_scale_shift",
    "batchnorm_fprop_3_whole",
    "batchnorm_dgrad_1_parts",
    "batchnorm_dgrad_2_combine",
    "batchnorm_dgrad_3_apply",
    "batchnorm_dgrad_4_whole",
)
# Up to so many pixels of all images, one launch whose blocks each have all of them is as fast as
# three. On an H200, steps of 1 and 16 images took up to 0.6% longer with 2,048 and up to 0.9% with
# 300; and 3.5% to 7% longer where clusters of 8 or 16 blocks did the same for up to 25,000 pixels.
_FEW_PIXELS = 1000
# Cells of one thread.
_EACH = 4


def count_cells(shape, pool=False):
    """Return what `launch_norm_dgrad_parts` cuts into parts: pixels, or windows if it pools.

    Windows are 2 x 2; what an odd image has of them at its edges counts too.
    """
    pixels = count_pixels("batch_norm", shape)
    n, h, w, _ = shape
    return n * math.ceil(h / 2) * math.ceil(w / 2) if pool else pixels


@functools.cache
def launch_statistics_parts(shape, dtype, rows, pitch=None):
    """Return the launch that takes (x, parts): the moments of every `rows` pixels.

    Parameters
    ----------
    shape : (N, H, W, C)
    dtype : {"float32", "bfloat16"}
    rows : int
        Pixels of a part, as `pixels.part_rows` chooses them.
    pitch : int, optional
        x's, by default C; the same of all pitches in this module.
    """
    pixels, c = count_pixels("batch_norm", shape), shape[3]
    pitch = pitch or c
    sharing = share("batch_norm", c, dtype, pitch)
    scalars = (pixels, c, pitch, rows)
    return sharing.launch("batchnorm_statistics_1_parts", math.ceil(pixels / rows), scalars)


@functools.cache
def launch_statistics(pixels, channels, rows, eps=1e-5, momentum=0.1):
    """Return the launch that puts parts together, whoever made them.

    It takes (parts, weight, bias, running_mean, running_var, statistics, factors), reads the first
    three, changes the next two and writes the last two.

    Parameters
    ----------
    pixels, channels : int
        Of all images.
    rows : int
        Pixels of each part; the last has what is left of them.
    eps, momentum : float
        As PyTorch's BatchNorm2d has them.
    """
    _check_trainable(pixels)
    count = math.ceil(pixels / rows)
    return _combine(channels, count, (count, rows, pixels, float(eps), float(momentum)))


@functools.cache
def launch_counted_statistics(pixels, channels, count, eps=1e-5, momentum=0.1):
    """Return the launch of `launch_statistics` for `count` parts that say how large they are.

    So a convolution writes them (`conv.epilogue.Epilogue.statistics`).
    """
    _check_trainable(pixels)
    scalars = (count, 0, pixels, float(eps), float(momentum))
    return _combine(channels, count, scalars, (("COUNTED", 1),))


@functools.cache
def launch_running_statistics(channels, eps=1e-5):
    """Return the launch for inference: that of `launch_statistics`, without parts (None).

    What it writes follows from the running statistics, which stay as they are.
    """
    return _combine(channels, 0, (0, 1, 2, float(eps), 0.0))


def _combine(channels, count, scalars, defines=()):
    sharing = share_parts("batch_norm", channels, max(count, 1))
    return sharing.launch("batchnorm_statistics_2_combine", 1, (channels, *scalars), defines)


@functools.cache
def launch_norm(
    shape,
    dtype,
    relu=True,
    residual=False,
    pool=False,
    *,
    pitch_x=None,
    pitch_residual=None,
    pitch_y=None,
    pitch_pooled=None,
):
    """Return the launch that takes (x, factors, residual, y, pooled): ``y = relu(a x + b)``.

    Parameters
    ----------
    shape, dtype
        As in `launch_statistics_parts`; y may be x.
    relu : bool
    residual : bool
        Whether an array like x is added before ReLU; else it is None.
    pool : bool
        Whether the largest of each 2 x 2 is written too, to (N, H // 2, W // 2, C), and y is None
        where only that is wanted. Else `pooled` is None.
    """
    cells = count_cells(shape, pool)
    n, h, w, c = shape
    pitches = [pitch or c for pitch in (pitch_x, pitch_residual, pitch_y, pitch_pooled)]
    sharing = share("batch_norm", c, dtype, *pitches)
    defines = (("RELU", int(relu)), ("RESIDUAL", int(residual)), ("POOL", int(pool)))
    parts = math.ceil(cells / (sharing.rows * (1 if pool else _EACH)))
    return sharing.launch(
        "batchnorm_fprop_2_scale_shift", parts, (n, h, w, c, *pitches), _but_defaults(defines)
    )


def are_small(shape):
    """Return whether one launch is likely to be faster than three, in training."""
    return count_pixels("batch_norm", shape) <= _FEW_PIXELS


@functools.cache
def launch_norm_whole(
    shape,
    dtype,
    relu=True,
    residual=False,
    pool=False,
    eps=1e-5,
    momentum=0.1,
    *,
    pitch_x=None,
    pitch_residual=None,
    pitch_y=None,
    pitch_pooled=None,
):
    """Return the launch that does what `launch_statistics_parts` and the two that follow do.

    It takes (x, weight, bias, running_mean, running_var, statistics, factors, residual, y, pooled).
    """
    cells = count_cells(shape, pool)
    n, h, w, c = shape
    _check_trainable(n * h * w)
    pitches = [pitch or c for pitch in (pitch_x, pitch_residual, pitch_y, pitch_pooled)]
    sharing = _share_whole(c, dtype, cells, 512, pitches)
    defines = (("RELU", int(relu)), ("RESIDUAL", int(residual)), ("POOL", int(pool)))
    scalars = (*shape, *pitches, float(eps), float(momentum))
    return sharing.launch("batchnorm_fprop_3_whole", 1, scalars, _but_defaults(defines))


@functools.cache
def launch_norm_dgrad_parts(
    shape,
    dtype,
    rows,
    relu=True,
    pool=False,
    direct=True,
    *,
    pitch_dz=None,
    pitch_dpooled=None,
    pitch_x=None,
):
    """Return the launch that takes (dz, dpooled, x, factors, statistics, parts).

    Parameters
    ----------
    shape, dtype, relu, pool
        As in `launch_norm`, which this goes back over. A residual's gradient is ReLU's: take that
        first, and this without ReLU.
    rows : int
        Cells of a part: of `count_cells`, what `pixels.part_rows` chooses.
    direct : bool
        Whether the output was used beside the pooled one, and has a gradient dz; else it is None.
        Without `pool`, dpooled is None.
    """
    pitches = (pitch_dz, pitch_dpooled, pitch_x)
    kernel = "batchnorm_dgrad_1_parts"
    return _launch_dgrad(kernel, shape, dtype, (relu, pool, direct), pitches, rows)


@functools.cache
def launch_norm_dgrad_sums(pixels, channels, parts, training=True):
    """Return the launch that takes (parts, statistics, factors, dweight, dbias, coefficients).

    It writes the last three: gradients (C,) each, and (2, C) for `launch_norm_dgrad`.

    Parameters
    ----------
    pixels, channels, parts : int
        Of all images; and how many parts there are.
    training : bool
        Whether the statistics were those of x, and so depend on it.
    """
    sharing = share_parts("batch_norm", channels, parts)
    scalars = (channels, parts, pixels, int(training))
    return sharing.launch("batchnorm_dgrad_2_combine", 1, scalars)


@functools.cache
def launch_norm_dgrad(
    shape,
    dtype,
    relu=True,
    pool=False,
    direct=True,
    *,
    pitch_dz=None,
    pitch_dpooled=None,
    pitch_x=None,
    pitch_dx=None,
):
    """Return the launch that takes (dz, dpooled, x, factors, coefficients, dx).

    dx may be dz or x; all else is as in `launch_norm_dgrad_parts`.
    """
    pitches = (pitch_dz, pitch_dpooled, pitch_x, pitch_dx)
    kernel = "batchnorm_dgrad_3_apply"
    return _launch_dgrad(kernel, shape, dtype, (relu, pool, direct), pitches)


@functools.cache
def launch_norm_dgrad_whole(
    shape,
    dtype,
    relu=True,
    pool=False,
    direct=True,
    training=True,
    *,
    pitch_dz=None,
    pitch_dpooled=None,
    pitch_x=None,
    pitch_dx=None,
):
    """Return the launch that does what `launch_norm_dgrad_parts` and the two that follow do.

    It takes (dz, dpooled, x, factors, statistics, dweight, dbias, dx).
    """
    defines, cells = _dgrad_defines(relu, pool, direct), count_cells(shape, pool)
    pitches = [pitch or shape[3] for pitch in (pitch_dz, pitch_dpooled, pitch_x, pitch_dx)]
    sharing = _share_whole(shape[3], dtype, cells, 256 if pool else 512, pitches)
    scalars = (*shape, *pitches, int(training))
    return sharing.launch("batchnorm_dgrad_4_whole", 1, scalars, defines)


def _share_whole(channels, dtype, cells, threads, pitches):
    # Few channels to a block, so that there are many blocks; a sector is 32 bytes.
    sharing = share("batch_norm", channels, dtype, *pitches, line_bytes=32)
    needed = max(32, sharing.lanes * power_of_two(cells))
    return replace(sharing, threads=min(threads, needed))


def _launch_dgrad(kernel, shape, dtype, options, pitches, rows=None):
    defines, pool = _dgrad_defines(*options), options[1]
    cells, pitches = count_cells(shape, pool), [pitch or shape[3] for pitch in pitches]
    sharing = share("batch_norm", shape[3], dtype, *pitches, threads=128 if pool else 256)
    each = rows or sharing.rows * (1 if pool else _EACH)
    scalars = (*shape, *pitches, *((rows,) if rows else ()))
    return sharing.launch(kernel, math.ceil(cells / each), scalars, defines)


def _dgrad_defines(relu, pool, direct):
    if not (pool or direct):
        raise ValueError("batch_norm: an output that nothing used has no gradient; leave it out")
    return _but_defaults((("RELU", int(relu)), ("POOL", int(pool)), ("DIRECT", int(direct))))


def _check_trainable(pixels):
    if pixels < 2:
        raise ValueError(
            "batch_norm: one pixel has no variance to train on; pass larger images or more of them"
        )


def _but_defaults(defines):
    """Return those constants that are not what a kernel has anyway: fewer texts to compile."""
    defaults = {"RELU": 1, "DIRECT": 1}
    return tuple((name, value) for name, value in defines if value != defaults.get(name, 0))
