# SPDX-License-Identifier: MIT
"""Who does what: ranks that share the images, and ranks that share the layers."""

from convstudy.models.unet import LEVELS
from convstudy.parallel.communicator import Alone
from convstudy.parallel.cuts import split, whole

# The deepest level has half of U-Net's weights and a fiftieth of its activations.
CUT_FROM = 4


def check_grid(ranks, model, cut_from):
    """Raise ValueError unless so many ranks make such a `Grid`."""
    model = whole("Grid", "model", model)
    if ranks % model:
        raise ValueError(
            f"{ranks} ranks cannot share layers by {model}; take a number of ranks that is a "
            f"multiple of {model}"
        )
    if not 0 <= cut_from < LEVELS:
        raise ValueError(f"cut_from={cut_from}: levels are numbered 0 to {LEVELS - 1}")


class Grid:
    """Ranks as a table: a row are those that share each layer, a column those that share none.

    Deep layers are cut by output channels among the ranks of a row, who compute them for the
    images of all of them; higher up each rank has whole layers, and images of its own. So what
    is sent is small on either side: activations where they are few, and gradients of weights
    where these are few (Krizhevsky, 2014). ``model=1`` is data parallel; ``cut_from=0`` cuts
    every layer, and a row then needs no more than one image.

    Parameters
    ----------
    world : Communicator
        All ranks; a row are neighbours.
    model : int
        Ranks in a row.
    cut_from : int
        The level from which layers are cut, from 0 to 4, the deepest.

    Attributes
    ----------
    world, row, column : Communicator
    images : Communicator
        Of ranks that have different images: all, or a column where every layer is cut.

    Raises
    ------
    ValueError
        If the ranks make no such table.

    References
    ----------
    O. Yadan et al., Multi-GPU Training of ConvNets, 2013, arXiv:1312.5853.
    A. Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014,
    arXiv:1404.5997.
    """

    def __init__(self, world, model=1, cut_from=CUT_FROM):
        check_grid(world.size, model, cut_from)
        self.world, self.cut_from = world, cut_from if model > 1 else LEVELS
        self.row = _group(world, model, world.rank // model)
        self.column = _group(world, world.size // model, world.rank % model)
        self.images = self.column if self.cut_from == 0 else world

    def counts(self, batch):
        """Return how many of `batch` images each rank of `images` has.

        Raises
        ------
        ValueError
            If one would have none.
        """
        if batch < self.images.size:
            what = "rows of ranks" if self.cut_from == 0 else "ranks"
            raise ValueError(
                f"a batch of {batch} images is too small for {self.images.size} {what}: each "
                "needs an image; take fewer ranks, or a larger batch"
            )
        return [part.stop - part.start for part in split(batch, self.images.size)]

    def share(self, batch):
        """Return the slice of a batch that this rank has."""
        self.counts(batch)
        return split(batch, self.images.size)[self.images.rank]

    def row_counts(self, batch):
        """Return how many images each rank of this row brings along; of all, they share layers."""
        counts = self.counts(batch)
        if self.cut_from == 0:
            return [counts[self.column.rank]]
        first = self.world.rank - self.row.rank
        return counts[first : first + self.row.size]


def _group(world, size, color):
    """Return the communicator of `size` ranks: a new one where it is neither of all nor of one."""
    if size == world.size:
        return world
    return world.split(color) if size > 1 else Alone()
