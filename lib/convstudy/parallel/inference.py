# SPDX-License-Identifier: MIT
"""A network at inference as one program, on every stream of every GPU: images in chunks."""

import numpy as np

from convstudy.parallel.chunks import copy_of
from convstudy.parallel.cuts import split, whole
from convstudy.parallel.pipeline import Chunk, Pipeline
from convstudy.program.inference import Inference


class ChunkedInference:
    """What `program.Inference` computes, in chunks over GPUs and streams.

    Each stream has a program of its own, and with it a CUDA graph; while one computes, the next
    chunk comes in through page-locked memory, and the last one's scores go out.

    Parameters
    ----------
    network : UNet
        Its parameters are taken as they are now.
    devices, streams, chunks
        As of `ChunkedForward`.
    precision : {"fp32", "tf32", "bf16"}
        As of `Inference`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `ChunkedForward`.
    """

    def __init__(self, network, devices, streams=2, chunks=None, precision="bf16"):
        self.network, self.precision = network, precision
        self._pipeline = Pipeline("ChunkedInference", devices, streams)
        lanes = self._pipeline.lanes
        self.chunks = len(lanes) if chunks is None else whole("ChunkedInference", "chunks", chunks)
        self._programs = {}

    def run(self, x, record=False):
        """Return the scores of images on the host.

        Parameters
        ----------
        x : (N, C, H, W) float32 NumPy array
        record : bool
            Whether to keep the timeline.

        Returns
        -------
        (N, n_classes, H, W) float32 NumPy array
            A view of page-locked memory in which the classes of a pixel lie side by side.
        """
        n, classes, h, w = self.network.check(x)
        lanes = self._pipeline.lanes
        parts = split(len(x), self.chunks)
        # Made before anything is under way: a program is captured when it first runs.
        for number, part in enumerate(parts):
            self._program(lanes[number % len(lanes)], x[part].shape)
        with lanes[0].active():
            y = lanes[0].host_empty((n, h, w, classes))
        chunks = [Chunk(x[part].shape, copy_of(x[part]), self._compute, y[part]) for part in parts]
        self._pipeline.run(chunks, record=record)
        return np.moveaxis(y, 3, 1)

    @property
    def programs(self):
        """The programs that were made so far: one for each stream and shape of a chunk."""
        return tuple(made.program for made in self._programs.values())

    def timeline(self):
        """Return the events of the last recorded run; see `Pipeline.timeline`."""
        return self._pipeline.timeline()

    def _compute(self, lane, x):
        return self._program(lane, x.shape).run_on(x)

    def _program(self, lane, shape):
        if (lane, shape) not in self._programs:
            with lane.active():
                made = Inference(self.network, shape, self.precision, lane.device)
                made.run()
                lane.synchronise()
            self._programs[lane, shape] = made
        return self._programs[lane, shape]
