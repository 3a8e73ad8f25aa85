# SPDX-License-Identifier: MIT
"""A whole network, the batch cut by images: every GPU holds the network and takes chunks."""

import numpy as np

from convstudy.nn.cuda import ResidentOps
from convstudy.parallel.cuts import split, whole
from convstudy.parallel.pipeline import Chunk, Pipeline


class ChunkedForward:
    """A network's forward pass in chunks over GPUs and streams.

    The result does not depend on the cut, to the bit: an image's sums are added in one order
    whatever else is in its chunk. The first run of a shape compiles and allocates; later ones
    find everything in its place.

    Parameters
    ----------
    network : Network
        Its parameters go to each device once, at the beginning.
    devices : sequence of Device or int
        An int is a GPU's number.
    streams : int
        CUDA streams of each device. The copies of one overlap with the computing of another.
    chunks : int, optional
        Chunks of a batch; one for each stream if not given, and never more than images.
    algorithm : str
        The convolutions' kernel, or "auto".
    ops : callable, optional
        ``ops(device)`` returns the `Ops` that executes on `device`, in place of
        ``ResidentOps(algorithm, device)``: so the same schedule runs on a CPU.

    Raises
    ------
    TypeError, ValueError
        Where there are no devices, one is named twice, or a number is below 1.
    RuntimeError
        Where a GPU is asked for that is not there.

    Examples
    --------
    >>> from convstudy.device import CPU
    >>> from convstudy.models.unet import UNet
    >>> from convstudy.nn.blas import BlasOps
    >>> network = UNet.initialised(seed=0)
    >>> forward = ChunkedForward(network, [CPU], chunks=2, ops=lambda device: BlasOps())
    >>> forward.run(np.zeros((3, 3, 16, 16), np.float32), record=True).shape
    (3, 2, 16, 16)
    >>> [event["what"] for event in forward.timeline()][:3]
    ['copy in', 'compute', 'copy out']
    """

    def __init__(self, network, devices, streams=2, chunks=None, algorithm="auto", ops=None):
        self.network = network
        self._pipeline = Pipeline("ChunkedForward", devices, streams)
        lanes = self._pipeline.lanes
        self.chunks = len(lanes) if chunks is None else whole("ChunkedForward", "chunks", chunks)
        make = ops or (lambda device: ResidentOps(algorithm, device))
        self._ops = {device: make(device) for device in self._pipeline.devices}
        for each in self._ops.values():
            network.place(each)
            each.synchronise()

    def run(self, x, record=False):
        """Return the network's result for a batch on the host.

        Parameters
        ----------
        x : (N, C, H, W) float32 NumPy array
            As the network's `forward` takes it. Its chunks are copied through page-locked memory.
        record : bool
            Whether to keep the timeline.

        Returns
        -------
        float32 NumPy array
            As its `forward` gives it. In page-locked memory, where there is a GPU.
        """
        y_shape = self.network.check(x)
        with self._pipeline.lanes[0].active():
            y = self._pipeline.lanes[0].host_empty(y_shape)
        chunks = [
            Chunk(x[part].shape, copy_of(x[part]), self._compute, y[part])
            for part in split(len(x), self.chunks)
        ]
        self._pipeline.run(chunks, record=record)
        return y

    def timeline(self):
        """Return the events of the last recorded run; see `Pipeline.timeline`."""
        return self._pipeline.timeline()

    @property
    def uncertainty_s(self):
        """How far the times of two GPUs may be shifted against each other, in seconds."""
        return self._pipeline.uncertainty_s

    def _compute(self, lane, x):
        return self.network.apply(x, self._ops[lane.device])


def copy_of(part):
    """Return what writes a part of a batch into page-locked memory."""
    return lambda staged: np.copyto(staged, part)
