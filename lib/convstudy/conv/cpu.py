# SPDX-License-Identifier: MIT
"""Convolution on the CPU: as the plain loop nest, and as a CPU does it well; and its gradients.

All trust their arguments, float32 and C-contiguous; `api` checks them. Those that follow the
layout NCHW take another through `in_layout`, and bfloat16 through `in_float32`.
"""

import contextlib
import functools
import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from convstudy.conv import reference
from convstudy.loops import compiled
from convstudy.problem import ConvProblem

# Floats of unfolded input that a thread has at once: 4 MiB. Half of it costs 6% more time over
# U-Net's layers and twice of it 5%: smaller blocks make matrices too narrow for BLAS, larger ones
# fall out of the cache between their writing and their reading (AMD Zen 5, 1 MiB of L2, 32 MiB of
# L3).
_BLOCK = 2**20
# Products that take longer than to tell threads of them.
_LEAST_PRODUCTS = 2**20


def plain(problem, x, w, bias, out):
    """Convolve by the seven loops of the definition, compiled, on one thread.

    One output at a time, a bounds test on every product: what 1.0 GMAC/s is the speed of.

    Parameters
    ----------
    problem : ConvProblem
    x : (N, C, H, W) float32 array
    w : (K, C, R, S) float32 array
    bias : (K,) float32 array or None
    out : (N, K, P, Q) float32 array
        Is written.
    """
    if bias is None:
        bias = np.zeros(problem.k, np.float32)
    _loops(x, w, bias, out, *problem.stride, *problem.padding)


@compiled
def _loops(x, w, bias, out, stride_h, stride_w, pad_h, pad_w):
    height, width = x.shape[2:]
    for n in range(out.shape[0]):
        for k in range(out.shape[1]):
            for p in range(out.shape[2]):
                for q in range(out.shape[3]):
                    total = bias[k]
                    for c in range(w.shape[1]):
                        for r in range(w.shape[2]):
                            for s in range(w.shape[3]):
                                i = p * stride_h - pad_h + r
                                j = q * stride_w - pad_w + s
                                if 0 <= i < height and 0 <= j < width:
                                    total += x[n, c, i, j] * w[k, c, r, s]
                    out[n, k, p, q] = total


def blas(problem, x, w, bias, out):
    """Convolve by unfolding the input and one matrix product: im2col and BLAS.

    Parameters
    ----------
    problem, x, w, bias, out
        As in `plain`.

    Notes
    -----
    It runs on as many threads as BLAS is set to (`limit_threads`), but on threads of its own, each
    of which multiplies by itself: those of BLAS wait by spinning, and with others that unfold
    beside them, 16 cores of a Xeon took longer than with one that does.
    The unfolded input is R S times the input, so it is made block by block, a block for each
    thread; a block is some rows of the output, or part of one row where that is too long. Where
    there are fewer blocks, threads share the channels of one, and then its filters. For each thread
    to multiply what it has just unfolded took a fifth longer on two.
    """
    count = _threads_for(problem.macs)
    filters = w.reshape(problem.k, problem.terms)
    results = out.reshape(problem.n, problem.k, problem.p * problem.q)

    def multiply(task):
        (result, pixels, unfolded), part = task
        np.matmul(filters[part], unfolded, out=result[part, pixels])

    with _ByThemselves(count):
        for blocks in _unfolded(problem, x, results, count):
            parts = _parts(problem.k, math.ceil(count / len(blocks)))
            _share_out(multiply, itertools.product(blocks, parts), count)
    if bias is not None:
        out += bias[:, None, None]


def multiply(a, b):
    """Return the matrix product of (M, K) and (..., K, N), on threads as `blas` has them."""
    out = np.empty((*b.shape[:-2], len(a), b.shape[-1]), np.float32)
    count = _threads_for(out.size * a.shape[1])

    def fill(part):
        np.matmul(a[part], b, out=out[..., part, :])

    with _ByThemselves(count):
        _share_out(fill, _parts(len(a), count), count)
    return out


def dgrad(problem, dy, w, dx):
    """Compute the gradient of the input, (N, C, H, W).

    At stride 1 it is a convolution itself, of dy with the filters turned round; else there is a
    matrix product for each filter tap.
    """
    margins = problem.r - 1 - problem.padding[0], problem.s - 1 - problem.padding[1]
    if problem.stride != (1, 1) or min(margins) < 0:
        size = problem.h, problem.w
        dx[...] = reference.conv2d_dgrad(dy, w, size, problem.stride, problem.padding)
        return
    turned = np.ascontiguousarray(w[:, :, ::-1, ::-1].swapaxes(0, 1))
    blas(ConvProblem.of(dy, turned, padding=margins), dy, turned, None, dx)


def wgrad(problem, x, dy, dw):
    """Compute the gradient of the filters, (K, C, R, S): dy times the unfolded input.

    Where images are small, such products are too narrow; there is one for each filter tap, then.
    """
    if problem.p * problem.q < 64:
        size = problem.r, problem.s
        dw[...] = reference.conv2d_wgrad(x, dy, size, problem.stride, problem.padding)
        return
    count = _threads_for(problem.macs)
    total = np.zeros((problem.k, problem.terms), np.float32)
    gradients = dy.reshape(problem.n, problem.k, problem.p * problem.q)

    def add(task):
        part, blocks = task
        for gradient, pixels, unfolded in blocks:
            total[part] += gradient[part, pixels] @ unfolded.T

    with _ByThemselves(count):
        for blocks in _unfolded(problem, x, gradients, count):
            _share_out(add, [(part, blocks) for part in _parts(problem.k, count)], count)
    dw[...] = total.reshape(dw.shape)


def _unfolded(problem, x, outputs, count):
    """Unfold the input, `count` blocks at a time, for the outputs (N, K, P Q) of each image.

    Yields
    ------
    list of (output, pixels, unfolded), valid until the next:
    output : (K, P Q) array
        The image's part of `outputs`.
    pixels : slice
        Which of its pixels the block makes.
    unfolded : (C R S, pixels) array
    """
    rows, columns = _block(problem)
    every, buffers = _blocks(problem, x, outputs), []
    while group := list(itertools.islice(every, count)):
        blocks, copies = [], []
        for number, (output, first, block) in enumerate(group):
            # An image under filters of one pixel is unfolded as it lies.
            if not block.flags.c_contiguous:
                if number == len(buffers):
                    buffers.append(np.empty(problem.terms * rows * columns, np.float32))
                unfolded = buffers[number][: block.size].reshape(block.shape)
                parts = _parts(problem.c, math.ceil(count / len(group)))
                copies += [(unfolded[part], block[part]) for part in parts]
                block = unfolded
            block = block.reshape(problem.terms, -1)
            blocks.append((output, slice(first, first + block.shape[1]), block))
        _share_out(lambda pair: np.copyto(*pair), copies, count)
        yield blocks


def _blocks(problem, x, outputs):
    """Yield (output, the first of its pixels that a block makes, (C, R, S, rows, columns) view).

    The block's outputs lie side by side: they are whole rows, or all in one row.
    """
    rows, columns = _block(problem)
    for image, output in zip(x, outputs, strict=True):
        windows = _windows(problem, image)
        for i, j in itertools.product(range(0, problem.p, rows), range(0, problem.q, columns)):
            yield output, i * problem.q + j, windows[..., i : i + rows, j : j + columns]


def _block(problem):
    """Return the rows of the output that a block makes, and how much of one."""
    taps, q = problem.terms, problem.q
    rows = max(1, min(problem.p, _BLOCK // (taps * q)))
    return rows, max(1, min(q, _BLOCK // taps)) if rows == 1 else q


def unfolded_bytes(problem):
    """Return the most bytes of unfolded input that `blas` holds at once."""
    rows, columns = _block(problem)
    blocks = problem.n * math.ceil(problem.p / rows) * math.ceil(problem.q / columns)
    return 4 * problem.terms * rows * columns * min(blocks, _threads_for(problem.macs))


def _threads_for(products):
    """Return on how many threads so many are done: those of BLAS, or one where they are few."""
    return threads() if products >= _LEAST_PRODUCTS else 1


def _parts(size, count):
    """Cut `size` things into `count` slices that are nearly as long, none of them empty."""
    count = min(size, count)
    return [slice(i * size // count, (i + 1) * size // count) for i in range(count)]


class _ByThemselves:
    """A context in which each of several threads multiplies by itself.

    Contexts may overlap: BLAS is given its threads back when the last of them ends.
    """

    _lock, _open, _limit = threading.Lock(), 0, None

    def __init__(self, count):
        self._is_needed = count > 1

    def __enter__(self):
        if self._is_needed:
            with self._lock:
                if _ByThemselves._open == 0:
                    _ByThemselves._limit = limit_threads(1)
                _ByThemselves._open += 1

    def __exit__(self, *_):
        if self._is_needed:
            with self._lock:
                _ByThemselves._open -= 1
                if _ByThemselves._open == 0:
                    _ByThemselves._limit.restore_original_limits()


def _share_out(do, tasks, count):
    """Do the tasks on `count` threads; NumPy and BLAS let others run meanwhile."""
    if count == 1:
        for task in tasks:
            do(task)
    else:
        list(_workers(count).map(do, tasks))


def in_layout(compute):
    """Return `compute`, which knows NCHW alone, for the layout of any problem: by copies."""

    def computed(problem, *arrays):
        if problem.layout == "NCHW":
            compute(problem, *arrays)
            return
        *inputs, output = arrays
        inputs = [
            np.ascontiguousarray(np.moveaxis(a, 3, 1)) if a is not None and a.ndim == 4 else a
            for a in inputs
        ]
        result = np.empty_like(np.moveaxis(output, 3, 1), order="C")
        compute(replace(problem, layout="NCHW"), *inputs, result)
        output[...] = np.moveaxis(result, 1, 3)

    return computed


def in_float32(compute):
    """Return `compute`, which knows float32 alone, for any dtype: its result is rounded once."""

    def computed(problem, *arrays):
        if problem.dtype == "float32":
            compute(problem, *arrays)
            return
        *inputs, output = arrays
        inputs = [a if a is None else a.astype(np.float32) for a in inputs]
        result = np.empty(output.shape, np.float32)
        compute(replace(problem, dtype="float32", precision="fp32"), *inputs, result)
        output[...] = result

    return computed


def _windows(problem, image):
    """Return a (C, R, S, P, Q) view of the padded (C, H, W) image: each tap's pixels."""
    (pad_h, pad_w), (stride_h, stride_w) = problem.padding, problem.stride
    if pad_h or pad_w:
        # By hand: np.pad takes longer to think than to copy an image of a narrow layer.
        inner, height, width = image, problem.h, problem.w
        image = np.zeros((problem.c, height + 2 * pad_h, width + 2 * pad_w), image.dtype)
        image[:, pad_h : pad_h + height, pad_w : pad_w + width] = inner
    channel, row, pixel = image.strides
    return as_strided(
        image,
        (problem.c, problem.r, problem.s, problem.p, problem.q),
        (channel, row, pixel, stride_h * row, stride_w * pixel),
        writeable=False,
    )


@functools.cache
def _workers(count):
    return ThreadPoolExecutor(count, thread_name_prefix="convolve")


@functools.cache
def _blas_libraries():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def threads():
    """Return how many threads BLAS, and so `blas`, runs on; 1 where it does not tell."""
    return max((library.num_threads for library in _blas_libraries().lib_controllers), default=1)


def limit_threads(count):
    """Return a context manager inside which BLAS runs on `count` threads; None leaves it.

    It sets them for all threads of the process, and back to what it found: those who overlap must
    set the same.
    """
    if count is None:
        return contextlib.nullcontext()
    return _blas_libraries().limit(limits=count)


def blas_description():
    """Return which BLAS it is, for records: name, version, what it was tuned for, threads."""
    parts = [
        f"{i['internal_api']} {i['version']} ({i.get('architecture', 'generic')}), "
        f"{i['num_threads']} threads"
        for i in _blas_libraries().info()
    ]
    return "; ".join(parts) or None
