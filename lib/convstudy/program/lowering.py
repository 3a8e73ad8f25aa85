# SPDX-License-Identifier: MIT
"""From fused operations to launches: what inference and training share."""

import numpy as np

from convstudy.conv.algorithm import choose, get_algorithm, plan
from convstudy.conv.epilogue import PLAIN, Epilogue, Scatter
from convstudy.nn import add_nhwc, images_nhwc, pool_nhwc, upsample_nhwc
from convstudy.problem import BFLOAT16, ConvProblem
from convstudy.program import fuse
from convstudy.program.program import Builder
from convstudy.program.trace import trace

PRECISIONS = ("fp32", "tf32", "bf16")


def least_channels(precision):
    """Return of how many channels, or a multiple, what a transposed convolution writes has to be.

    Those are the numbers of a vector of 16 bytes.
    """
    return 8 if precision == "bf16" else 4


class Lowering:
    """A network's operations for batches of one shape, where values lie, and what is launched.

    Parameters
    ----------
    network : Network
    shape : (N, C, H, W)
        Of the images.
    precision : {"fp32", "tf32", "bf16"}
        How exact products are at least. bf16: values between layers are bf16, too.
    device : Device
        A GPU, or the emulator.
    keeps_filters : bool
        Whether no run changes the filters that convolutions forward are given.
    recorder : Recorder, optional
        As of `trace`.

    Attributes
    ----------
    images : Buffer
        Where a batch is put before a run, (N, C, H, W) float32.
    lies : dict of Value to Tensor
    """

    def __init__(self, network, shape, precision, device, keeps_filters=False, recorder=None):
        if precision not in PRECISIONS:
            raise ValueError(
                f"no precision {precision!r}; choose {' or '.join(map(repr, PRECISIONS))}"
            )
        self.precision, self.device = precision, device
        self._constant = (1,) if keeps_filters else ()
        self.is_bf16 = precision == "bf16"
        self.dtype = BFLOAT16 if self.is_bf16 else np.dtype(np.float32)
        self.trace = trace(network, shape, recorder)
        self.operations = fuse.fuse(self.trace)
        self._check_vectors()
        self.builder = Builder(device)
        self.lies = fuse.homes(self.operations, self.trace, self.builder, self.dtype)
        self.images = self.builder.buffer(np.prod(shape), kept=True)
        first = self.lies[self.trace.input]
        launch = images_nhwc.launch_planes(first.shape, self.dtype.name)
        self.builder.run(launch, self.images, first)

    def _check_vectors(self):
        """Raise ValueError unless transposed convolutions write whole vectors."""
        least = least_channels(self.precision)
        for op in self.operations:
            if isinstance(op, fuse.Enlargement) and op.w is not None and op.w.shape[1] % least:
                raise ValueError(
                    f"{op.w.name} has {op.w.shape[1]} output channels, and a program in "
                    f"{self.precision} takes multiples of {least}; take such a width, bilinear "
                    f"upsampling, or execution on the CPU"
                )

    def problem(self, shape, k, taps, **options):
        """Return the `ConvProblem` of an NHWC tensor's shape and `k` filters of `taps`."""
        n, h, w, c = shape
        return ConvProblem(
            *(n, c, h, w, k, *taps),
            dtype=self.dtype.name,
            layout="NHWC",
            precision=self.precision,
            **options,
        )

    def convolve(self, which, problem, *arrays, epilogue=PLAIN):
        """Launch a pass of a convolution, by the algorithm that suits it best."""
        name = choose(problem, self.device, which, epilogue)
        constant = self._constant if which == "fprop" else ()
        launch = plan(name, problem, self.device, epilogue=epilogue)
        self.builder.run(launch, *arrays, constant=constant)

    def convolve_and_add(self, problem, x, filters, bias, residual, y, relu):
        """Launch a convolution and a sum with another tensor, as one where that loses nothing.

        It is one where the algorithm that suits the convolution by itself can add.
        """
        fused = Epilogue(relu=relu, residual=True)
        best = get_algorithm(choose(problem, self.device))
        are_whole = residual.is_whole and y.is_whole
        if are_whole and best.supports(problem, self.device, fused)[0]:
            launch = plan(best.id, problem, self.device, epilogue=fused)
            self.builder.run(launch, x, filters, bias, y, residual, constant=self._constant)
            return
        epilogue = Epilogue(pitch=None if y.is_whole else y.pitch)
        self.convolve("fprop", problem, x, filters, bias, y, epilogue=epilogue)
        self.add(y, residual, y, relu)

    def enlarge(self, op, filters, bias):
        """Launch a transposed convolution, filters in the order (r, s, k, c), or interpolation."""
        x, y = self.lies[op.x], self.lies[op.y]
        if op.w is None:
            whole, corner = self._around(op)
            launch = upsample_nhwc.launch_upsample(
                *(x.shape, self.dtype.name, whole.shape[1:3], corner),
                pitch_x=x.pitch,
                pitch_y=whole.pitch,
            )
            self.builder.run(launch, x, whole)
            return
        problem = self.problem(x.shape, 4 * y.shape[3], (1, 1))
        image, line, pitch = y.strides
        epilogue = Epilogue(pitch=pitch, scatter=Scatter(line, image))
        self.convolve("fprop", problem, x, filters, bias, y, epilogue=epilogue)

    def _around(self, op):
        """Return the channels of a concatenation that `op` fills, frame and all, and its corner."""
        for other in self.operations:
            if isinstance(other, fuse.Concatenation) and other.x is op.y:
                whole, first = self.lies[other.y], other.skip.shape[1]
                return whole.part((first, other.x.shape[1])), other.corner
        return self.lies[op.y], (0, 0)

    def pool(self, x, y, window=2, stride=2, padding=0, winners=None):
        """Launch pooling of one tensor to another; a gradient will want the winners."""
        sides = ((size, size) for size in (window, stride, padding))
        launch = pool_nhwc.launch_max_pool(
            x.shape, self.dtype.name, *sides, pitch_x=x.pitch, pitch_y=y.pitch
        )
        self.builder.run(launch, x, y, winners)

    def add(self, x, other, y, relu=False):
        """Launch a sum of two tensors; y may be one of them."""
        self.builder.run(add_nhwc.launch_add(y.shape, self.dtype.name, relu), x, other, y)

    def average(self, op):
        """Launch the averaging of windows that share out the image."""
        x, y = self.lies[op.x], self.lies[op.y]
        if op.size == 1:
            launch = pool_nhwc.launch_average_pool(x.shape, self.dtype.name)
        else:
            launch = pool_nhwc.launch_average_windows(x.shape, self.dtype.name, op.size)
        self.builder.run(launch, x, y)

    def multiply(self, op, filters, bias):
        """Launch a linear layer: a convolution of one pixel that has all numbers of an image."""
        x, y = self.lies[op.x], self.lies[op.y]
        epilogue = Epilogue(relu=op.relu)
        self.convolve("fprop", self.linear(op), x, filters, bias, y, epilogue=epilogue)

    def linear(self, op):
        """Return the `ConvProblem` that a linear layer is."""
        n = op.x.shape[0]
        return self.problem((n, 1, 1, op.w.shape[1]), op.w.shape[0], (1, 1))
