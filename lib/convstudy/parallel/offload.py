# SPDX-License-Identifier: MIT
"""The paper's data parallelism: each convolution by itself in chunks, all else on the CPU."""

import numpy as np

from convstudy.conv.algorithm import get_algorithm
from convstudy.conv.api import convolve
from convstudy.device import CPU
from convstudy.nn.cuda import ConvolutionElsewhere, check_choice, conv_problem
from convstudy.parallel.cuts import height_with_halo, rows_with_halo, split, whole
from convstudy.parallel.pipeline import Chunk, Pipeline
from convstudy.problem import ConvProblem


class ParallelConv:
    """One convolution in chunks over GPUs and streams, from host memory to host memory.

    The result does not depend on the cut, to the bit, with any kernel (BLAS adds up otherwise
    for other sizes). All transfers pass through page-locked memory; each device gets the filters
    once a call, before its first chunk.

    Parameters
    ----------
    devices : sequence of Device or int
        An int is a GPU's number.
    streams : int
        CUDA streams of each device.
    chunks : int, optional
        One for each stream if not given, and never more than there are images, or rows.
    algorithm : str
        An id of `ALGORITHMS` that runs on the devices, or "auto".
    cut : {"auto", "images", "rows"}
        By "rows" a chunk is some rows of the output of every image, and its input has the rows
        that these need besides (the halo). "auto" cuts rows where images are too few.
    weights : {"each call", "once"}
        As in `OffloadOps`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `ChunkedForward`, and where a choice is unknown.

    Examples
    --------
    >>> from convstudy.device import EMULATOR
    >>> x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    >>> ParallelConv([EMULATOR], chunks=2).run(x, w)[0, 0]
    array([[9., 9.],
           [9., 9.]], dtype=float32)
    """

    def __init__(
        self, devices, streams=2, chunks=None, algorithm="auto", cut="auto", weights="each call"
    ):
        check_choice("ParallelConv", "cut", cut, ("auto", "images", "rows"))
        check_choice("ParallelConv", "weights", weights, ("each call", "once"))
        if algorithm != "auto":
            get_algorithm(algorithm)
        self.algorithm, self.cut, self.weights = algorithm, cut, weights
        self._pipeline = Pipeline("ParallelConv", devices, streams)
        lanes = self._pipeline.lanes
        self.chunks = len(lanes) if chunks is None else whole("ParallelConv", "chunks", chunks)
        self._kept = {}

    def run(self, x, w, padding=0, record=False, stride=1, bias=None):
        """Return the convolution of `x` with `w`.

        Parameters
        ----------
        x : (N, C, H, W) float32 NumPy array, finite
        w : (K, C, R, S) float32 NumPy array, finite
        padding, stride : int or (int, int)
        bias : (K,) float32 NumPy array, optional
        record : bool
            Whether to keep the timeline. Copies of filters are not in it.

        Returns
        -------
        (N, K, P, Q) float32 NumPy array
        """
        given = {"x": x, "w": w} | ({} if bias is None else {"bias": bias})
        for name, array in given.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"ParallelConv: {name} must be a NumPy array, got {type(array).__name__}"
                )
        problem = ConvProblem.of(x, w, stride, padding)
        if bias is not None and (bias.shape != (problem.k,) or bias.dtype != x.dtype):
            raise ValueError(
                f"ParallelConv: bias is {bias.dtype} of shape {bias.shape}, expected {x.dtype} of "
                f"shape {(problem.k,)}"
            )
        for name, array in given.items():
            if not np.isfinite(array).all():
                raise ValueError(f"ParallelConv: {name} holds NaN or infinity")
        return self.convolve(x, w, problem.padding, problem.stride, bias, record)

    def convolve(self, x, w, padding, stride=(1, 1), bias=None, record=False):
        """Do what `run` does, trusting its arguments."""
        problem = conv_problem(x.shape, w.shape, padding, stride)
        by_rows = self.cut == "rows" or (self.cut == "auto" and len(x) < self.chunks)
        prepare, weights = self._weights(w, bias)
        cut = self._cut_rows if by_rows else self._cut_images
        chunks, finish = cut(problem, x, weights)
        self._pipeline.run(chunks, prepare, record)
        return finish()

    def timeline(self):
        """Return the events of the last recorded run; see `Pipeline.timeline`."""
        return self._pipeline.timeline()

    @property
    def uncertainty_s(self):
        """How far the times of two GPUs may be shifted against each other, in seconds."""
        return self._pipeline.uncertainty_s

    def _cut_images(self, problem, x, weights):
        y = self._host_empty(problem.y_shape)
        compute = self._compute(problem, problem.padding, weights)
        chunks = [
            Chunk(x[part].shape, _copy_of(x[part]), compute, y[part])
            for part in split(problem.n, self.chunks)
        ]
        return chunks, lambda: y

    def _cut_rows(self, problem, x, weights):
        # The rows above and below come with the chunk, those of the padding as zeros.
        compute = self._compute(problem, (0, problem.padding[1]), weights)
        parts = split(problem.p, self.chunks)
        chunks = []
        for rows in parts:
            count = rows.stop - rows.start
            height = height_with_halo(count, problem.r, problem.stride[0])
            x_shape = (problem.n, problem.c, height, problem.w)
            y = self._host_empty((problem.n, problem.k, count, problem.q))
            chunks.append(Chunk(x_shape, _rows_of(x, rows, problem), compute, y))

        def finish():
            # Rows of all channels do not lie side by side in the result, so they are gathered.
            return np.concatenate([chunk.y for chunk in chunks], axis=2)

        return chunks, finish

    def _compute(self, whole_problem, padding, weights):
        def compute(lane, x):
            problem = conv_problem(x.shape, whole_problem.w_shape, padding, whole_problem.stride)
            y = lane.empty(problem.y_shape)
            device = CPU if lane.device.kind == "cpu" else lane.device
            return convolve(problem, x, *weights(lane), y, self.algorithm, device)

        return compute

    def _weights(self, w, bias):
        """Return what brings filters and bias to a lane's device, and what finds them there."""
        kept = self._kept if self.weights == "once" else {}
        given = w, bias
        arrived = {}

        def prepare(lane):
            new = [a for a in given if a is not None and (id(a), lane.device) not in kept]
            for array in new:
                staged = lane.host_empty(array.shape)
                np.copyto(staged, array)
                on_device = lane.empty(array.shape)
                lane.copy(on_device, staged)
                # The array is kept beside its copy, so that no other can come to have its id.
                kept[id(array), lane.device] = array, on_device
            if new:
                arrived[lane.device] = lane.mark()
            elif lane.device in arrived:
                lane.wait(arrived[lane.device])

        def find(lane):
            return [a if a is None else kept[id(a), lane.device][1] for a in given]

        return prepare, find

    def _host_empty(self, shape):
        lane = self._pipeline.lanes[0]
        with lane.active():
            return lane.host_empty(shape)


class DataParallelOps(ConvolutionElsewhere):
    """The paper's way on several GPUs: each convolution cut into chunks, all else on the CPU.

    Parameters
    ----------
    devices, streams, chunks, algorithm, cut, weights
        As in `ParallelConv`.
    cpu : Ops, optional
        As in `OffloadOps`.
    """

    def __init__(
        self,
        devices,
        streams=2,
        chunks=None,
        algorithm="auto",
        cpu=None,
        cut="auto",
        weights="each call",
    ):
        self.convolution = ParallelConv(devices, streams, chunks, algorithm, cut, weights)
        super().__init__(cpu)

    def conv2d(self, x, w, padding=(0, 0), stride=(1, 1), bias=None):
        return self.convolution.convolve(x, w, padding, stride, bias)


def _copy_of(part):
    return lambda staged: np.copyto(staged, part)


def _rows_of(x, rows, problem):
    return lambda staged: rows_with_halo(
        x, rows, problem.r, problem.padding[0], staged, problem.stride[0]
    )
