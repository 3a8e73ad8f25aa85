# SPDX-License-Identifier: MIT
"""The interface between a network and the machine: one method for each function it calls."""

import time
from abc import ABC, abstractmethod

# Each method's row in Table 1, in the table's order.
FUNCTIONS = {
    "conv2d": "convolution",
    "batch_norm": "batch norm",
    "relu": "ReLU",
    "max_pool2d": "pooling",
    "average_pool2d": "pooling",
    "add": "residual sum",
    "linear": "linear",
    "conv_transpose2d": "up-convolution",
    "upsample_bilinear": "up-convolution",
    "pad_concat": "padding and concatenation",
    "head": "head",
}


class Ops(ABC):
    """One way to execute a network's functions at inference.

    Arrays are NCHW and C-contiguous, of one dtype (float32, but for the reference), and lie where
    `to_device` puts them. The network validates its input once; the methods trust theirs.

    `batch_norm`, `relu` and `add` may overwrite `x` and return it; no other method changes an
    argument, and no method keeps one. So a network passes to these only what it does not need
    again.
    A method may return before its work is done; `synchronise` waits.

    Attributes
    ----------
    name : str
        The execution's label in records, such as "cpu-plain".
    """

    name: str

    @abstractmethod
    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        """Convolve.

        Parameters
        ----------
        x : (N, C, H, W) array
        w : (K, C, R, S) array
        padding : (int, int)
            Zeros on both sides, along H and W.
        stride : (int, int)
        bias : (K,) array, optional

        Returns
        -------
        (N, K, P, Q) array
            P is ``(H + 2 padding - R) // stride + 1``, and Q likewise.
        """

    @abstractmethod
    def batch_norm(self, x, weight, bias, mean, var, eps=1e-5):
        """Return ``(x - mean) / sqrt(var + eps) * weight + bias``, channel by channel.

        Parameters
        ----------
        x : (N, C, H, W) array
            May be overwritten.
        weight, bias, mean, var : (C,) arrays
            The statistics gathered in training, not those of `x`.
        eps : float

        Returns
        -------
        (N, C, H, W) array
        """

    @abstractmethod
    def relu(self, x):
        """Return ``max(x, 0)`` of an array of any shape, which may be overwritten."""

    @abstractmethod
    def max_pool2d(self, x, window=2, stride=2, padding=0):
        """Return the largest pixel of each window.

        Parameters
        ----------
        x : (N, C, H, W) array
        window, stride : int
            Along H and W alike.
        padding : int
            Pixels on every side, none of which is ever the largest; at most half the window.

        Returns
        -------
        (N, C, P, Q) array
            P is ``(H + 2 padding - window) // stride + 1``, and Q likewise: what is left over below
            and right of the last window takes no part.
        """

    @abstractmethod
    def average_pool2d(self, x, size=1):
        """Average over windows that share out the image, however large it is.

        Parameters
        ----------
        x : (N, C, H, W) array
        size : int
            Of the result; 1 averages the whole image.

        Returns
        -------
        (N, C, size, size) array
            Output row ``p`` is the mean of rows ``floor(p H / size)`` to
            ``ceil((p + 1) H / size)``, that one excluded, and columns likewise: windows overlap
            where `size` divides the image unevenly (PyTorch's adaptive pooling).
        """

    @abstractmethod
    def add(self, x, y):
        """Return ``x + y``, of one shape; `x` may be overwritten."""

    @abstractmethod
    def linear(self, x, w, bias):
        """Multiply each image's numbers, in the order in which they lie, with a matrix.

        Parameters
        ----------
        x : (N, ...) array
            Of F numbers an image.
        w : (K, F) array
        bias : (K,) array

        Returns
        -------
        (N, K) array
        """

    @abstractmethod
    def conv_transpose2d(self, x, w, bias):
        """Spread each pixel over 2 x 2 pixels: the transpose of a 2 x 2 convolution at stride 2.

        Parameters
        ----------
        x : (N, C, H, W) array
        w : (C, K, 2, 2) array
        bias : (K,) array

        Returns
        -------
        (N, K, 2 H, 2 W) array
            ``y[n, k, 2 h + r, 2 w + s] = bias[k] + sum over c of x[n, c, h, w] w[c, k, r, s]``.
        """

    @abstractmethod
    def upsample_bilinear(self, x):
        """Interpolate to twice the size, with the corner pixels kept.

        Parameters
        ----------
        x : (N, C, H, W) array

        Returns
        -------
        (N, C, 2 H, 2 W) array
            Output pixel ``i`` along H lies at ``i (H - 1) / (2 H - 1)`` of the input, and along W
            likewise (PyTorch's ``align_corners=True``).
        """

    @abstractmethod
    def pad_concat(self, skip, x):
        """Pad `x` with zeros to the size of `skip`, and put its channels behind those of `skip`.

        Parameters
        ----------
        skip : (N, C, H, W) array
        x : (N, D, H', W') array
            Of ``H' <= H`` and ``W' <= W``; half of what lacks, rounded down, goes above and left.

        Returns
        -------
        (N, C + D, H, W) array
        """

    @abstractmethod
    def head(self, x, w, bias):
        """Convolve with filters of one pixel, and add a bias: the network's last layer.

        Parameters
        ----------
        x : (N, C, H, W) array
        w : (K, C, 1, 1) array
        bias : (K,) array

        Returns
        -------
        (N, K, H, W) array
        """

    def to_device(self, array):
        """Return a NumPy array as the methods take it: a network's input, or a parameter."""
        return array

    def parameter(self, name, array):
        """Return a network's parameter as the methods take it; `name` is the state dict's."""
        return self.to_device(array)

    def to_host(self, array):
        """Return what a method gave as a NumPy array, finished."""
        return array

    def synchronise(self):  # noqa: B027 - what computes at once has nothing to wait for
        """Wait until all that was asked for is done."""


def pooled_shape(shape, window=2, stride=2, padding=0):
    """Return the shape that `Ops.max_pool2d` leaves of one of (N, C, H, W).

    Raises
    ------
    ValueError
        Where no window fits, or one could lie on padding alone.
    """
    if not (window >= 1 and stride >= 1 and 0 <= 2 * padding <= window):
        raise ValueError(
            f"max_pool2d: window={window}, stride={stride}, padding={padding}; the first two must "
            f"be at least 1, the padding at most half the window"
        )
    n, c, h, w = shape
    if min(h, w) + 2 * padding < window:
        raise ValueError(
            f"max_pool2d: an image of {h} x {w} has no window of {window} x {window}; pass a larger"
        )
    return n, c, *((size + 2 * padding - window) // stride + 1 for size in (h, w))


class Timed:
    """Another `Ops`, with the seconds of each call kept by function.

    Each call waits for the device before and after, so a whole network takes longer than it does
    without the stopwatch; time that one with the bare `Ops`.

    Parameters
    ----------
    ops : Ops
    clock : callable
        Returns seconds.

    Attributes
    ----------
    seconds : dict of str to list of float
        For each row of Table 1, the seconds of each call, in the order of the calls.
    """

    def __init__(self, ops, clock=time.perf_counter):
        self._ops = ops
        self._clock = clock
        self.seconds = {function: [] for function in FUNCTIONS.values()}
        for method, function in FUNCTIONS.items():
            setattr(self, method, self._timed(getattr(ops, method), self.seconds[function]))

    def __getattr__(self, name):
        return getattr(self._ops, name)

    def _timed(self, method, seconds):
        def call(*arguments, **named):
            self._ops.synchronise()
            start = self._clock()
            result = method(*arguments, **named)
            self._ops.synchronise()
            seconds.append(self._clock() - start)
            return result

        return call
