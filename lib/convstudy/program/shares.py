# SPDX-License-Identifier: MIT
"""Who trains on one batch together: how a program of one rank is told what is its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from convstudy.program.fuse import Exchange
from convstudy.program.trace import Parameter, Recorder

# Groups of ranks: those that have other images; that share the layers that are cut; and that have
# the same part of these, and other images.
IMAGES, ROW, COLUMN = "images", "row", "column"


@dataclass(frozen=True)
class Shares:
    """What each of several ranks has, of the images and of the network; alone, all.

    Where layers are cut, a rank has some of their output channels, for the images of its row.

    Attributes
    ----------
    images, row, column : int
        How many ranks the group of that name has: `IMAGES`, `ROW`, `COLUMN`.
    rank, among : int
        This one's number in its row, and among those that have other images.
    axes : dict of str to int
        The parameters that are cut, and along which axis.
    synchronised : bool
        Whether norms take the statistics of all ranks' images, or each of its own.
    """

    images: int = 1
    row: int = 1
    column: int = 1
    rank: int = 0
    among: int = 0
    axes: Mapping = field(default_factory=dict)
    synchronised: bool = True

    @property
    def owners(self):
        """How many of a row have images of their own; 1 where all of them have the same."""
        return self.images // self.column

    def size(self, group):
        """Return how many ranks a group has."""
        return {IMAGES: self.images, ROW: self.row, COLUMN: self.column}[group]

    def group(self, name):
        """Return who have the same of a parameter, and other images."""
        return COLUMN if name in self.axes else IMAGES

    def together(self, name):
        """Return how many ranks' statistics are one, of the norm with this parameter."""
        return self.size(self.group(name)) if self.synchronised else 1

    def shape(self, name, shape):
        """Return the shape of what this rank has of a parameter."""
        axis = self.axes.get(name)
        if axis is None:
            return tuple(shape)
        return *shape[:axis], shape[axis] // self.row, *shape[axis + 1 :]

    def runs(self, layout):
        """Return [(group, run), ...]: all of a layout, and whose ranks each change a part of it.

        Of `ROW` a run is this rank's part already, of parameters that are cut. Of `IMAGES` all
        have its parameters, but each has the sums of gradients of its part alone, as `own` has it.
        Where all have and change the same, the group is None.
        """
        runs = layout.runs(self.axes.__contains__)
        return [(ROW if is_cut else None, run) for is_cut, run in runs]

    def own(self, group, run):
        """Return what of such a run is this rank's."""
        if group != IMAGES:
            return run
        size = (run.stop - run.start) // self.images
        return slice(run.start + self.among * size, run.start + (self.among + 1) * size)

    def recorder(self, n):
        """Return what traces this rank's calls, of `n` images of its own."""
        return _CutRecorder(self, n * self.owners) if self.axes else Recorder()


class _CutRecorder(Recorder):
    """Traces what `parallel.channels.ChannelTape` does, one rank's calls and exchanges.

    Parameters
    ----------
    shares : Shares
    every : int
        Images of the row.
    """

    def __init__(self, shares, every):
        super().__init__()
        self._shares, self._every = shares, every
        self._sides = {}  # of what was joined: the channels of each

    def parameter(self, name, array):
        return Parameter(name, self._shares.shape(name, array.shape))

    def conv2d(self, x, w, *how, **more):
        return super().conv2d(self._for(w, x, w.shape[1]), w, *how, **more)

    def conv_transpose2d(self, x, w, bias):
        x = self._for(w, x, w.shape[0]) if self._is_cut(w) else self._own(x)
        return super().conv_transpose2d(x, w, bias)

    def upsample_bilinear(self, x):
        # Whose images it is to enlarge is known where they are joined. What is small is exchanged.
        return _Small(x)

    def pad_concat(self, skip, x):
        if isinstance(x, _Small):
            is_cut = skip.shape[0] == self._every
            x = super().upsample_bilinear(x.x if is_cut else self._own(x.x))
        joined = super().pad_concat(skip, x)
        self._sides[joined] = skip.shape[1], x.shape[1]
        return joined

    def head(self, x, w, bias):
        if x.shape[1] < w.shape[1]:  # where every layer is cut
            x = self._exchange(Exchange.REPLICATED, x, self._every)
        return super().head(x, w, bias)

    def _is_cut(self, w):
        return w.name in self._shares.axes

    def _for(self, w, x, channels):
        """Return all channels of the row's images, if `w` is of a layer that is cut."""
        if not self._is_cut(w):
            return x
        if x.shape[1] < channels:
            return self._exchange(Exchange.CHANNELS, x, self._every)
        if x.shape[0] < self._every:
            return self._record("exchange", (self._every, *x.shape[1:]), (x,), kind=Exchange.IMAGES)
        return x

    def _own(self, x):
        """Return all channels of this rank's images."""
        if x.shape[0] < self._every:
            return x
        return self._exchange(Exchange.OWN, x, self._every // self._shares.owners)

    def _exchange(self, kind, x, n):
        _, c, h, w = x.shape
        sides, shape = self._sides.get(x, (c,)), (n, c * self._shares.row, h, w)
        return self._record("exchange", shape, (x,), kind=kind, sides=sides)


@dataclass(frozen=True)
class _Small:
    x: object
