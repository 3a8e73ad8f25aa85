# SPDX-License-Identifier: MIT
"""Batches on the CPU: convolutions and their gradients on several images at once."""

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from convstudy.conv import cpu
from convstudy.nn.blas import BlasOps
from convstudy.problem import ConvProblem

# A batch is cut into as many parts on every machine, so that its cores do not show in the sums.
_PARTS = 4


class ImageOps(BlasOps):
    """`BlasOps`, but each thread has some of the images, and BLAS no threads beside.

    On batches of small images that is faster than to have BLAS cut every product. And BLAS's
    threads wait for each other busily: where other processes want the cores too, a step on two of
    them can take ten times as long.
    """

    name = "cpu-blas, by images"

    def __init__(self):
        super().__init__(threads=1)

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        problem = ConvProblem.of(x, w, stride, padding)
        y = np.empty(problem.y_shape, np.float32)
        self._each(problem, lambda own, images: cpu.blas(own, x[images], w, bias, y[images]))
        return y

    def conv2d_dgrad(self, dy, w, size, padding=(0, 0), stride=(1, 1)):
        """Return the gradient of a convolution's input, of height and width `size`."""
        dx = np.empty((len(dy), w.shape[1], *size), np.float32)
        problem = ConvProblem.of(dx, w, stride, padding)
        self._each(problem, lambda own, images: cpu.dgrad(own, dy[images], w, dx[images]))
        return dx

    def conv2d_wgrad(self, x, dy, size, padding=(0, 0), stride=(1, 1)):
        """Return the gradient of a convolution's filters, of height and width `size`."""
        shape = (dy.shape[1], x.shape[1], *size)
        problem = ConvProblem(*x.shape, shape[0], *size, stride, padding)

        def of_some(own, images):
            dw = np.empty(shape, np.float32)
            cpu.wgrad(own, x[images], dy[images], dw)
            return dw

        return functools.reduce(np.add, self._each(problem, of_some))

    def _each(self, problem, compute):
        """Call ``compute(their problem, slice)`` for the parts of a batch; return the results."""
        bounds = np.linspace(0, problem.n, min(_PARTS, problem.n) + 1).astype(int).tolist()
        parts = [slice(*pair) for pair in itertools.pairwise(bounds)]

        def quietly(part):
            # A thread of the pool does not know what its caller wants to hear of.
            with np.errstate(**heard):
                return compute(problem.with_batch(part.stop - part.start), part)

        heard = np.geterr()
        with cpu.limit_threads(1):
            return list(_pool().map(quietly, parts))


@functools.cache
def _pool():
    return ThreadPoolExecutor(min(_PARTS, os.cpu_count() or 1), "convstudy-images")
