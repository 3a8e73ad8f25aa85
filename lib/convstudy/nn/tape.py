# SPDX-License-Identifier: MIT
"""A tape: an execution on the CPU that remembers what it ran, and takes gradients backwards."""

from collections import Counter

import numpy as np

from convstudy.nn import gradients
from convstudy.nn.images import ImageOps
from convstudy.nn.ops import Ops


class TapeOps(Ops):
    """What trains a network on the CPU: another execution, recorded.

    A network's `apply` writes the tape; `backward` reads it from its end and wipes it. The tape's
    parameters are its own copies, which an optimiser changes in place.

    Parameters
    ----------
    ops : Ops, optional
        What computes: `ImageOps()` if not given, or `ReferenceOps()` in float64.
    training : bool
        Batch norm takes the statistics of its input, and its running statistics follow; else it
        takes the running statistics, which stay. It may be changed between passes.
    momentum : float
        How far running statistics go towards those of a batch.
    total : callable, optional
        Where others have more images of the batch: as in `gradients.batch_norm_everywhere`.
        Batch norm is then over the whole of it.

    Attributes
    ----------
    recording : bool
        Whether calls are written down; it may be changed between passes, too.
    parameters : dict of str to array
        By name, as the network brought them; its running statistics too.

    Notes
    -----
    As PyTorch has it, a batch is normalised by its biased variance, and the running variance
    follows the unbiased one. Counting batches (``num_batches_tracked``) is left to the caller.
    """

    name = "tape"

    def __init__(self, ops=None, training=True, momentum=0.1, total=None):
        self._ops = ops or ImageOps()
        self.training, self.momentum, self.total = training, momentum, total
        self.recording = True
        self.parameters = {}
        # An array is known by its `id`. None is reused: the tape holds every one that it knows.
        self._names = {}
        self._tape = []
        self._made = set()

    def to_device(self, array):
        return self._ops.to_device(array)

    def parameter(self, name, array):
        placed = np.array(self._ops.to_device(array))
        self._names.pop(id(self.parameters.get(name)), None)
        self._names[id(placed)] = name
        self.parameters[name] = placed
        return placed

    def backward(self, dy, ready=None):
        """Return the gradient of every parameter that was used, by name; wipe the tape.

        Parameters
        ----------
        dy : array
            The gradient of what the last call returned.
        ready : callable, optional
            ``ready(name, gradient)`` is called as soon as a parameter's gradient is whole, before
            the next one is begun.

        Raises
        ------
        RuntimeError
            If nothing was recorded since the last time.
        """
        if not self._tape:
            raise RuntimeError("TapeOps.backward: the tape is empty; run the network first")
        pending, by_name = {id(self._tape[-1][0]): dy}, {}
        uses = Counter(name for *_, names in self._tape for name in names)
        while self._tape:
            output, back, names = self._tape.pop()
            gradient = pending.pop(id(output), None)
            # Where there is none, nothing that was asked for depends on the output.
            for array, share in () if gradient is None else back(gradient):
                name = self._names.get(id(array))
                found, key = (pending, id(array)) if name is None else (by_name, name)
                found[key] = found[key] + share if key in found else share
                if ready and uses[name] == 1:
                    ready(name, by_name[name])
            uses.subtract(names)
        self._made.clear()
        return by_name

    def forget(self):
        """Wipe the tape without reading it."""
        self._tape.clear()
        self._made.clear()

    def _record(self, output, back, *parameters):
        """Write a call down: ``back(dy)`` yields each of its inputs with the input's gradient."""
        if self.recording:
            names = [self._names[id(each)] for each in parameters if id(each) in self._names]
            self._tape.append((output, back, names))
            self._made.add(id(output))
        return output

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        # An image's gradient is not asked for, and is as much work as the convolution.
        inner = id(x) in self._made

        def back(dy):
            yield w, self._ops.conv2d_wgrad(x, dy, w.shape[2:], padding, stride)
            if bias is not None:
                yield bias, gradients.bias_grad(dy)
            if inner:
                yield x, self._ops.conv2d_dgrad(dy, w, x.shape[2:], padding, stride)

        used = (w,) if bias is None else (w, bias)
        return self._record(self._ops.conv2d(x, w, padding, stride, bias), back, *used)

    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        training, total = self.training, self.total_of(weight)
        if training:
            y, *statistics, count = gradients.batch_norm_everywhere(x, weight, bias, eps, total)
            self._follow(mean, var, *statistics, count)
        else:
            statistics = mean, var
            y = self._ops.batch_norm(np.array(x), weight, bias, *statistics, eps)

        def back(dy):
            return zip(
                (x, weight, bias),
                gradients.batch_norm_dgrad(dy, x, weight, *statistics, eps, training, total),
                strict=True,
            )

        return self._record(y, back, weight, bias)

    def total_of(self, weight):
        """Return what adds up the sums of the batch norm of this weight, or None."""
        return self.total

    def _follow(self, mean, var, batch_mean, batch_var, count):
        """Let the running statistics go some way towards those of a batch."""
        if count < 2:
            raise ValueError(
                "TapeOps: batch norm has one pixel a channel to take a variance of; "
                "train on more images at once, or on larger ones"
            )
        mean += self.momentum * (batch_mean - mean)
        var += self.momentum * (batch_var * (count / (count - 1)) - var)

    def relu(self, x):
        # It may work in place: the result alone says where the gradient passes.
        y = self._ops.relu(x)
        return self._record(y, lambda dy: [(x, gradients.relu_dgrad(dy, y))])

    def max_pool2d(self, x, window=2, stride=2, padding=0):
        windows = window, stride, padding
        y = self._ops.max_pool2d(x, *windows)
        return self._record(y, lambda dy: [(x, gradients.max_pool2d_dgrad(dy, x, *windows))])

    def average_pool2d(self, x, size=1):
        y = self._ops.average_pool2d(x, size)
        return self._record(y, lambda dy: [(x, gradients.average_pool2d_dgrad(dy, x.shape[2:]))])

    def add(self, x, y):
        # It may work in place, as `relu` may: neither gradient asks for the numbers.
        return self._record(self._ops.add(x, y), lambda dy: [(x, dy), (y, dy)])

    def linear(self, x, w, bias):
        def back(dy):
            dw, dbias = gradients.linear_wgrad(x, dy)
            return (w, dw), (bias, dbias), (x, gradients.linear_dgrad(dy, w, x.shape))

        return self._record(self._ops.linear(x, w, bias), back, w, bias)

    def conv_transpose2d(self, x, w, bias):
        def back(dy):
            dw, dbias = gradients.conv_transpose2d_wgrad(x, dy)
            return (w, dw), (bias, dbias), (x, gradients.conv_transpose2d_dgrad(dy, w))

        return self._record(self._ops.conv_transpose2d(x, w, bias), back, w, bias)

    def upsample_bilinear(self, x):
        y = self._ops.upsample_bilinear(x)
        return self._record(y, lambda dy: [(x, gradients.upsample_bilinear_dgrad(dy))])

    def pad_concat(self, skip, x):
        def back(dy):
            dskip, dx = gradients.pad_concat_dgrad(dy, skip.shape, x.shape)
            return (skip, dskip), (x, dx)

        return self._record(self._ops.pad_concat(skip, x), back)

    def head(self, x, w, bias):
        def back(dy):
            dw, dbias = gradients.head_wgrad(x, dy)
            return (w, dw), (bias, dbias), (x, gradients.head_dgrad(dy, w))

        return self._record(self._ops.head(x, w, bias), back, w, bias)
