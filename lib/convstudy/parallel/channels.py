# SPDX-License-Identifier: MIT
"""Model parallelism: a tape on which deep layers are cut by output channels among ranks.

A rank convolves with its own filters only, and normalises what comes out of them: batch norm,
ReLU and pooling take channel by channel, so nothing is said until the next convolution, which
needs them all. Going back, each rank has a part of the gradient of every input channel, and the
parts are added up: what is a gather forwards is a sum that is scattered backwards.
"""

import itertools

import numpy as np

from convstudy.nn.tape import TapeOps


def cut_axes(network, level):
    """Return {name: axis} of the parameters that are cut, where layers are from `level` down.

    The head never is: it has too few output channels.
    """
    axes = {}
    for block in (*network.encoder, *(up.block for up in network.decoder)):
        if block.level >= level:
            for convolution in block.convolutions:
                axes |= {name: 0 for name, shape in convolution.shapes().items() if shape}
    if not network.bilinear:
        for up in network.decoder:
            if up.block.level >= level:
                axes |= {f"{up.prefix}.weight": 1, f"{up.prefix}.bias": 0}
    return axes


def check_divisible(network, axes, ranks):
    """Raise ValueError unless every layer that is cut has as many channels for each rank."""
    for name, axis in axes.items():
        channels = network.shapes[name][axis]
        if channels % ranks:
            raise ValueError(
                f"{name} has {channels} output channels, which {ranks} ranks cannot share evenly; "
                f"take a number of ranks that divides them, or a network of another width"
            )


def parameter_of(name):
    """Return the parameter that an array of a backend's `state` is of.

    Examples
    --------
    >>> parameter_of("network.inc.bias"), parameter_of("optimizer.mean.inc.bias")
    ('inc.bias', 'inc.bias')
    """
    kind, parameter = name.split(".", 1)
    if kind == "optimizer" and "." in parameter:
        parameter = parameter.split(".", 1)[1]
    return parameter


def own_part(communicator, array, axis):
    """Return the part of an array that this rank has, where all have as much: a view."""
    count = array.shape[axis] // communicator.size
    part = slice(communicator.rank * count, (communicator.rank + 1) * count)
    return array[(slice(None),) * axis + (part,)]


def gather(communicator, part, axis, counts=None):
    """Return the ranks' parts, side by side along an axis.

    Parameters
    ----------
    communicator : Communicator
    part : array
    axis : int
    counts : sequence of int, optional
        How long each rank's part is; as long as this one's, if not given.
    """
    counts = counts or [part.shape[axis]] * communicator.size
    first = np.moveaxis(part, axis, 0)
    sent = np.zeros((max(counts), *first.shape[1:]), part.dtype)
    sent[: len(first)] = first
    every = np.empty((communicator.size, *sent.shape), part.dtype)
    communicator.all_gather(sent, every)
    parts = [np.moveaxis(each[:count], 0, axis) for each, count in zip(every, counts, strict=True)]
    return np.concatenate(parts, axis)


def scatter_sum(communicator, array, axis, counts=None):
    """Return this rank's part of the ranks' sum of an array; the arguments are as of `gather`."""
    counts = counts or [array.shape[axis] // communicator.size] * communicator.size
    first = np.moveaxis(array, axis, 0)
    sent = np.zeros((communicator.size, max(counts), *first.shape[1:]), array.dtype)
    for each, (start, stop) in zip(sent, _bounds(counts), strict=True):
        each[: stop - start] = first[start:stop]
    own = np.empty(sent.shape[1:], array.dtype)
    communicator.reduce_scatter(sent, own)
    return np.ascontiguousarray(np.moveaxis(own[: counts[communicator.rank]], 0, axis))


class ChannelTape(TapeOps):
    """A `TapeOps` for the ranks of a `Grid`.

    Where layers are whole, arrays hold this rank's images; where they are cut, those of the whole
    row, and between two convolutions this rank's channels of them.

    Parameters
    ----------
    network : UNet
    grid : Grid
    total, column_total : callable, optional
        What adds up the statistics of whole layers, and of cut ones, over those who have more
        images; each its own, if not given.
    **options
        As of `TapeOps`.

    Attributes
    ----------
    axes : dict of str to int
        The parameters that are cut, and along which axis.
    counts : sequence of int
        How many images each rank of the row has; set before each pass.
    """

    name = "tape, cut by channels"

    def __init__(self, network, grid, total=None, column_total=None, **options):
        super().__init__(total=total, **options)
        self.axes = cut_axes(network, grid.cut_from)
        check_divisible(network, self.axes, grid.row.size)
        self._row, self._column_total = grid.row, column_total
        self.counts = [1] * grid.row.size

    def parameter(self, name, array):
        if name in self.axes:
            array = np.ascontiguousarray(own_part(self._row, array, self.axes[name]))
        return super().parameter(name, array)

    def total_of(self, weight):
        return self._column_total if self._is_cut(weight) else self.total

    def conv2d(self, x, w, *how, **more):
        if self._is_cut(w):
            x = self._whole(x, w.shape[1])
        return super().conv2d(x, w, *how, **more)

    def conv_transpose2d(self, x, w, bias):
        x = self._whole(x, len(w)) if self._is_cut(w) else self._own_images(x)
        return super().conv_transpose2d(x, w, bias)

    def pad_concat(self, skip, x):
        if len(skip) == self._all:  # both are of cut layers
            return super().pad_concat(self._all_channels(skip), self._all_channels(x))
        return super().pad_concat(skip, self._own_images(x))

    def head(self, x, w, bias):
        if x.shape[1] < w.shape[1]:  # where every layer is cut
            x = self._replicated(x)
        return super().head(x, w, bias)

    @property
    def _all(self):
        """Images of the row."""
        return sum(self.counts)

    def _is_cut(self, parameter):
        return self._names.get(id(parameter)) in self.axes

    def _whole(self, x, channels):
        """Return all channels of the row's images, for a layer of which each rank has a part."""
        if x.shape[1] < channels:
            return self._all_channels(x)
        if len(x) == self._all:
            return x
        counts = self.counts
        return self._record(
            gather(self._row, x, 0, counts),
            lambda dy: [(x, scatter_sum(self._row, dy, 0, counts))],
        )

    def _all_channels(self, x):
        return self._record(
            gather(self._row, x, 1), lambda dy: [(x, scatter_sum(self._row, dy, 1))]
        )

    def _own_images(self, x):
        """Return all channels of this rank's images."""
        if len(x) < self._all:
            return x
        counts = self.counts
        start, stop = _bounds(counts)[self._row.rank]

        def back(dy):
            every = gather(self._row, dy, 0, counts)
            return [(x, np.ascontiguousarray(own_part(self._row, every, 1)))]

        # Who owns an image needs all channels of it alone, and gets those of the others too: for
        # two ranks that is no more than an exchange of what each lacks.
        return self._record(np.ascontiguousarray(gather(self._row, x, 1)[start:stop]), back)

    def _replicated(self, x):
        """Return all channels of the row's images, for what every rank of the row does alike."""
        return self._record(
            gather(self._row, x, 1),
            lambda dy: [(x, np.ascontiguousarray(own_part(self._row, dy, 1)))],
        )


def _bounds(counts):
    """Return (start, stop) of parts that lie side by side."""
    return list(itertools.pairwise(itertools.accumulate(counts, initial=0)))
